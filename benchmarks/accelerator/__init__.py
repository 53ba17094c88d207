"""python -m benchmarks.accelerator: measures the library on a GPU or TPU with one command in six minutes.

Each part is a module with a function `cases(setting)`; see record.py. Only jax, flax, optax and numpy are needed. PyTorch and
transformers are timed too if they are installed.
"""
