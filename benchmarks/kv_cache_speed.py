"""Bytes and decoding speed of cut and quantised caches on SmolLM2, compared with kvpress with the same settings."""

from pathlib import Path
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import kv_cache_methods as km
from benchmarks import report
from decoders import programs
from decoders import state as decode_state
from decoders.prompts import PaddedPrompts
from decoders.simlayerkv import KiviConfig
from decoders.simlayerkv.config import LazyConfig
from decoders.simlayerkv.memory import LazyMemory
from decoders.strategies import Plan
from jaxlm.attention.rule import layer_rule
from jaxlm.caches.scored import lazy_ratio
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket


def rows_of(lm: LanguageModel, text: list[int], length: int, recent: int, n_lazy: int, steps: int, repeats: int, peer):
  """Returns one row per cache for a prompt of this length; `peer` is transformers' model or None."""
  ids, c = text[: length - steps - 8], lm.config
  # As in kvpress, the query's own key does not count.
  lazy = LazyConfig(n_recent=recent, score_recent=recent + 1, include_self=False, stage='prefill')
  padded = PaddedPrompts(np.asarray([ids], np.int32), np.array([len(ids)], np.int32))
  memory, clock, total = LazyMemory(lazy, c), programs.Clock(), jnp.asarray([length])
  logits, scored = memory.read(clock, lm, padded, total, Plan(chunk=1024, slots=bucket(length)))
  jax.block_until_ready(logits)
  ratios, order = np.asarray(scored.ratios[0]), np.sort(np.asarray(scored.ratios[0]))
  threshold = float((order[-n_lazy] + order[-n_lazy - 1]) / 2)
  prompt = km.Read(ids, scored.whole, ratios, {}, steps + 8, logits)
  by_ratio = lazy.replace(threshold=threshold)
  kinds = {
    'full': lazy.replace(threshold=1.0),
    'lazy': by_ratio,
    '4 bits': lazy.replace(threshold=1.0, quant=KiviConfig()),
    'lazy, 4 bits': by_ratio.replace(quant=KiviConfig()),
    'lazy, static': by_ratio.replace(layout='static'),
    'lazy, 4 bits, static': by_ratio.replace(quant=KiviConfig(), layout='static'),
  }
  scoring = score_seconds(lm, prompt, lazy)  # Before decoding, which deletes the whole cache.
  states, cut_layers = {}, {}
  for name, config in kinds.items():
    method = km.Method(name, config)
    cut_layers[name] = km.cut_layers(method, lm, prompt, None)
    states[name] = start(km.cut(method, lm, prompt, cut_layers[name]).cache, logits, len(ids), length)
  held = {name: state.cache.nbytes for name, state in states.items()}

  def decode(name):
    state = again(states[name], len(ids))
    clock = programs.Clock()
    states[name], _ = clock.run(
      'decode', decode_state.decode, lm.params, state, jnp.int32(steps), jnp.asarray([-1]), {}, config=c
    )
    return clock.seconds['decode'] / steps

  runs = {name: (lambda name=name: decode(name)) for name in kinds}
  if peer is not None:
    theirs = Peer(peer, ids, lazy, threshold, steps)
    runs |= {'kvpress full': lambda: theirs.decode(False), 'kvpress lazy': lambda: theirs.decode(True)}
    held |= {'kvpress full': theirs.nbytes(False), 'kvpress lazy': theirs.nbytes(True)}
  taken = {name: float(np.median(times)) for name, times in report.in_turn(runs, repeats).items()}
  weights = sum(x.nbytes for x in jax.tree.leaves(lm.params))
  rows = []
  for name, seconds in taken.items():
    full = 'kvpress full' if name.startswith('kvpress') else 'full'
    gain, predicted = taken[full] / seconds, (weights + held[full]) / (weights + held[name])
    layers = theirs.lazy_layers if name == 'kvpress lazy' else np.flatnonzero(cut_layers.get(name, [])).tolist()
    rows.append({
      'tokens': length, 'cache': name, 'lazy layers': len(layers), 'MB': held[name] / 1e6,
      'times smaller': held['full'] / held[name], 'tok/s': 1 / seconds, 'gain': gain, 'by bytes': predicted,
      'gain / by bytes': gain / predicted, 'which': str(layers),
    })  # fmt: skip
  prefill = clock.seconds['prefill']
  return rows, {'tokens': length, 'prefill s': prefill, 'scoring s': scoring, 'of prefill': scoring / prefill,
                'threshold': threshold}  # fmt: skip


