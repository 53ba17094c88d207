"""Batches read in a direction are what reversing each document's list gives; coins depend on (document, epoch, seed)."""

import collections
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data import directions, packing
from jaxlm.data.corpus import TokenCorpus, tokenize
from jaxlm.data.tokenizers import ByteTokenizer
from tests.jaxlm.data.test_packing import assert_equal
from tests.models import TINY, tiny_model

BOS, EOS, V = 1, 2, 203  # V: of the model, with the signal's ids; the text's are 3 .. 199
SIZES = [5, 1, 17, 3, 2, 40, 1, 0, 9, 23, 4, 31, 6, 13]
KINDS = list(itertools.product(('none', 'token', 'bos'), ('documents', 'concat')))


def heads(signal):
  return [directions.head(way, signal, BOS, V) for way in ('forward', 'reverse')]


def texts():
  """Documents of tokens that no other one has."""
  ends = 3 + np.cumsum(SIZES)
  return [list(range(e - n, e)) for e, n in zip(ends, SIZES)]


def corpus(signal='none'):
  return TokenCorpus.from_documents([[*heads(signal)[0], *text, EOS] for text in texts()])


def reading(direction='both', signal='none', **settings):
  return directions.Reading(direction, BOS, V, signal, **settings)


def by_lists(index, length, mode, signal, reverse):
  """Row `index` made of lists: the numbers of the documents that are read in reverse are given."""
  forward, backward = heads(signal)
  # (document, token, whether it stays, whether it tells the direction)
  flat = []
  for d, text in enumerate(texts()):
    first = backward if d in reverse else forward
    tells = [signal != 'none' and i == len(first) - 1 for i in range(len(first))]
    flat += [(d, id, True, t) for id, t in zip(first, tells)]
    flat += [(d, id, False, False) for id in text] + [(d, EOS, True, False)]
  row = []
  for d, part in itertools.groupby(flat[index * length : (index + 1) * length + 1], key=lambda t: t[0]):
    part = list(part)
    if not row and not part[0][2] and not part[1][2]:  # A text that began before the row.
      part[0] = (d, (backward if d in reverse else forward)[-1], True, False)
    if d in reverse:
      moving = [t for t in part if not t[2]][::-1]
      part = [t if t[2] else moving.pop(0) for t in part]
    row += part
  ids, documents = [t[1] for t in row], [t[0] for t in row]
  same = [mode == 'concat' or a == b for a, b in zip(documents, documents[1:])]
  mask = [float(s and not t[3]) for s, t in zip(same, row[1:])]
  return ids[:-1], ids[1:], mask


def assert_equal_but_for_context(plain, read):
  first, others = read['tokens'][:, 0], np.arange(plain['tokens'].shape[1]) > 0
  assert ((first == plain['tokens'][:, 0]) | (first == BOS)).all()
  assert_equal(*({**b, 'tokens': b['tokens'] * others} for b in (plain, read)))


def test_a_bos_does_not_give_the_direction_away():
  """Rows begin with one as often, whichever way they are read: else a model would learn that BOS means reverse."""
  for length in (3, 9, 20):
    batches = [
      directions.eval_batches(corpus(), reading(), reverse=reverse, batch_size=4, length=length)
      for reverse in (False, True)
    ]
    for forward, reverse in zip(*batches):
      np.testing.assert_array_equal(forward['tokens'] == BOS, reverse['tokens'] == BOS)


@pytest.mark.parametrize('signal, mode', KINDS)
def test_rows_are_what_lists_say(signal, mode):
  rng = np.random.default_rng(0)
  for length in (1, 2, 6, 11, 60):
    n = (len(corpus(signal)) - 1) // length
    for index in range(n):
      chosen = set(np.flatnonzero(rng.random(len(SIZES)) < 0.5).tolist())
      which = lambda documents, chosen=chosen: np.isin(documents, list(chosen))
      row = reading(signal=signal).window(corpus(signal), index, length, mode, which)
      found = row['tokens'].tolist(), row['targets'].tolist(), row['mask'].tolist()
      assert found == by_lists(index, length, mode, signal, chosen)
      plain = packing.window(corpus(signal), index, length, mode)
      assert {x.dtype for x in row.values()} == {x.dtype for x in plain.values()}
      np.testing.assert_array_equal(row['segments'], plain['segments'])
      np.testing.assert_array_equal(row['positions'], plain['positions'])


@pytest.mark.parametrize('mode', ['documents', 'concat'])
def test_without_a_reversed_document_only_what_came_before_a_row_changes(mode):
  shape = dict(batch_size=3, length=9, seed=4, mode=mode, fraction=0.8)
  plain, read = packing.make_batches(corpus(), **shape), directions.make_batches(corpus(), reading(share=0.0), **shape)
  for step in range(12):
    assert_equal_but_for_context(plain.batch(step), read.batch(step))
  assert plain.steps_per_epoch == read.steps_per_epoch


