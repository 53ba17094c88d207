"""Weights in and out: our checkpoints, Hugging Face directories, GGUF files."""

FROM_FILES = 'from files'
"""The `tokenizer` of `jaxlm.load` that stands for the one in the model's own files."""
