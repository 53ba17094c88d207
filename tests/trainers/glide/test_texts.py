"""The batches of a draft: rows of text or of the target's own texts, with the place of each row's blocks."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.data.document_rows import DocumentBatches, EvalDocuments
from tests.glide_drafts import target_reads
from tests.models import slow
from tests.trainers.glide.runs import config
from trainers import distributed
from trainers.config import ConfigError, MeshConfig
from trainers.glide import target as targets
from trainers.glide import task, texts


@pytest.fixture(scope='module')
def lm(target):
  return jaxlm.load(target, 'float32')


def made(target, text, directory, lm, *flags):
  """Returns the task of a run."""
  settings = config(target, text, directory, *flags)
  settings = dataclasses.replace(settings, model=targets.draft_config(settings, lm))
  return task.DraftTraining(settings, lm, texts.of(settings, lm, distributed.make_layout(MeshConfig())))


def test_a_row_is_one_text_and_its_blocks_depend_on_seed_and_row_alone(target, text, tmp_path, lm):
  one = made(target, text, tmp_path, lm)
  batch = one.batch(3, slice(0, 8))
  assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
    'tokens': ((8, 24), 'int32'), 'targets': ((8, 24), 'int32'), 'mask': ((8, 24), 'float32'), 'phase': ((8,), 'int32')
  }  # fmt: skip
  np.testing.assert_array_equal(batch['tokens'][:, 1:], batch['targets'][:, :-1])
  assert batch['mask'].all()  # Also behind a document's end: a row of text is read as one text.
  part = one.batch(3, slice(2, 5))
  for name, x in part.items():
    np.testing.assert_array_equal(x, batch[name][2:5])
  phases = np.concatenate([one.batch(step, slice(0, 8))['phase'] for step in range(40)])
  assert np.bincount(phases, minlength=3).min() > 80 and phases.max() == 2
  other = made(target, text, tmp_path, lm, '--data.seed', '1')
  assert (np.concatenate([other.batch(step, slice(0, 8))['phase'] for step in range(40)]) != phases).any()
  held_out = [[b['phase'].tolist() for b in one.eval_batches(slice(0, 8))] for _ in range(2)]
  assert held_out[0] == held_out[1]


def test_of_the_targets_own_texts_the_last_are_held_out(target, text, tmp_path, lm):
  kept = '--keep-outputs', str(tmp_path / 'outputs')
  flags = *kept, '--self-generate', '20', '--generation.prompt-tokens', '5', '--data.valid-fraction', '0.2'
  one = made(target, text, tmp_path / 'run', lm, *flags)
  assert isinstance(one.batches, DocumentBatches) and isinstance(one.held_out, EvalDocuments)
  assert (one.batches.corpus.num_documents, one.held_out.corpus.num_documents) == (16, 4)
  batch = one.batch(0, slice(0, 8))
  assert (batch['mask'][:, :4] == 0).all() and (batch['mask'][:, 4] == 1).all()
  (last,) = one.eval_batches(slice(0, 8))
  assert (last['mask'].sum(1) > 0).tolist() == [True] * 4 + [False] * 4
  # What is kept belongs to the rows of each batch.
  for b in (batch, last):
    _, states = target_reads(lm.config, lm.params, b['tokens'], one.config.model.target_layers)
    np.testing.assert_allclose(b['states'], states, atol=5e-3)
    assert b['keys-1'].shape == (8, 2, 24, 8) and np.abs(np.diff(states, axis=0)).max() > 0.1
  notes = one.data_notes(2)
  assert one.resume(2, notes, {}) == [] and one.batches.rows_before(2) == 16
  (said,) = one.resume(2, notes | {'target': {'name': 'other', 'digest': '0'}}, {})
  assert said.startswith("The target's numbers differ from those of other when this run was saved")


def test_of_a_fraction_only_the_rows_in_use_are_kept(target, text, tmp_path, lm):
  one = made(target, text, tmp_path / 'run', lm, '--keep-outputs', str(tmp_path / 'outputs'), '--data.fraction', '0.3')
  used, all_rows = len(one.batches.used_windows), one.batches.all_windows
  assert len(one.outputs['training'].arrays['states']) == used < all_rows / 3 + 1
  for step in (0, 5):
    b = one.batch(step, slice(0, 8))
    _, states = target_reads(lm.config, lm.params, b['tokens'], one.config.model.target_layers)
    np.testing.assert_allclose(b['states'], states, atol=5e-3)


def test_rows_and_prompts_that_do_not_fit_the_target_are_named(target, text, tmp_path, lm):
  small = dataclasses.replace(lm, config=lm.config.replace(max_length=24))
  with pytest.raises(ConfigError, match='eval.new_tokens=60 after held-out prompts of up to 8 tokens'):
    made(target, text, tmp_path, lm, '--eval.prompts', '2', '--eval.new-tokens', '60')
  flags = '--self-generate', '8', '--generation.prompt-tokens', '5'
  with pytest.raises(ConfigError, match=r'its last target, 25 tokens, .* at most as long as the target reads \(24\)'):
    made(target, text, tmp_path, small, *flags)


@pytest.mark.parametrize('mesh', [MeshConfig(), *slow(MeshConfig(fsdp=2, tensor=2))], ids=['pmap', 'mesh'])
def test_held_out_prompts_are_decoded_for_the_accepted_length(target, text, tmp_path, lm, mesh):
  one = made(target, text, tmp_path, lm, '--eval.prompts', '3')
  layout = distributed.make_layout(mesh)
  placed = lambda tree: layout.local(layout.place(tree))
  params, frozen = placed(jax.jit(one.init_params)(jax.random.key(0))), placed({'target': lm.params})
  assert [len(p) for p in one.prompts] == [8, 8, 8] and one.best_metric == 'accepted_length'
  found = one.evaluate_on_host(params, frozen, lambda: False, print)
  assert set(found) == set(one.host_metrics) and 1 <= found['accepted_length'] <= 4 and 0 <= found['acceptance'] <= 1
  assert one.evaluate_on_host(params, frozen, lambda: True, print) is None
  assert made(target, text, tmp_path, lm).best_metric == 'loss'
