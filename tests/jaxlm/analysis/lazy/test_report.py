"""Laziness against whole attention maps, what follows a prompt against plain decoding, and consistency by hand."""

import functools
import itertools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.simlayerkv.config import LazyConfig, select_lazy
import jaxlm
from jaxlm import analysis
from jaxlm.analysis.lazy import command as laziness_command
from jaxlm.analysis.lazy import scores as laziness_scores
from jaxlm.analysis.statistics import rank_correlation
from jaxlm.attention.attend import attention_weights
from jaxlm.caches.full import Sequence, heads_first
from jaxlm.config import SinkConfig
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import Transformer
from tests.models import TINY, slow, tiny_model

MODEL = TINY.replace(num_layers=3)
T, G = 37, 6
INITIAL, RECENT, QUERIES = 2, 7, 5
SIZES = {'initial': INITIAL, 'recent': RECENT, 'queries': QUERIES}
VARIANTS = {
  'softmax': MODEL,
  'sigmoid, key slot': MODEL.replace(attention='sigmoid', sink=SinkConfig('k')),
  'softmax, sink token, learned': MODEL.replace(sink=SinkConfig('token'), position='learned'),
  'elu1, alibi, window, prefix': MODEL.replace(attention='elu1_norm', position='alibi', windows=(0, 6, 0), prefix=4),
}


@functools.cache
def model(name='softmax'):
  """A model whose layers and heads differ: at initialisation attention is nearly uniform."""
  lm = tiny_model(VARIANTS[name])

  def sharper(path, x):
    keys = [p.key for p in path]
    return x * 2.5 if {'q', 'k', 'slot_key', 'sink_token'} & set(keys) else x

  return LanguageModel(lm.config, jax.tree.map_with_path(sharper, lm.params))


def prompt(length=T):
  return np.random.default_rng(3).integers(0, MODEL.vocab_size, length, dtype=np.int32)


@functools.cache
def report(name='softmax'):
  return analysis.laziness(model(name), prompt(), new_tokens=G, threshold=0.5, **SIZES)


def whole_maps(lm, ids):
  """Returns [L, N, T, S] weights divided by their sum; the slot, if there is one, is key 0."""
  maps = []

  class Maps(Sequence):
    def attend(self, layer, q, k, v, positions, rule):
      at = jnp.arange(q.shape[1])[None]
      weights, slot = attention_weights(q, heads_first(k), at, at, rule)
      weights = weights if slot is None else jnp.concatenate([slot[..., None], weights], axis=-1)
      maps.append(weights.reshape(-1, *weights.shape[-2:]))
      return super().attend(layer, q, k, v, positions, rule)

  def run(params, ids):
    Transformer(lm.config).apply({'params': params}, ids, cache=Maps())
    return [maps.pop(0) for _ in range(lm.config.num_layers)]

  maps_LNTS = np.array(jax.jit(run)(lm.params, jnp.asarray(ids)[None]), np.float64)
  return maps_LNTS / maps_LNTS.sum(axis=-1, keepdims=True)


def loop_ratios(maps_LNTS):
  """[L, T] from whole maps, a query at a time."""
  queries, keys = maps_LNTS.shape[-2:]
  slot = keys - queries
  ratios = np.zeros((len(maps_LNTS), queries))
  for i in range(queries):
    kept = [j for j in range(queries) if j < INITIAL or 0 <= i - j < RECENT]
    columns = [*range(slot), *(j + slot for j in kept)]
    ratios[:, i] = maps_LNTS[:, :, i, columns].sum(axis=-1).mean(axis=1)
  return ratios


# ---- ratios ----


