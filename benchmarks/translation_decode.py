"""Speed of translating with beam search, compared with transformers and CTranslate2, with the same float32 weights and hypotheses.

The model has the shape of an OPUS-MT model. Its weights are random, of sizes that were chosen so that a translation has several
different tokens; most run to the limit. Such a model enlarges rounding errors, so the libraries part where two tokens are about as
likely. All three stop a search when `beam` hypotheses have ended.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
from pathlib import Path
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import report

EOS = 0
# Standard deviations of the weights times sqrt(model_dim). With larger attention outputs or smaller queries, all tokens of a
# translation are the same one; with larger queries, rounding errors grow.
QUERY_KEY, VALUE_OUT, OTHER = 4.5, 0.7, 2.3
# The bias of EOS lies this many standard deviations of a logit below the expected largest of the other logits.
BELOW = 2.1

Found = tuple[float, float, list[list[int]], list[float]]
"""(Seconds of encoding, seconds of decoding, ids of each translation without EOS, scores)."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Beam search of a random Marian model in jaxlm, transformers and CTranslate2."""

  layers: int = 6
  """Layers of the encoder, and as many of the decoder."""
  model_dim: int = 512
  heads: int = 8
  mlp_dim: int = 2048
  vocabulary: int = 32000
  """OPUS-MT models have about 58000."""
  batches: tuple[int, ...] = (1, 32)
  """Sources translated together."""
  beams: tuple[int, ...] = (1, 4)
  sources: int = 4
  """Sources of a run, at least one batch."""
  shortest: int = 5
  longest: int = 40
  """Tokens of a source, drawn evenly between the two."""
  max_new_tokens: int = 64
  repeats: int = 3
  """Timed runs of each library, in turn, after one that is not timed."""
  threads: int = len(os.sched_getaffinity(0))
  """Number of threads of PyTorch and of CTranslate2; XLA uses all cores of the process."""
  seed: int = 0


def main(config: Config) -> None:
  report.require_peer()
  require_ctranslate2()
  import ctranslate2
  import torch

  torch.set_num_threads(config.threads)
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    model = random_marian(config)
    libraries = opened(config, model, Path(folder))
    for batch in config.batches:
      sources = drawn(config, max(batch, config.sources))
      for beam in config.beams:
        runs = {name: functools.partial(run, sources, batch, beam) for name, run in libraries.items()}
        found = report.in_turn(runs, config.repeats)
        rows += rows_of(batch, beam, config.max_new_tokens, found, functools.partial(gap, model, sources))
        print(report.table(rows[-len(runs) :]), flush=True)
  report.write(
    'translation_decode',
    rows,
    ctranslate2=ctranslate2.__version__,
    load=list(os.getloadavg()),
    config=dataclasses.asdict(config),
  )


def require_ctranslate2() -> None:
  """Raises SystemExit with the install line when CTranslate2 is missing."""
  try:
    import ctranslate2  # noqa: F401
  except ImportError as error:
    raise SystemExit(f"This benchmark runs beside CTranslate2: pip install -e '.[bench]' ({error}).") from None


def drawn(config: Config, count: int) -> list[list[int]]:
  """Returns sources of various lengths, without EOS."""
  draw = np.random.default_rng(config.seed)
  lengths = draw.integers(config.shortest, config.longest + 1, count)
  return [draw.integers(2, config.vocabulary - 1, n).tolist() for n in lengths]


def rows_of(
  batch: int, beam: int, most: int, runs: dict[str, list[Found]], gap: Callable[[int, list[int], list[int]], float]
) -> list[dict[str, Any]]:
  """Returns a row of the table for each library. `gap` is the function of that name, for (row, ids, other ids)."""
  median = lambda values: float(np.median(list(values)))
  ours = runs['jaxlm']
  _, _, our_ids, our_scores = ours[0]
  whole = lambda found: median(encoding + decoding for encoding, decoding, _, _ in found)
  rows = []
  for name, found in runs.items():
    _, _, ids, scores = found[0]
    differ = [i for i, (a, b) in enumerate(zip(our_ids, ids)) if a != b]
    # Hypotheses of a beam are compared as a whole, greedy translations at the step where they take different tokens.
    gaps = [abs(our_scores[i] - scores[i]) if beam > 1 else gap(i, our_ids[i], ids[i]) for i in differ]
    tokens = sum(min(len(row) + 1, most) for row in ids)
    rows.append({
      'batch': batch, 'beam': beam, 'library': name, 'encode s': median(f[0] for f in found), 'decode s': median(f[1] for f in found),
      'tokens': tokens, 'tok/s': tokens / whole(found), 'seconds / jaxlm': whole(found) / whole(ours),
      'same translations': 1 - len(differ) / len(ids), 'largest gap of others': max(gaps, default=0.0),
    })  # fmt: skip
  return rows


