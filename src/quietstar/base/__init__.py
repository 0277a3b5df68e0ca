"""The base model: loading, checks, forward passes, adapters, and its vocabulary a few states at a time."""
