"""The fields of a config.json or of another format's metadata, read with errors that name the file, field and value."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm import errors
from jaxlm.config import ModelConfig

ACTIVATIONS = {  # all their names for what we compute; the first of each is what we write
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_python': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
}


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

  def refuse(self, name: str, value: Any, why: str) -> errors.CheckpointError:
    return errors.CheckpointError(f'{self.source}: {name}={value!r} is not supported: {why}.')

  def only(self, name: str, supported: Any, why: str) -> None:
    """Raises unless a field is absent or has the one value that we compute."""
    if self.get(name, supported) != supported:
      raise self.refuse(name, self.get(name), f'{why} (only {supported!r} is computed)')

  def config(self, read: Callable[['Fields'], dict[str, Any]]) -> ModelConfig:
    """Returns the ModelConfig of what `read` makes of the fields. Raises CheckpointError naming the file."""
    try:
      return ModelConfig(**read(self))
    except (TypeError, ValueError) as e:
      if isinstance(e, errors.CheckpointError):
        raise
      what = 'a field has a value of the wrong kind: ' if isinstance(e, TypeError) else ''
      raise errors.CheckpointError(f'{self.source}: {what}{e}') from e

  def activation(self, name: str, default: str) -> str:
    value = self.get(name, default)
    if value not in ACTIVATIONS:
      raise self.refuse(name, value, f'activations are {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[value]

  def head_dim(self, width: str, heads: str) -> int:
    if self[width] % self[heads]:
      raise self.refuse(heads, self[heads], f'{width}={self[width]} is not a multiple of it')
    return self[width] // self[heads]


def activation_name(c: ModelConfig) -> str:
  """Returns the name under which we write an activation."""
  return next(name for name, ours in ACTIVATIONS.items() if ours == c.activation)
