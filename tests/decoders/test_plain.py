import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from jaxlm.errors import NotFiniteError
from jaxlm.language_model import LanguageModel, forward
from jaxlm.models.sharding import make_mesh, tree_shardings
from tests.models import TINY, slow, tiny_model

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [3]]
SAMPLED = decoders.Sampling(temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.2)


class Letters:
  """A tokenizer whose token i is one character."""

  vocab_size, bos_id, pad_id, stop_ids, adds_bos = 50, None, 0, (), False

  def encode(self, text, *, bos=False, eos=False):
    return [ord(c) - 60 for c in text]

  def decode(self, ids, *, skip_special=True):
    return ''.join(chr(60 + i) for i in ids)


def by_full_forward(lm, prompt, steps):
  ids = list(prompt)
  for _ in range(steps):
    padded = jnp.asarray([ids + [0] * (32 - len(ids))])
    ids.append(int(jnp.argmax(forward(lm, padded)[0, len(ids) - 1])))
  return ids[len(prompt) :]


@pytest.mark.parametrize(
  'variant', [{}, {'attention': 'sigmoid', 'windows': (3, 0)}, {'position': 'learned', 'tied_embeddings': True}]
)
def test_ragged_batch_equals_each_prompt_by_full_forward(variant):
  lm = tiny_model(TINY.replace(**variant))
  out = decoders.generate(lm, PROMPTS, max_new_tokens=10)
  assert out.rows() == [by_full_forward(lm, p, 10) for p in PROMPTS]


@pytest.mark.parametrize('sampling', [decoders.Sampling(), SAMPLED])
def test_tokens_do_not_depend_on_the_batch_size(sampling):
  lm, settings = tiny_model(), dict(max_new_tokens=10, sampling=sampling, num_samples=2, seed=3)
  together = decoders.generate(lm, PROMPTS, **settings)
  apart = decoders.generate(lm, PROMPTS, batch_size=1, **settings)
  assert together.tokens.shape == (6, 10)
  np.testing.assert_array_equal(together.tokens, apart.tokens)


def test_samples_and_seeds_differ_and_repeat():
  lm = tiny_model()
  draw = lambda seed: (
    decoders.generate(lm, PROMPTS, max_new_tokens=10, sampling=SAMPLED, num_samples=2, seed=seed).tokens
  )
  a, b = draw(0), draw(1)
  np.testing.assert_array_equal(a, draw(0))
  assert (a != b).any() and (a[0] != a[1]).any()


def test_other_settings_need_no_new_program():
  lm = tiny_model()
  decoders.generate(lm, PROMPTS, max_new_tokens=10, sampling=decoders.Sampling(temperature=1.0, top_k=3))
  out = decoders.generate(lm, PROMPTS, max_new_tokens=10, sampling=decoders.Sampling(temperature=0.3, top_k=7))
  assert out.stats['compile_seconds'] == 0


def test_eos_ends_a_row_and_the_rest_is_padding():
  lm = tiny_model()
  free = decoders.generate(lm, PROMPTS, max_new_tokens=10)
  eos = int(free.tokens[1, 4])
  out = decoders.generate(lm, PROMPTS, max_new_tokens=10, eos_id=eos)
  for row, whole in zip(out.rows(), free.rows()):
    assert row == (whole[: whole.index(eos) + 1] if eos in whole else whole)
  assert (out.tokens[1, out.lengths[1] :] == eos).all()
  assert out.stats['new_tokens'] == out.lengths.sum()


def test_streamed_tokens_are_the_output():
  lm, streamed = tiny_model(), {0: [], 1: [], 2: []}
  out = decoders.generate(
    lm, PROMPTS, max_new_tokens=10, stream=lambda row, ids: streamed[row].extend(ids), batch_size=2
  )
  assert list(streamed.values()) == out.rows()


