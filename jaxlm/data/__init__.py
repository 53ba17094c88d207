"""Text to batches: tokenizers, sources, a token corpus on disk, and batches that depend on (corpus, seed, step) alone."""
