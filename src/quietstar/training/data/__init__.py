"""Text to train on: found, read, encoded, cut into windows, whole or as a stream."""
