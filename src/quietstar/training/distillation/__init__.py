"""A model that needs no thoughts, taught by one that thinks."""
