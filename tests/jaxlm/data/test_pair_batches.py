"""Batches of sentence pairs: a function of (pairs, seed, step), each pair once per epoch, in a few shapes."""

import random

import numpy as np
import pytest

from jaxlm import errors
from jaxlm.data import packing, pair_tokenizers
from jaxlm.data.pair_batches import eval_pair_batches, make_pair_batches
from jaxlm.data.pair_corpus import tokenize_pairs

BYTES = pair_tokenizers.train([], kind='bytes')
BOS, EOS, PAD = 256, 257, 258


def made(n=300, longest=40, seed=0) -> list[tuple[str, str]]:
  """Pairs of different lengths; no two sources are equal, for each begins with its number."""
  rng = random.Random(seed)
  text = lambda most: 'x' * rng.randint(1, most)
  return [(f'{i} {text(longest - 6)}', text(longest - 1)) for i in range(n)]


PAIRS = made()
CORPUS = tokenize_pairs(PAIRS, BYTES)


def make(pairs=CORPUS, **options):
  return make_pair_batches(pairs, BYTES, **{'tokens': 400, 'buckets': 4, 'seed': 3} | options)


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def texts(batch) -> list[tuple[str, str]]:
  """Returns the pairs in a batch, in the order of its rows, checking each row's arrays on the way."""
  found = []
  for row in range(len(batch['mask'])):
    source, tokens, targets = (batch[name][row] for name in ('source', 'tokens', 'targets'))
    S, T = int(batch['source_mask'][row].sum()), int(batch['mask'][row].sum())
    assert batch['source_mask'][row, :S].all() and batch['mask'][row, :T].all()
    assert source[S - 1] == EOS and (source[S:] == PAD).all() and tokens[0] == BOS
    assert (tokens[max(T, 1) :] == PAD).all() and (targets[T:] == PAD).all()
    if not T:
      assert S == 1  # A row of weight 0 has a token for attention to see.
      continue
    assert targets[T - 1] == EOS
    np.testing.assert_array_equal(tokens[1:T], targets[: T - 1])
    found.append((BYTES.source.decode(source[: S - 1]), BYTES.target.decode(targets[: T - 1])))
  return found


def test_a_batch_depends_on_the_step_alone():
  a, b = make(), make(PAIRS)
  n = 3 * a.steps_per_epoch
  forwards = [a.batch(step) for step in range(n)]
  backwards = [b.batch(step) for step in reversed(range(n))][::-1]
  for x, y in zip(forwards, backwards):
    assert_equal(x, y)
  B, S, T = a.shape(5)
  assert {name: (x.dtype.name, x.shape) for name, x in a.batch(5).items()} == {
    'source': ('int32', (B, S)),
    'source_mask': ('bool', (B, S)),
    'tokens': ('int32', (B, T)),
    'targets': ('int32', (B, T)),
    'mask': ('float32', (B, T)),
  }


@pytest.mark.parametrize('n', [1, 7, 300])
@pytest.mark.parametrize('devices', [1, 4])
def test_an_epoch_has_each_pair_once_and_each_epoch_its_own_order(n, devices):
  pairs = made(n)
  batches = make(pairs, devices=devices)
  steps = batches.steps_per_epoch
  epochs = [[pair for step in range(steps) for pair in texts(batches.batch(e * steps + step))] for e in range(3)]
  assert all(sorted(epoch) == sorted(pairs) for epoch in epochs)
  if n > 7:
    assert len(set(map(tuple, epochs))) == 3 and epochs[0] != sorted(epochs[0])
  orders = {tuple(make(pairs, devices=devices, seed=seed).indices(0)) for seed in range(4)}
  assert n < 300 or len(orders) == 4


def test_each_epoch_groups_pairs_anew():
  batches = make(buckets=1)
  n = batches.steps_per_epoch
  epochs = [{frozenset(batches.indices(e * n + step).tolist()) for step in range(n)} for e in range(3)]
  assert n > 10 and not epochs[0] & epochs[1] and not epochs[1] & epochs[2]


def test_batches_have_few_shapes_within_the_budget():
  for buckets, devices in ((1, 1), (3, 1), (6, 2)):
    batches = make(tokens=500, buckets=buckets, devices=devices)
    found = {tuple(batches.batch(step)['source'].shape) for step in range(batches.steps_per_epoch)}
    assert len(found) <= buckets and len(batches.shapes) <= buckets
    for rows, S, T in batches.shapes:
      assert rows % devices == 0 and rows * max(S, T) <= 500
    # No batch of a bucket is left with a few pairs: they are spread evenly.
    rows = {}
    for step in range(batches.steps_per_epoch):
      rows.setdefault(batches.shape(step), []).append(int((batches.indices(step) >= 0).sum()))
    assert all(max(counts) - min(counts) <= 1 for counts in rows.values())


