"""A GliDe draft in one value: config, parameters, tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxlm.glide_config import GlideConfig, glide_config
from jaxlm.models import glide
from jaxlm.models.registry import RunKind


@dataclasses.dataclass(frozen=True)
class GlideDraft:
  """A draft with its parameters and, when it has one, the tokenizer of its target. `decoders.glide.generate` drafts with it."""

  config: GlideConfig
  params: Any
  tokenizer: Any = None

  def __repr__(self) -> str:
    c, size = self.config, sum(x.size for x in jax.tree.leaves(self.params))
    reads = f'reads layers {", ".join(map(str, c.target_layers))} of' if c.cross else 'reads no layer of'
    return (
      f'GlideDraft({c.draft}, {c.num_layers} layers x {c.model_dim}, {size / 1e6:.1f} M parameters, {reads} {c.target})'
    )


RUNS = RunKind('a GliDe draft', glide_config, glide.abstract_params, GlideDraft)
