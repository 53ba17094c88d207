"""What a target computes for the rows of a text is kept, continued, and used instead of running the target."""

import dataclasses

import jax
import numpy as np

from jaxlm.language_model import LanguageModel
from tests.interruption import interrupted_at
from tests.models import init
from tests.trainers.glide.conftest import TARGET
from tests.trainers.glide.test_task import VARIANTS, batch, draft_params, target_params, terms
from trainers.glide import outputs
from trainers.glide.config import DistillConfig

TOKENS = np.random.default_rng(0).integers(0, TARGET.vocab_size, (37, 10)).astype(np.int32)
DRAFT = VARIANTS['few tokens']
LM = LanguageModel(TARGET, init(TARGET, jax.random.key(7)))


def test_rows_are_computed_once_and_the_loss_is_that_of_a_target_that_runs(tmp_path):
  b, said = batch(), []
  tokens = np.concatenate([TOKENS, b['tokens']])
  made = outputs.make(tmp_path, LM, tokens, DRAFT.target_layers, said.append)
  assert said == ['outputs of the target: 45 of 45 rows']
  kept = b | made.rows(range(37, 45))
  distill = DistillConfig(0.25, 'tv', 0.8)
  ours = terms(DRAFT, distill, draft_params(DRAFT), target_params(), kept, compare=True)
  theirs = terms(DRAFT, distill, draft_params(DRAFT), target_params(), b, compare=True)
  for name, (total, weight) in theirs.items():
    np.testing.assert_allclose(ours[name][0], total, rtol=2e-3, err_msg=name)
    assert ours[name][1] == weight
  # The target does not run: with other states the distance is another one.
  other = terms(DRAFT, distill, draft_params(DRAFT), target_params(), kept | {'states': -kept['states']}, compare=True)
  assert abs(other['tv'][0] - ours['tv'][0]) > 0.1

  again = outputs.make(tmp_path, LM, tokens, DRAFT.target_layers, said.append)
  np.testing.assert_array_equal(again.rows([3, 40])['states'], made.rows([3, 40])['states'])
  assert len(said) == 1  # Nothing is computed again.
  assert outputs.make(tmp_path, LM, tokens, (), said.append).rows([0]).keys() == {'states'}


def test_an_interrupted_folder_is_continued_and_another_text_has_its_own(tmp_path, monkeypatch):
  whole = outputs.make(tmp_path / 'whole', LM, TOKENS, (1,), print)
  with interrupted_at(monkeypatch, outputs, '_outputs', 4):  # The first call is for the shapes.
    outputs.make(tmp_path / 'parts', LM, TOKENS, (1,), print)
  computed, compute = [], outputs._outputs
  with monkeypatch.context() as patch:
    patch.setattr(outputs, '_outputs', lambda *args, **options: computed.append(1) or compute(*args, **options))
    made = outputs.make(tmp_path / 'parts', LM, TOKENS, (1,), print)
  assert len(computed) == 2  # Of 3 batches, 2 were there.
  for name, array in made.arrays.items():
    np.testing.assert_array_equal(array, whole.arrays[name])
  other = outputs.make(tmp_path / 'parts', LM, TOKENS[:16] + 1, (1,), print)
  assert len(list((tmp_path / 'parts').iterdir())) == 2
  assert np.abs(other.rows([0])['states'] - made.rows([0])['states']).max() > 0.1
  changed = dataclasses.replace(LM, params=jax.tree.map(lambda x: x * 1.1, LM.params))
  outputs.make(tmp_path / 'parts', changed, TOKENS[:16] + 1, (1,), print)
  assert len(list((tmp_path / 'parts').iterdir())) == 3
