"""Use of a trained model by commands: loading it, how it thinks, and how it chooses the tokens of its text."""
