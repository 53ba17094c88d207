"""Drafting with the target's cache changes the number of calls, and never the tokens."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.glide import GlideDecoding, GlideDrafter, GlideLoop, Stream, cape
from decoders.programs import _programs, forget
from decoders.speculative import PromptLookup, rounds
from decoders.speculative.guard import Account
from decoders.strategies import WholeMemory
from jaxlm.caches import FullCache
from jaxlm.config import RopeConfig
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.glide_config import with_target
from jaxlm.glide_model import GlideDraft
from jaxlm.language_model import LanguageModel
from tests.decoders.speculative.test_loop import copies_in_loops
from tests.glide_drafts import (
  FOLLOW,
  SMALL,
  TARGET,
  scripted,
  scripted_draft,
  target_reads,
  tiny_draft,
  training_logits,
)
from tests.laws import same_law
from tests.models import apply, slow, tiny_model

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 4, 5], [3]]
ALWAYS = GlideDecoding(guard=False)
CHAIN = ALWAYS.replace(bins=(1,))
PAIRS = ALWAYS.replace(bins=(2,))  # One candidate beside each token: a single program verifies all trees.
SAMPLED = decoders.Sampling(temperature=0.8, top_p=0.9)
DEEP = {'num_layers': 2, 'block': 4}


def both(target, draft, glide=ALWAYS, prompts=PROMPTS, **settings):
  """Returns the outputs of plain decoding and of drafting."""
  lm, settings = tiny_model(target), dict(max_new_tokens=20) | settings
  own = {k: settings.pop(k) for k in ('rule', 'lookup') if k in settings}
  return decoders.generate(lm, prompts, **settings), decoders.glide.generate(
    lm, draft, prompts, glide=glide, **own, **settings
  )


@pytest.mark.slow  # Every day, the test with prompt lookup compares tokens too.
@pytest.mark.parametrize('sampling', [SAMPLED, decoders.Sampling()])
@pytest.mark.parametrize(
  'case',
  [
    (DEEP | {'vocabulary': 40}, ALWAYS),
    (DEEP, ALWAYS),
    ({}, CHAIN),
    (DEEP | {'draft': 'parallel', 'window': 4}, ALWAYS),
    (DEEP | {'eval_mask': 'paper'}, ALWAYS.replace(bins=(3,), threshold=0.1)),
    ({'embedding': 'target', 'cross_norm': True, 'window': 5}, ALWAYS),
    ({'cross': False}, ALWAYS),
  ],
  ids=str,
)
def test_tokens_are_plain_decodings(case, sampling):
  changes, glide = case
  plain, out = both(TARGET, tiny_draft(**changes), glide, sampling=sampling)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['drafted'] > 0 and out.stats['plain_steps'] == 0


@pytest.mark.slow
@pytest.mark.parametrize('bins', [(1,), (8,), decoders.glide.PAPER_BINS], ids=str)
@pytest.mark.parametrize('target', [TARGET, TARGET.replace(num_kv_heads=4, rope=RopeConfig())], ids=['GQA', 'MHA'])
def test_fifty_prompts_in_batches_of_one_and_four(target, bins):
  prompts = np.random.default_rng(0).integers(1, 50, (50, 7)).tolist()
  glide, draft = ALWAYS.replace(bins=bins), tiny_draft(target, **DEEP)
  settings = dict(max_new_tokens=64, prompts=prompts, eos_id=None)
  for size in (1, 4):
    plain, out = both(target, draft, glide, batch_size=size, **settings)
    np.testing.assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
def test_in_bfloat16_tokens_differ_only_where_the_model_wavers():
  target = TARGET.replace(dtype='bfloat16')
  plain, out = both(target, tiny_draft(target, dtype='bfloat16', **DEEP), max_new_tokens=30, eos_id=None)
  flips = 0
  for prompt, new in zip(PROMPTS, out.rows()):
    logits = np.asarray(apply(target, tiny_model(target).params, jnp.asarray([prompt + new]))[0])[
      0, len(prompt) - 1 : -1
    ]
    gap = logits.max(axis=-1) - logits[np.arange(len(new)), new]
    flips += (gap > 0).sum()
    assert gap.max() < 0.05
  print(f'{flips} of {out.tokens.size} tokens are not the likeliest; {(out.tokens != plain.tokens).sum()} differ')
  assert flips < 10


@pytest.mark.parametrize('kind', ['chain', *slow('parallel')])
def test_a_draft_that_is_always_right_has_every_token_accepted(kind):
  lm = scripted()
  draft = scripted_draft(lm, FOLLOW, draft=kind)
  if kind == 'parallel':  # It cannot know more than the token after the last one.
    glide = CHAIN.replace(max_draft=1)
  else:
    glide = CHAIN
  most = 1 + 4 * (glide.max_draft + 1)  # The prefill chooses one token.
  plain = decoders.generate(lm, [[1], [2, 9]], max_new_tokens=most, eos_id=None)
  out = decoders.glide.generate(lm, draft, [[1], [2, 9]], max_new_tokens=most, eos_id=None, glide=glide)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['rounds'] == 2 * 4 and out.stats['acceptance'] == 1
  assert out.stats['drafted_at'] == out.stats['accepted_at'] == [8] * glide.max_draft


def test_a_draft_that_is_never_right_costs_a_call_per_token():
  lm = scripted()
  draft = scripted_draft(lm, {a: (b + 1) % 12 for a, b in FOLLOW.items()})
  plain = decoders.generate(lm, [[1], [2, 9]], max_new_tokens=21, eos_id=None)
  out = decoders.glide.generate(lm, draft, [[1], [2, 9]], max_new_tokens=21, eos_id=None, glide=CHAIN)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['accepted'] == 0 and out.stats['tokens_per_round'] == 1 and out.stats['target_calls'] == 21
  assert out.stats['acceptance_by_position'] == [0.0] * 4


def test_candidates_beside_the_chain_are_accepted_exactly_where_they_hold_the_next_token():
  """With one drafted token, rounds can be replayed from the text: the draft's best candidates after each of its tokens."""
  lm, draft = tiny_model(TARGET), tiny_draft(num_layers=2, block=1)
  glide, k = ALWAYS.replace(max_draft=1, bins=(4,)), 4
  out = decoders.glide.generate(lm, draft, [[1, 2, 3]], max_new_tokens=41, eos_id=None, glide=glide)
  text = [1, 2, 3, *out.tokens[0].tolist()]
  tokens = jnp.asarray([text])
  reads, _ = target_reads(TARGET, lm.params, tokens, draft.config.target_layers)
  best = np.asarray(jax.lax.top_k(training_logits(draft.config, draft.params, tokens, reads, jnp.zeros(1, int)), k)[1])[
    0
  ]
  last, rounds, accepted = 3, 0, 0
  while last < len(text) - 1:
    hit = text[last + 1] in best[last] and last + 2 < len(text)
    last, rounds, accepted = last + 1 + hit, rounds + 1, accepted + hit
  assert (out.stats['rounds'], out.stats['accepted']) == (rounds, accepted)
  assert accepted > 2 and rounds > accepted