def start(cache, logits, position: int, total: int) -> decode_state.DecodeState:
  one = lambda x: jnp.asarray([x], jnp.int32)
  return decode_state.DecodeState(
    tokens=jnp.zeros((1, total - position), jnp.int32), last=jnp.argmax(logits, axis=-1).astype(jnp.int32),
    position=one(position), lengths=one(0), done=jnp.zeros(1, bool), finite=jnp.ones(1, bool),
    keys=decode_state.row_keys(0, 0, 1), seen=None, total=one(total), cache=cache,
  )  # fmt: skip


def again(state: decode_state.DecodeState, position: int) -> decode_state.DecodeState:
  """Returns the state reset to its start; tokens appended since are overwritten."""
  fresh = start(None, jnp.zeros((1, 2)), position, position + state.tokens.shape[1])
  return fresh.replace(cache=state.cache, last=state.last)


def score_seconds(lm: LanguageModel, prompt: km.Read, lazy: LazyConfig, repeats: int = 5) -> float:
  """Returns the seconds that the lazy ratios of all layers take."""
  c, n = lm.config, len(prompt.ids)
  q = jax.random.normal(jax.random.key(0), (1, lazy.n_last, c.num_heads, c.head_dim), c.dtype)
  at, slots = jnp.full((1, lazy.n_last), n - 1), jnp.arange(prompt.cache.keys[0].shape[2])[None]
  window = {'initial': lazy.n_initial, 'recent': lazy.n_recent, 'include_self': lazy.include_self}
  score = jax.jit(lambda q, keys: [lazy_ratio(q, k, at, slots, layer_rule(c, 0), **window) for k in keys])
  run = lambda: report.seconds(lambda: jax.block_until_ready(score(q, prompt.cache.keys)))
  return float(np.median(report.in_turn({'score': run}, repeats)['score']))


class Peer:
  """Decoding in transformers over a cache that kvpress' SimLayerKVPress has cut."""

  def __init__(self, model, ids, lazy: LazyConfig, threshold: float, steps: int):
    import kvpress
    import torch
    import transformers

    self.model, self.length, self.steps, self.caches, self.first = model, len(ids), steps, {}, {}
    for cut in (False, True):
      press = kvpress.SimLayerKVPress(
        lazy_threshold=threshold if cut else 1.0, n_last=1, n_recent=lazy.n_recent + 1, n_initial=lazy.n_initial
      )
      cache = transformers.DynamicCache()
      with torch.inference_mode(), press(model):
        out = model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1)
      self.caches[cut], self.first[cut] = cache, out.logits[0, -1].argmax().view(1, 1)
      if cut:
        self.lazy_layers = np.flatnonzero(np.array(press.compression_ratios) > 0).tolist()

  def nbytes(self, cut: bool) -> int:
    return sum(x.nbytes for layer in self.caches[cut].layers for x in (layer.keys, layer.values))

  def decode(self, cut: bool) -> float:
    """Returns the seconds per token, and removes the appended tokens."""
    import torch

    cache, token = self.caches[cut], self.first[cut]
    before = [layer.keys.shape[2] for layer in cache.layers]
    begin = time.perf_counter()
    with torch.inference_mode():
      for i in range(self.steps):
        out = self.model(token, past_key_values=cache, position_ids=torch.tensor([[self.length + i]]))
        token = out.logits[0, -1].argmax().view(1, 1)
    seconds = (time.perf_counter() - begin) / self.steps
    for layer, n in zip(cache.layers, before):
      layer.keys, layer.values = layer.keys[:, :, :n], layer.values[:, :, :n]
    return seconds


def peer_of(lm: LanguageModel) -> Any:
  """Returns transformers' model with the same float32 weights."""
  import torch
  import transformers

  import jaxlm

  transformers.utils.logging.disable_progress_bar()
  with tempfile.TemporaryDirectory() as folder:
    jaxlm.save_huggingface(lm, Path(folder) / 'hf')
    return transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / 'hf', dtype=torch.float32).eval()
