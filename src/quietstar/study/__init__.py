"""Do thoughts pay? Arms that learn from the same text, seeds of each, every control, and the verdict."""
