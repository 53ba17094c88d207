"""The views of tokens in training: those of the paper's formula, and nothing else has any influence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.caches import LayeredCache
from jaxlm.config import SinkConfig
from jaxlm.models import functions, glide_training
from tests.glide_drafts import SMALL, TARGET, target_reads, tiny_draft, training_logits
from tests.models import apply, slow, tiny_model

B, T = 2, 15
TOKENS = jax.random.randint(jax.random.key(4), (B, T), 0, TARGET.vocab_size)
PHASE = jnp.asarray([0, 2])
DEEP = {'num_layers': 2, 'block': 4}


def reads_of(draft, tokens=TOKENS, target=TARGET):
  return target_reads(target, tiny_model(target).params, tokens, draft.config.target_layers)[0]


@pytest.mark.parametrize('block', [1, 4, 5])
def test_blocks_start_where_the_formula_says(block):
  config = SMALL.replace(block=block)
  phase = jnp.arange(block)
  starts = np.asarray(glide_training.block_starts(config, phase, T))
  for b in range(block):
    for i in range(T):
      allowed = [j for j in range(T) if (j + b) // block < (i + b) // block]
      assert starts[b, i] == len(allowed) and allowed == list(range(len(allowed)))


@pytest.mark.parametrize(
  'changes',
  [
    {},
    *slow(
      {**DEEP, 'first_block': 'causal'}, {**DEEP, 'draft': 'parallel'}, {**DEEP, 'eval_mask': 'paper'}, {'window': 3}
    ),
  ],
  ids=str,
)
def test_logits_depend_on_no_key_of_the_target_that_their_block_does_not_see(changes):
  """Row b of the Jacobian of a position's logits with respect to the target's keys and values is zero at hidden tokens only."""
  draft = tiny_draft(**{'block': 4, **changes})
  c, reads = draft.config, reads_of(draft)

  def scores(arrays, weight_T):
    layers = tuple(
      None if m is None else m.replace(keys=a[0], values=a[1]) for m, a in zip(reads.layers, arrays, strict=True)
    )
    logits = glide_training.training_logits(c, draft.params, TOKENS, LayeredCache(layers), PHASE)
    # An uneven sum, as the gradient of an even one may vanish.
    return (logits * weight_T[None, :, None] * jnp.sin(jnp.arange(logits.shape[-1]))[None, None]).sum()

  arrays = [() if m is None else (m.keys, m.values) for m in reads.layers]
  grads = jax.jit(jax.vmap(jax.grad(scores), (None, 0)))(arrays, jnp.eye(T))
  influence = sum(jnp.abs(x).sum(axis=(2, 4)) for pair in grads for x in pair)  # [T queries, B, S]
  found = np.moveaxis(np.asarray(influence), 0, 1) > 0
  starts = np.asarray(glide_training.block_starts(c, PHASE, T))
  i, j = np.arange(T)[None, :, None], np.arange(T)[None, None]
  allowed = j < starts[:, :, None]
  if c.first_block == 'causal':
    allowed |= (starts == 0)[:, :, None] & (j <= i)
  if c.window:
    allowed &= j >= starts[:, :, None] - c.window
  assert not (found & ~allowed).any(), 'A hidden token has influence.'
  # Through self-attention, the tokens of a two-layer draft may see more; these are seen directly.
  assert found[allowed].all(), 'A token that should be seen has no influence.'


def test_no_token_knows_its_label():
  draft = tiny_draft(**DEEP)
  other = TOKENS.at[:, 9].set((TOKENS[:, 9] + 1) % TARGET.vocab_size)
  one, two = (training_logits(draft.config, draft.params, x, reads_of(draft, x), PHASE) for x in (TOKENS, other))
  assert (one[:, :9] == two[:, :9]).all() and (jnp.abs(one - two)[:, 9:].max(axis=(1, 2)) > 1e-4).all()


@pytest.mark.parametrize('target', [TARGET, *slow(TARGET.replace(sink=SinkConfig('token'), windows=(6, 0)))])
def test_reads_are_what_the_target_caches_and_its_states_are_its_own(target):
  lm = tiny_model(target)
  reads, states = target_reads(target, lm.params, TOKENS, (0, 2))
  logits = functions.logits(lm.params, target, states)
  np.testing.assert_allclose(logits, apply(target, lm.params, TOKENS)[0], atol=1e-5)
  assert reads.layers[1] is None and reads.layers[0].keys.shape[2] == T + (target.sink.kind == 'token')


@pytest.mark.slow  # tests/trainers/glide/test_task.py takes the gradient of the trainer's loss every day.
def test_the_target_gets_no_gradient_and_the_draft_does():
  draft = tiny_draft(embedding='target', **DEEP)
  lm, c = tiny_model(TARGET), draft.config

  def loss(target_params, draft_params):
    reads, states = glide_training.target_reads(TARGET, target_params, TOKENS, c.target_layers)
    logits = glide_training.training_logits(c, draft_params, TOKENS, reads, PHASE, None, target_params)
    return (logits**2).sum() + (states**2).sum()

  of_target, of_draft = jax.jit(jax.grad(loss, argnums=(0, 1)))(lm.params, draft.params)
  assert all((x == 0).all() for x in jax.tree.leaves(of_target))
  assert all((x != 0).any() for x in jax.tree.leaves(of_draft))


def test_a_new_draft_begins_as_the_same_draft_without_cross_attention():
  def logits(**changes):
    draft = tiny_draft(block=4, **changes)
    return training_logits(draft.config, draft.params, TOKENS, reads_of(draft) if draft.config.cross else None, PHASE)

  vanilla = logits(cross=False)
  np.testing.assert_array_equal(logits(cross_start='zero'), vanilla)
  assert jnp.abs(logits(cross_start='random') - vanilla).max() > 1e-3


def test_padding_has_no_influence():
  draft = tiny_draft(**DEEP)
  mask = jnp.arange(T)[None] < jnp.asarray([[T], [10]])
  other = jnp.where(mask, TOKENS, 7)
  logits = []
  for tokens in (TOKENS, other):
    reads, _ = target_reads(TARGET, tiny_model(TARGET).params, tokens, draft.config.target_layers, mask)
    logits.append(training_logits(draft.config, draft.params, tokens, reads, PHASE, mask))
  np.testing.assert_array_equal(*(np.where(mask[:, :, None], x, 0) for x in logits))


def test_one_pass_is_two_passes_where_the_draft_has_one_layer(monkeypatch):
  draft = tiny_draft(block=4)
  args = draft.config, draft.params, TOKENS, reads_of(draft), PHASE
  one = training_logits(*args)
  monkeypatch.setattr(glide_training, 'one_pass', lambda config: False)
  # Another function, as JAX would take the program of the one it has compiled.
  two = jax.jit(lambda *args: glide_training.training_logits(*args), static_argnums=0)(*args)
  np.testing.assert_allclose(one, two, atol=1e-5)


def test_two_passes_are_made_where_drafted_tokens_differ_from_the_text():
  deep = {'num_layers': 2}
  once = [{}, deep | {'cross': False}, deep | {'eval_mask': 'paper'}]
  assert all(glide_training.one_pass(SMALL.replace(**changes)) for changes in once)
  assert not any(glide_training.one_pass(SMALL.replace(**changes)) for changes in (deep, {'draft': 'parallel'}))
