"""SWIFT: lossless whatever is skipped, the same states however it is skipped, and a search that finds what may be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import speculative, swift
from decoders.prefill import prefill
from decoders.speculative import rounds
from decoders.swift import Stream, SwiftConfig, skipping
from decoders.swift import drafter as swift_draft
from decoders.swift.sets import SkipSet
import jaxlm
from jaxlm.caches import FullCache
from jaxlm.caches.branch import Branch
from jaxlm.language_model import LanguageModel
from tests.laws import same_law
from tests.models import TINY, apply, slow, tiny_model

MODEL = TINY.replace(num_layers=5, max_length=128)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [3]]
SMALL = SwiftConfig(max_draft=4, context_window=8, threshold=0.05, guard=False, candidates=2, static_when_found=False)
ALL = SkipSet((1, 2, 3), (1, 2, 3))


def random_sets(count, seed=0):
  rng = np.random.default_rng(seed)
  pick = lambda: tuple(np.flatnonzero(rng.random(3) < rng.random()) + 1)
  return [SkipSet(pick(), pick()) for _ in range(count)]


@pytest.mark.parametrize('sampling', [*slow(decoders.Sampling()), decoders.Sampling(temperature=0.7, top_p=0.85)])
def test_tokens_are_plain_decodings_whatever_is_skipped_and_share_a_program(sampling):
  lm = tiny_model(MODEL)
  settings = dict(max_new_tokens=24, sampling=sampling, seed=3)
  plain = decoders.generate(lm, PROMPTS, **settings)
  before = decode_programs()
  for skip in [SkipSet(), ALL, *random_sets(18)]:
    out = decoders.swift.generate(lm, PROMPTS, swift=SMALL.replace(skip=skip, search=False), **settings)
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert out.stats['accepted'] + out.stats['rounds'] == out.stats['new_tokens'] - len(PROMPTS)
  assert decode_programs() <= before + 1


def decode_programs():
  from decoders.programs import _programs

  return sum(key[0] is rounds.decode for key in _programs)


@pytest.mark.slow
def test_nothing_skipped_is_accepted_whole():
  lm, swift_config = tiny_model(MODEL), SMALL.replace(skip=SkipSet(), search=False, threshold=0.0)
  out = decoders.swift.generate(lm, PROMPTS, swift=swift_config, max_new_tokens=26)
  assert out.stats['acceptance'] == 1.0 and out.stats['rounds'] == 3 * 5  # 25 tokens, 5 a round


def test_a_search_changes_the_set_and_not_the_tokens(tmp_path):
  lm, file = tiny_model(MODEL), str(tmp_path / 'sets.json')
  plain = decoders.generate(lm, PROMPTS, max_new_tokens=60)
  settings = SMALL.replace(sets=file, task='test', max_opt_iter=30)
  stream = Stream(lm, settings)
  for _ in range(3):
    out = stream.generate(PROMPTS, max_new_tokens=60)
    np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['search_ended'] is not None and stream.search.iterations >= 20
  assert len({step.best for step in stream.search.history}) > 1
  again, matched = Stream(lm, settings), out.stats['matchness']
  assert again.search.best == stream.search.best and not again.search.active
  out = again.generate(PROMPTS, max_new_tokens=60)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['searched_sets'] == 0 and out.stats['matchness'] == matched
  # Another model's set is under another name.
  assert Stream(tiny_model(MODEL, seed=1), settings).search.active


@pytest.mark.parametrize(
  'changes',
  [
    {'fidelity': 'paper', 'candidates': 1, 'adapt_threshold': True},
    {'draft': 'static', 'search': False},
    {'draft': 'mask', 'objective': 'speedup', 'ratio_of': 'bytes'},
    {'guard': True, 'static_when_found': True, 'max_opt_iter': 5},
  ],
)
@pytest.mark.slow
def test_every_way_of_drafting_is_lossless(changes):
  lm = tiny_model(MODEL)
  plain = decoders.generate(lm, PROMPTS, max_new_tokens=60)
  stream = Stream(lm, SMALL.replace(**changes))
  for lookup in (None, speculative.PromptLookup(4)):
    out = stream.generate(PROMPTS, max_new_tokens=60, lookup=lookup)
    np.testing.assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
@pytest.mark.parametrize('variant', [{}, *slow({'norm_placement': 'post'}, {'parallel_residual': True, 'sinks': True})])
def test_three_ways_to_skip_give_the_same_states(variant):
  from jaxlm.config import SinkConfig

  variant = {'sink': SinkConfig('token')} | {'parallel_residual': True} if variant.pop('sinks', False) else variant
  lm = tiny_model(MODEL.replace(**variant))
  tokens, positions = jnp.asarray([[7, 8, 9], [1, 2, 3]]), jnp.asarray([[4, 5, 6]] * 2)
  _, cache = apply(lm.config, lm.params, jnp.ones((2, 4), jnp.int32), cache=FullCache.create(lm.config, 2, 12))
  branch = Branch.create(cache, lm.config, 2, 3).replace(
    seen=jnp.broadcast_to(jnp.tril(jnp.ones((3, 3), bool)), (2, 3, 3))
  )
  run = jax.jit(skipping.hidden, static_argnames=('config', 'how'))
  given = (lm.params, tokens, positions, branch, jnp.asarray([7, 7]))
  read = lambda keep, how: run(*given, keep, config=lm.config, how=how)[0]
  programs = run._cache_size()
  for skip in [SkipSet(), ALL, *random_sets(3)]:
    keep = skip.keep(5)
    fixed = jax.jit(functools.partial(skipping.hidden, keep=keep, config=lm.config, how='static'))(*given)[0]
    for how in ('cond', 'mask'):
      np.testing.assert_allclose(read(jnp.asarray(keep), how), fixed, atol=1e-5)
    if skip == SkipSet():
      whole, _ = apply(lm.config, lm.params, tokens, positions, cache, method='hidden')
      np.testing.assert_allclose(fixed, whole, atol=1e-5)
  assert run._cache_size() == programs + 2


@pytest.mark.slow
def test_the_search_finds_sub_layers_that_do_nothing():
  lm, rng = tiny_model(MODEL.replace(num_layers=8)), np.random.default_rng(0)
  idle = sorted(rng.permutation(12)[:6].tolist())
  params = jax.tree.map(lambda x: x, lm.params)
  for i in idle:
    layer = params[f'layer_{i % 6 + 1}']
    part, name = (layer['attention'], 'o') if i < 6 else (layer['mlp'], 'down')
    part[name] = {'kernel': jnp.zeros_like(part[name]['kernel'])}
  lm = LanguageModel(lm.config, params, None)
  stream = Stream(lm, SMALL.replace(max_score=0.9, context_window=16, candidates=4, max_opt_iter=400, skip_ratio=0.4))
  for seed in range(12):
    prompts = np.random.default_rng(seed).integers(0, 50, (3, 5)).tolist()
    out = stream.generate(prompts, max_new_tokens=80)
    if not stream.search.active:
      break
  assert stream.search.stopped == 'max_score' and stream.search.iterations <= 400
  assert out.stats['matchness'] > 0.99
  assert set(np.flatnonzero(stream.search.best.vector(8))) <= set(idle)


def test_scores_are_those_of_a_model_whose_sub_layers_add_nothing():
  """Matchness and nearness, over the rows that count, from the logits of models with zeros for weights."""
  lm, window, sets = tiny_model(MODEL), 12, [SkipSet(), ALL, *random_sets(3)]
  texts = np.random.default_rng(0).integers(0, MODEL.vocab_size, (3, window + 1))
  total, valid = jnp.full(3, window + 1), np.array([True, True, False])
  _, cache = prefill(lm.params, jnp.asarray(texts), total, total, config=lm.config, capacity=window + 1)
  keep = jnp.asarray(np.stack([skip.keep(5) for skip in sets]))
  scores = skipping.scores(
    lm.params, keep, jnp.asarray(texts), jnp.zeros(3, jnp.int32), jnp.asarray(valid), total, cache, config=lm.config, window=window
  )  # fmt: skip
  for skip, matched, near in zip(sets, *scores):
    params = jax.tree.map(lambda x: x, lm.params)
    for layers, part, name in ((skip.attention, 'attention', 'o'), (skip.mlp, 'mlp', 'down')):
      for i in layers:
        params[f'layer_{i}'][part][name] = {'kernel': jnp.zeros_like(params[f'layer_{i}'][part][name]['kernel'])}
    logits = np.asarray(jaxlm.forward(LanguageModel(lm.config, params, None), texts[valid, :-1].tolist()))
    chosen = np.take_along_axis(logits, texts[valid, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(matched, np.mean(logits.argmax(-1) == texts[valid, 1:]), atol=1e-6)
    np.testing.assert_allclose(near, np.mean(np.exp(chosen - logits.max(-1))), rtol=1e-4)
    assert matched <= near


def test_scores_of_many_tokens_are_those_of_few_at_once(monkeypatch):
  lm, window = tiny_model(MODEL), 11
  texts = jnp.asarray(np.random.default_rng(0).integers(0, MODEL.vocab_size, (3, window + 1)))
  total, valid = jnp.full(3, window + 1), jnp.asarray([True, False, True])
  _, cache = prefill(lm.params, texts, total, total, config=lm.config, capacity=window + 1)
  keep, args = (
    jnp.asarray(np.stack([s.keep(5) for s in random_sets(4)])),
    (texts, jnp.zeros(3, jnp.int32), valid, total),
  )
  at_once = []
  for most in (1024, 50):
    monkeypatch.setattr(skipping, 'AT_ONCE', most)
    of_size = jax.jit(lambda *a: skipping.scores.__wrapped__(*a, config=lm.config, window=window))
    at_once.append(of_size(lm.params, keep, *args, cache))
  np.testing.assert_allclose(*at_once, rtol=1e-5)


def test_a_set_that_cannot_be_saved_is_told_and_the_request_goes_on(tmp_path):
  lm, file = tiny_model(MODEL), tmp_path / 'sets.json'
  stream = Stream(lm, SMALL.replace(sets=str(file), max_opt_iter=4))
  file.mkdir()
  with pytest.warns(UserWarning, match='SkipSet.*could not be saved in .*sets.json'):
    out = stream.generate(PROMPTS, max_new_tokens=60)
  np.testing.assert_array_equal(out.tokens, decoders.generate(lm, PROMPTS, max_new_tokens=60).tokens)
  with pytest.raises(OSError, match='sets.json'):
    Stream(lm, SMALL.replace(sets=str(file)))


def test_thresholds_follow_what_is_accepted():
  drafter = swift_draft.SkipDrafter(SkipSet(), max_draft=4, adapt=True)
  memory = drafter.begin(None, tiny_model(MODEL), PROMPTS, None)
  after = drafter.learn(memory, jnp.asarray([2, 2, 4]), jnp.asarray([0, 2, 0]))
  np.testing.assert_allclose(after.smoothed, [0.5, 1.0, 0.5])
  np.testing.assert_allclose(after.threshold, [0.801, 0.799, 0.8], atol=1e-6)


def test_widths_are_the_papers():
  drafter = swift_draft.SkipDrafter(SkipSet())
  assert drafter.policy.width(jnp.asarray([0.99, 0.95, 0.81, 0.8, 0.6, 0.5, 0.1])).tolist() == [3, 5, 5, 8, 8, 10, 10]
  assert drafter.buckets[-1] == (25, 24 * 4 + 9)


def test_a_context_has_no_more_room_than_the_model():
  lm = tiny_model(MODEL)
  context = decoders.simlayerkv.compress(
    lm, [list(range(40))], lazy=decoders.simlayerkv.preset('lighttransfer', n_full=5)
  )
  assert context.room == 128 - 40
  loop = speculative.SpeculativeLoop(speculative.PromptLookup(6))
  with pytest.raises(ValueError, match='room for 88'):
    context.ask(lm, [[1, 2]], max_new_tokens=85, loop=loop)


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match='layers'):
    Stream(tiny_model(TINY.replace(num_layers=3)), SMALL)
  with pytest.raises(ValueError, match='layer 9'):
    Stream(tiny_model(MODEL), SMALL.replace(skip=SkipSet((9,))))
  with pytest.raises(ValueError, match="Did you mean 'match'"):
    decoders.swift.generate(tiny_model(MODEL), PROMPTS, swift=SMALL, rule='mach')


@pytest.mark.parametrize('room', [30, pytest.param(40, marks=pytest.mark.slow)])
def test_contexts_speculate_where_they_have_room(room):
  lm = tiny_model(MODEL)
  lazy = decoders.simlayerkv.LazyConfig(n_initial=2, n_recent=8, n_full=3, stage='prefill')
  context = decoders.simlayerkv.compress(lm, [list(range(40))], lazy=lazy, room=room)
  ask = lambda **options: context.ask(lm, [[1, 2]], max_new_tokens=24, **options)
  loop = speculative.SpeculativeLoop(speculative.PromptLookup(6))
  if room == 30:
    with pytest.raises(ValueError, match='more than the room for 30'):
      ask(loop=loop)
  else:
    np.testing.assert_array_equal(ask(loop=loop).tokens, ask().tokens)


@pytest.mark.slow
def test_residual_acceptance_has_the_models_law_and_accepts_more():
  """Three tokens of a tiny vocabulary after the same prompt, many times: plain and speculative counts agree."""
  lm = tiny_model(MODEL.replace(vocab_size=6))
  sampling = decoders.Sampling(temperature=0.8, top_p=0.9)
  settings = dict(max_new_tokens=5, sampling=sampling, num_samples=4000, seed=0, eos_id=None)
  config = SMALL.replace(skip=SkipSet((1, 3), (2,)), search=False, threshold=0.2, sampling_widths=(1, 2, 3, 3))
  plain = decoders.generate(lm, [[1, 2, 3]], **settings)
  by_rule = {
    rule: decoders.swift.generate(lm, [[1, 2, 3]], swift=config, rule=rule, **settings)
    for rule in ('match', 'residual')
  }
  np.testing.assert_array_equal(by_rule['match'].tokens, plain.tokens)
  assert by_rule['residual'].stats['rounds'] < by_rule['match'].stats['rounds']
  assert same_law(plain.tokens, by_rule['residual'].tokens) > 1e-3


def test_names_are_found_where_they_are_promised():
  assert swift.generate is decoders.swift.generate and decoders.swift.SwiftConfig is SwiftConfig
