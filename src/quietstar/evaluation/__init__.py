"""Evaluation: tasks, metrics, majority voting, perplexity, lm-eval."""
