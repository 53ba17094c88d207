"""Beam search over any model that can take a step: `search` as one traced loop, `BeamConfig` its settings."""

from typing import TYPE_CHECKING

from jaxlm.exports import lazily

if TYPE_CHECKING:
  from decoders.beam.config import BeamConfig as BeamConfig
  from decoders.beam.hypotheses import Hypotheses as Hypotheses

_PUBLIC = {'BeamConfig': 'decoders.beam.config', 'Hypotheses': 'decoders.beam.hypotheses'}
__getattr__, __dir__ = lazily(__name__, _PUBLIC, ('search',))
