"""Table of all parameters: kind (for weight decay) and mesh axes (for sharding).

A pattern is matched with the last names of a parameter's path. The mesh axis of a dimension is `tensor` (splits heads, MLP width
and vocabulary), `fsdp` (splits the model width) or None (not split).
"""

from collections.abc import Sequence
import fnmatch
from typing import Literal, NamedTuple

Kind = Literal['embedding', 'norm', 'bias', 'matrix']


class Rule(NamedTuple):
  """Kind and mesh axes of the parameters that match `pattern`. `kind` is a name of `decay_exempt`, or matrix for all others."""

  pattern: str
  kind: Kind
  axes: tuple[str | None, ...]


RULES = (
  Rule('embed/embedding', 'embedding', ('tensor', 'fsdp')),
  Rule('source_embed/embedding', 'embedding', ('tensor', 'fsdp')),
  Rule('position_embed/embedding', 'embedding', (None, 'fsdp')),
  Rule('source_position_embed/embedding', 'embedding', (None, 'fsdp')),
  Rule('length_embed/embedding', 'embedding', (None, 'fsdp')),
  Rule('head', 'matrix', ('fsdp', 'tensor')),
  Rule('*norm/scale', 'norm', (None,)),
  Rule('*norm/bias', 'norm', (None,)),
  Rule('output_bias', 'bias', ('tensor',)),
  Rule('[qkv]/kernel', 'matrix', ('fsdp', 'tensor', None)),
  Rule('[qkv]/bias', 'bias', ('tensor', None)),
  Rule('o/kernel', 'matrix', ('tensor', None, 'fsdp')),
  Rule('o/kernel', 'matrix', (None, None)),  # head_mixing='sum': [H, D]
  Rule('o/bias', 'bias', (None,)),
  Rule('output_gate/kernel', 'matrix', ('fsdp', 'tensor', None)),
  Rule('up/kernel', 'matrix', ('fsdp', 'tensor')),
  Rule('up/bias', 'bias', ('tensor',)),
  Rule('gate/kernel', 'matrix', ('fsdp', 'tensor')),
  Rule('gate/bias', 'bias', ('tensor',)),
  Rule('down/kernel', 'matrix', ('tensor', 'fsdp')),
  Rule('down/bias', 'bias', (None,)),
  Rule('kernel_in/kernel', 'matrix', (None, None)),
  Rule('kernel_out/kernel', 'matrix', (None, None)),
  Rule('distance_table', 'matrix', (None, None)),
  Rule('slot_key', 'matrix', (None, None)),
  Rule('slot_value', 'matrix', (None, None)),
  Rule('slot_logit', 'matrix', (None,)),
  Rule('sink_token', 'matrix', (None,)),
  Rule('embed_in/kernel', 'matrix', (None, 'fsdp')),
  Rule('embed_out/kernel', 'matrix', ('fsdp', None)),
  Rule('mask_embedding', 'matrix', (None,)),
  Rule('units/embedding', 'embedding', ('tensor', 'fsdp')),
  Rule('ngram_embed/embedding', 'embedding', ('tensor', 'fsdp')),
  Rule('layer_*_input/kernel', 'matrix', ('fsdp', None)),
  Rule('layer_*_input/bias', 'bias', (None,)),
  Rule('layer_*_state/kernel', 'matrix', ('fsdp', None)),
  Rule('layer_*_state/bias', 'bias', (None,)),
  Rule('class_table/kernel', 'matrix', ('tensor', 'fsdp')),
  Rule('class_table/bias', 'bias', ('tensor',)),
  Rule('mlp_in/kernel', 'matrix', (None, 'fsdp')),
  Rule('mlp_in/bias', 'bias', ('fsdp',)),
  Rule('mlp_out/kernel', 'matrix', ('fsdp',)),
  Rule('mlp_out/bias', 'bias', ()),
)


def rules_of(path: Sequence[str]) -> list[Rule]:
  """Returns the rules that match the parameter at `path` (names from any root), one per rank; [] if none matches."""
  fits = lambda pattern: fnmatch.fnmatchcase('/'.join(path[-1 - pattern.count('/') :]), pattern)
  return [rule for rule in RULES if fits(rule.pattern)]


def kind_of(path: Sequence[str]) -> Kind | None:
  """Returns the kind of the parameter at `path`, or None if no rule matches."""
  return next((rule.kind for rule in rules_of(path)), None)


def axes_of(path: Sequence[str], ndim: int) -> tuple[str | None, ...] | None:
  """Returns the mesh axis of each of the `ndim` dimensions of the parameter at `path`, or None if no rule has that rank.

  An optimizer's averages have the paths and ranks of their parameters; its counters have no rule.
  """
  return next((rule.axes for rule in rules_of(path) if len(rule.axes) == ndim), None)
