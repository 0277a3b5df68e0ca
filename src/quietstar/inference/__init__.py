"""Use a trained model from a command: which, where, how it thinks, and how tokens of its text are chosen."""