def gap(model: Any, sources: list[list[int]], i: int, ours: list[int], theirs: list[int]) -> float:
  """Returns how far apart the log-probabilities of two translations' tokens are where they first differ, by transformers."""
  import torch

  ours, theirs = [*ours, EOS], [*theirs, EOS]
  at = next(t for t, (a, b) in enumerate(zip(ours, theirs)) if a != b)
  before = [model.config.decoder_start_token_id, *ours[:at]]
  with torch.inference_mode():
    out = model(input_ids=torch.tensor([[*sources[i], EOS]]), decoder_input_ids=torch.tensor([before]))
  log_p = torch.log_softmax(out.logits[0, -1], dim=-1)
  return float((log_p[ours[at]] - log_p[theirs[at]]).abs())


def opened(config: Config, model: Any, folder: Path) -> dict[str, Callable[[list[list[int]], int, int], Found]]:
  """Returns, by library, the function (sources, batch, beam) that translates and tells the time."""
  import jaxlm

  model.save_pretrained(folder / 'marian')
  lm = jaxlm.load(folder / 'marian', dtype='float32')
  translator = converted(model, folder / 'ctranslate2', config.threads)
  return {
    'jaxlm': lambda *args: by_jaxlm(lm, config, *args),
    'transformers': lambda *args: by_transformers(model, config, *args),
    'ctranslate2': lambda *args: by_ctranslate2(translator, config, *args),
  }


def random_marian(config: Config) -> Any:
  """Returns transformers' MarianMTModel. Padding begins a target; its embedding is zero, as CTranslate2 has it."""
  import torch
  import transformers

  pad, both = config.vocabulary - 1, {}
  for side in ('encoder', 'decoder'):
    both |= {
      f'{side}_layers': config.layers,
      f'{side}_attention_heads': config.heads,
      f'{side}_ffn_dim': config.mlp_dim,
    }
  shape = transformers.MarianConfig(
    vocab_size=config.vocabulary, d_model=config.model_dim, max_position_embeddings=512, pad_token_id=pad, eos_token_id=EOS,
    bos_token_id=None, decoder_start_token_id=pad, forced_eos_token_id=None, scale_embedding=True, activation_function='swish',
    **both,
  )  # fmt: skip
  model = transformers.MarianMTModel(shape).eval()
  generator, unit = torch.Generator().manual_seed(config.seed), config.model_dim**-0.5
  normal = lambda x, std: x.copy_(torch.randn(x.shape, generator=generator) * std)
  with torch.no_grad():
    for name, x in model.named_parameters():
      if x.ndim == 2 and 'embed_positions' not in name:
        part = name.split('.')[-2]
        normal(
          x,
          unit
          * {'q': QUERY_KEY, 'k': QUERY_KEY, 'v': VALUE_OUT, 'out': VALUE_OUT}.get(part.removesuffix('_proj'), OTHER),
        )
    # Without changed signs a token would predict itself, because the output layer is the embedding.
    last = model.model.decoder.layers[-1].final_layer_norm.weight
    last.copy_(torch.sign(torch.randn(last.shape, generator=generator)))
    model.model.shared.weight[pad] = 0
    model.final_logits_bias[0, pad] = -30.0  # CTranslate2 leaves padding out of the softmax.
    model.final_logits_bias[0, EOS] = OTHER * ((2 * np.log(config.vocabulary)) ** 0.5 - BELOW)
  return model


