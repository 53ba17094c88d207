"""python -m benchmarks.accelerator: what the library does on a GPU or TPU, answered by one command in six minutes.

Each part is a module with a function `cases(setting)`; see record.py. Nothing is needed but jax, flax, optax and numpy.
PyTorch and transformers are timed beside us where they are installed.
"""
