"""`recommend` with transformers: the same items with a draft as without, in few programs, and errors that name what is wrong.

One catalogue capacity, one batch size and one configuration, so that all tests share their programs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import programs
from decoders.atspeed.config import AtSpeedConfig
from jaxlm.config import SinkConfig
from jaxlm.data.item_trie import ItemTrie
from jaxlm.errors import NotFiniteError
from jaxlm.language_model import LanguageModel, forward
from jaxlm.models.transformer import abstract_params
from tests.models import TINY, float64

L, K, BEAM, GAMMA = 3, 4, 8, 2
TARGET, DRAFT = TINY, TINY.replace(num_layers=1, model_dim=16)
recommend = decoders.atspeed.recommend


def sharp(config, seed: int) -> LanguageModel:
  """Returns a random model whose scores differ more than by rounding. Its weights are made without a program."""
  rng = np.random.default_rng(seed)

  def made(path, x):
    if 'scale' in jax.tree_util.keystr(path):
      return jnp.asarray(np.ones(x.shape, np.float32))
    return jnp.asarray(rng.standard_normal(x.shape).astype(np.float32) * (2 / x.shape[0]) ** 0.5)

  params = jax.tree_util.tree_map_with_path(made, abstract_params(config))
  return LanguageModel(config, params)


@pytest.fixture(scope='module')
def models():
  return sharp(TARGET, 0), sharp(DRAFT, 1)


@pytest.fixture(scope='module')
def trie():
  """60 items; items 0 and 59, and 1 and 58, share an identifier."""
  rng = np.random.default_rng(0)
  codes = np.unique(rng.integers(0, 6, (90, L)) + np.arange(L) * 6 + 4, axis=0)[:58]
  return ItemTrie.from_ids(np.concatenate([codes, codes[[1, 0]]]), popularity=[*range(58), 99, 99])


@pytest.fixture(scope='module')
def histories():
  rng = np.random.default_rng(1)
  return [rng.integers(4, 22, n).tolist() for n in (3, 12, 1, 7)]


def check_equal(found, expected):
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
  assert found.items == expected.items
  assert [a + b for a, b in zip(found.stats['target_calls'], found.stats['accept_steps'])] == [L] * len(found.items)


def gaps(scores: np.ndarray) -> float:
  return float(np.min(scores[:, :-1] - scores[:, 1:]))


def run(lm, draft, trie, histories, **options):
  return recommend(lm, draft, trie, histories, K, beam=BEAM, gamma=GAMMA, **options)


def test_a_draft_changes_the_calls_and_not_the_items(models, trie, histories):
  lm, draft = models
  plain = run(lm, None, trie, histories)
  assert gaps(plain.scores) > 1e-4  # so that rounding cannot change the order
  assert plain.stats['target_calls'] == [L] * 4 and plain.stats['draft_steps'] == [0] * 4
  found = run(lm, draft, trie, histories)
  check_equal(found, plain)
  assert set(found.stats['target_calls']) <= {1, 2, 3} and min(found.stats['draft_steps']) >= GAMMA
  seconds = {'target_seconds', 'draft_seconds', 'compile_seconds', 'seconds_per_history'}
  assert seconds < set(found.stats) and repr(found).startswith('Recommendations(4 histories, k=4, ')
  # Untrained in another way: the draft's least likely prefixes.
  negated = dataclasses.replace(draft, params=draft.params | {'head': jnp.asarray(-np.asarray(draft.params['head']))})
  check_equal(run(lm, negated, trie, histories), plain)


def test_the_items_are_those_that_scoring_every_identifier_finds(models, trie, histories):
  """With as many beams as identifiers, beam search is exhaustive."""
  few = trie.allowed([3, 17, 20, 44])
  for draft in (None, models[1]):
    found = run(models[0], draft, few, histories)
    leaf = np.flatnonzero(np.asarray(few.item_count))
    ids = few.tokens(leaf)
    for b, history in enumerate(histories):
      rows = np.zeros((4, 16), np.int32)
      rows[:, : len(history)] = history
      rows[:, len(history) : len(history) + L] = ids
      log_p = np.asarray(jax.nn.log_softmax(forward(models[0], rows)))
      scores = sum(log_p[np.arange(4), len(history) - 1 + t, ids[:, t]] for t in range(L))
      order = np.argsort(-scores)
      assert found.items[b] == [few.items([n])[0][0] for n in leaf[order]]
      np.testing.assert_allclose(found.scores[b], scores[order], atol=1e-4)
      np.testing.assert_allclose(found.item_scores[b], scores[order], atol=1e-4)


def test_other_items_and_histories_need_no_other_program(models, trie, histories):
  run(*models, trie, histories)
  before, rng = len(programs._programs), np.random.default_rng(5)
  other = [rng.integers(4, 22, n).tolist() for n in (10, 2, 11, 5)]
  for items in (range(60), range(0, 60, 2), [7, 8, 9, 30, 31]):
    few = trie.allowed(items)
    check_equal(run(*models, few, other), run(models[0], None, few, other))
  assert len(programs._programs) - before <= 3  # Rounds that the first histories did not need.


def test_a_result_does_not_depend_on_the_other_histories(models, trie, histories):
  found = run(*models, trie, histories)
  order = [2, 0, 0, 3]
  other = run(*models, trie, [histories[i] for i in order])
  assert other.items == [found.items[i] for i in order]
  np.testing.assert_allclose(other.scores, found.scores[order], atol=1e-5)
  seen = []
  more = run(*models, trie, [histories[i % 4] for i in range(7)], batch_size=4, progress=seen.append)
  assert more.items == [found.items[i % 4] for i in range(7)] and seen == [4, 3]


def test_a_draft_may_read_fewer_positions_than_the_target(models, trie):
  """Histories of 17 tokens are padded to 32, beyond a draft's 24 learned positions."""
  wide = sharp(DRAFT.replace(position='learned'), 3)
  table = {'position_embed': jax.tree.map(lambda x: x[:24], wide.params['position_embed'])}
  narrow = LanguageModel(wide.config.replace(max_length=24), wide.params | table)
  histories = [np.random.default_rng(n).integers(4, 22, n).tolist() for n in (17, 21)]
  expected = recommend(wide, wide, trie, histories, K, beam=K, gamma=GAMMA)
  found = recommend(wide, narrow, trie, histories, K, beam=K, gamma=GAMMA)
  assert found.items == expected.items and found.stats['target_calls'] == [1, 1]
  with pytest.raises(ValueError, match='reads 24'):
    recommend(wide, narrow, trie, [[5] * 22], K, beam=K, gamma=GAMMA)


