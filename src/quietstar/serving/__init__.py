"""A thinking model over HTTP, as OpenAI's clients speak it, with hidden thoughts beside the text."""