@pytest.mark.slow
def test_the_first_drafted_token_is_accepted_as_often_as_the_distributions_overlap():
  """sum_x min(p(x), q(x)) on average over the first tokens, within four standard errors."""
  target, N = TARGET.replace(vocab_size=8), 20000
  lm, draft = tiny_model(target), tiny_draft(target, **DEEP)
  settings = dict(max_new_tokens=3, num_samples=N, sampling=decoders.Sampling(temperature=1.0), eos_id=None)
  glide = CHAIN.replace(max_draft=1)
  out = decoders.glide.generate(lm, draft, [[1, 2, 3]], glide=glide, rule='residual', **settings)
  texts = jnp.asarray([[1, 2, 3, x] for x in range(8)])
  reads, _ = target_reads(target, lm.params, texts, draft.config.target_layers)
  softmax = lambda logits: np.asarray(jax.nn.softmax(logits[:, 3], axis=-1))
  p = softmax(apply(target, lm.params, texts)[0])
  q = softmax(training_logits(draft.config, draft.params, texts, reads, jnp.full(8, 1)))
  expected = np.minimum(p, q).sum(axis=1)[out.tokens[:, 0]]
  found = out.stats['accepted_at'][0] / out.stats['drafted_at'][0]
  # With room for one drafted token, every row has one round with a draft.
  assert out.stats['drafted_at'] == [N]
  assert abs(found - expected.mean()) < 4 * (expected * (1 - expected)).mean() ** 0.5 / N**0.5


