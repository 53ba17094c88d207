"""Reading and writing weights: Orbax checkpoints of runs, Hugging Face directories, GGUF files."""

FROM_FILES = 'from files'
"""Value of the argument `tokenizer` of `jaxlm.load` that means: read the tokenizer from the model's files."""
