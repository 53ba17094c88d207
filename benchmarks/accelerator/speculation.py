"""The cost of each part of a speculative decoding round on the chip, divided by that of a plain step, and the predicted gain.

A round drafts D tokens, each at cost c, and verifies them in one call of cost v(D + 1). If a drafted token is accepted with
probability s, a round gives M = 1 + s + ... + s^D tokens, and the gain is M / (v(D + 1) + D c) for the best D.
"""

from collections.abc import Callable, Iterator
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import decoding
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, random_params
from decoders import state as decode_state
from decoders.speculative import rounds
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.speculative.trees import chain_of
from decoders.swift import skipping
from jaxlm.caches.branch import Branch

RATIOS = (0.3, 0.5, 0.7)
ACCEPTED = (0.6, 0.7, 0.8, 0.9, 0.95)
DRAFTED = 8  # Number of tokens in a draft.


def cases(setting: Setting) -> Iterator[Case]:
  params, at = random_params(setting.decoded, setting.decoded.dtype), (1, setting.speculated, 'full')
  abstract = decoding.abstract_state(setting, at, None)
  abstract_round = jax.eval_shape(round_state, abstract)
  keep = jax.ShapeDtypeStruct((2, setting.decoded.num_layers), bool)
  lowered: dict[Any, Any] = {'plain': lambda: decoding.lowered_for(setting, params, lambda: abstract)}
  for n in setting.verified:
    program = jax.jit(functools.partial(verify, setting, n))
    lowered[n] = lambda program=program: program.lower(params, abstract_round, jnp.int32(1))
  lowered['draft'] = lambda: jax.jit(functools.partial(draft, setting)).lower(params, abstract, keep, jnp.int32(1))
  programs = Compiled(lowered)
  programs.wait()
  make = functools.partial(decoding.state_of, setting, at, None, programs)
  costs: dict[Any, float] = {}

  def measured(name: Any, run) -> dict[str, float]:
    costs[name] = run()
    return {'ms': 1e3 * costs[name], 'plain steps': costs[name] / costs['plain']}

  state, none = make(), jnp.asarray([-1])
  plain_steps = lambda n, state: programs['plain'](params, state, jnp.int32(n), none, {})
  yield Case('cost', {'what': 'a plain step'}, lambda: measured('plain', lambda: slope(plain_steps, setting, make)))
  for n in setting.verified:
    run = lambda k, s, n=n: programs[n](params, s, jnp.int32(k))
    labels = {'what': f'verifying {n} tokens'}
    yield Case(
      'cost', labels, lambda n=n, run=run: measured(n, lambda: slope(run, setting, lambda: round_state(state)))
    )
  for ratio in RATIOS:
    run = lambda k, s, r=ratio: programs['draft'](params, s, kept(setting, r), jnp.int32(k))
    labels = {'what': f'drafting a token with {ratio:.0%} of the sub-layers skipped'}
    yield Case('cost', labels, lambda r=ratio, run=run: measured(r, lambda: slope(run, setting, lambda: state)))
  for name in ('lookup', *RATIOS):
    labels = {'drafts': 'prompt lookup, free' if name == 'lookup' else f'{name:.0%} skipped'}
    yield Case('predicted gain', labels, lambda name=name: gains(costs, name, setting))


def slope(run: Callable[[int, Any], Any], setting: Setting, make: Callable[[], Any]) -> float:
  """Returns the seconds of one step: the time of a long run minus that of a short one, without the cost of a call.

  run(n, state): takes n steps, and may donate the state. make: returns a new state; it is not timed.
  """
  few, many = 2, 2 + setting.new_tokens
  taken: dict[int, list[float]] = {few: [], many: []}
  for warm in [True] + [False] * setting.repeats:
    for n, times in taken.items():
      state = jax.block_until_ready(make())
      start = time.perf_counter()
      jax.block_until_ready(run(n, state))
      if not warm:
        times.append(time.perf_counter() - start)
  return max(float(np.median(taken[many]) - np.median(taken[few])), 1e-9) / (many - few)


def round_state(state: decode_state.DecodeState) -> rounds.SpeculativeState:
  zeros = jnp.zeros_like(state.last)
  fields = {name: getattr(state, name) for name in decode_state.DecodeState.__dataclass_fields__}
  text = jnp.zeros((len(state.last), 1), jnp.int32)
  return rounds.SpeculativeState(
    **fields, text=text, memory=(), rounds=zeros, drafted=zeros, accepted=zeros, verified=zeros
  )


def verify(setting: Setting, n: int, params: Any, state: rounds.SpeculativeState, steps):
  """Verifies `steps` chains of n - 1 drafted tokens (n nodes). Each chain starts with a token of the one before."""
  drafter, none = PromptLookup(max_draft=max(n - 1, 1)), jnp.asarray([-1])

  def one(_, s):
    chain = jnp.broadcast_to(s.last[:, None], (len(s.last), n - 1))
    tree = chain_of(chain, jnp.full(len(s.last), n - 1))
    kept = rounds.verify(params, s, tree, {}, setting.decoded, drafter, 'match')
    s = rounds.with_accepted(s, *kept, tree.length, none, drafter)
    return s.replace(lengths=jnp.zeros_like(s.lengths), position=state.position, done=state.done)

  return jax.lax.fori_loop(0, steps, one, state).last


def draft(setting: Setting, params: Any, state: decode_state.DecodeState, keep, steps):
  """Drafts `steps` tokens in drafts of DRAFTED tokens."""
  branch = Branch.create(state.cache, setting.decoded, len(state.last), DRAFTED)

  def one(i, carry):
    last, keys, values, positions = carry
    t = i % DRAFTED
    seen = jnp.broadcast_to(jnp.arange(DRAFTED)[None, None] <= t, (len(last), 1, DRAFTED))
    here = branch.replace(keys=keys, values=values, positions=positions, at=t, seen=seen)
    hidden, here = skipping.hidden(
      params, last[:, None], (state.position + t)[:, None], here, state.total, keep, setting.decoded, 'cond'
    )
    last = jnp.argmax(skipping.logits(params, hidden[:, 0], setting.decoded), axis=-1).astype(jnp.int32)
    return last, here.keys, here.values, here.positions

  return jax.lax.fori_loop(0, steps, one, (state.last, branch.keys, branch.values, branch.positions))[0]


def kept(setting: Setting, ratio: float) -> jax.Array:
  """Returns [2, L]: which sub-layers run. The skipped ones are spread evenly over the inner layers."""
  inner = 2 * (setting.decoded.num_layers - 2)
  skipped = np.floor(np.arange(inner) * ratio) != np.floor((np.arange(inner) + 1) * ratio)
  return jnp.asarray(np.pad(~skipped.reshape(-1, 2).T, ((0, 0), (1, 1)), constant_values=True))


def gains(costs: dict[Any, float], name: Any, setting: Setting) -> dict[str, float]:
  plain_step, sizes = costs['plain'], list(setting.verified)
  cost = 0.0 if name == 'lookup' else costs[name] / plain_step
  drafted = np.arange(0, sizes[-1])
  verifying = np.interp(drafted + 1, sizes, [costs[n] / plain_step for n in sizes])
  row = {}
  for s in ACCEPTED:
    tokens = np.cumsum(s**drafted)
    row[f'accepted {s:.0%}'] = float((tokens / (verifying + drafted * cost)).max())
  return row
