"""The engine: whatever is drafted, the tokens are plain decoding's."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import speculative
from decoders.programs import _programs, forget
from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.speculative import rounds, trees
from decoders.speculative.prompt_lookup import PromptLookup, found
from decoders.state import decode as plain_decode
import jaxlm
from jaxlm.caches import FullCache
from jaxlm.caches.branch import Branch
from jaxlm.data.tokenizers import ByteTokenizer
from tests.models import TINY, apply, slow, tiny_model

REQUESTS = [[1, 2, 3], [*range(1, 41)]]
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11], [3]]
SAMPLED = decoders.Sampling(temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.2)


@dataclasses.dataclass(frozen=True)
class Scripted(speculative.Drafter):
  """Drafts what it was told comes next, some of it spoilt, with the truth among the leaves now and then."""

  script: tuple[tuple[int, ...], ...]
  spoilt: float = 0.3
  depth: int = 4
  beside: int = 2

  @property
  def buckets(self):
    return ((1, self.beside), (self.depth, self.depth * self.beside))

  @property
  def most_beside(self):
    return self.beside

  def begin(self, clock, lm, prompts, state, chunk=None):
    rows = [PROMPTS.index(list(prompt)) for prompt in prompts]
    return jnp.asarray([[*self.script[row], *(0,) * self.depth] for row in rows])

  def propose(self, params, own, state, values, rule, config, idle_R=None):
    D, W = self.depth, self.beside
    true_RD = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, D))(state.memory, state.lengths)
    a, b, c = jax.random.split(jax.random.fold_in(jax.random.key(5), state.position.sum()), 3)
    spoilt_RD = jax.random.bernoulli(a, self.spoilt, true_RD.shape)
    chain_RD = jnp.where(spoilt_RD, (true_RD + 1) % 50, true_RD)
    others_RDW = jax.random.randint(b, (*true_RD.shape, W), 0, 50)
    beside_RDW = others_RDW.at[:, :, -1].set(jnp.where(jax.random.bernoulli(c, 0.5, true_RD.shape), true_RD, 0))
    length_R = jnp.where(state.position % 5 == 0, 0, D - state.position % 2)
    return trees.with_leaves(chain_RD, length_R, beside_RDW, jnp.full(true_RD.shape, W), D * W), state.memory


def scripted(lm, settings):
  plain = decoders.generate(lm, PROMPTS, **settings)
  return plain, Scripted(tuple(map(tuple, plain.tokens.tolist())))


@pytest.mark.parametrize('sampling', [decoders.Sampling(), SAMPLED])
@pytest.mark.parametrize(
  'variant', [{}, *slow({'attention': 'sigmoid', 'windows': (3, 0)}, {'position': 'alibi', 'sink': {'kind': 'token'}})]
)
def test_tokens_are_plain_decodings(variant, sampling):
  from jaxlm.config import SinkConfig

  variant = {k: SinkConfig(**v) if k == 'sink' else v for k, v in variant.items()}
  lm = tiny_model(TINY.replace(**variant))
  settings = dict(max_new_tokens=20, sampling=sampling, seed=3)
  plain, drafter = scripted(lm, settings)
  out = speculative.generate(lm, PROMPTS, drafter=drafter, **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  np.testing.assert_array_equal(out.lengths, plain.lengths)
  assert out.stats['target_calls'] < plain.stats['target_calls']
  assert out.stats['accepted'] + out.stats['rounds'] == out.stats['new_tokens'] - len(PROMPTS)
  assert 0 < out.stats['accepted'] < out.stats['drafted']


@pytest.mark.parametrize(
  'lazy',
  [
    LazyConfig(n_initial=2, n_recent=6, n_full=1, stage='prefill'),
    LazyConfig(n_initial=2, n_recent=6, n_full=1, stage='prefill', growth='ring'),
    *slow(
      LazyConfig(n_initial=2, n_recent=6, n_full=1, stage='decode', layout='static'),
      LazyConfig(n_initial=0, n_recent=6, n_full=0, stage='prefill', keep='snapkv', n_observed=2),
    ),
  ],
)
def test_over_compressed_caches_too(lazy):
  lm = tiny_model()
  settings = dict(max_new_tokens=20, lazy=lazy)
  plain = decoders.simlayerkv.generate(lm, PROMPTS, **settings)
  drafter = Scripted(tuple(map(tuple, plain.tokens.tolist())))
  out = decoders.simlayerkv.generate(lm, PROMPTS, loop=speculative.SpeculativeLoop(drafter), **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['target_calls'] < plain.stats['target_calls']


def test_quantised_caches_are_refused():
  loop, lazy = speculative.SpeculativeLoop(PromptLookup()), LazyConfig(threshold=1.0, quant=KiviConfig(4, 8, 8))
  with pytest.raises(ValueError, match='rounds tokens as they grow old'):
    decoders.simlayerkv.generate(tiny_model(), PROMPTS, max_new_tokens=4, lazy=lazy, loop=loop)


def test_rows_end_where_plain_rows_end():
  lm = tiny_model()
  plain, drafter = scripted(lm, dict(max_new_tokens=20, eos_id=None))
  for eos in {int(plain.tokens[0, 7]), int(plain.tokens[1, 12])}:
    for most in (1, 2, 9, 20):
      settings = dict(max_new_tokens=most, eos_id=eos)
      expected = decoders.generate(lm, PROMPTS, **settings)
      out = speculative.generate(lm, PROMPTS, drafter=drafter, **settings)
      np.testing.assert_array_equal(out.tokens, expected.tokens)
      np.testing.assert_array_equal(out.lengths, expected.lengths)


def test_streams_what_it_returns():
  lm = tiny_model()
  _, drafter = scripted(lm, dict(max_new_tokens=20))
  told = {}
  out = speculative.generate(
    lm, PROMPTS, drafter=drafter, max_new_tokens=20, stream=lambda row, ids: told.setdefault(row, []).extend(ids)
  )
  assert [told[i] for i in range(3)] == out.rows()


def test_a_tree_is_read_as_its_paths_are():
  lm = tiny_model(TINY.replace(windows=(3, 0)))
  cache = Branch.create(*prefilled(lm, [5, 6, 4, 3]), lm.config, 1, 6)
  tree = trees.with_leaves(
    jnp.asarray([[11, 12]]), jnp.asarray([2]), jnp.asarray([[[13, 14], [15, 16]]]), jnp.asarray([[2, 1]]), 3
  )
  nodes, depth, seen = trees.nodes(tree, jnp.asarray([10]))
  assert nodes.tolist() == [[10, 11, 12, 13, 14, 15]] and depth.tolist() == [[0, 1, 2, 1, 1, 2]]
  logits, _ = apply(lm.config, lm.params, nodes, 4 + depth, cache.replace(seen=seen))
  paths = [[10], [10, 11], [10, 11, 12], [10, 13], [10, 14], [10, 11, 15]]
  alone, _ = apply(lm.config, lm.params, jnp.asarray([[5, 6, 4, 3, *path, *(0,) * (3 - len(path))] for path in paths]))
  for node, path in enumerate(paths):
    np.testing.assert_allclose(logits[0, node], alone[node, 3 + len(path)], atol=1e-5)


def prefilled(lm, ids):
  cache = FullCache.create(lm.config, 1, 16)
  return (apply(lm.config, lm.params, jnp.asarray([ids]), cache=cache)[1],)


@pytest.mark.parametrize(
  'text, expected',
  [
    ([1, 2, 3, 4, 1, 2, 3], [4, 1, 2, 3]),  # the longest run
    ([5, 1, 9, 8, 1, 7, 1], [7, 1, 7, 1]),  # of equal runs the latest, and around
    ([1, 2, 3, 4], None),
    ([3, 3], [3, 3, 3, 3]),
    ([6], None),
  ],
)
def test_lookup_finds_what_followed(text, expected):
  padded = jnp.asarray([text + [text[-1]] * 3])  # What comes later is not read.
  chain, length = found(padded, jnp.asarray([len(text) - 1]), 3, 1, 4)
  assert (chain[0, : length[0]].tolist() or None) == expected


def test_lookup_pays_where_text_repeats():
  lm = tiny_model()
  prompts = [[1, 2, 3, 4, 5, 6, 7, 8] * 3]
  plain = decoders.generate(lm, prompts, max_new_tokens=30)
  out = speculative.generate(lm, prompts, drafter=PromptLookup(), max_new_tokens=30)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['target_calls'] < 0.7 * plain.stats['target_calls']


def test_up_to_the_end_of_the_context():
  lm = tiny_model(TINY.replace(position='learned'))
  settings = dict(max_new_tokens=53)  # The longest prompt reaches the last position there is.
  plain, drafter = scripted(lm, settings)
  out = speculative.generate(lm, PROMPTS, drafter=drafter, **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
def test_samples_and_small_batches_share_one_program():
  lm = tiny_model()
  settings = dict(max_new_tokens=20, sampling=SAMPLED, num_samples=2, seed=1)
  prompts = [[1, 2, 3], [4, 5, 6, 7], [3]]
  plain = decoders.generate(lm, prompts, **settings)
  forget()  # Only so many are kept.
  programs = lambda: sum(key[0] is rounds.decode for key in _programs)
  before = programs()
  out = speculative.generate(lm, prompts, drafter=PromptLookup(4), batch_size=1, **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert programs() == before + 1


def test_a_tree_takes_no_more_slots_than_it_needs():
  """Every step reads all slots: 256 of plain decoding must not become the next size, 320, for a tree of 5."""
  lm, prompt = tiny_model(TINY.replace(max_length=512)), [[1, 2, 3, 4] * 62]
  plain = decoders.generate(lm, prompt, max_new_tokens=8)
  out = speculative.generate(lm, prompt, drafter=PromptLookup(4), max_new_tokens=8)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['kv_bytes'] / plain.stats['kv_bytes'] == (256 + 16) / 256


@pytest.mark.parametrize(
  'drafter', [PromptLookup(4), *slow(speculative.DraftModel.of(tiny_model(), max_draft=3)), None]
)
def test_requests_of_one_capacity_share_one_program(drafter):
  lm = tiny_model(TINY.replace(max_length=128))
  one = decoders.generate if drafter is None else functools.partial(speculative.generate, drafter=drafter)
  apart = [one(lm, [prompt], max_new_tokens=12) for prompt in REQUESTS]
  forget()
  outs = [one(lm, [prompt], max_new_tokens=12, capacity=70) for prompt in REQUESTS]
  for a, b in zip(outs, apart):
    np.testing.assert_array_equal(a.tokens, b.tokens)
  assert [key[0] for key in _programs].count(plain_decode if drafter is None else rounds.decode) == 1
  assert decoders.generate(lm, [[1] * 70], max_new_tokens=4, capacity=64).lengths.tolist() == [4]  # At least 64.


@pytest.mark.parametrize('chunk', [None, 32])
def test_a_capacity_has_room_for_a_padded_prompt(chunk):
  """66 tokens are padded to 80, more than the 70 that are asked for."""
  lm, prompt = tiny_model(TINY.replace(max_length=128)), [[*range(40), *range(26)]]
  plain = decoders.generate(lm, prompt, max_new_tokens=4)
  out = decoders.generate(lm, prompt, max_new_tokens=4, capacity=70, prefill_chunk=chunk)
  np.testing.assert_array_equal(out.tokens, plain.tokens)


@pytest.mark.slow
def test_a_memory_used_again_has_room_for_each_request():
  lm, memory = tiny_model(), decoders.strategies.WholeMemory()
  loop = speculative.SpeculativeLoop(PromptLookup(4))
  for new in (2, 40):
    out = decoders.generate(lm, PROMPTS, max_new_tokens=new, memory=memory, loop=loop)
    np.testing.assert_array_equal(out.tokens, decoders.generate(lm, PROMPTS, max_new_tokens=new).tokens)
  assert memory.room is None


def test_stop_strings_inside_what_was_accepted():
  lm = jaxlm.LanguageModel(
    TINY.replace(vocab_size=259), tiny_model(TINY.replace(vocab_size=259)).params, ByteTokenizer()
  )
  prompts = ['abcabcabc', 'xyz']
  plain = decoders.generate(lm, prompts, max_new_tokens=30, eos_id=None)
  row = next(row for row, text in enumerate(plain.text) if len(text) > 6)
  settings = dict(max_new_tokens=30, eos_id=None, stop=[plain.text[row][4:6]])
  expected = decoders.generate(lm, prompts, **settings)
  out = speculative.generate(lm, prompts, drafter=PromptLookup(6), **settings)
  assert out.text == expected.text and out.text[row] == plain.text[row][: plain.text[row].find(settings['stop'][0])]
  np.testing.assert_array_equal(out.lengths, expected.lengths)


def test_rings_smaller_than_a_draft():
  lm = tiny_model()
  settings = dict(max_new_tokens=20, lazy=LazyConfig(n_initial=1, n_recent=3, n_full=1, stage='prefill', growth='ring'))
  plain = decoders.simlayerkv.generate(lm, PROMPTS, **settings)
  drafter = Scripted(tuple(map(tuple, plain.tokens.tolist())), spoilt=0.05, depth=8)
  out = decoders.simlayerkv.generate(lm, PROMPTS, loop=speculative.SpeculativeLoop(drafter), **settings)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  assert out.stats['tokens_per_round'] > 4  # Whole rings were replaced in a round.


def test_the_cache_after_rounds_is_that_of_a_prompt_just_read():
  """Keys and values of every token but the last, row by row, whatever was drafted and refused."""
  lm, kept = tiny_model(), {}

  class Kept(speculative.SpeculativeLoop):
    def finished(self, rows_R, state):
      kept.update(state=state)

  plain, drafter = scripted(lm, dict(max_new_tokens=20, eos_id=None))
  decoders.generate(lm, PROMPTS, max_new_tokens=20, eos_id=None, loop=Kept(drafter))
  texts = [prompt + new[:-1] for prompt, new in zip(PROMPTS, plain.tokens.tolist())]
  longest = max(map(len, texts))
  padded = jnp.asarray([text + [0] * (longest - len(text)) for text in texts])
  _, fresh = apply(lm.config, lm.params, padded, cache=FullCache.create(lm.config, len(texts), longest))
  for row, text in enumerate(texts):
    for name in ('keys', 'values'):
      for mine, theirs in zip(getattr(kept['state'].cache, name), getattr(fresh, name)):
        np.testing.assert_allclose(mine[row, :, : len(text)], theirs[row, :, : len(text)], atol=1e-5)


@pytest.mark.slow
def test_in_bfloat16_tokens_differ_only_where_the_model_wavers():
  """Several tokens read at once round otherwise than one by one: what is chosen is the likeliest all but a rounding."""
  lm = tiny_model(TINY.replace(dtype='bfloat16'))
  prompts = np.random.default_rng(0).integers(1, 50, (8, 6)).tolist()
  plain = decoders.generate(lm, prompts, max_new_tokens=40, eos_id=None)
  out = speculative.generate(lm, prompts, drafter=PromptLookup(5), max_new_tokens=40, eos_id=None)
  gaps = []
  for prompt, new in zip(prompts, out.rows()):
    logits = np.asarray(jaxlm.forward(lm, [prompt + new]))[0, len(prompt) - 1 : -1]
    gaps.append(logits.max(axis=-1) - logits[np.arange(len(new)), new])
  flips = int((np.stack(gaps) > 0).sum())
  print(
    f'{flips} of {np.stack(gaps).size} tokens are not the likeliest; {(out.tokens != plain.tokens).sum()} differ from plain'
  )
  assert np.max(gaps) < 0.05 and flips < 16


def test_a_round_copies_no_cache():
  """In the compiled loop nothing as large as a layer's cache is copied."""
  lm, slots = tiny_model(), 4096
  found = {}

  class Look(speculative.SpeculativeLoop):
    def begin(self, clock, lm, prompts, state, plan):
      state = super().begin(clock, lm, prompts, state, plan)
      args = lm.params, self.drafter.weights(), state, jnp.int32(9), jnp.asarray([-1]), {}
      static = {'config': lm.config, 'drafter': self.drafter, 'rule': 'match'}
      found['text'] = rounds.decode.lower(*args, **static).compile().as_text()
      return state

  memory = decoders.strategies.WholeMemory()
  memory.room = slots
  decoders.generate(
    tiny_model(TINY.replace(max_length=slots)), PROMPTS, max_new_tokens=2, memory=memory, loop=Look(PromptLookup(4))
  )
  shape = rf'f32\[3,{lm.config.num_kv_heads},\d{{4}},{lm.config.head_dim}\]'
  assert re.search(shape, found['text'])
  assert not copies_in_loops(found['text'], shape)


def test_copies_in_loops_are_found():
  def body(_, both):
    a, b = both
    return b.at[0].set(a[1]), a  # Both are wanted after one was written.

  twice = jax.jit(lambda a, b: jax.lax.fori_loop(0, 9, body, (a, b)), donate_argnums=(0, 1))
  text = twice.lower(jnp.zeros((4096, 8)), jnp.ones((4096, 8))).compile().as_text()
  assert copies_in_loops(text, r'f32\[4096,8\]')


def copies_in_loops(text: str, shape: str) -> list[str]:
  """Returns the instructions of a program, outside of its entry, that copy an array of this shape."""
  parts = [part for part in text.split('\n\n') if not part.lstrip().startswith('ENTRY')]
  return [x for part in parts for x in re.findall(rf'.*%\S*copy\S* = {shape}.*|.*= {shape}\S* copy\(.*', part)]
