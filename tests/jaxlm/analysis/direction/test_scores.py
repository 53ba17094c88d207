"""Losses in both directions: symmetries that hold exactly, an oracle, and independence of how documents are laid out."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import analysis, losses
from jaxlm.analysis.direction import model as direction_model
from jaxlm.analysis.direction import planted as direction_planted
from jaxlm.analysis.direction import rows as direction_rows
from jaxlm.data import tokenizers
from jaxlm.language_model import LanguageModel, forward
from tests.models import TINY, tiny_model

BOS, EOS = 48, 49
LENGTHS = (0, 1, 5, 9, 30, 62, 17, 2, 40)


def documents(lengths=LENGTHS, seed=0):
  random = np.random.default_rng(seed)
  return [random.integers(0, BOS, n).tolist() for n in lengths]


def score(docs, lm=None, **options):
  return list(
    analysis.score_documents(lm or tiny_model(), docs, **{'batch_size': 4, 'bos_id': BOS, 'eos_id': EOS, **options})
  )


def by_hand(lm, ids, begin=(BOS,)):
  """The sum of -log p of ids[len(begin):], each document alone and all logits at once."""
  ids = jnp.asarray([ids])
  log_p = jax.nn.log_softmax(forward(lm, ids[:, :-1]).astype(jnp.float32))
  return -float(sum(log_p[0, i, ids[0, i + 1]] for i in range(len(begin) - 1, ids.shape[1] - 1)))


def test_reverse_loss_is_the_forward_loss_of_the_reversed_text_and_S_changes_its_sign():
  docs = documents()
  there, back = score(docs), score([d[::-1] for d in docs])
  for s, r, doc in zip(there, back, docs, strict=True):
    assert s.tokens == len(doc) + 1
    assert s.loss_reverse == pytest.approx(r.loss_forward, abs=1e-5)
    assert s.S == pytest.approx(-r.S, abs=1e-5)
    assert s.nll_forward == pytest.approx(by_hand(tiny_model(), [BOS, *doc, EOS]), rel=1e-5)
  assert max(abs(s.S) for s in there) > 0.05
  palindrome, single = score([[1, 2, 3, 2, 1], []])
  assert palindrome.S == pytest.approx(0, abs=1e-6) and math.isnan(single.se) and single.S == 0


def test_a_document_does_not_depend_on_its_neighbours_batches_or_devices():
  docs = documents()
  together, devices = score(docs), jax.local_devices()
  assert len(devices) >= 2
  for other in (
    [score([doc])[0] for doc in docs],
    score(docs, batch_size=2, devices=devices[:1]),
    score(docs, batch_size=2, devices=devices[:2]),
    sorted(score(docs[::-1]), key=lambda s: -s.id),
  ):
    for s, o in zip(together, other, strict=True):
      assert o.digest == s.digest and o.tokens == s.tokens
      assert o.nll_forward == pytest.approx(s.nll_forward, rel=1e-4)
      assert o.nll_reverse == pytest.approx(s.nll_reverse, rel=1e-4)


def test_a_long_document_is_cut_and_each_chunk_is_reversed():
  lm, doc = tiny_model(), documents([40])[0]
  (s,) = score([doc], max_length=16)
  chunks = [doc[:15], doc[15:30], doc[30:]]
  ends = [[], [], [EOS]]
  assert s.tokens == 41
  assert s.nll_forward == pytest.approx(sum(by_hand(lm, [BOS, *c, *e]) for c, e in zip(chunks, ends)), rel=1e-5)
  reverse = sum(by_hand(lm, [BOS, *c[::-1], *e]) for c, e in zip(chunks, ends))
  assert s.nll_reverse == pytest.approx(reverse, rel=1e-5)
  (s,) = score([doc[:30]], max_length=16)  # Two whole chunks, and EOS in the second.
  assert s.nll_forward == pytest.approx(by_hand(lm, [BOS, *doc[:15]]) + by_hand(lm, [BOS, *doc[15:30], EOS]), rel=1e-5)


def test_standard_error_is_that_of_the_paired_differences():
  lm, doc = tiny_model(), documents([12])[0]
  (s,) = score([doc])
  nll = lambda ids: (
    -np.array(jax.nn.log_softmax(forward(lm, jnp.asarray([ids[:-1]])))[0][np.arange(len(ids) - 1), ids[1:]])
  )
  there, back = nll([BOS, *doc, EOS]), nll([BOS, *doc[::-1], EOS])
  difference = there - np.append(back[:-1][::-1], back[-1])
  assert s.se == pytest.approx(difference.std(ddof=1) / np.sqrt(13), rel=1e-4)
  assert s.S == pytest.approx(difference.mean(), abs=1e-5)


def test_a_markov_chain_is_as_likely_read_either_way():
  """For the true distribution S is 0 for every text, if both directions include the same end symbols."""
  random, K = np.random.default_rng(0), 7
  P = random.dirichlet(np.ones(K), K)
  stationary = np.linalg.matrix_power(P, 500)[0]
  backward = stationary[None, :] * P.T / stationary[:, None]  # p(before | after)
  np.testing.assert_allclose(backward.sum(axis=1), 1, atol=1e-9)
  end, docs = 0, []
  while len(docs) < 60:
    doc, state = [], random.choice(K, p=P[end])
    while state != end and len(doc) < 60:
      doc.append(int(state))
      state = random.choice(K, p=P[state])
    docs += [doc] if len(doc) < 60 else []

  def table(forward, reverse):
    return -np.log(P)[forward['tokens'], forward['targets']], -np.log(backward)[reverse['tokens'], reverse['targets']]

  ends = direction_rows.Ends((end,), (end,), end)
  found = direction_rows.pooled(docs, table, ends, batch_size=3, length=64)
  assert len(found) == 60 and max(s.tokens for s in found) > 15
  for doc, s in zip(docs, found):
    path = [end, *doc, end]
    assert s.forward == pytest.approx(-np.log([P[a, b] for a, b in itertools.pairwise(path)]).sum())
    assert abs(s.forward - s.reverse) / s.tokens < 1e-6


@pytest.mark.parametrize('signal, forward_head, reverse_head', [('token', [BOS, 50], [BOS, 51]), ('bos', [BOS], [50])])
def test_direction_signals_are_read_and_not_predicted(signal, forward_head, reverse_head):
  extra = {'token': 2, 'bos': 1}[signal]
  lm = tiny_model(TINY.replace(vocab_size=50 + extra, direction='both', direction_signal=signal))
  doc = documents([9])[0]
  (s,) = score([doc], lm)
  assert s.tokens == 10
  assert s.nll_forward == pytest.approx(by_hand(lm, [*forward_head, *doc, EOS], forward_head), rel=1e-5)
  assert s.nll_reverse == pytest.approx(by_hand(lm, [*reverse_head, *doc[::-1], EOS], reverse_head), rel=1e-5)


def test_two_models_each_score_their_direction():
  there, back = tiny_model(), tiny_model(TINY.replace(vocab_size=52, direction='reverse', direction_signal='token'), 1)
  doc = documents([9])[0]
  (s,) = score([doc], there, reverse_lm=back)
  assert s.nll_forward == pytest.approx(by_hand(there, [BOS, *doc, EOS]), rel=1e-5)
  assert s.nll_reverse == pytest.approx(by_hand(back, [BOS, 51, *doc[::-1], EOS], (BOS, 51)), rel=1e-5)


def test_scoring_streams_and_marks_what_is_too_short():
  read = []

  def endless():
    for i in itertools.count():
      read.append(i)
      yield [i % BOS] * (i % 40)

  scores = analysis.score_documents(tiny_model(), endless(), batch_size=4, max_length=32, min_tokens=5, bos_id=BOS, eos_id=EOS)  # fmt: skip
  first = list(itertools.islice(scores, 30))
  assert [s.id for s in first] == list(range(30)) and len(read) < 20_000
  for s in first:
    assert (s.sums is None) == (s.tokens < 5) == math.isnan(s.S)


def test_texts_are_encoded_and_keep_their_domain():
  lm = LanguageModel(*vars(tiny_model(TINY.replace(vocab_size=259))).values())
  lm = LanguageModel(lm.config, lm.params, tokenizers.ByteTokenizer())
  texts = ['A short text.', ('Größe', 'notes.txt')]
  plain, german = score(texts, lm, bos_id=None, eos_id=None)
  assert (plain.domain, german.domain) == ('', 'notes.txt')
  assert (german.characters, german.tokens) == (5, 8)
  assert plain.nll_forward == pytest.approx(by_hand(lm, [256, *b'A short text.', 257]), rel=1e-5)


def test_what_cannot_be_scored_is_refused():
  lm = tiny_model()
  for words, docs, options in (
    ('neither BOS nor EOS', [[1]], {'bos_id': None, 'eos_id': None}),
    ('no tokenizer', ['text'], {}),
    (r'ids 3 .. 50; the vocabulary has 50', [[3, 50]], {}),
    ('max_length=65 must be within 2 .. 64', [[1]], {'max_length': 65}),
    ('batch_size=0', [[1]], {'batch_size': 0}),
    ('prefix=3', [[1]], {'lm': tiny_model(TINY.replace(prefix=3))}),
  ):
    with pytest.raises(ValueError, match=words):
      score(docs, **options)
  broken = LanguageModel(lm.config, jax.tree.map(lambda x: x * jnp.nan, lm.params))
  with pytest.raises(ValueError, match='not finite'):
    score([[1, 2]], broken)
  only_eos = score([[1, 2, 3]], bos_id=None)
  assert only_eos[0].nll_forward == pytest.approx(by_hand(lm, [EOS, 1, 2, 3, EOS]), rel=1e-5)


def test_reduced_precision_keeps_its_sums_in_float32():
  doc = documents([60])[0]
  config = TINY.replace(dtype='bfloat16')
  half = LanguageModel(config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_model().params))
  (s,), (whole,) = score([doc], half), score([doc])
  assert s.loss_forward == pytest.approx(whole.loss_forward, abs=0.02)
  nll = direction_model.token_losses(half, devices=jax.local_devices()[:1])
  rows = {name: np.ones((2, 8), np.int32) for name in ('tokens', 'targets', 'segments', 'positions')}
  assert all(x.dtype == jnp.float32 for x in nll(rows, rows))


def test_a_digest_tells_models_apart():
  lm = tiny_model()
  assert direction_model.digest(lm) == direction_model.digest(tiny_model())
  params = jax.tree.map(lambda x: x * 1.001, lm.params)
  others = (LanguageModel(lm.config, params), LanguageModel(lm.config.replace(norm_eps=1e-6), lm.params), tiny_model(seed=1))  # fmt: skip
  assert len({direction_model.digest(m) for m in (lm, *others)}) == 4


def test_placing_leaves_few_gaps():
  sizes = np.random.default_rng(0).integers(1, 33, 200).tolist()
  places = direction_rows.place(sizes, 32)
  used = np.zeros((200, 32), int)
  for size, (row, start) in zip(sizes, places):
    used[row, start : start + size] += 1
  assert used.max() == 1 and used.sum() == sum(sizes)
  assert used.any(axis=1).sum() <= 1.1 * sum(sizes) / 32
  ends = direction_rows.Ends((BOS,), (BOS, 1), EOS)
  for n in (0, 1, 13, 14, 15, 28, 29):
    chunks = direction_rows.cut(np.zeros(n), 14)
    expected = [2 + len(c) + (c is chunks[-1]) for c in chunks]
    assert direction_rows.chunk_sizes(n, ends, 16) == expected


def test_a_table_of_planted_quality_is_made():
  lm = tiny_model(TINY.replace(vocab_size=259))
  lm = LanguageModel(lm.config, lm.params, tokenizers.ByteTokenizer())
  texts = [f'The {x} went home.\nIt was late, and the {x} was tired.\nNobody saw it.' for x in ('cat', 'dog', 'man')]
  table = analysis.planted_table(lm, texts, ['A horse stood there.', 'The man slept.'], batch_size=4)
  assert set(table) == {'shuffled words', 'shuffled lines', 'boilerplate'}
  for row in table.values():
    assert set(row) == {'S', '-forward loss', 'DSIR', 'length'} and all(0 <= x <= 1 for x in row.values())
  assert table['shuffled lines']['length'] == 0.5  # The same bytes.
  assert direction_planted.auc(np.array([3.0, 2]), np.array([1.0, 2])) == 0.875


def test_token_nll_sums_to_cross_entropy_under_sharding():
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:2]), ('data',))
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, matrix = jax.random.normal(keys[0], (4, 7, 6)), jax.random.normal(keys[1], (6, 23))
  targets = jax.random.randint(keys[2], (4, 7), 0, 23)
  rows = jax.NamedSharding(mesh, jax.P('data'))
  found = jax.jit(lambda h, t: losses.token_nll(h, matrix, t, chunk=8))(*jax.device_put((hidden, targets), rows))
  np.testing.assert_allclose(found.sum(), losses.cross_entropy(hidden @ matrix, targets)[0], rtol=1e-5)
