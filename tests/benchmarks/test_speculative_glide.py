"""The part glide of the benchmark of speculative decoding: its numbers are what they say, and tables, statements and plot come out."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import (
  report,
  speculative,
  speculative_drafts,
  speculative_glide,
  speculative_messages,
  stochastic_depth,
)
import jaxlm
from jaxlm.data.tokenizers import ByteTokenizer
from tests.models import TINY, init


def test_the_error_of_a_ratio_is_that_of_its_repetitions():
  rng = np.random.default_rng(0)
  drawn = lambda size: ((below := rng.integers(5, 15, size)) * rng.uniform(0.5, 1.5, size), below)
  above, below = drawn((4000, 12))
  spread = np.std(above.sum(1) / below.sum(1))
  errors = [speculative_glide.ratio_error(a, b) for a, b in zip(above, below)]
  assert np.mean(errors) == pytest.approx(spread, rel=0.1)
  assert np.isnan(speculative_glide.ratio_error(np.array([3.0]), np.array([2.0])))


def test_acceptance_by_position_is_that_of_the_tokens_which_came_to_be_judged():
  runs = [{'drafted_at': [8, 8, 5], 'accepted_at': [6, 2, 0]}, {'drafted_at': [2, 2, 2], 'accepted_at': [2, 1, 1]}]
  assert speculative_glide.by_position(runs) == [0.8, 0.375, 0.333]


def test_statements_compare_drafts_within_a_kind(capsys):
  row = lambda kind, method, m, speed=0.9: {'kind': kind, 'method': method, 'M': m, 'speed-up': speed}
  rows = [
    row('chat', 'GliDe, own, chain', 2.1), row('chat', 'vanilla, own, chain', 1.6), row('all', 'plain', ''),
    row('all', 'GliDe, own, chain', 1.9, 1.2), row('all', 'GliDe, own, CaPE', 2.2), row('all', 'GliDe, own, guarded', 3.0), row('all', 'vanilla, own, chain', 2.0),
  ]  # fmt: skip
  found = {v['statement']: v['pass'] for v in speculative_glide.checks(rows)}
  assert found == {
    'chat: GliDe has more tokens per round than the vanilla draft': True,
    'all: GliDe has more tokens per round than the vanilla draft': False,
    'all: CaPE adds tokens per round to GliDe': True,
    'all: at least 2 tokens per round (GliDe, own, CaPE)': True,
    'GliDe, own, chain: faster than plain decoding': True,
    'GliDe, own, CaPE: faster than plain decoding': False,
    'GliDe, own, guarded: faster than plain decoding': False,
    'vanilla, own, chain: faster than plain decoding': False,
  }
  assert capsys.readouterr().out.count('MISS') == 4


def test_each_draft_has_a_directory_of_its_own_and_drafts_of_one_target_share_its_texts(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))
  monkeypatch.setattr(speculative_messages, 'messages', lambda: ['What is tea?'])
  setting = speculative_drafts.smollm2(10, 20)
  made = [
    speculative_drafts.config(s, kind, data, seed)
    for s in (setting, dataclasses.replace(setting, steps=11), dataclasses.replace(setting, texts=21))
    for kind in speculative_drafts.KINDS for data in speculative_drafts.DATA for seed in (0, 1)
  ]  # fmt: skip
  # The real text does not depend on the number of the target's own.
  assert len({m.run.directory for m in made}) == len(made) - 8
  assert len({m.generation.file for m in made}) == 3
  assert speculative_drafts.config(setting, 'GliDe', 'own') == made[0]


def tiny_setting(folder):
  """Returns a function that gives the setting of a tiny target, which it saves in the folder."""
  config = TINY.replace(vocab_size=264, num_layers=4, max_length=256)
  lm = jaxlm.LanguageModel(config, init(config, jax.random.key(0)), ByteTokenizer())
  jaxlm.save_huggingface(lm, folder / 'target')
  model = speculative_drafts.DraftFlags(model_dim=12, num_heads=2, mlp_dim=20, dtype='float32')
  return lambda steps, texts: speculative_drafts.Setting(str(folder / 'target'), model, steps, texts, 24, 5)


@pytest.mark.slow
def test_the_part_trains_decodes_and_writes_its_results(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(speculative_drafts, 'redundant', tiny_setting(tmp_path))
  monkeypatch.setattr(
    stochastic_depth, 'prompts', lambda count, length: [[*range(40 + i, 60 + i)] for i in range(count)]
  )
  settings = speculative.Config(
    parts=('glide',), glide_targets=('redundant',), glide_steps=4, glide_texts=20, prompts=2, new_bytes=12
  )
  speculative.main(settings)
  written = json.loads((tmp_path / 'speculative_glide_redundant.json').read_text())
  rows = {row['method']: row for row in written['rows'] if row['kind'] == 'all'}
  assert {
    'plain',
    'prompt lookup',
    'SWIFT, guarded',
    'GliDe, own, CaPE',
    'vanilla, own, CaPE',
    'GliDe, real, chain',
    'parallel, own, chain',
    'GliDe-3, own, CaPE',
    'GliDe-3, own, sure chain',
    'GliDe-3, own, after lookup',
  } < set(rows)
  for way in ('GliDe, own, chain', 'vanilla, own, chain', 'parallel, own, chain'):
    costs = written['costs'][way]
    assert (
      rows[way]['predicted'] > 0
      and rows[way]['c'] >= 0
      and costs['drafts'] == [1, 2, 4]
      and costs['nodes'] == [1, 2, 3, 5]
    )
  assert rows['GliDe, own, CaPE']['by position'] == ''
  assert all(row['same'] == '2/2' for row in rows.values()) and written['flips'] == {}
  assert rows['GliDe-3, own, width 4']['nodes'] > rows['GliDe-3, own, chain']['nodes'] > 1
  assert len(written['trainings']) == 5 and all(t['targets/s'] > 0 for t in written['trainings'])
  assert 'tokens per round' in capsys.readouterr().out and len(rows['GliDe, own, chain']['by position']) == 4
  assert (tmp_path / 'speculative_glide_redundant.png').stat().st_size > 10_000
  monkeypatch.setattr('trainers.glide.task.DraftTraining.batch', None)  # Nothing is trained again.
  speculative.main(dataclasses.replace(settings, glide_drafts=('GliDe',)))


@pytest.mark.slow
def test_ablations_change_one_choice_of_a_draft(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'RESULTS', tmp_path)
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(speculative_drafts, 'redundant', tiny_setting(tmp_path))
  monkeypatch.setattr(stochastic_depth, 'prompts', lambda count, _: [[*range(40 + i, 60 + i)] for i in range(count)])
  few = {name: speculative_drafts.ABLATIONS[name] for name in ('blocks of 2', 'two layers, mask of the paper')}
  monkeypatch.setattr(speculative_drafts, 'ABLATIONS', few)
  speculative.main(speculative.Config(parts=('ablations',), glide_steps=2, glide_texts=20, prompts=2, new_bytes=12))
  rows = json.loads((tmp_path / 'speculative_glide_ablations.json').read_text())['rows']
  assert [row['draft'] for row in rows] == ['GliDe', 'vanilla', *few]
  assert all(row['same'] == '2/2, 2/2' and min(row['CaPE'], row['chain']) >= 1 for row in rows)
  assert rows[3]['parameters'] > rows[0]['parameters'] > rows[1]['parameters']


def test_each_kind_and_ablation_is_a_draft_of_its_own(tmp_path):
  setting = tiny_setting(tmp_path)(1, 1)
  drafts = [
    speculative_drafts.model_of(setting, kind) for kind in speculative_drafts.KINDS | speculative_drafts.ABLATIONS
  ]
  assert len(set(drafts)) == len(drafts)
