"""Serves a thinking model over HTTP with OpenAI's API, and returns the hidden thoughts with the text."""