@pytest.mark.parametrize(
  'name', ['elu1, alibi, window, prefix', *slow('softmax', 'sigmoid, key slot', 'softmax, sink token, learned')]
)
def test_ratios_equal_those_of_whole_maps(name):
  lm, found = model(name), report(name)
  maps_LNTS = whole_maps(lm, [*prompt(), *found.tokens])
  before = int(lm.config.sink.kind == 'token')
  ratios_LT = loop_ratios(maps_LNTS)[:, before:]
  assert found.starts.tolist() == list(range(T - 5 * QUERIES, T, QUERIES)) and found.length == T
  expected = [ratios_LT[:, start : start + QUERIES].mean(axis=1) for start in found.starts]
  np.testing.assert_allclose(found.prompt, np.transpose(expected), atol=1e-5)
  np.testing.assert_allclose(found.new, ratios_LT[:, T:], atol=1e-5)
  # Every new token sees all tokens in its own way: the test is not of constants.
  assert np.ptp(found.new[~found.sliding], axis=1).min() > 1e-3 and found.new[~found.sliding].max() < 1
  slot = maps_LNTS.shape[3] - maps_LNTS.shape[2]
  maps_LNTS = maps_LNTS[:, :, : T + before, : T + before + slot]
  columns = 1 + (lm.config.sink.kind in ('token', 'k'))
  sink_L = sum(maps_LNTS[:, :, max(0, k - slot) :, k].mean(axis=(1, 2)) for k in range(columns))
  np.testing.assert_allclose(found.sink, sink_L, atol=1e-5)


@pytest.mark.slow
def test_generated_tokens_are_those_of_plain_decoding():
  for name in ('softmax', 'softmax, sink token, learned'):
    out = decoders.generate(model(name), [prompt().tolist()], max_new_tokens=G, eos_id=None)
    np.testing.assert_array_equal(report(name).tokens, out.tokens[0])


def test_tokens_that_are_given_are_read_as_generated_ones_are():
  made = report()
  given = analysis.laziness(model(), prompt(), continuation=made.tokens.astype(int).tolist(), threshold=0.5, **SIZES)
  np.testing.assert_array_equal(given.tokens, made.tokens)
  np.testing.assert_allclose(given.new, made.new, atol=1e-6)
  np.testing.assert_allclose(given.prompt, made.prompt, atol=1e-6)


def test_recent_is_a_quarter_of_the_prompt_and_windows_before_it_are_left_out():
  found = analysis.laziness(model(), prompt(60), new_tokens=2, queries=4)
  assert (found.initial, found.recent) == (4, 11) and found.uniform == 0.25
  assert found.starts[0] == 16 and found.starts[-1] == 56 and found.prompt.shape == (3, 11)


def test_layers_with_a_sliding_window_are_not_compared():
  found = report('elu1, alibi, window, prefix')
  assert found.sliding.tolist() == [False, True, False]
  assert (found.new[1] > 0.5).all() and not found.lazy[1].any()
  free = found.new[[0, 2]]
  assert found.from_first == analysis.consistency(free[:, 0], free[:, 1:], 0.5)
  assert found.from_prompt == analysis.consistency(found.prompt[[0, 2], -1], free, 0.5)


# ---- consistency ----


def test_consistency_by_hand():
  reference = np.array([0.95, 0.2, 0.92, 0.4])
  tokens = np.array([[0.99, 0.1, 0.91, 0.3], [0.91, 0.95, 0.1, 0.99]]).T
  found = analysis.consistency(reference, tokens, 0.9)
  # Ranks 4 1 3 2 against 4 1 3 2 and 2 3 1 4: 1 and 1 - 6 (4 + 4 + 4 + 4) / 60.
  assert found.rank_correlation == pytest.approx((1 + 1 - 6 * 16 / 60) / 2)
  # {0, 2} with {0, 2} and {0, 1, 3}; halves {0, 2} with {0, 2} and {1, 3}.
  assert found.overlap == pytest.approx((1 + 1 / 4) / 2) and found.overlap_half == pytest.approx(1 / 2)
  # Two of four with two of four: 1, 4 and 1 ways of six to share 0, 1 and 2. With three of four: 1/4 or 2/3, half each.
  assert found.overlap_half_by_chance == pytest.approx((4 / 3 + 1) / 6)
  assert found.overlap_by_chance == pytest.approx(((4 / 3 + 1) / 6 + (1 / 4 + 2 / 3) / 2) / 2)


