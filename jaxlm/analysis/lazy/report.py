"""Measures how lazy a model's layers are along one text: for all queries of a prompt, and for each token after it.

  r_l = mean over heads of the attention that a query pays to the first `initial` and its last `recent` tokens

(https://arxiv.org/abs/2410.13846). The text is read through a full cache, one window of queries at a time, so the attention
maps in memory are never larger than [N, queries, S] of one layer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.lazy import scores as laziness_scores
from jaxlm.analysis.sink.probe import check_tokens
from jaxlm.analysis.sink.report import sinks
from jaxlm.analysis.statistics import rank_correlation
from jaxlm.caches.full import FullCache
from jaxlm.caches.scored import UNSCORED, Scored
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions

if TYPE_CHECKING:
  from jaxtyping import Array, Int

RECENT = 1020
"""Default number of recent tokens; for prompts shorter than four times this, it is lowered (see `laziness`)."""


@dataclasses.dataclass(frozen=True)
class LazinessReport:
  """Laziness along one text; float32 numpy arrays. P windows of the prompt's queries, G new tokens.

  Attributes:
    length: number of prompt tokens.
    initial, recent, queries, threshold: options of the measurement.
    tokens: [G] int32, the new tokens.
    prompt: [L, P] lazy ratio of each window, in [0, 1]. Windows are left out if their first queries see no more than
      `initial` + `recent` tokens, because such a query is lazy whatever it attends to.
    starts: [P] int32, position of each window's first query; the last window ends with the prompt.
    new: [L, G] lazy ratio of each new token's query.
    sink: [L] mean attention of the prompt's queries to the first token, plus the slot if the model has one, averaged over
      heads: alpha_1 (proxy) of `sinks`.
    sliding: [L] bool, whether a layer has a sliding window; its cache is small already, so it is not compared with others.
    from_prompt: agreement of the prompt's last window with the new tokens.
    from_first: agreement of the first new token with the later ones.
  """

  length: int
  initial: int
  recent: int
  queries: int
  threshold: float
  tokens: np.ndarray
  prompt: np.ndarray
  starts: np.ndarray
  new: np.ndarray
  sink: np.ndarray
  sliding: np.ndarray
  from_prompt: laziness_scores.Consistency
  from_first: laziness_scores.Consistency

  @property
  def lazy(self) -> np.ndarray:
    """[L, G] bool: the lazy layers of each new token."""
    return (self.new > self.threshold) & ~self.sliding[:, None]

  @property
  def uniform(self) -> float:
    """Lazy ratio, at the end of the prompt, of a layer with uniform attention."""
    return (self.initial + self.recent) / self.length

  @property
  def sink_correlation(self) -> float:
    """Spearman's correlation over layers of the sink and the new tokens' mean lazy ratio: high if layers with sinks are lazy."""
    return rank_correlation(self.sink[~self.sliding], self.new[~self.sliding].mean(axis=1))

  def __repr__(self) -> str:
    L, G = self.new.shape
    lazy = self.lazy.mean(axis=1) > 0.5
    return (
      f'LazinessReport({lazy.sum()} of {L} layers lazy for most of {G} new tokens: {np.flatnonzero(lazy).tolist()}; '
      f'threshold {self.threshold}, a prompt of {self.length} tokens, {self.initial} + {self.recent} looked at)'
    )


def laziness(
  lm: LanguageModel,
  tokens: Int[np.ndarray, ' T'],
  *,
  initial: int = 4,
  recent: int | None = None,
  new_tokens: int = 64,
  continuation: Int[np.ndarray, ' G'] | None = None,
  threshold: float = 0.9,
  queries: int = 64,
) -> LazinessReport:
  """Returns how lazy each layer is along a prompt and for the tokens after it.

  Args:
    tokens: ids of the prompt, BOS included if the model expects it.
    initial: number of first tokens that count for the lazy ratio, a sink token included.
    recent: number of latest tokens that count, the query's own token included (None: a quarter of the prompt less `initial`,
      at most 1020).
    new_tokens: number of tokens to generate greedily; generation goes on after an end-of-text token.
    continuation: ids to read instead of generated ones, for example the next tokens of a text; `new_tokens` is ignored.
    threshold: layers with a ratio above it are lazy.
    queries: number of prompt queries that are averaged into one ratio and read at the same time.

  Raises:
    ValueError: the prompt has no full window of queries that see more than the initial and recent tokens, the tokens exceed
      the model's context, ids are beyond the vocabulary, attention weights can be negative, numbers are out of range,
      fewer than two layers have no sliding window, or activations are not finite.
  """
  c = lm.config
  tokens = _ids('prompt', tokens, c)
  if continuation is not None:
    continuation = _ids('continuation', continuation, c)
    new_tokens = len(continuation)
  T, before = len(tokens), int(c.sink.kind == 'token')
  if recent is None:
    recent = max(1, min(RECENT, T // 4 - initial))
  options = {'initial': initial, 'recent': recent, 'queries': queries}
  laziness_scores.check_options(new_tokens=new_tokens, threshold=threshold, **options)
  if c.attention in UNSCORED:
    raise ValueError(f'attention={c.attention!r} has negative weights: how lazy a layer is has no meaning.')
  sliding_L = np.array([c.window(i) is not None for i in range(c.num_layers)])
  if (whole := (~sliding_L).sum()) < 2:
    raise ValueError(
      f'{whole} of the {c.num_layers} layers has no sliding window; laziness is compared between at least 2.'
    )
  first_query = max(initial + recent - before, c.prefix, 1)
  if T < first_query + queries:
    raise ValueError(
      f'A prompt of {T} tokens is too short for {initial=}, {recent=} and {queries=}: every query that sees no more than '
      f'{initial + recent} tokens is lazy whatever it attends to. Take a prompt of {first_query + queries} tokens or more, '
      f'or lower recent or queries.'
    )
  if T + new_tokens > c.max_length:
    raise ValueError(
      f'The prompt has {T} tokens and {new_tokens=}, together {T + new_tokens}; the model reads {c.max_length}: '
      f'shorten the prompt, or lower new_tokens.'
    )
  # The last window ends with the prompt. Tokens that fill no window are read first, and so is a prefix, whose tokens see
  # each other.
  head = T - (T - max(1, c.prefix)) // queries * queries
  new_G = np.zeros(new_tokens, np.int32) if continuation is None else continuation
  prompt_PL, new_GL, new_G = jax.device_get(
    _read(
      lm.params, tokens[None, :head], tokens[head:].reshape(-1, queries), new_G,
      config=c, initial=initial, recent=recent, greedy=continuation is None,
    )
  )  # fmt: skip
  if not (np.isfinite(prompt_PL).all() and np.isfinite(new_GL).all()):
    raise ValueError(
      'Lazy ratios are not finite: activations of the model overflow, or its parameters are not numbers.'
    )
  starts_P = np.arange(head, T, queries, dtype=np.int32)
  told_P = starts_P >= first_query
  prompt_LP, new_LG = prompt_PL[told_P].T, new_GL.T
  found = sinks(lm, tokens[None])
  compare = functools.partial(laziness_scores.consistency, threshold=threshold)
  return LazinessReport(
    length=T, threshold=threshold, **options, tokens=new_G, prompt=prompt_LP, starts=starts_P[told_P], new=new_LG,
    sink=found.alpha_proxy[:, :, : found.first + 1].sum(axis=-1).mean(axis=1), sliding=sliding_L,
    from_prompt=compare(prompt_LP[~sliding_L, -1], new_LG[~sliding_L]),
    from_first=compare(new_LG[~sliding_L, 0], new_LG[~sliding_L, 1:]),
  )  # fmt: skip


def _ids(name: str, tokens, config: ModelConfig) -> np.ndarray:
  tokens = np.asarray(tokens)
  if not tokens.size:
    raise ValueError(f'The {name} is empty: laziness needs tokens to look at.')
  if tokens.ndim != 1:
    raise ValueError(f'The {name} is one text, ids [T]; got the shape {tokens.shape}. Measure several one by one.')
  return check_tokens(tokens[None], config)[0]


@functools.partial(jax.jit, static_argnames=('config', 'initial', 'recent', 'greedy'))
def _read(
  params, head_1F: Int[Array, '1 F'], windows_PQ: Int[Array, 'P Q'], new_G: Int[Array, ' G'], *,
  config: ModelConfig, initial: int, recent: int, greedy: bool,
):  # fmt: skip
  """Reads a prompt's beginning, its windows and the new tokens. Returns (ratios [P, L], ratios [G, L], new tokens)."""
  F, (P, Q), G = head_1F.shape[1], windows_PQ.shape, len(new_G)
  total = F + P * Q + G
  before = int(config.sink.kind == 'token')
  apply = functools.partial(functions.hidden, params, config.replace(remat='none'), length=jnp.array([total]))

  def read(cache, start, tokens_T):
    """Returns (the last hidden state [1, D], the mean ratios [L] of these tokens, the extended cache)."""
    T = len(tokens_T)
    zeros_1L = jnp.zeros((1, config.num_layers), jnp.float32)
    scored = Scored(cache, (start + T + before)[None], zeros_1L, initial, recent, T)
    hidden_1TD, scored = apply(tokens_T[None], start + jnp.arange(T)[None], scored)
    return hidden_1TD[:, -1], scored.ratios[0], scored.cache

  def window(carry, tokens_Q):
    cache, start, _ = carry
    last_1D, ratio_L, cache = read(cache, start, tokens_Q)
    return (cache, start + Q, last_1D), ratio_L

  def step(carry, token):
    cache, start, last_1D = carry
    if greedy:
      token = functions.logits(params, config, last_1D).argmax(axis=-1)[0].astype(jnp.int32)
    last_1D, ratio_L, cache = read(cache, start, token[None])
    return (cache, start + 1, last_1D), (ratio_L, token)

  # The beginning is not scored, because its length differs from that of the windows.
  hidden_1FD, cache = apply(head_1F, cache=FullCache.create(config, 1, total))
  carry, prompt_PL = jax.lax.scan(window, (cache, jnp.int32(F), hidden_1FD[:, -1]), windows_PQ)
  _, (new_GL, new_G) = jax.lax.scan(step, carry, new_G)
  return prompt_PL, new_GL, new_G
