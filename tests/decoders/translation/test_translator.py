"""Translation against slow searches that compute every prefix anew, without a cache, padding or a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.options import Sampling
from jaxlm.errors import NotFiniteError
from tests.decoders.beam.reference import EOS, beam_search, exhaustive
from tests.decoders.translation.models_made import (
  MARKOV,
  NAIVE,
  SOURCES,
  TINY,
  UNROLL,
  Letters,
  model_log_p,
  tiny,
)
from tests.models import slow, tiny_model


def rows_of(out, num_return: int) -> list[list[tuple[float, tuple[int, ...]]]]:
  rows = [(float(s), tuple(ids)) for s, ids in zip(out.scores, out.rows())]
  return [rows[i : i + num_return] for i in range(0, len(rows), num_return)]


def check(actual, expected):
  assert [ids for _, ids in actual] == [ids for _, ids in expected]
  np.testing.assert_allclose([s for s, _ in actual], [s for s, _ in expected], rtol=1e-4)


@pytest.mark.parametrize('config', [TINY, MARKOV, *slow(NAIVE, UNROLL)], ids=['full', 'markov', 'naive', 'unroll'])
@pytest.mark.parametrize('width', [3, *slow(1, 2)])
def test_equals_a_slow_search_without_a_cache(config, width):
  model = tiny(config)
  out = decoders.translate(model, SOURCES, beam_size=width, num_return=width, max_new_tokens=12)
  for source, actual in zip(SOURCES, rows_of(out, width)):
    early = 'never' if width > 1 else True
    check(actual, beam_search(model_log_p(model, source, 12), 12, width, 1.0, early))
  alone = decoders.translate(model, SOURCES[1:2], beam_size=width, num_return=width, max_new_tokens=12)
  check(rows_of(alone, width)[0], rows_of(out, width)[1])


@pytest.mark.parametrize('penalty', [1.0, *slow(0.0, -0.7)])
def test_a_wide_beam_finds_what_exhaustive_search_finds(penalty):
  out = decoders.translate(tiny(), SOURCES[:2], beam_size=108, num_return=5, max_new_tokens=4, length_penalty=penalty)
  for source, actual in zip(SOURCES, rows_of(out, 5)):
    check(actual, exhaustive(model_log_p(tiny(), source, 4), 4, penalty)[:5])


@pytest.mark.parametrize('config', [MARKOV, *slow(UNROLL)], ids=['transparent', 'unroll'])
def test_recombination_is_exact_for_an_exact_order(config):
  """Check 7 of the Markov decoder. With 9 pairs of last ids, 9 beams hold all that recombination leaves."""
  model = tiny(config)
  out = decoders.translate(model, SOURCES, beam_size=9, max_new_tokens=6, recombine=True)
  assert out.stats['recombined'] > 0
  for source, actual in zip(SOURCES, rows_of(out, 1)):
    check(actual, exhaustive(model_log_p(model, source, 6), 6, 1.0)[:1])
  for config in (TINY, NAIVE):
    with pytest.raises(ValueError, match='recombine=True needs a model that predicts a token from exactly'):
      decoders.translate(tiny(config), SOURCES, recombine=True)


def test_greedy_is_a_beam_of_one():
  model = tiny()
  out = decoders.translate(model, SOURCES, beam_size=1, max_new_tokens=12)
  same = decoders.translate(model, SOURCES, beam_size=1, max_new_tokens=12, sampling=Sampling(), early_stopping=False)
  assert out.rows() == same.rows()
  for source, ids in zip(SOURCES, out.rows()):
    log_p, prefix = model_log_p(model, source, 12), ()
    while len(prefix) < 12 and prefix[-1:] != (EOS,):
      prefix += (1 + int(np.argmax(log_p(prefix)[1:])),)
    assert tuple(ids) == prefix


def test_sampling_is_reproducible_at_any_batch_size():
  model, hot = tiny(), Sampling(temperature=1.0)
  draw = lambda seed, **more: decoders.translate(
    model, SOURCES, beam_size=1, sampling=hot, seed=seed, max_new_tokens=12, length_penalty=0.5, **more
  )
  out = draw(3)
  assert out.rows() == draw(3, batch_size=2).rows() and out.rows() != draw(4).rows()
  for source, ids, score in zip(SOURCES, out.rows(), out.scores):
    log_p = model_log_p(model, source, 12)
    assert ids[-1] == EOS or len(ids) == 12
    np.testing.assert_allclose(
      score, sum(log_p(tuple(ids[:n]))[ids[n]] for n in range(len(ids))) / len(ids) ** 0.5, rtol=1e-4
    )
  coldest = decoders.translate(model, SOURCES, beam_size=1, sampling=Sampling(temperature=1e-6), max_new_tokens=12)
  assert coldest.rows() == decoders.translate(model, SOURCES, beam_size=1, max_new_tokens=12).rows()


def test_tokens_are_drawn_from_the_model():
  model = tiny()
  out = decoders.translate(
    model, SOURCES[:1] * 512, beam_size=1, sampling=Sampling(temperature=1.0), max_new_tokens=1, batch_size=512
  )
  shares = np.bincount(out.tokens[:, 0], minlength=5) / 512
  p = np.exp(model_log_p(model, SOURCES[0], 12)(()))
  p[0] = 0  # Padding is never drawn.
  np.testing.assert_allclose(shares, p / p.sum(), atol=4 * 0.5 / 512**0.5)


def test_order_and_batches_do_not_matter():
  model = tiny(MARKOV)
  sources = [[3 + i % 5] * n for i, n in enumerate((2, 17, 1, 9, 20, 3, 5))]
  out = decoders.translate(model, sources, batch_size=2, num_return=2)
  other = decoders.translate(model, sources[::-1], batch_size=7, num_return=2)
  check([row for rows in rows_of(out, 2) for row in rows], [row for rows in rows_of(other, 2)[::-1] for row in rows])
  longest = [min(2 * (len(source) + 1) + 20, 32) for source in sources]
  assert (out.lengths.reshape(-1, 2).max(axis=1) <= longest).all() and out.tokens.shape == (14, 32)


@pytest.mark.slow
def test_the_state_of_a_markov_model_does_not_grow():
  """Check 6 of the Markov decoder: its bytes are the same at any length, and those of k ids where the ids are the state."""
  size = lambda config, n, width=4: (
    decoders.translate(tiny(config), SOURCES[:1], max_new_tokens=n, beam_size=width).stats
  )
  assert size(MARKOV, 8)['state_bytes'] == size(MARKOV, 32)['state_bytes'] > 0
  assert size(UNROLL, 8)['state_bytes'] == 4 * UNROLL.markov_order * 4  # Four beams of int32 ids.
  assert size(TINY, 8)['state_bytes'] < size(TINY, 32)['state_bytes']
  # Beams read the one memory of their source.
  assert size(TINY, 8)['memory_bytes'] == size(TINY, 8, width=1)['memory_bytes']


def test_text_and_fewest_tokens():
  out = decoders.translate(tiny(), ['abc', 'f'], max_new_tokens=8)
  assert out.rows() == decoders.translate(tiny(), [[3, 4, 5], [8]], max_new_tokens=8).rows()
  for ids, text in zip(out.rows(), out.text):
    assert text == Letters().decode_target([i for i in ids if i != EOS])
  later = decoders.translate(tiny(), SOURCES, max_new_tokens=8, min_new_tokens=7)
  assert (later.lengths == 8).all()
  assert (decoders.translate(tiny(), SOURCES, max_new_tokens=8, min_new_tokens=7, beam_size=1).lengths == 8).all()
  drawn = dict(beam_size=1, sampling=Sampling(temperature=1.0))
  assert (decoders.translate(tiny(), SOURCES, max_new_tokens=8, min_new_tokens=7, **drawn).lengths == 8).all()
  assert repr(out).startswith('Translations(2 rows, ') and '\n' not in repr(out)
  assert repr(tiny(MARKOV)) == (
    'Seq2SeqModel(1 + 2 layers x 8, Markov order 2 (transparent), 0.0 M parameters, vocabulary 5, float32, Letters)'
  )


@pytest.mark.parametrize(
  'sources, settings, message',
  [
    ([], {}, '`sources` is empty'),
    ('abc', {}, 'wrap a single one in a list'),
    ([3, 4], {}, 'wrap a single one in a list'),
    ([[3], []], {}, 'Source 1 is empty'),
    (['a', ''], {}, 'Source 1 is empty'),
    ([[3], [9]], {}, 'Source 1 has token id 9; the source vocabulary has ids 0 to 8'),
    ([[3] * 32], {}, 'Source 0 has 33 tokens with its EOS, and the model reads at most 32'),
    ([[3]], {'beam_size': 0}, 'beam_size=0'),
    ([[3]], {'batch_size': 0}, 'batch_size=0'),
    ([[3]], {'num_return': 5}, 'num_return=5 must be within 1 .. beam_size=4'),
    ([[3]], {'num_return': 0}, 'num_return=0 must be within'),
    ([[3]], {'length_penalty': float('nan')}, 'length_penalty=nan must be a finite number'),
    ([[3]], {'max_new_tokens': 33}, 'max_new_tokens=33 must be within 1 .. 32'),
    ([[3]], {'max_new_tokens': 4, 'min_new_tokens': 4}, 'min_new_tokens=4 must be within 0 .. 3'),
    ([[3]], {'early_stopping': None}, 'early_stopping=None must be'),
    ([[3]], {'seed': -1}, 'seed=-1'),
    ([[3]], {'sampling': Sampling(temperature=1.0)}, 'which needs beam_size=1, not beam_size=4'),
  ],
)
def test_what_cannot_be_translated_is_refused(sources, settings, message):
  with pytest.raises(ValueError, match=message):
    decoders.translate(tiny(), sources, **settings)


def test_models_that_cannot_translate_are_refused():
  with pytest.raises(ValueError, match='no tokenizer: pass sources as lists of token ids'):
    decoders.translate(dataclasses.replace(tiny(), tokenizer=None), ['abc'])
  with pytest.raises(ValueError, match='needs an encoder-decoder .*, not a LanguageModel'):
    decoders.translate(tiny_model(), [[3]])
  broken = dataclasses.replace(tiny(), params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tiny().params))
  for settings in ({}, {'beam_size': 1, 'sampling': Sampling(temperature=1.0)}):
    with pytest.raises(NotFiniteError, match='Source 2: the logits .* float32'):
      decoders.translate(broken, SOURCES, max_new_tokens=12, **settings)
