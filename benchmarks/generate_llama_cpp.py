"""llama.cpp's greedy decoding of a GGUF file, for `python -m benchmarks.generate`.

Needs the package llama-cpp-python, which has no wheel on PyPI: `pip install llama-cpp-python` compiles llama.cpp.
"""

import ctypes
from pathlib import Path
import time
from typing import NamedTuple

import numpy as np

FLOAT32 = 0  # the number of this type in llama.cpp, for a tensor and for a whole file


class Decoded(NamedTuple):
  """Seconds to read the prompts and choose the first tokens, seconds of the other tokens, and all new tokens [B, T]."""

  prefill: float
  decode: float
  tokens: np.ndarray


def available() -> bool:
  """Returns whether llama-cpp-python is installed."""
  try:
    import llama_cpp  # noqa: F401
  except ImportError:
    return False
  return True


class Model:
  """A GGUF file in llama.cpp, with keys and values in float32 as in jaxlm."""

  def __init__(self, path: Path, *, batch: int, length: int, threads: int):
    """Loads the file for `batch` rows of at most `length` tokens. Raises RuntimeError if llama.cpp cannot read it."""
    import llama_cpp

    self.lib = llama_cpp
    quiet()
    options = llama_cpp.llama_model_default_params()
    self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not self.model:
      raise RuntimeError(f'llama.cpp cannot read {path}.')
    options = llama_cpp.llama_context_default_params()
    slots = -(-length // 256) * 256
    options.n_ctx, options.n_seq_max, options.n_batch, options.n_ubatch = batch * slots, batch, batch * length, 512
    options.n_threads = options.n_threads_batch = threads
    options.type_k = options.type_v = FLOAT32
    self.context = llama_cpp.llama_init_from_model(self.model, options)
    self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
    self.buffer = llama_cpp.llama_batch_init(batch * length, 0, 1)

  def close(self) -> None:
    self.lib.llama_batch_free(self.buffer)
    self.lib.llama_free(self.context)
    self.lib.llama_model_free(self.model)

  def read(self, tokens_BT: np.ndarray, position: int) -> np.ndarray:
    """Appends tokens to all rows. Returns the likeliest next token of each row, int32 [B]."""
    B, T = tokens_BT.shape
    to, self.buffer.n_tokens = self.buffer, B * T
    for i, (row, t) in enumerate(np.ndindex(B, T)):
      to.token[i], to.pos[i], to.n_seq_id[i], to.logits[i] = int(tokens_BT[row, t]), position + t, 1, t == T - 1
      to.seq_id[i][0] = row
    if error := self.lib.llama_decode(self.context, self.buffer):
      raise RuntimeError(f'llama_decode returned {error}.')
    logits = lambda row: self.lib.llama_get_logits_ith(self.context, row * T + T - 1)
    view = lambda row: np.ctypeslib.as_array(logits(row), (self.vocabulary,))
    return np.array([view(row).argmax() for row in range(B)], np.int32)

  def generate(self, prompts_BT: np.ndarray, new_tokens: int) -> Decoded:
    self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
    start = time.perf_counter()
    tokens = [self.read(prompts_BT, 0)]
    prefilled = time.perf_counter()
    for i in range(new_tokens - 1):
      tokens.append(self.read(tokens[-1][:, None], prompts_BT.shape[1] + i))
    return Decoded(prefilled - start, time.perf_counter() - prefilled, np.stack(tokens, axis=1))


def unquantised(path: Path, to: Path) -> Path:
  """Writes the weights of a GGUF file in float32, which are the weights that jaxlm loads from it, and returns the new path."""
  import llama_cpp

  quiet()
  options = llama_cpp.llama_model_quantize_default_params()
  options.ftype, options.allow_requantize, options.pure = FLOAT32, True, True
  if error := llama_cpp.llama_model_quantize(str(path).encode(), str(to).encode(), ctypes.byref(options)):
    raise RuntimeError(f'llama.cpp cannot write {path} in float32: error {error}.')
  return to


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _ignore(level, text, data):
  pass


def quiet() -> None:
  """Makes llama.cpp print nothing."""
  import llama_cpp

  llama_cpp.llama_log_set(ctypes.cast(_ignore, llama_cpp.llama_log_callback), None)