def test_items_that_share_an_identifier_stand_side_by_side(models, trie, histories):
  found = run(*models, trie.allowed([0, 1, 58, 59]), histories)
  assert {tuple(row) for row in found.items} <= {(59, 0, 58, 1), (58, 1, 59, 0)}  # the more popular first
  assert (found.scores[:, 2:] == -np.inf).all() and (
    found.tokens[:, 2:] == -1
  ).all()  # k above the number of identifiers
  assert all(a[0] == a[1] >= a[2] == a[3] for a in found.item_scores)


def test_excluded_items_are_not_recommended(models, trie, histories):
  whole = run(models[0], None, trie, histories)
  exclude = [whole.items[0][:2], [], whole.items[2], list(range(60))]
  found = run(models[0], None, trie, histories, exclude=exclude)
  assert not any(set(a) & set(b) for a, b in zip(found.items, exclude))
  assert found.items[1] == whole.items[1] and found.items[3] == []
  best = run(models[0], None, trie.allowed(set(range(60)) - set(exclude[0])), histories)
  assert found.items[0] == best.items[0]
  arrays = [jnp.asarray(row, jnp.int32) for row in exclude]
  assert run(models[0], None, trie, histories, exclude=arrays).items == found.items
  one_of_two = run(models[0], None, trie.allowed([0, 1, 58, 59]), histories, exclude=[[0], [58], [], [0, 59]])
  assert [sorted(row) for row in one_of_two.items] == [[1, 58, 59], [0, 1, 59], [0, 1, 58, 59], [1, 58]]


@pytest.mark.slow
@pytest.mark.parametrize('verify', ['strict', 'relaxed', 'relaxed_exact'])
def test_a_program_may_use_float64_elsewhere(models, trie, histories, verify):
  expected = run(*models, trie, histories, verify=verify)
  with float64(True):
    found = run(*models, trie, histories, verify=verify)
  check_equal(found, expected)


@pytest.mark.slow
def test_excluded_items_are_not_recommended_with_a_draft(models, trie, histories):
  exclude = [[i for i in range(60) if i % 4 == b] for b in range(4)]
  check_equal(run(*models, trie, histories, exclude=exclude), run(models[0], None, trie, histories, exclude=exclude))


@pytest.mark.parametrize('verify', ['relaxed', 'relaxed_exact'])
def test_drawn_items_do_not_depend_on_the_batch(models, trie, verify):
  """Histories of one batch need different numbers of rounds, so some have fewer steps left than the draft drafts."""
  lm, rng = models[1], np.random.default_rng(0)
  near = lm.params['head'] + 0.15 * rng.standard_normal(lm.params['head'].shape).astype(np.float32)
  draft = dataclasses.replace(lm, params=lm.params | {'head': near})
  many = [rng.integers(4, 22, 5).tolist() for _ in range(48)]
  together = run(lm, draft, trie, many, verify=verify, seed=3, batch_size=64)
  alone = run(lm, draft, trie, many, verify=verify, seed=3, batch_size=1)
  assert len(set(alone.stats['target_calls'])) > 1
  assert together.items == alone.items and together.stats['target_calls'] == alone.stats['target_calls']
  np.testing.assert_allclose(together.scores, alone.scores, atol=1e-4)


