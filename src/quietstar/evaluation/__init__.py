"""Evaluation: tasks, metrics, majority votes, perplexity, lm-eval."""