def converted(model: Any, folder: Path, threads: int) -> Any:
  """Returns CTranslate2's translator with the same weights in float32."""
  from ctranslate2 import Translator
  from ctranslate2.converters.transformers import MarianMTLoader
  import torch

  # The model has no tokenizer: the converter asks one for the names of the ids.
  ids = {token(i, model.config.vocab_size): i for i in range(model.config.vocab_size)}
  names = SimpleNamespace(bos_token=None, eos_token='</s>', unk_token='<unk>', get_vocab=lambda: ids)
  with torch.no_grad():
    spec = MarianMTLoader()(model, names)
  spec.validate()
  spec.optimize()
  folder.mkdir()
  spec.save(str(folder))
  return Translator(str(folder), compute_type='float32', inter_threads=1, intra_threads=threads)


def token(i: int, vocabulary: int) -> str:
  return {EOS: '</s>', 1: '<unk>', vocabulary - 1: '<pad>'}.get(i, f't{i}')


def by_jaxlm(lm: Any, config: Config, sources: list[list[int]], batch: int, beam: int) -> Found:
  import decoders

  start = time.perf_counter()
  out = decoders.translate(
    lm, sources, beam_size=beam, batch_size=batch, max_new_tokens=config.max_new_tokens, early_stopping=True
  )
  seconds = time.perf_counter() - start - out.stats['compile_seconds']
  # What is neither encoding nor compiling is decoding: batches are made, and results are taken to the host.
  encoding = out.stats['encode_seconds']
  return encoding, seconds - encoding, [without_eos(row) for row in out.rows()], out.scores.tolist()


def by_transformers(model: Any, config: Config, sources: list[list[int]], batch: int, beam: int) -> Found:
  import torch

  pad, ids, scores, encoding, decoding = model.config.pad_token_id, [], [], 0.0, 0.0
  stops = {'early_stopping': True, 'output_scores': True} if beam > 1 else {}
  for rows in batches(sources, batch):
    width = max(map(len, rows)) + 1
    inputs = torch.tensor([[*row, EOS] + [pad] * (width - 1 - len(row)) for row in rows])
    mask = (inputs != pad).long()
    with torch.inference_mode():
      start = time.perf_counter()
      encoded = model.get_encoder()(input_ids=inputs, attention_mask=mask)
      middle = time.perf_counter()
      out = model.generate(
        encoder_outputs=encoded, attention_mask=mask, num_beams=beam, max_new_tokens=config.max_new_tokens, do_sample=False,
        bad_words_ids=[[pad]], return_dict_in_generate=True, **stops,
      )  # fmt: skip
      decoding += time.perf_counter() - middle
      encoding += middle - start
    ids += [without_eos([t for t in row[1:] if t != pad]) for row in out.sequences.tolist()]
    scores += out.sequences_scores.tolist() if beam > 1 else [float('nan')] * len(rows)
  return encoding, decoding, *in_order(sources, ids, scores)


def by_ctranslate2(translator: Any, config: Config, sources: list[list[int]], batch: int, beam: int) -> Found:
  """CTranslate2 does not tell encoding from decoding: encoding is a run of its own, which generates one token."""
  ids, scores = [], []
  number = lambda name: {'</s>': EOS, '<unk>': 1}.get(name) if name[0] == '<' else int(name[1:])
  seconds = []
  for most in (1, config.max_new_tokens):
    ids, scores, start = [], [], time.perf_counter()
    for rows in batches(sources, batch):
      texts = [[token(i, config.vocabulary) for i in (*row, EOS)] for row in rows]
      out = translator.translate_batch(
        texts, beam_size=beam, min_decoding_length=0, max_decoding_length=most, return_scores=True
      )
      ids += [[number(name) for name in one.hypotheses[0]] for one in out]
      scores += [one.scores[0] for one in out]
    seconds.append(time.perf_counter() - start)
  return seconds[0], seconds[1] - seconds[0], *in_order(sources, ids, scores)


def batches(sources: list[list[int]], batch: int) -> list[list[list[int]]]:
  """Returns the sources in batches of similar lengths, as jaxlm makes them itself."""
  longest_first = sorted(sources, key=len, reverse=True)
  return [longest_first[i : i + batch] for i in range(0, len(sources), batch)]


def in_order(sources: list[list[int]], ids: list[list[int]], scores: list[float]) -> tuple[list, list]:
  """Returns (ids, scores) of the translations of `batches` in the order of the sources."""
  order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
  place = np.argsort(order)
  return [ids[i] for i in place], [scores[i] for i in place]


def without_eos(row: list[int]) -> list[int]:
  return row[:-1] if row[-1:] == [EOS] else row