def test_a_draft_finds_the_few_items_that_are_left(models, trie, histories):
  """Row by row, 0, 1, 3 and 60 items are left for lists of 4."""
  exclude = [set(range(60)) - set(left) for left in ([], [7], [20, 33, 46], range(60))]
  found = run(*models, trie, histories, exclude=exclude)
  check_equal(found, run(models[0], None, trie, histories, exclude=exclude))
  assert [sorted(row) for row in found.items[:3]] == [[], [7], [20, 33, 46]]


@pytest.mark.parametrize('verify', ['relaxed', 'relaxed_exact'])
def test_drawn_items_are_legal_also_if_few_are_left(models, trie, histories, verify):
  drawn = lambda trie, **options: run(*models, trie, histories, verify=verify, seed=3, **options)
  exclude = [[i for i in range(60) if i % 3 == b % 3] for b in range(3)] + [set(range(60)) - {20, 33}]
  found = drawn(trie, exclude=exclude)
  assert not any(set(row) & set(gone) for row, gone in zip(found.items, exclude))
  assert all(len(set(row)) >= K for row in found.items[:3]) and sorted(found.items[3]) == [20, 33]
  # K above the number of identifiers: whatever is drawn, all of them are found, with the target's scores.
  few = trie.allowed([20, 33, 46])
  found, best = drawn(few, exclude=[[]] * 4), run(models[0], None, few, histories)
  assert found.items == best.items and all(len(row) == 3 for row in found.items)
  np.testing.assert_allclose(found.scores, best.scores, atol=1e-4)


