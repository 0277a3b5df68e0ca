"""The demo: a tiny model learns a small language, then Quiet-STaR teaches it to think."""
