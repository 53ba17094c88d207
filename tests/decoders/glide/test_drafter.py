"""What the draft computes while drafting is what it was trained to compute, however the rounds went."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.glide import GlideDecoding, GlideDrafter, cape
from decoders.prefill import prefill
from decoders.programs import Clock
from decoders.speculative.rounds import SpeculativeState
from jaxlm.config import RopeConfig, SinkConfig
from jaxlm.language_model import LanguageModel
from tests.glide_drafts import TARGET, target_reads, tiny_draft, training_logits
from tests.models import slow, tiny_model

R, S, D = 2, 48, 3
TEXT = np.asarray(jax.random.randint(jax.random.key(9), (R, S), 0, TARGET.vocab_size), np.int32)
PROMPTS = [9, 3]
# The last token's position at each round: some drafted tokens are accepted, then many tokens come from elsewhere.
ROUNDS = ([9, 3], [10, 9], [14, 10], [37, 11], [38, 14])
SCALED = RopeConfig(theta=500000.0, scaling='llama3', factor=4.0, original_length=32)


def state_of(lm: LanguageModel, cache, positions, memory):
  position, zeros = jnp.asarray(positions, jnp.int32), jnp.zeros(R, jnp.int32)
  last = jnp.take_along_axis(jnp.asarray(TEXT), position[:, None], axis=1)[:, 0]
  return SpeculativeState(
    tokens=jnp.zeros((R, S), jnp.int32), last=last, position=position, lengths=position - jnp.asarray(PROMPTS) + 1,
    done=jnp.zeros(R, bool), finite=jnp.ones(R, bool), keys=jax.random.split(jax.random.key(1), R), seen=None,
    total=jnp.full(R, S), cache=cache, text=jnp.asarray(TEXT), memory=memory, rounds=zeros, drafted=zeros, accepted=zeros,
    verified=zeros,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=('drafter', 'config'))
def propose(params, draft_params, state, idle, *, drafter, config):
  # Drawn tokens come with the distributions that they were drawn from.
  values = {'temperature': jnp.float32(1.0)}
  return drafter.propose(params, draft_params, state, values, 'residual', config, idle)


def drafted(draft, target=TARGET, chunk=None, rounds=ROUNDS, prompts=PROMPTS, idle=((False, False),) * len(ROUNDS)):
  """Returns for each round (its position, the chain, the probabilities at its D places). idle: rows of each round that need no draft.

  The cache holds the whole text, so a draft that saw unverified tokens would give itself away.
  """
  lm = tiny_model(target)
  lengths = jnp.full(R, S)
  _, cache = prefill(lm.params, jnp.asarray(TEXT), lengths, lengths, config=target, capacity=S + 8)
  drafter = GlideDrafter.of(draft, cape.policy(GlideDecoding(max_draft=D, bins=(1,))))
  prompts = [row[:n].tolist() for row, n in zip(TEXT, prompts)]
  memory, found = drafter.begin(Clock(), lm, prompts, state_of(lm, cache, rounds[0], None), chunk), []
  for positions, idle_R in zip(rounds, idle):
    state = state_of(lm, cache, positions, memory)
    tree, memory = propose(lm.params, draft.params, state, jnp.asarray(idle_R), drafter=drafter.traced, config=target)
    found.append((positions, np.asarray(tree.chain), np.asarray(tree.odds)))
  return found


def trained(draft, positions, chain, target=TARGET, late=0):
  """Returns the probabilities that training gives to the same places: a block begins `late` tokens after each row's position."""
  tokens = TEXT.copy()
  for row, p in enumerate(positions):
    tokens[row, p + 1 : p + D] = chain[row, : D - 1]
  lm, c = tiny_model(target), draft.config
  reads, _ = target_reads(target, lm.params, tokens, c.target_layers) if c.cross else (None, None)
  phase = jnp.asarray([-(p + late) % c.block for p in positions])
  logits = training_logits(c, draft.params, jnp.asarray(tokens), reads, phase, None, lm.params)
  at = np.asarray(positions)[:, None] + np.arange(D)
  return np.asarray(jax.nn.softmax(jnp.take_along_axis(logits, jnp.asarray(at)[:, :, None], axis=1), axis=-1))


def check(draft, target=TARGET, **options):
  for positions, chain, odds in drafted(draft, target, **options):
    np.testing.assert_allclose(odds, trained(draft, positions, chain, target), atol=1e-5, err_msg=str(positions))


DEEP = {'num_layers': 2, 'block': D}
MOST = DEEP | {'cross_norm': True, 'embedding': 'target', 'layers': (2, 0, 1, 2)}


@pytest.mark.parametrize(
  'changes',
  [
    MOST,
    DEEP | {'draft': 'parallel', 'window': 4},
    *slow(
      {'block': D},
      {'block': D, 'window': 4},
      DEEP,
      DEEP | {'window': 4},
      DEEP | {'draft': 'parallel'},
      DEEP | {'cross': False},
      DEEP | {'first_block': 'causal'},
      DEEP | {'block': 5},
      {'block': D, 'window': 7, 'embedding': 'target'},
    ),
  ],
  ids=str,
)
def test_drafting_computes_what_training_does(changes):
  check(tiny_draft(**changes))


@pytest.mark.parametrize(
  'changes',
  [
    {'sink': SinkConfig('token'), 'rope': SCALED, 'windows': (9, 0)},
    *slow({'position': 'learned', 'num_kv_heads': 4}, {'position': 'alibi'}, {'num_kv_heads': 1, 'local_rope_theta': 1e4, 'windows': (8, 0)}),
  ],
  ids=str,
)  # fmt: skip
def test_for_every_kind_of_target(changes):
  target = TARGET.replace(**changes)
  # A draft with one layer, whose training is one pass over the text.
  check(tiny_draft(target, block=D, window=4), target, rounds=ROUNDS[1:4])


def test_a_row_that_others_draft_for_loses_no_tokens_that_it_needs():
  draft = tiny_draft(**DEEP, window=4)
  idle = (False, True), (False, False)
  _, (positions, chain, odds) = drafted(draft, rounds=([21, 28], [22, 29]), prompts=[20, 20], idle=idle)
  np.testing.assert_allclose(odds, trained(draft, positions, chain), atol=1e-5)


@pytest.mark.slow
def test_prompts_read_in_pieces():
  check(tiny_draft(**DEEP), chunk=4, rounds=ROUNDS[:2])


def test_a_block_that_begins_one_token_later_is_noticed():
  draft = tiny_draft(**MOST)
  ((positions, chain, odds),) = drafted(draft, rounds=ROUNDS[2:3])
  assert np.abs(odds - trained(draft, positions, chain, late=1))[:, 1:].max() > 1e-3


@pytest.mark.slow
def test_the_authors_mask_for_tokens_of_the_text_is_noticed():
  ((positions, chain, odds),) = drafted(tiny_draft(**DEEP, eval_mask='paper'), rounds=ROUNDS[2:3])
  assert np.abs(odds - trained(tiny_draft(**DEEP), positions, chain)).max() > 1e-3