def test_calls_are_those_of_the_targets_programs_which_never_call_the_host(models, trie, histories, monkeypatch):
  calls, clocked = [], programs.Clock.run

  def noted(clock, part, function, *args, **static):
    calls.append((part, function, args, static))
    return clocked(clock, part, function, *args, **static)

  monkeypatch.setattr(programs.Clock, 'run', noted)
  # With as few beams of the draft as of the target, steps are refused from the first one on.
  one = lambda history, beam: recommend(*models, trie, [history], K, beam=beam, gamma=GAMMA)
  found = [one(history, beam) for history in histories for beam in (K, BEAM)]
  counted = [n for out in found for n in out.stats['target_calls']]
  assert len(calls) > len(counted) and sum(part == 'target' for part, *_ in calls) == sum(counted)
  assert len(set(counted)) > 1 and 3 in counted
  one_each = {function: (args, static) for _, function, args, static in calls}
  assert len(one_each) == 4
  for function, (args, static) in one_each.items():
    assert 'callback' not in function.lower(*args, **static).as_text(), function
  for control in (lambda x: jax.debug.print('{}', x), lambda x: jax.pure_callback(np.sin, x, x)):
    assert 'callback' in jax.jit(control).lower(jnp.float32(1)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize('verify', ['relaxed', 'relaxed_exact'])
def test_drawn_items_depend_on_the_seed(models, trie, histories, verify):
  found = run(*models, trie, histories, verify=verify, seed=3)
  assert found.items != run(*models, trie, histories, verify=verify, seed=4).items
  assert (np.diff(found.scores, axis=1) <= 0).all() and all(len(set(row)) >= K for row in found.items)
  if verify == 'relaxed':
    best = run(*models, trie, histories, verify=verify, select='score', seed=3)
    assert best.scores.mean() > found.scores.mean()


KINDS = {
  'plain': TARGET,
  'sink': TARGET.replace(sink=SinkConfig(kind='token'), position='learned'),
  'windows': TARGET.replace(windows=(6, 0), position='alibi'),
}


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind, k, beam, gamma, order', [
  ('plain', 5, 10, 1, 'score'), ('plain', 10, 40, 3, 'nested'), ('sink', 5, 5, 3, 'score'), ('windows', 5, 5, 3, 'score'),
])  # fmt: skip
def test_longer_identifiers_and_other_models_give_the_same_items(seed, kind, k, beam, gamma, order):
  rng = np.random.default_rng(seed)
  codes = np.unique(rng.integers(0, 8, (300, 4)) + np.arange(4) * 8 + 4, axis=0)
  lm, draft, trie = sharp(KINDS[kind], seed), sharp(DRAFT, seed + 9), ItemTrie.from_ids(codes)
  histories = [rng.integers(4, 36, n).tolist() for n in rng.integers(1, 40, 8)]
  plain = recommend(lm, None, trie, histories, k)
  assert k == 1 or gaps(plain.scores) > 1e-5
  options = {'beam': beam, 'gamma': gamma, 'order': order}
  found = recommend(lm, draft, trie, histories, k, **options)
  np.testing.assert_array_equal(found.tokens, plain.tokens)
  np.testing.assert_allclose(found.scores, plain.scores, atol=1e-4)
  own = recommend(lm, lm, trie, histories, k, **options)
  np.testing.assert_array_equal(own.tokens, plain.tokens)
  if order == 'nested' or beam == k:
    assert own.stats['target_calls'] == [-(-4 // (gamma + 1))] * 8


def test_logits_that_are_no_numbers_are_told(models, trie, histories):
  lm, draft = models
  spoilt = dataclasses.replace(
    lm, params=lm.params | {'head': jnp.asarray(np.full(lm.params['head'].shape, np.nan, np.float32))}
  )
  for drafter in (None, draft):
    with pytest.raises(NotFiniteError, match='the logits after it are not finite'):
      run(spoilt, drafter, trie, histories)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'k': 0}, 'must be at least 1'),
    ({'k': 9, 'beam': 8}, 'beam=8 must be at least k=9'),
    ({'gamma': 0}, 'gamma=0 must be at least 1'),
    ({'verify': 'strickt'}, "Unknown verify 'strickt'. Did you mean 'strict'"),
    ({'verify': 'relaxed', 'order': 'nested'}, "is for verify='strict'"),
    ({'select': 'score'}, "is for verify='relaxed'"),
    ({'seed': -1}, 'seed=-1'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'histories': []}, 'empty'),
    ({'histories': [5, 9]}, '`histories` is a list of histories'),
    ({'histories': 'Heat'}, '`histories` is a list of histories'),
    ({'histories': [[5], []]}, 'Prompt 1 is empty'),
    ({'histories': [[50]]}, 'token id 50'),
    ({'histories': [[5] * 62]}, 'has 62 tokens and an identifier 3, .* the model reads 64: keep at most the last 61'),
    ({'histories': [[5], ['Heat', 7]]}, r"History 1 is \['Heat', 7\]; expected token ids"),
    ({'exclude': [[1]]}, 'one for each of 4 histories'),
    ({'numbers': [1]}, 'one number for each of 4 histories'),
    ({'numbers': [0, 1, 2, -1]}, r'whole numbers from 0 to 2\*\*32 - 1'),
    ({'exclude': [[], [], ['a'], []]}, r"`exclude` of history 2: \['a'\] is no list of item numbers"),
    ({'exclude': [3, [], [], []]}, '`exclude` of history 0: 3 is no list of item numbers'),
    ({'trie': ItemTrie.from_ids([[4, 9, 50]])}, 'it was made for another model'),
    ({'trie': [[4, 9, 5]]}, 'make one with ItemTrie.from_ids'),
    ({'draft': LanguageModel(TINY.replace(vocab_size=49), {})}, 'must share a vocabulary'),
    ({'draft': LanguageModel(TINY.replace(max_length=14), {})}, 'the draft reads 14'),
    ({'draft': 'a path'}, 'The draft must be a decoder-only model'),
    ({'lm': None}, 'The model must be a decoder-only model'),
    ({'lm': LanguageModel(TINY.replace(causal=False), {})}, 'causal'),
    ({'lm': LanguageModel(TINY.replace(direction='reverse'), {})}, 'reverse'),
  ],
)
def test_bad_input_is_named(models, trie, histories, options, message):
  arguments = {
    'lm': models[0],
    'draft': models[1],
    'trie': trie,
    'histories': histories,
    'k': K,
    'beam': BEAM,
    **options,
  }
  with pytest.raises(ValueError, match=message):
    recommend(**arguments)


@pytest.mark.slow
def test_one_token_identifiers_need_no_draft(models, histories):
  trie = ItemTrie.from_ids([[5], [9], [4]], capacity=None)
  found = recommend(*models, trie, histories, 2, beam=2)
  log_p = np.asarray(jax.nn.log_softmax(forward(models[0], jnp.asarray([[*histories[1], 0, 0, 0, 0]]))))[
    0, 11, [4, 5, 9]
  ]
  np.testing.assert_allclose(found.scores[1], np.sort(log_p)[::-1][:2], atol=1e-4)
  assert found.stats['accept_steps'] == [0] * 4


def test_settings_are_compared_by_value():
  assert AtSpeedConfig() == AtSpeedConfig(10, 40, 3, 'strict', 'score', 'uniform') and not AtSpeedConfig().drawn
