"""Weights in and out: our checkpoints, Hugging Face directories, GGUF files."""
