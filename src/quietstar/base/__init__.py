"""The base model underneath: loaded, checked, run, adapted, and its vocabulary a few states at a time."""
