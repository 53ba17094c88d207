"""The sizes of each part: for an accelerator, or tiny ones that test the code on a CPU."""

import dataclasses

from jaxlm.config import ModelConfig
from jaxlm.seq2seq_config import Seq2SeqConfig


@dataclasses.dataclass(frozen=True)
class Training:
  """A training step to time."""

  model: ModelConfig
  batch: int
  length: int


@dataclasses.dataclass(frozen=True)
class Setting:
  """Sizes and numbers of repetitions."""

  tiny: bool
  matmul: int
  """Rows of the square matrices whose product is timed."""
  copied: int
  """Bytes of the array that is copied."""
  attention: tuple[tuple[int, int, int, int], ...]
  """(length, query heads, key heads, head size) of the attention that is timed."""
  attention_tokens: int
  """Number of tokens in a batch for attention, over all its sequences."""
  trained: dict[str, Training]
  decoded: ModelConfig
  batches: tuple[int, ...]
  contexts: tuple[int, ...]
  kept: int
  """Tokens that a lazy layer keeps."""
  new_tokens: int
  """Tokens decoded in one timed call."""
  speculated: int
  """Tokens in the cache while speculation is timed."""
  verified: tuple[int, ...]
  """Tokens verified in one call."""
  assignments: tuple[tuple[int, int], ...]
  """(problems, rows of each) of the assignments that are timed."""
  translated: Seq2SeqConfig
  sources: int
  """Sentences that are translated at the same time."""
  source_tokens: int
  """Tokens of each sentence and of its translation."""
  widths: tuple[int, ...]
  """Widths of beam searches."""
  min_seconds: float
  """Calls are repeated until a timed measurement takes at least so many seconds."""
  repeats: int

  @property
  def middle_context(self) -> int:
    return self.contexts[len(self.contexts) // 2]


def llama(layers: int, dim: int, mlp: int, heads: int, kv: int, head_dim: int, vocab: int, **more) -> ModelConfig:
  return ModelConfig(
    num_layers=layers, model_dim=dim, mlp_dim=mlp, num_heads=heads, num_kv_heads=kv, head_dim=head_dim, vocab_size=vocab,
    tied_embeddings=True, dtype='bfloat16', **more,
  )  # fmt: skip


# The shapes of SmolLM2-135M and of Llama-3.2-1B.
LLAMA_135M = llama(30, 576, 1536, 9, 3, 64, 49152, max_length=2048)
LLAMA_1B = llama(16, 2048, 8192, 32, 8, 64, 128256, max_length=2048)

ACCELERATOR = Setting(
  tiny=False,
  matmul=8192,
  copied=2**31,
  attention=(
    (1024, 32, 8, 64),
    (4096, 32, 8, 64),
    (16384, 32, 8, 64),
    (4096, 16, 16, 128),
    (16384, 16, 4, 128),
  ),
  attention_tokens=16384,
  trained={'135M': Training(LLAMA_135M, 8, 2048), '1B': Training(LLAMA_1B, 4, 2048)},
  decoded=LLAMA_1B.replace(max_length=36864),
  batches=(1, 16),
  contexts=(1024, 8192, 32768),
  kept=1024,
  new_tokens=32,
  speculated=1024,
  verified=(1, 2, 4, 8, 16, 32),
  assignments=((32, 64), (128, 256)),
  translated=Seq2SeqConfig(),
  sources=32,
  source_tokens=64,
  widths=(1, 4),
  min_seconds=0.05,
  repeats=5,
)

# Some versions of XLA do not support all bfloat16 products on a CPU.
_TINY = llama(3, 32, 64, 4, 2, 16, 128, max_length=512).replace(dtype='float32')
TINY = Setting(
  tiny=True,
  matmul=128,
  copied=2**16,
  attention=((64, 4, 2, 16),),
  attention_tokens=128,
  trained={'tiny': Training(_TINY, 2, 64)},
  decoded=_TINY,
  batches=(2,),
  contexts=(64,),
  kept=16,
  new_tokens=4,
  speculated=64,
  verified=(1, 4),
  assignments=((3, 6),),
  translated=Seq2SeqConfig(
    vocab_size=40, encoder_layers=1, decoder_layers=2, model_dim=16, num_heads=2, mlp_dim=16, dtype='float32'
  ),
  sources=2,
  source_tokens=6,
  widths=(1, 4),
  min_seconds=0.0,
  repeats=1,
)
