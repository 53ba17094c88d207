"""What saved files know a model by."""

import dataclasses

import pytest

from jaxlm import config as configs
from tests.models import TINY

ADDED = dict(
  causal=False, norm_plus_one=True, local_rope_theta=100.0, query_scale_dim=5, scaled_embeddings=True, embedding_norm=True,
  output_gate='head',
)  # fmt: skip


def test_fields_that_were_added_later_are_named_only_where_they_matter():
  assert set(ADDED) == set(configs.ADDED)
  before = configs.computing_fields(TINY)
  assert not set(before) & {*configs.ADDED, *configs.TRAINING_ONLY, *configs.HOW}
  assert {*before, *configs.ADDED, *configs.TRAINING_ONLY, *configs.HOW} == {f.name for f in dataclasses.fields(TINY)}


@pytest.mark.parametrize('name', ADDED)
def test_models_that_differ_in_an_added_field_are_told_apart(name):
  changed = TINY.replace(**{name: ADDED[name]})
  assert configs.computing_fields(changed) == configs.computing_fields(TINY) | {name: ADDED[name]}
  assert configs.model_config(configs.to_dict(changed)) == changed