def test_stop_string_ends_row_and_text():
  lm = LanguageModel(TINY, tiny_model().params, Letters())
  free = decoders.generate(lm, PROMPTS, max_new_tokens=10, eos_id=None)
  stop = free.text[1][3:5]
  end = free.text[1].index(stop)
  streamed = []
  out = decoders.generate(
    lm,
    PROMPTS,
    max_new_tokens=10,
    eos_id=None,
    stop=[stop],
    stream=lambda r, ids: streamed.extend(ids if r == 1 else []),
  )
  assert out.text[1] == free.text[1][:end] and out.lengths[1] == end + 2
  assert streamed == out.rows()[1]


def test_text_prompts_are_encoded_and_decoded():
  lm = LanguageModel(TINY, tiny_model().params, Letters())
  out = decoders.generate(lm, ['=>?', 'A'], max_new_tokens=4)
  np.testing.assert_array_equal(out.tokens, decoders.generate(lm, [[1, 2, 3], [5]], max_new_tokens=4).tokens)
  assert out.text[0] == Letters().decode(out.rows()[0])


def test_stats_count_what_happened():
  out = decoders.generate(tiny_model(), PROMPTS, max_new_tokens=10)
  assert out.stats['prompt_tokens'] == 12 and out.stats['target_calls'] == 10
  assert (
    out.stats['kv_bytes'] == 2 * 2 * 3 * 32 * 2 * 8 * 4
  )  # k and v, layers, rows, slots, kv heads, head dim, float32
  assert out.stats['decode_seconds'] > 0 and out.stats['tokens_per_second'] > 0


@pytest.mark.parametrize('axes', [{'tensor': 2, 'fsdp': 2}, *slow({'tensor': 4})])
def test_sharded_parameters_give_the_same_tokens(axes):
  lm = tiny_model()
  mesh = make_mesh(**axes)
  sharded = LanguageModel(lm.config, jax.device_put(lm.params, tree_shardings(lm.params, mesh)))
  assert not sharded.params['layer_0']['mlp']['up']['kernel'].sharding.is_fully_replicated
  np.testing.assert_allclose(
    forward(sharded, jnp.asarray(PROMPTS[1:2])), forward(lm, jnp.asarray(PROMPTS[1:2])), atol=1e-5
  )
  for sampling in (decoders.Sampling(), SAMPLED):
    settings = dict(max_new_tokens=10, sampling=sampling)
    np.testing.assert_array_equal(
      decoders.generate(sharded, PROMPTS, **settings).tokens, decoders.generate(lm, PROMPTS, **settings).tokens
    )


@pytest.mark.parametrize(
  'prompts, settings, message',
  [
    ([], {}, 'empty'),
    ([[]], {}, 'Prompt 0 is empty'),
    ([[1], [2, 50]], {}, 'Prompt 1 has token id 50; the vocabulary has ids 0 to 49'),
    ([[-1]], {}, 'token id -1'),
    ([1, 2], {}, 'wrap a single one in a list'),
    (['text'], {}, 'no tokenizer'),
    ([[1] * 60], {'max_new_tokens': 10}, '60 tokens and max_new_tokens=10, together 70; the model reads 64: set max_new_tokens to at most 4'),
    ([[1] * 64], {'max_new_tokens': 1}, 'shorten the prompt'),
    ([[1]], {'max_new_tokens': 0}, 'max_new_tokens=0'),
    ([[1]], {'num_samples': 0}, 'num_samples=0'),
    ([[1]], {'capacity': 0}, 'capacity=0'),
    ([[1]], {'stop': ['x']}, 'needs a model with a tokenizer'),
  ],
)  # fmt: skip
def test_bad_prompts_are_refused_with_the_reason(prompts, settings, message):
  with pytest.raises(ValueError, match=message):
    decoders.generate(tiny_model(), prompts, **settings)


def test_what_overflows_in_float16_is_told_and_so_is_the_way_out():
  params = jax.tree.map(lambda x: (x * 3000).astype(jnp.float16), tiny_model().params)
  with pytest.raises(NotFiniteError, match="Row 0: .* in float16: numbers above 65504 .* dtype='bfloat16'"):
    decoders.generate(LanguageModel(TINY.replace(dtype='float16'), params), PROMPTS, max_new_tokens=4)