def test_nothing_lazy_agrees_with_nothing_lazy_and_equal_layers_have_no_ranks():
  found = analysis.consistency(np.full(3, 0.5), np.full((3, 2), 0.5), 0.9)
  assert math.isnan(found.rank_correlation) and found.overlap == found.overlap_by_chance == 1
  assert laziness_scores.jaccard(np.array([True, False]), np.array([False, False])) == 0
  tied = rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
  assert tied == pytest.approx(math.sqrt(3) / 2)  # ranks 1.5 1.5 3 against 1 2 3


@pytest.mark.parametrize('m, n', [(0, 2), (1, 5), (3, 2), (4, 3), (5, 5)])
def test_overlap_by_chance_is_the_mean_over_all_sets(m, n):
  one, sets = np.arange(5) < m, itertools.combinations(range(5), n)
  expected = np.mean([laziness_scores.jaccard(one, np.isin(np.arange(5), s)) for s in sets])
  assert laziness_scores.jaccard_by_chance(one, np.arange(5) >= 5 - n) == pytest.approx(expected)


def test_laziest_half_is_the_one_that_decoding_cuts():
  config = MODEL.replace(num_layers=5)
  for ratios in np.random.default_rng(0).integers(0, 3, (20, 5)) / 2:
    expected = select_lazy(ratios[None], [40], LazyConfig(n_initial=2, n_recent=8), config)[0]
    np.testing.assert_array_equal(laziness_scores.laziest_half(ratios), expected)


# ---- refusals ----


@pytest.mark.parametrize(
  'ids, options, words',
  [
    (prompt(13), {}, '13 tokens is too short for initial=2, recent=7 and queries=5.*Take a prompt of 14 tokens'),
    (prompt(), {'recent': 40}, 'recent=40'),
    ([], {}, 'prompt is empty'),
    (prompt()[None], {}, r'one text, ids \[T\]; got the shape \(1, 37\)'),
    ([50] * 40, {}, '50 is not in .* of 50'),
    (prompt(), {'continuation': []}, 'continuation is empty'),
    (prompt(), {'continuation': [-1, 3]}, '-1 is not in'),
    (prompt(), {'new_tokens': 28}, '37 tokens and new_tokens=28, together 65; the model reads 64'),
    (prompt(), {'new_tokens': 1}, 'new_tokens=1 must be at least 2'),
    (prompt(), {'threshold': 1.5}, r'threshold=1.5 must be in \[0, 1\]'),
    (prompt(), {'queries': 0}, 'queries=0 must be at least 1'),
    (prompt(), {'initial': -1}, 'initial=-1 must be at least 0'),
  ],
)
def test_what_cannot_be_measured_is_refused(ids, options, words):
  with pytest.raises(ValueError, match=words):
    analysis.laziness(model(), ids, **{'new_tokens': G, **SIZES, **options})


def test_models_without_ratios_are_refused():
  lm = model()
  with pytest.raises(ValueError, match="attention='identity' has negative weights"):
    analysis.laziness(LanguageModel(MODEL.replace(attention='identity'), lm.params), prompt(), **SIZES)
  with pytest.raises(ValueError, match='1 of the 3 layers has no sliding window'):
    analysis.laziness(LanguageModel(MODEL.replace(windows=(6, 6, 0)), lm.params), prompt(), **SIZES)
  broken = LanguageModel(MODEL, jax.tree.map(lambda x: x * jnp.nan, lm.params))
  with pytest.raises(ValueError, match='not finite'):
    analysis.laziness(broken, prompt(), new_tokens=G, **SIZES)


# ---- the command ----


@pytest.fixture
def loads(monkeypatch):
  config = MODEL.replace(vocab_size=300, windows=(0, 6, 0))
  lm = LanguageModel(config, tiny_model(config).params, ByteTokenizer())
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: lm, raising=False)


