"""Drafters that are no part of the model: smaller models of its vocabulary, and two drafters together."""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import speculative
from decoders.speculative.prompt_lookup import PromptLookup
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.language_model import LanguageModel
from tests.laws import same_law
from tests.models import TINY, slow, tiny_model

MODEL = TINY.replace(num_layers=5, max_length=128)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [3]]


def test_a_draft_model_must_fit():
  lm = tiny_model(MODEL)
  for other, message in (
    (MODEL.replace(vocab_size=40), '40 tokens and the model 50'),
    (MODEL.replace(max_length=16), 'longer than the 16'),
  ):
    drafter = speculative.DraftModel.of(tiny_model(other))
    with pytest.raises(ValueError, match=message):
      speculative.generate(lm, PROMPTS, drafter=drafter, max_new_tokens=20)


def test_a_draft_model_with_other_tokens_of_the_same_number_is_noticed():
  config = MODEL.replace(vocab_size=259)

  class Shifted(ByteTokenizer):
    def encode(self, text, **options):
      return [(i + 1) % 256 for i in super().encode(text, **options)]

  lm, other = (LanguageModel(config, tiny_model(config).params, t) for t in (ByteTokenizer(), Shifted()))
  with pytest.raises(ValueError, match='must share a vocabulary'):
    speculative.generate(lm, ['a'], drafter=speculative.DraftModel.of(other), max_new_tokens=4)


def test_a_draft_models_tokens_are_plain_decodings():
  lm, settings = tiny_model(MODEL), dict(max_new_tokens=24, sampling=decoders.Sampling(temperature=0.5), seed=1)
  plain = decoders.generate(lm, PROMPTS, **settings)
  for draft in (lm, tiny_model(TINY)):
    out = speculative.generate(lm, PROMPTS, drafter=speculative.DraftModel.of(draft, threshold=0.0), **settings)
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    assert draft is not lm or out.stats['acceptance'] == 1.0


class Letters:
  """A tokenizer whose token i is one letter, the first one `first`."""

  bos_id = eos_id = pad_id = None
  stop_ids, adds_bos = (), False

  def __init__(self, vocab_size, first='a'):
    self.vocab_size, self.first = vocab_size, ord(first)

  def encode(self, text, **options):
    return [ord(c) % self.vocab_size for c in text]

  def decode(self, ids, *, skip_special=True):
    return ''.join(chr(self.first + i) for i in ids if i < self.vocab_size)


def padded(lm: LanguageModel, size: int, fill: float, tokenizer, known: int) -> LanguageModel:
  """Returns a model with `size` ids, whose output weights behind the `known` tokens are those of other tokens times `fill`."""
  wider = lambda x, axis: jnp.take(x, jnp.arange(size) % known, axis=axis)
  head = wider(lm.params['head'], 1) * jnp.where(jnp.arange(size)[None] < known, 1.0, fill)
  params = {**lm.params, 'embed': {'embedding': wider(lm.params['embed']['embedding'], 0)}, 'head': head}
  return LanguageModel(lm.config.replace(vocab_size=size), params, tokenizer)