@pytest.mark.slow
@pytest.mark.parametrize('vocabulary', [0, 4])
@pytest.mark.parametrize('glide', [CHAIN, ALWAYS.replace(bins=(3,) * 6 + (2,) * 5)], ids=['chain', 'tree'])
def test_residual_acceptance_has_the_models_law(glide, vocabulary):
  target = TARGET.replace(vocab_size=6)
  draft = tiny_draft(target, vocabulary=vocabulary, **DEEP)
  settings = dict(max_new_tokens=5, sampling=SAMPLED, num_samples=20000, eos_id=None)
  plain, out = both(target, draft, glide.replace(max_draft=2), [[1, 2, 3]], seed=0, rule='residual', **settings)
  assert 0.1 < out.stats['acceptance'] < 0.99
  assert same_law(plain.tokens, out.tokens) > 1e-3


@pytest.mark.parametrize(
  'guard, sampling',
  [
    (True, SAMPLED),
    pytest.param(True, decoders.Sampling(), marks=pytest.mark.slow),
    pytest.param(False, decoders.Sampling(), marks=pytest.mark.slow),
  ],
)
def test_after_prompt_lookup_and_plain_steps_the_draft_catches_up(guard, sampling):
  """Every way of decoding goes on where another stopped, and lookups leave the draft's cache behind."""
  draft, glide = tiny_draft(vocabulary=40, **DEEP), PAIRS.replace(guard=guard)
  plain, out = both(TARGET, draft, glide, max_new_tokens=60, lookup=PromptLookup(4), eos_id=None, sampling=sampling)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['rounds'] > 0 and out.stats['drafted'] > 0 and (out.stats['plain_steps'] > 0) == guard


class Alphabet(ByteTokenizer):
  """A letter for each token of the scripted model."""

  def encode(self, text, **_):
    return [ord(letter) - ord('a') for letter in text]

  def decode(self, ids, skip_special=True):
    return ''.join(chr(ord('a') + i) for i in ids)


def test_rows_end_at_eos_and_stop_strings_inside_a_draft_and_stream_what_they_return():
  lm = dataclasses.replace(scripted(), tokenizer=Alphabet())
  draft = scripted_draft(scripted(), FOLLOW)
  prompts = [[1], [2, 9]]
  plain = decoders.generate(lm, prompts, max_new_tokens=21, eos_id=None)
  # The first row has this token and this text in its second draft.
  for ends in ({'eos_id': int(plain.tokens[0, 7])}, {'eos_id': None, 'stop': plain.text[0][7:9]}):
    told, settings = {}, dict(max_new_tokens=21, **ends)
    expected = decoders.generate(lm, prompts, **settings)
    out = decoders.glide.generate(
      lm,
      draft,
      prompts,
      glide=CHAIN,
      stream=lambda row, ids, told=told: told.setdefault(row, []).extend(ids),
      **settings,
    )
    assert out.text == expected.text and [told[i] for i in range(2)] == out.rows() == expected.rows()
    assert len(out.rows()[0]) < 10 and out.stats['acceptance'] > 0.5


@pytest.mark.slow
def test_the_cache_after_rounds_is_that_of_a_prompt_just_read():
  lm, draft, kept = tiny_model(TARGET), tiny_draft(**DEEP), {}

  class Kept(GlideLoop):
    def finished(self, rows_R, state):
      kept.update(state=state)

  loop = Kept(GlideDrafter.of(draft, cape.policy(PAIRS)), Account(False), 'match', False, None)
  out = decoders.generate(lm, PROMPTS, max_new_tokens=20, eos_id=None, loop=loop)
  texts = [prompt + new[:-1] for prompt, new in zip(PROMPTS, out.tokens.tolist())]
  longest = max(map(len, texts))
  padded = jnp.asarray([text + [0] * (longest - len(text)) for text in texts])
  _, fresh = apply(lm.config, lm.params, padded, cache=FullCache.create(lm.config, len(texts), longest))
  for row, text in enumerate(texts):
    for name in ('keys', 'values'):
      for mine, theirs in zip(getattr(kept['state'].cache, name), getattr(fresh, name)):
        np.testing.assert_allclose(mine[row, :, : len(text)], theirs[row, :, : len(text)], atol=1e-5)