def configured(tmp_path, *texts, **changes):
  options = {'text': tuple(map(str, texts)), 'new_tokens': G, 'output': str(tmp_path / 'out'), 'queries': QUERIES}
  return laziness_command.LazinessConfig('m', **options, **changes)


@pytest.mark.parametrize('continuation', ['greedy', *slow('text')])
def test_report_is_printed_and_drawn_for_each_text(continuation, loads, tmp_path, capsys):
  program, lines = tmp_path / 'program.py', tmp_path / 'lines.jsonl'
  program.write_text(''.join(chr(97 + i * i % 23) for i in range(80)))
  lines.write_text('{"text": "too short"}\n{"text": "' + 'long enough ' * 9 + '"}\n')
  config = configured(tmp_path, program, lines, length=T, recent=RECENT, continuation=continuation)
  reports = laziness_command.main(config)
  printed = capsys.readouterr().out
  said = json.loads((tmp_path / 'out' / 'laziness.json').read_text())
  assert [r.length for r in reports] == [T, T] and said['measured']['recent'] == RECENT
  assert [t['text'] for t in said['texts']] == [str(program), str(lines)]
  for found, told in zip(reports, said['texts']):
    np.testing.assert_allclose(told['new'], found.new)
    assert told['from_first']['overlap_half'] == found.from_first.overlap_half
    assert f'{found.prompt[0, -1]:.3f}' in printed and f'{found.from_prompt.overlap_half:.3f}' in printed
  if continuation == 'text':
    assert bytes(reports[0].tokens.tolist()).decode() == program.read_text()[T : T + G]
  assert 'program.py' in printed and 'sliding' in printed and 'different texts overlap' in printed
  for picture in ('laziness.png', 'laziness-2.png'):
    assert (tmp_path / 'out' / picture).stat().st_size > 5000 and picture in printed


def test_command_refuses_what_holds_no_prompt(loads, tmp_path):
  (tmp_path / 'empty.py').write_text(' \n')
  (tmp_path / 'bytes.py').write_bytes(b'\xff\xfe')
  (tmp_path / 'short.txt').write_text('abcd')
  for words, text, changes in (
    ('empty.py.* holds no text', 'empty.py', {}),
    ('bytes.py is not UTF-8', 'bytes.py', {}),
    ("no file or folder .*Did you mean .*short.txt", 'shor.txt', {}),
    ('4 tokens is too short', 'short.txt', {}),
    ('has 4 tokens, 6 of which', 'short.txt', {'continuation': 'text'}),
    ('length=0', 'short.txt', {'length': 0}),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=words):
      laziness_command.main(configured(tmp_path, tmp_path / text, **changes))
  with pytest.raises(ValueError, match='names no text'):
    laziness_command.main(configured(tmp_path))
  assert not (tmp_path / 'out').exists()


def test_command_says_what_is_wrong_and_shows_help_without_jax(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['laziness', 'no-such-model', '--threshold', '2'])
  with pytest.raises(SystemExit, match='error: threshold=2.0 must be in'):
    laziness_command.run()
  code = "import jaxlm.analysis.lazy.command, sys; sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))"
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


# ---- a real model ----


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.real
def test_the_upper_layers_of_smollm2_are_lazy_and_remain_so():
  from jaxlm.data import fetch

  try:
    path = fetch.locate('smollm2') or fetch.fetch('smollm2')
  except DataError as e:
    pytest.skip(f'SmolLM2 is not on this machine and cannot be downloaded: {e}')
  lm = jaxlm.load(path, 'float32')
  ids = laziness_command.read('embedded', 1024, lm.tokenizer)
  found = analysis.laziness(lm, ids, new_tokens=32)
  assert found.new[13:].mean() > 0.85 and found.new[3:10].mean() < 0.65
  assert found.from_first.overlap_half > found.from_first.overlap_half_by_chance + 0.2
  assert found.from_prompt.rank_correlation > 0.7 and found.sink_correlation > 0.3
