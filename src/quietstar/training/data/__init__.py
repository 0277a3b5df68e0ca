"""Training text: finding, reading and encoding it, and cutting it into windows, in memory or as a stream."""
