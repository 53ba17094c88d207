"""Reads fields of a config.json or of another format's metadata; errors name the file, the field and its value.

Every field is checked by type and range when it is read, before anything is computed from it or allocated for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm import errors
from jaxlm.config import ModelConfig
from jaxlm.config_fields import LARGEST as LARGEST
from jaxlm.config_fields import MOST_LAYERS as MOST_LAYERS

ACTIVATIONS = {  # name in Hugging Face configs -> jaxlm's name; the first name of each activation is the one that is written
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
}

_REQUIRED = object()


class Fields:
  """A config.json, or another format's metadata: every error names the file, the field and its value."""

  def __init__(self, fields: Mapping[str, Any], source: object = 'config.json'):
    self.fields, self.source = fields, source

  def __getitem__(self, name: str) -> Any:
    if (value := self.fields.get(name)) is None:
      raise errors.CheckpointError(f'{self.source}: the field {name!r} is missing.')
    return value

  def get(self, name: str, default: Any = None) -> Any:
    value = self.fields.get(name)
    return default if value is None else value

  def whole(self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int = LARGEST) -> int:
    """Returns a whole number within a range; `default` for a field that is absent or null."""
    value = self[name] if default is _REQUIRED else self.get(name, default)
    if value is default:
      return value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
      raise self.refuse(name, value, f'expected a whole number from {least} to {most}')
    return value

  def number(self, name: str, default: Any = _REQUIRED, *, above: float = 0.0, most: float = 1e30) -> float:
    """Returns a number above `above`; `default` for a field that is absent or null."""
    value = self[name] if default is _REQUIRED else self.get(name, default)
    if value is default:
      return value
    return self.checked_number(name, value, above=above, most=most)

  def checked_number(self, name: str, value: Any, *, above: float = 0.0, most: float = 1e30) -> float:
    """Returns a value as a float. Raises CheckpointError unless it is a number above `above` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
      raise self.refuse(name, value, f'expected a number above {above:g} and at most {most:g}')
    return float(value)

  def flag(self, name: str, default: bool) -> bool:
    """Returns true or false; `default` for a field that is absent or null."""
    value = self.get(name, default)
    if not isinstance(value, bool):
      raise self.refuse(name, value, 'expected true or false')
    return value

  def window(self, absent: int) -> int:
    """Returns `sliding_window` in tokens: 0 (no window) for null, `absent` if the field does not exist."""
    if 'sliding_window' not in self.fields:
      return absent
    return self.whole('sliding_window', 0)

  def refuse(self, name: str, value: Any, why: str) -> errors.CheckpointError:
    return errors.CheckpointError(f'{self.source}: {name}={errors.shown(value, 200)} is not supported: {why}.')

  def only(self, name: str, supported: Any, why: str) -> None:
    """Raises CheckpointError unless a field is absent or has the only supported value."""
    if self.get(name, supported) != supported:
      raise self.refuse(name, self.get(name), f'{why} (only {supported!r} is computed)')

  def config(self, read: Callable[['Fields'], dict[str, Any]]) -> ModelConfig:
    """Returns the ModelConfig with the arguments that `read` returns. Raises CheckpointError that names the file."""
    try:
      return ModelConfig(**read(self))
    except errors.CheckpointError:
      raise
    except ValueError as e:  # ModelConfig's message about fields that contradict each other
      raise errors.CheckpointError(f'{self.source}: {e}') from e

  def activation(self, name: str, default: str) -> str:
    value = self.get(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
      raise self.refuse(name, value, f'activations are {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[value]

  def head_dim(self, width: str, heads: str) -> int:
    size, count = self.whole(width), self.whole(heads)
    if size % count:
      raise self.refuse(heads, count, f'{width}={size} is not a multiple of it')
    return size // count


def repeating(windows: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shortest tuple that gives each layer its window when it repeats: layers that share one share programs."""
  fits = lambda size: all(window == windows[i % size] for i, window in enumerate(windows))
  return windows[: next(size for size in range(1, len(windows) + 1) if fits(size))] if any(windows) else ()


def activation_name(c: ModelConfig) -> str:
  """Returns the name of an activation in Hugging Face configs."""
  return next(name for name, ours in ACTIVATIONS.items() if ours == c.activation)
