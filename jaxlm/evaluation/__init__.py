"""Evaluation: likelihoods, held-out text, multiple choice, and differences between models."""