@pytest.mark.parametrize('signal, mode', KINDS)
def test_each_token_is_a_target_as_often_in_every_direction(signal, mode):
  def counts(direction, length, **settings):
    batches = directions.make_batches(
      corpus(signal), reading(direction, signal, **settings), batch_size=1, length=length, mode=mode
    )
    seen = collections.Counter()
    for step in range(round(batches.steps_per_epoch)):
      row = batches.batch(step)
      seen.update(row['targets'][row['mask'] > 0].tolist())
    return seen

  for length in (1, 7, 20):
    forward, reverse, both = (counts(way, length) for way in ('forward', 'reverse', 'both'))
    twice = counts('both', length, pairing='duplicate')
    # What the row at the very end leaves out differs with the direction.
    left = set(corpus(signal).tokens[(len(corpus(signal)) - 1) // length * length + 1 :].tolist())
    near = left | set(texts()[-1])
    for id in [*range(3, 3 + sum(SIZES)), EOS]:
      if id not in near or length == 1:
        assert forward[id] == reverse[id] == both[id] == twice[id] / 2, id
    assert sum(forward.values()) == sum(reverse.values()) == sum(both.values()) == sum(twice.values()) / 2
    told = set(directions.signal_ids(signal, V))
    assert not told & {*forward, *reverse, *both, *twice}


def test_a_batch_depends_on_the_step_alone_across_epochs():
  make = lambda seed=3, **s: directions.make_batches(corpus(), reading(**s), batch_size=3, length=9, seed=seed)
  for settings in ({}, {'pairing': 'duplicate'}):
    a, b = make(**settings), make(**settings)
    assert a.windows % 3
    steps = range(2 * round(a.steps_per_epoch) + 3)
    forwards = [a.batch(step) for step in steps]
    backwards = [b.batch(step) for step in reversed(steps)][::-1]
    for x, y in zip(forwards, backwards):
      assert_equal(x, y)
    parts = [a.batch(5, slice(i, i + 1)) for i in range(3)]
    assert_equal({k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, a.batch(5))
  with pytest.raises(ValueError, match='step=-1'):
    make().batch(-1)


def test_a_document_keeps_its_direction_within_an_epoch_and_draws_anew_in_the_next():
  batches = directions.make_batches(corpus('bos'), reading(signal='bos'), batch_size=1, length=9)
  plain = packing.make_batches(corpus('bos'), batch_size=1, length=9)
  offsets, ways = corpus('bos').offsets, collections.defaultdict(set)
  for number in range(3 * batches.windows):
    index, epoch = batches.window_index(number), number // batches.windows
    assert index == plain.window_index(number)
    row = batches.row(number)
    ids = np.append(row['tokens'], row['targets'][-1])
    at = index * 9 + np.arange(len(ids))
    documents = np.searchsorted(offsets, at, side='right') - 1
    for d in set(documents.tolist()):
      stored, found = corpus('bos').tokens[at[documents == d]], ids[documents == d]
      # Told by the order of the text, as a document that is cut shows no BOS.
      old, new = ([i for i in x.tolist() if 3 <= i < 200] for x in (stored, found))
      if len(new) > 1:
        ways[d, epoch].add(new not in (old, old[1:]))  # The token before the row gives way to a BOS.
  assert all(len(found) == 1 for found in ways.values())
  by_epoch = [{d: ways[d, e] for d, x in ways if x == e} for e in range(3)]
  assert by_epoch[0] != by_epoch[1] or by_epoch[1] != by_epoch[2]


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.8, 1.0])
def test_the_share_is_what_is_asked(share):
  documents = np.arange(20_000)
  drawn = directions.uniform(documents, 'document', 0, 7) < share
  assert abs(drawn.mean() - share) < 0.015
  others = [directions.uniform(documents, 'document', *key) < share for key in ((1, 7), (0, 8))]
  if 0 < share < 1:
    for other in others:  # Neither epochs nor seeds know of each other.
      assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03
    neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(neighbours) < 0.03


def test_hashes_are_the_same_everywhere():
  # A run that is resumed on another machine draws the same directions.
  found = directions.uniform(np.array([0, 1, 2**40]), 'document', 3, 5)
  assert found.tolist() == [0.9760842350322133, 0.10867322291371462, 0.9383680468137244]
  assert directions.uniform(np.array([1], np.int32), 'document', 3, 5) == found[1]


@pytest.mark.parametrize('fraction', [1.0, 0.4])
def test_duplicates_are_each_row_in_both_directions(fraction):
  settings = dict(batch_size=1, length=9, seed=2, fraction=fraction)
  batches = directions.make_batches(corpus(), reading(pairing='duplicate'), **settings)
  once = directions.make_batches(corpus(), reading(), **settings)
  assert batches.steps_per_epoch == 2 * once.steps_per_epoch
  firsts = []
  for epoch in range(2):
    rows = collections.defaultdict(list)
    for number in range(epoch * 2 * once.windows, (epoch + 1) * 2 * once.windows):
      rows[batches.window_index(number)].append(batches.row(number)['tokens'].tolist())
    assert len(rows) == once.windows
    for index, pair in rows.items():
      ways = [
        reading(way).window(corpus(), index, 9, 'documents', lambda d, way=way: np.full(len(d), way == 'reverse'))
        for way in ('forward', 'reverse')
      ]
      expected = [way['tokens'].tolist() for way in ways]
      assert sorted(pair) == sorted(expected)
      firsts.append(pair[0] == expected[0])
  if fraction == 1:
    assert 0.2 < np.mean(firsts) < 0.8


def test_evaluation_is_in_one_direction_and_predicts_the_same_tokens():
  found = {}
  for reverse in (False, True):
    batches = directions.eval_batches(
      corpus('token'), reading(signal='token'), reverse=reverse, batch_size=3, length=20
    )
    rows = list(batches)
    assert len(rows) == len(batches)
    found[reverse] = np.concatenate([b['targets'][b['mask'] > 0] for b in rows])
    for a, b in zip(rows, batches):
      assert_equal(a, b)
  assert (
    sorted(found[False].tolist()) == sorted(found[True].tolist()) == sorted([*sum(texts(), []), *[EOS] * len(SIZES)])
  )
  assert found[False].tolist() != found[True].tolist()
  plain = packing.eval_batches(corpus(), batch_size=3, length=20)
  for a, b in zip(
    plain, directions.eval_batches(corpus(), reading(), reverse=False, batch_size=3, length=20), strict=True
  ):
    assert_equal_but_for_context(a, b)


def test_what_a_text_begins_with():
  assert heads('none') == [[BOS], [BOS]]
  assert heads('token') == [[BOS, V - 2], [BOS, V - 1]]
  assert heads('bos') == [[BOS], [V - 1]]
  assert directions.head('reverse', 'token', None, V) == [V - 1] and directions.head('forward', 'bos', None, V) == []


class OneEnd(ByteTokenizer):
  """Bytes without BOS."""

  def __init__(self):
    super().__init__()
    self.bos_id, self.fingerprint = None, 'bytes without bos'


def test_documents_are_stored_with_bos_room_for_a_signal_and_eos(tmp_path):
  store = lambda tokenizer, signal: tokenize(
    ['ab', 'c'],
    directions.Headed(tokenizer, signal),
    tmp_path,
    bos=True,
    eos=True,
    key='two texts',
    progress=False,
  ).tokens.tolist()
  assert store(ByteTokenizer(), 'none') == store(ByteTokenizer(), 'bos') == [256, 97, 98, 257, 256, 99, 257]
  assert store(ByteTokenizer(), 'token') == [256, 259, 97, 98, 257, 256, 259, 99, 257]
  assert store(OneEnd(), 'none') == [257, 97, 98, 257, 257, 99, 257]
  endless = OneEnd()
  endless.eos_id = None
  with pytest.raises(ValueError, match='no EOS'):
    directions.Headed(endless)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="Did you mean 'reverse'"):
    reading('revers')
  with pytest.raises(ValueError, match="signal 'tokens'.*Did you mean 'token'"):
    reading(signal='tokens')
  with pytest.raises(ValueError, match='pairing'):
    reading(pairing='twice')
  with pytest.raises(ValueError, match='share=1.5'):
    reading(share=1.5)


def test_the_loss_of_a_reversed_document_is_that_of_its_reversed_list():
  from trainers.next_token import next_token_loss

  lm, rng = tiny_model(), np.random.default_rng(0)
  documents = [rng.integers(3, 49, n).tolist() for n in (5, 9, 3)]
  whole = lambda order: TokenCorpus.from_documents([[BOS, *d[::order], EOS] for d in documents])
  read = directions.Reading('reverse', BOS, 50)
  shape = dict(batch_size=1, length=22)
  losses = [
    next_token_loss(lm.params, {k: jnp.asarray(x) for k, x in batches.batch(0).items()}, TINY)
    for batches in (
      directions.eval_batches(whole(1), read, reverse=True, **shape),
      packing.eval_batches(whole(-1), **shape),
      packing.eval_batches(whole(1), **shape),
    )
  ]
  assert losses[0][1] == losses[1][1] == losses[2][1] == 5 + 9 + 3 + 3
  assert losses[0][0] == losses[1][0] != losses[2][0]
