"""Training and held-out batches of a draft, from text or from what the target writes, and prompts for measuring the draft."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data import corpus, document_rows, packing, sources
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from trainers import distributed, run_directory
from trainers.config import ConfigError
from trainers.glide import outputs as target_outputs
from trainers.glide import self_generation, target
from trainers.glide.config import GlideTrainConfig
from trainers.progress import Progress


@dataclasses.dataclass(frozen=True)
class Texts:
  """Batches have tokens and targets int32 [B, T], and mask float32 [B, T].

  Attributes:
    batches: training batches.
    held_out: held-out batches.
    prompts: token ids of held-out prompts.
    outputs: what the target computes for the rows in 'training' and 'held-out'; {} if it is not kept.
  """

  batches: packing.Batches
  held_out: packing.EvalBatches
  prompts: list[list[int]]
  outputs: dict[str, target_outputs.TargetOutputs] = dataclasses.field(default_factory=dict)


def of(config: GlideTrainConfig, lm: LanguageModel, layout: distributed.Layout) -> Texts:
  """Returns the texts of a run. With `self_generate`, the target writes those that are not written yet; with `keep_outputs`, it
  computes what is not kept yet.

  Process 0 writes, and the other hosts wait. They read the file afterwards, so all hosts must see the same files.

  Raises:
    DataError: there is too little text, or the file of generated texts cannot be used.
    CheckpointError: the run directory cannot be used.
  """
  found = _texts(config, lm, layout)
  if not config.keep_outputs or not (config.model.cross or config.distill.weight):
    return found
  return dataclasses.replace(found, outputs=_kept(config, lm, layout, found))


def _kept(config: GlideTrainConfig, lm: LanguageModel, layout: distributed.Layout, texts: Texts):
  own = self_generation.local_target(lm, layout, lambda: target.load(config, config.run.directory))
  train, held_out = texts.batches, texts.held_out
  rows = {
    'training': [train.row_of_window(i)['tokens'] for i in train.used_windows],
    'held-out': [held_out.row(i)['tokens'] for i in range(len(held_out) * config.data.batch_size)],
  }
  say = Progress(0, 0, show=True, bar=False).say
  make = lambda part: target_outputs.make(
    config.keep_outputs, own, np.stack(rows[part]), config.model.target_layers, say
  )
  distributed.on_first_host(lambda: [make(part) for part in rows], DataError)
  numbered = dataclasses.replace(make('training'), numbers=train.used_windows)
  return {'training': numbered, 'held-out': make('held-out')}


def _texts(config: GlideTrainConfig, lm: LanguageModel, layout: distributed.Layout) -> Texts:
  data, tokenizer = config.data, lm.tokenizer
  documents = lambda spec: sources.documents(spec, field=data.field, download=data.download)
  if data.valid_source is None:
    parts = sources.split(documents(data.source), data.valid_fraction)
  else:
    parts = documents(data.source), documents(data.valid_source)
  ends = dict(bos=tokenizer.adds_bos, eos=tokenizer.eos_id is not None)
  train, valid = (corpus.tokenize(part, tokenizer, **ends) for part in parts)
  e, g = config.eval, config.generation
  prompts = self_generation.prompts(valid, tokenizer, e.prompts, e.prompt_tokens, chat=g.chat, seed=data.seed)
  _check_room(prompts, e.new_tokens, lm.config.max_length)
  shape, order = dict(batch_size=data.batch_size, length=data.length), dict(seed=data.seed, fraction=data.fraction)
  if not config.self_generate:
    return Texts(
      packing.make_batches(train, mode='concat', **order, **shape),
      packing.eval_batches(valid, mode='concat', max_batches=e.batches, **shape),
      prompts,
    )
  written, firsts = _generated(config, lm, layout, train)
  # The last texts are held out. Prompts are drawn in random order, so the last ones are like the others.
  n = len(firsts) - max(1, round(len(firsts) * data.valid_fraction))
  first, last = _part(written, 0, n), _part(written, n, len(firsts))
  return Texts(
    document_rows.DocumentBatches(first, **order, **shape, prompts=firsts[:n]),
    document_rows.EvalDocuments(last, **shape, max_batches=e.batches, prompts=firsts[n:]),
    prompts,
  )


def _part(whole: corpus.TokenCorpus, first: int, last: int) -> corpus.TokenCorpus:
  return corpus.TokenCorpus.from_documents(whole.document(i) for i in range(first, last))


def _check_room(prompts: list[list[int]], new_tokens: int, max_length: int) -> None:
  if prompts and (longest := max(map(len, prompts))) + new_tokens > max_length:
    raise ConfigError(
      f'eval.new_tokens={new_tokens} after held-out prompts of up to {longest} tokens are more than the target reads: {max_length}.'
    )


def _generated(config: GlideTrainConfig, lm: LanguageModel, layout: distributed.Layout, train: Any):
  g, directory = config.generation, Path(config.run.directory)
  path = Path(g.file or directory / 'self-generated.jsonl').expanduser()
  prompts = self_generation.prompts(
    train, lm.tokenizer, config.self_generate, g.prompt_tokens, chat=g.chat, seed=g.seed
  )
  longest = config.data.length + 1
  if (most := max(map(len, prompts))) >= longest or longest > lm.config.max_length:
    raise ConfigError(
      f'A row of data.length={config.data.length} tokens and its last target, {longest} tokens, must be longer than each prompt ({most} '
      f'tokens with BOS or chat template) and at most as long as the target reads ({lm.config.max_length}).'
    )
  own = self_generation.local_target(lm, layout, lambda: target.load(config, directory))
  say = Progress(0, 0, show=True, bar=False).say
  texts = self_generation.SelfGenerated(path, own, prompts, longest, g, say)

  def make() -> None:
    run_directory.check_start(directory, config.start)
    lock, _ = run_directory.open_run(directory, config, 'glide')
    with lock:
      texts.make()

  distributed.on_first_host(make, DataError)
  return texts.read()


def with_phases(batch: packing.Batch, numbers: np.ndarray, block: int, seed: int) -> packing.Batch:
  """Returns a batch with the place of each row's first block: 'phase' int32 [B], in 0 .. block - 1.

  It is a function of (seed, number of the row), and not of the step's random key, so it is the same on any number of devices.
  """
  phase = lambda number: np.random.default_rng([seed, int(number)]).integers(block)
  return batch | {'phase': np.array([phase(number) for number in numbers], np.int32)}