def test_the_padding_is_reported_and_falls_with_the_number_of_buckets():
  pairs = tokenize_pairs([(s, 't' * min(40, len(s))) for s, _ in made(3000)], BYTES)
  shares = []
  for buckets in (1, 4, 12):
    batches = make(pairs, tokens=1000, buckets=buckets)
    epoch = [batches.batch(step) for step in range(batches.steps_per_epoch)]
    tokens = sum(int(b['mask'].sum() + b['source_mask'][b['mask'].any(axis=1)].sum()) for b in epoch)
    places = sum(b['source'].size + b['targets'].size for b in epoch)
    assert batches.padding == (tokens, places) and f'{1 - tokens / places:.1%} is padding' in batches.describe()
    shares.append(batches.padding.share)
  assert shares[0] > shares[1] > shares[2] and shares[2] < 0.08


def test_a_resumed_run_has_the_batches_of_one_never_stopped():
  whole = [make().batch(step) for step in range(20)]
  with packing.prefetch(make(), 13, 20) as ahead:
    for x, y in zip(whole[13:], ahead):
      assert_equal(x, y)
  far = make()
  assert sorted(far.indices(10**9).tolist())  # No replay: the first batch asked for is one of a distant epoch.


def test_processes_read_their_own_rows_of_every_shape():
  batches = make(devices=4)
  n = batches.batch_size
  assert n % 4 == 0 and len({shape.rows for shape in batches.shapes}) > 1
  for step in range(batches.steps_per_epoch):
    whole = batches.batch(step)
    parts = [batches.batch(step, slice(p * n // 2, (p + 1) * n // 2)) for p in range(2)]
    assert_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
  with pytest.raises(ValueError, match='selects none'):
    batches.batch(0, slice(n, n + 1))
  smaller = next(step for step in range(batches.steps_per_epoch) if batches.shape(step).rows < n)
  with pytest.raises(ValueError, match='no counterpart in a batch of .* set to'):
    batches.batch(smaller, slice(0, 1))


def test_long_pairs_are_counted_and_never_cut():
  pairs = [*PAIRS, ('y' * 80, 'z'), ('y', 'z' * 41)]
  batches = make(pairs, max_length=40)
  assert batches.dropped == 2 and batches.pairs == len(PAIRS) and '2 pairs are longer' in batches.describe()
  found = [pair for step in range(batches.steps_per_epoch) for pair in texts(batches.batch(step))]
  assert sorted(found) == sorted(PAIRS)
  held_out = eval_pair_batches(pairs, BYTES, batches.shapes)
  assert held_out.dropped == 2
  with pytest.raises(errors.DataError, match='None of the 1 held-out pairs fits into'):
    eval_pair_batches(pairs[-1:], BYTES, batches.shapes)


def test_evaluation_sees_each_pair_once_in_a_fixed_order():
  train = make(devices=2)
  batches = eval_pair_batches(made(77, seed=5), BYTES, train.shapes)
  first, again = list(batches), list(batches)
  for a, b in zip(first, again):
    assert_equal(a, b)
  assert len(first) == len(batches)
  assert sorted(pair for batch in first for pair in texts(batch)) == sorted(made(77, seed=5))
  assert {batch['source'].shape for batch in first} <= {(shape.rows, shape.S) for shape in train.shapes}
  full = [(batches.indices(step) >= 0).all() for step in range(len(batches))]
  assert all(full[:-1]) and not full[-1]
  for step, batch in enumerate(first):
    expected = [i for i in batches.indices(step) if i >= 0]
    assert texts(batch) == [made(77, seed=5)[i] for i in expected]
    halves = [batches.batch(step, slice(p * train.batch_size // 2, (p + 1) * train.batch_size // 2)) for p in (0, 1)]
    assert_equal({name: np.concatenate([half[name] for half in halves]) for name in batch}, batch)
  assert len(list(eval_pair_batches(made(77), BYTES, train.shapes, max_batches=2))) == 2
  short = eval_pair_batches([('a', 'b')] * 3, BYTES, train.shapes)
  assert [batch['source'].shape[1] for batch in short] == [train.shapes[0].S]  # Not in a larger shape than needed.
  with pytest.raises(IndexError):
    batches.batch(len(batches))


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='step=-1'):
    make().batch(-1)
  with pytest.raises(errors.DataError, match='no sentence pair left'):
    make([])