@pytest.mark.parametrize('target, draft', [(53, 58), pytest.param(58, 53, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  'sampling', [decoders.Sampling(temperature=0.7, repetition_penalty=1.3), *slow(decoders.Sampling())]
)
def test_padding_of_the_vocabulary_is_never_drafted(target, draft, sampling):
  # The target never chooses its own padding; the draft model, which is the same otherwise, would like to above all.
  lm = padded(tiny_model(MODEL), target, 0.0, Letters(50), 50)
  small = padded(tiny_model(MODEL), draft, 1e3, Letters(50), 50)
  settings = dict(max_new_tokens=20, sampling=sampling, seed=1)
  plain = decoders.generate(lm, PROMPTS, **settings)
  drafter = speculative.DraftModel.of(small, threshold=0.0)
  out = speculative.generate(lm, PROMPTS, drafter=drafter, **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  # In sampling, the target sometimes draws its own padding, whose logits are 0.
  assert out.stats['acceptance'] == 1.0 if sampling.temperature == 0 else out.stats['acceptance'] > 0.5


def test_a_target_that_chooses_padding_is_followed():
  lm = padded(tiny_model(MODEL), 58, 3.0, Letters(50), 50)
  drafter = speculative.DraftModel.of(padded(tiny_model(MODEL), 53, 1.0, Letters(50), 50), threshold=0.0)
  prompts = [*PROMPTS[:2], [57, 3]]
  plain = decoders.generate(lm, prompts, max_new_tokens=20)
  assert plain.tokens.max() > 53
  np.testing.assert_array_equal(
    speculative.generate(lm, prompts, drafter=drafter, max_new_tokens=20).tokens, plain.tokens
  )


@pytest.mark.parametrize(
  'ours, theirs, signal',
  [(Letters(50), Letters(49), 'none'), (Letters(50), Letters(50, 'b'), 'none'), (Letters(50), None, 'none'), (Letters(50), Letters(50), 'token')],
)  # fmt: skip
def test_other_sizes_with_other_tokens_are_refused(ours, theirs, signal):
  settings = {'direction': 'both', 'direction_signal': signal} if signal != 'none' else {}
  lm, draft = (tiny_model(MODEL.replace(vocab_size=size, **settings)) for size in (53, 58))
  lm, draft = dataclasses.replace(lm, tokenizer=ours), dataclasses.replace(draft, tokenizer=theirs)
  with pytest.raises(ValueError, match='58 tokens and the model 53: they must share a vocabulary'):
    speculative.generate(lm, PROMPTS, drafter=speculative.DraftModel.of(draft), max_new_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize('size', [5, 8])
def test_padding_keeps_the_models_law(size):
  lm = LanguageModel(MODEL.replace(vocab_size=6), tiny_model(MODEL.replace(vocab_size=6)).params, Letters(4))
  draft = tiny_model(MODEL.replace(vocab_size=size), 1)
  drafter = speculative.DraftModel.of(dataclasses.replace(draft, tokenizer=Letters(4)), threshold=0.2)
  sampling = decoders.Sampling(temperature=0.8, top_p=0.9)
  settings = dict(max_new_tokens=5, sampling=sampling, num_samples=4000, seed=0, eos_id=None)
  plain = decoders.generate(lm, [[1, 2, 3]], **settings)
  out = speculative.generate(lm, [[1, 2, 3]], drafter=drafter, rule='residual', **settings)
  assert 0.1 < out.stats['acceptance'] < 0.9
  assert same_law(plain.tokens, out.tokens) > 1e-3


@pytest.mark.slow
def test_a_draft_models_residual_acceptance_has_the_models_law():
  lm, draft = (tiny_model(MODEL.replace(vocab_size=6), seed) for seed in (0, 1))
  sampling = decoders.Sampling(temperature=0.8, top_p=0.9)
  settings = dict(max_new_tokens=5, sampling=sampling, num_samples=4000, seed=0, eos_id=None)
  plain = decoders.generate(lm, [[1, 2, 3]], **settings)
  drafter = speculative.DraftModel.of(draft, threshold=0.2)
  out = speculative.generate(lm, [[1, 2, 3]], drafter=drafter, rule='residual', **settings)
  assert 0.2 < out.stats['acceptance'] < 0.9
  assert same_law(plain.tokens, out.tokens) > 1e-3


@pytest.mark.parametrize('rule', ['match', pytest.param('residual', marks=pytest.mark.slow)])
def test_a_draft_model_stops_where_it_is_unsure(rule):
  lm, settings = tiny_model(), dict(max_new_tokens=24, sampling=decoders.Sampling(temperature=0.5), seed=1)
  plain, drafted = decoders.generate(lm, PROMPTS, **settings), []
  for threshold in (0.0, 0.1, 1.0):
    drafter = speculative.DraftModel.of(lm, threshold=threshold)
    out = speculative.generate(lm, PROMPTS, drafter=drafter, rule=rule, **settings)
    drafted.append(out.stats['drafted'] / out.stats['rounds'])
    assert out.stats['acceptance'] == pytest.approx(1.0)  # Whatever the target's own law draws is accepted.
    if rule == 'match':
      np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert drafted[0] > drafted[2] > 0.9 and drafted[0] >= drafted[1] >= drafted[2]  # The unsure token itself stays.


@pytest.mark.slow
def test_a_residual_row_is_the_same_beside_others():
  lm, draft = tiny_model(), tiny_model(seed=1)
  generate = functools.partial(
    speculative.generate, lm, PROMPTS, drafter=speculative.DraftModel.of(draft, max_draft=5, threshold=0.02), rule='residual',
    sampling=decoders.Sampling(temperature=0.7), max_new_tokens=30, eos_id=None,
  )  # fmt: skip
  together = generate()
  assert 0 < together.stats['acceptance'] < 1
  np.testing.assert_array_equal(generate(batch_size=1).tokens, together.tokens)


def test_a_draft_model_reads_prompts_in_pieces_too():
  lm, draft = tiny_model(), tiny_model(seed=1)
  prompts = [[*range(1, 40)], [5, 6, 7]]
  outs = [
    speculative.generate(lm, prompts, drafter=speculative.DraftModel.of(draft), max_new_tokens=8, prefill_chunk=chunk)
    for chunk in (None, 16)
  ]
  np.testing.assert_array_equal(outs[0].tokens, outs[1].tokens)
  for name in ('rounds', 'drafted', 'accepted'):
    assert outs[0].stats[name] == outs[1].stats[name]
  assert outs[0].stats['drafter_bytes'] == outs[0].stats['kv_bytes']  # Models of one size, with as many slots.


def test_a_drafter_that_does_not_fit_is_refused_before_anything_is_read():
  lm, streamed = tiny_model(), []
  drafter = speculative.DraftModel.of(tiny_model(TINY.replace(max_length=16)))
  with pytest.raises(ValueError, match='Texts of 18 tokens are longer than the 16'):
    speculative.generate(
      lm, [[1], [1] * 14], drafter=drafter, max_new_tokens=4, batch_size=1, stream=lambda *new: streamed.append(new)
    )
  assert not streamed


@pytest.mark.slow
def test_programs_do_not_keep_a_draft_models_weights():
  lm, draft = tiny_model(), tiny_model.__wrapped__(TINY, 2)
  kept = weakref.ref(jax.tree.leaves(draft.params)[0])
  alone = speculative.DraftModel.of(draft)
  for drafter in (alone, speculative.CombinedDrafter(alone, PromptLookup(3))):
    speculative.generate(lm, PROMPTS, drafter=drafter, max_new_tokens=6)
  del draft, drafter, alone
  gc.collect()
  assert kept() is None


def test_two_lookups_together():
  lm = tiny_model()
  plain = decoders.generate(lm, PROMPTS, max_new_tokens=30)
  drafter = speculative.CombinedDrafter(PromptLookup(6, longest=5, shortest=4), PromptLookup(3))
  out = speculative.generate(lm, PROMPTS, drafter=drafter, max_new_tokens=30)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['accepted'] > 0
  with pytest.raises(ValueError, match='cannot be two drafters itself'):
    speculative.CombinedDrafter(PromptLookup(), drafter)
  with pytest.raises(ValueError, match="use rule='match'"):
    speculative.generate(
      lm, PROMPTS, drafter=drafter, rule='residual', sampling=decoders.Sampling(temperature=1.0), max_new_tokens=4
    )