@pytest.mark.slow
def test_requests_of_one_capacity_share_one_program():
  lm, draft = tiny_model(TARGET), tiny_draft(**DEEP)
  requests = [[list(range(1, n))] for n in (4, 20, 40)]
  forget()
  for request in requests:
    out = decoders.glide.generate(lm, draft, request, max_new_tokens=9, glide=PAIRS, capacity=70)
    np.testing.assert_array_equal(out.tokens, decoders.generate(lm, request, max_new_tokens=9).tokens)
  assert [key[0] for key in _programs].count(rounds.decode) == 1


@pytest.mark.slow
def test_a_round_copies_neither_cache():
  """In the compiled loop nothing as large as a layer of the target's cache, or of the draft's, is copied."""
  target, slots, found = TARGET.replace(max_length=4096), 4096, {}

  class Look(GlideLoop):
    def begin(self, clock, lm, prompts, state, plan):
      state = super().begin(clock, lm, prompts, state, plan)
      args = lm.params, self.drafter.weights(), state, jnp.int32(9), jnp.asarray([-1]), {}
      static = {'config': lm.config, 'drafter': self.drafter.traced, 'rule': 'match'}
      found['text'] = rounds.decode.lower(*args, **static).compile().as_text()
      return state

  memory = WholeMemory()
  memory.room = slots
  draft = tiny_draft(target, **DEEP)
  loop = Look(GlideDrafter.of(draft, cape.policy(CHAIN)), Account(False), 'match', False, None)
  decoders.generate(tiny_model(target), PROMPTS, max_new_tokens=2, memory=memory, loop=loop)
  for heads, size in ((target.num_kv_heads, target.head_dim), (draft.config.num_heads, draft.config.head_dim)):
    shape = rf'f32\[3,{heads},\d{{4}},{size}\]'
    assert re.search(shape, found['text'])
    assert not copies_in_loops(found['text'], shape)


def test_a_draft_of_another_target_is_refused_and_both_are_named():
  draft = tiny_draft(**DEEP)
  other = TARGET.replace(num_layers=2)
  with pytest.raises(
    ValueError, match=r'trained for tiny \(3 layers x 24.*not for this model \(2 layers x 24.*num_layers is 3'
  ):
    decoders.glide.generate(LanguageModel(other, None), draft, PROMPTS)
  with pytest.raises(ValueError, match='vocab_size is 50 there and 40 here'):
    decoders.glide.generate(LanguageModel(TARGET.replace(vocab_size=40), None), draft, PROMPTS)
  with pytest.raises(ValueError, match='blocks of 4 tokens in one call'):
    parallel = dataclasses.replace(draft, config=draft.config.replace(draft='parallel'))
    Stream(tiny_model(TARGET), parallel, GlideDecoding(max_draft=5))


class Letters(ByteTokenizer):
  """Bytes, with another fingerprint, and perhaps with two letters exchanged."""

  def __init__(self, exchanged):
    super().__init__()
    self.fingerprint, self.exchanged = f'letters-{exchanged}', exchanged

  def decode(self, ids, skip_special=True):
    text = super().decode(ids, skip_special=skip_special)
    return text.translate(str.maketrans('ab', 'ba')) if self.exchanged else text


@pytest.mark.parametrize('exchanged', [False, True])
def test_tokenizers_are_compared_by_their_tokens(exchanged):
  config = TARGET.replace(vocab_size=259)
  tokenizer = Letters(exchanged)
  draft = GlideDraft(with_target(SMALL, LanguageModel(config, None, tokenizer), 'tiny'), None, tokenizer)
  lm = LanguageModel(config, None, ByteTokenizer())
  drafter = GlideDrafter.of(draft, cape.policy(ALWAYS))
  if not exchanged:
    drafter.check(lm, 10, False)
  else:
    with pytest.raises(ValueError, match='with the tokenizer letters-True, and this model.*has the tokenizer bytes-1'):
      drafter.check(lm, 10, False)
