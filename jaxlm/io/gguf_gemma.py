"""What GGUF files of Gemma 2 and Gemma 3 say, and what they leave to the reader: llama.cpp's rules for both.

The converter adds 1 to all norm weights, as llama.cpp multiplies by the weight alone; `NORM_SHIFT` takes it off again.
"""

from collections.abc import Callable
from typing import Any

from jaxlm.config import RopeConfig
from jaxlm.io.fields import Fields, repeating

ARCHITECTURES = ('gemma2', 'gemma3')
NORM_SHIFT = -1.0
NAMES = {
  'attention_out_norm/scale': ('post_attention_norm.weight', 'D'),
  'mlp_out_norm/scale': ('post_ffw_norm.weight', 'D'),
}
_PERIOD = {'gemma2': 2, 'gemma3': 6}  # One layer in so many, the last of them, sees everything.
_WINDOW = {'gemma2': 4096, 'gemma3': 0}
_LARGEST = {
  'gemma2': 46,
  'gemma3': 62,
}  # Layers of the 27B models, whose queries are scaled by D / N instead of head_dim.
_CAPS = {'gemma2': (50.0, 30.0), 'gemma3': (None, None)}


def read_gemma(
  f: Fields, arch: str, given: dict[str, Any], decimal: Callable[[float], float], max_length: int
) -> dict[str, Any]:
  """Returns the arguments of ModelConfig that differ from Llama's.

  Args:
    given: the arguments as they are for Llama.
    decimal: number of a float32 field -> the decimal number that was meant.
    max_length: the file's context length, which is the stretched one.
  """
  layers, window = given['num_layers'], f.whole(f'{arch}.attention.sliding_window', _WINDOW[arch], least=0)
  windows = repeating(_windows(f, arch, layers, window)) if window else ()
  theta = None
  if arch == 'gemma3' and windows:
    theta = decimal(f.number(f'{arch}.rope.freq_base_swa', RopeConfig().theta))
  attention_cap, logit_cap = _CAPS[arch]
  if arch == 'gemma2':
    attention_cap = f.number(f'{arch}.attn_logit_softcapping', attention_cap)
  return dict(
    max_length=max_length,
    norm_plus_one=True,
    norm_placement='sandwich',
    activation='gelu_tanh',
    scaled_embeddings=True,
    qk_norm=arch == 'gemma3',
    query_scale_dim=given['model_dim'] // given['num_heads'] if layers == _LARGEST[arch] else None,
    windows=windows,
    local_rope_theta=theta,
    attention_softcap=attention_cap,
    logit_softcap=f.number(f'{arch}.final_logit_softcapping', logit_cap),
  )


def _windows(f: Fields, arch: str, layers: int, window: int) -> tuple[int, ...]:
  """Returns each layer's window. The file may give the period, or for every layer whether it has a window."""
  name = f'{arch}.attention.sliding_window_pattern'
  pattern = f.get(name)
  if not isinstance(pattern, list):
    period = f.whole(name, _PERIOD[arch])
    return tuple(window if (i + 1) % period else 0 for i in range(layers))
  if len(pattern) != layers or not all(isinstance(local, bool) for local in pattern):
    raise f.refuse(name, pattern, f'expected true or false for each of {layers} layers')
  return tuple(window if local else 0 for local in pattern)
