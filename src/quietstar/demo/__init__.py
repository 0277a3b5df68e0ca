"""A small language, a tiny model that learns it, and the story of how Quiet-STaR teaches that model to think."""
