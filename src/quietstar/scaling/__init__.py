"""What a training step takes: tokens, arithmetic, memory and communication, worked out from a model's config."""
