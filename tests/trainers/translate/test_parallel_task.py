"""Runs of models that predict all tokens at once learn, resume bit for bit, measure what they should, and load as what they are."""

import dataclasses

import chex
import jax
import pytest

import decoders
import jaxlm
from jaxlm.models import nat
from jaxlm.seq2seq_config import NatConfig
from tests.trainers.test_loop import interrupt_at, logged
from tests.trainers.translate.pairs_made import written_pairs
from tests.trainers.translate.test_train import MESH, MODEL, config
from trainers import metrics, translate
from trainers.config import ConfigError, MeshConfig
from trainers.translate.config import OrderConfig

CMLM = MODEL.replace(kind='cmlm')


def run(text, directory, *flags, model=CMLM, **changes):
  flags = '--optimizer.learning-rate', '0.01', *flags
  return dataclasses.replace(config(text, directory, *flags, model=model), **changes)


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  folder = written_pairs(tmp_path_factory.mktemp('runs'), train=2000)
  flags = '--run.steps', '400', '--run.eval-every', '400', '--run.save-every', '400', '--eval.sentences', '24'
  translate.main(run(folder, folder / 'cmlm', '--optimizer.schedule', 'linear', *flags))
  return folder / 'cmlm'


@pytest.mark.slow
def test_a_language_of_one_order_is_learned_with_its_lengths(learned):
  rows = metrics.read(learned)
  last = rows[-1]
  assert last['valid/length_accuracy'] > 0.95 and last['valid/length'] < 0.1 * rows[0]['length']
  assert last['valid/ce'] < 0.2 * rows[0]['ce'] and last['valid/bleu'] > 60
  assert last['valid/repetition_ratio'] < 0.2 and 0.5 < last['valid/max_probability'] <= 1


@pytest.mark.slow
def test_the_run_loads_and_translates(learned):
  model = jaxlm.load(learned)
  assert model.config.kind == 'cmlm' and model.config.vocab_size == model.tokenizer.target.vocab_size + 1
  assert '1 + 1 layers x 16, cmlm,' in repr(model)
  pairs = [line.split('\t') for line in (learned.parent / 'valid.tsv').read_text().splitlines()]
  for iterations in (1, 3):  # The likeliest length is right; others may have surer tokens.
    options = {'length_beam': 1, 'iterations': iterations, 'dedup': False}
    texts = decoders.translate(model, [source for source, _ in pairs], **options).text
    assert sum(text == target for text, (_, target) in zip(texts, pairs)) > 0.8 * len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, mesh', [('oaxe', MeshConfig()), ('ngram-oaxe', MESH)], ids=['oaxe, pmap', 'ngram-oaxe, mesh']
)
def test_a_run_goes_on_with_another_loss_from_where_cross_entropy_ended(learned, tmp_path, name, mesh):
  flags = '--start', str(learned), '--run.steps', '2', '--run.eval-every', '2', '--optimizer.learning-rate', '1e-5'
  translate.main(run(learned.parent, tmp_path / 'run', *flags, loss=name, oaxe=OrderConfig(pi=0.15), mesh=mesh))
  before, (first, *_, last) = metrics.read(learned)[-1], metrics.read(tmp_path / 'run')
  assert first[name] < 1.5
  assert last[f'valid/{name}'] < last['valid/ce'] + 1e-4 and last['valid/length_accuracy'] > 0.95
  assert last['valid/displacement'] < 0.1 and last['valid/truncated'] < 0.1  # This language has one order.
  assert last['valid/length'] == pytest.approx(before['valid/length'], rel=0.1)


def test_the_small_presets_go_on_from_each_other():
  presets = {name: translate.PRESETS[name][1] for name in ('nat', 'cmlm', 'oaxe')}
  assert [c.loss for c in presets.values()] == ['ce', 'ce', 'oaxe']
  for c in presets.values():
    assert nat.abstract_params(c.model) == nat.abstract_params(presets['oaxe'].model)
    assert c.data == presets['oaxe'].data and c.eval.length_beam == 1


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(text, tmp_path, monkeypatch):
  whole = jax.device_get(translate.main(run(text, tmp_path / 'whole')))
  interrupt_at(monkeypatch, 5)
  with pytest.raises(SystemExit):
    translate.main(run(text, tmp_path / 'parts'))
  monkeypatch.undo()
  chex.assert_trees_all_equal(jax.device_get(translate.main(run(text, tmp_path / 'parts'))), whole)
  assert logged(tmp_path / 'parts') == logged(tmp_path / 'whole')


def test_settings_of_another_kind_are_refused(text, tmp_path):
  for changes, message in (
    (
      dict(model=MODEL, loss='oaxe'),
      "loss='oaxe' is for models .* model.kind must be 'nat' or 'cmlm', not 'autoregressive'",
    ),
    (dict(loss='ctc'), "loss='ctc' and model.nat.upsampling need each other"),
    (dict(model=MODEL.replace(kind='nat', nat=NatConfig(upsampling=2))), "here loss='ce' and model.nat.upsampling=2"),
    (dict(oaxe=OrderConfig(pi=0.1)), "settings of --oaxe are for loss axe, oaxe or ngram-oaxe, not for loss='ce'"),
    (dict(eval=translate.EvalConfig(beam_size=4)), "eval.beam_size=4 .* model.kind='cmlm' has eval.length_beam"),
    (
      dict(model=MODEL.replace(kind='nat'), eval=translate.EvalConfig(iterations=4)),
      "eval.iterations=4 needs model.kind='cmlm'",
    ),
  ):
    with pytest.raises(ConfigError, match=message):
      run(text, tmp_path, **changes)
  for changes, message in (
    (dict(pi=1.0), 'oaxe.pi=1.0 must be at least 0 and less than 1'),
    (dict(ngram=0), 'oaxe.ngram=0 must be at least 1'),
    (dict(joint_until=0.0), 'oaxe.joint_until=0.0 must be above 0'),
    (dict(joint_base=1.0), 'oaxe.joint_base=1.0 must be above 1'),
    (dict(skip_penalty=-1.0), 'oaxe.skip_penalty=-1.0 must not be negative'),
  ):
    with pytest.raises(ConfigError, match=message):
      OrderConfig(**changes)
