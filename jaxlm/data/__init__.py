"""Text to batches: tokenizers, text sources, a token corpus on disk, and batches as a function of (corpus, seed, step)."""
