"""python -m benchmarks.attention_sink: when does an attention sink emerge? Tests the paper's statements at a small size.

There are two studies. Gated retrieval (benchmarks/gated_retrieval.py): one layer, seconds per run; its sink depends on what the
paper says it depends on. A language model: byte-level and too small for a sink on natural text (setting cpu), or 20M parameters on
procedural text after a fixed first token (setting h200). Each of the paper's statements (https://arxiv.org/abs/2410.10781) that can
be tested at this size is printed as PASS or MISS.

Sink_1 and Sink_* (of the slot or sink token) are fractions at eps = 0.3, of 100 sequences of 64 tokens.
"""

import dataclasses
import time
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks import attention_sink_figure, report
from benchmarks.procedural_text import ProceduralBatches
from jaxlm import console
from jaxlm.config import ModelConfig, SinkConfig
from trainers.config import OptimizerConfig

PROBE_ROWS, PROBE_LENGTH = 100, 64


@dataclasses.dataclass(frozen=True)
class Config:
  """When does an attention sink emerge?"""

  setting: Literal['cpu', 'h200'] = 'cpu'
  """cpu: gated retrieval and a byte-level model, minutes on two cores. h200: a 20M model, ten minutes on one GPU."""
  seeds: int = 3
  """Number of seeds for each gated-retrieval row."""
  steps: int | None = None
  """Steps of a gated-retrieval run, 0 for none (none: the setting's)."""
  lm_steps: int | None = None
  """Steps of a language-model run, 0 for none (none: the setting's)."""
  lm_seeds: int = 1
  """Number of seeds for each language-model row."""
  only: tuple[str, ...] = ()
  """Names of the rows to run (none: all). Checks that need other rows are skipped."""
  tiny: bool = False
  """Shrink the language model until three steps take seconds: a test of the code path, not of the paper."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One bar of the figure: a model that differs from softmax attention in one thing."""

  name: str
  attention: str = 'softmax'
  sink: str = 'none'
  output_gate: str = 'none'
  first_token: Literal['fixed', 'random'] = 'fixed'
  """Sinks in gated retrieval. A fixed first token beats an added slot: two redundant sinks."""

  def model(self, base: ModelConfig) -> ModelConfig:
    return base.replace(attention=self.attention, sink=SinkConfig(kind=self.sink), output_gate=self.output_gate)


RETRIEVAL_ROWS = (
  Row('softmax'),
  Row('sigmoid', attention='sigmoid'),
  Row('sigmoid_norm', attention='sigmoid_norm'),
  Row('elu1', attention='elu1'),
  Row('gate of heads', output_gate='head'),
  Row('gate of elements', output_gate='element'),
  Row('softmax, random first', first_token='random'),
  Row('k bias', sink='k'),
  Row('k bias, random first', sink='k', first_token='random'),
  Row('kv bias, random first', sink='kv', first_token='random'),
  Row('sink logit, random first', sink='logit', first_token='random'),
  Row('sink token, random first', sink='token', first_token='random'),
)
LM_ROWS = (
  Row('softmax'),
  Row('sigmoid', attention='sigmoid'),
  Row('sigmoid_norm', attention='sigmoid_norm'),
  Row('gate of elements', output_gate='element'),
  Row('k bias', sink='k'),
  Row('sink token', sink='token'),
)


@dataclasses.dataclass(frozen=True)
class Setting:
  """Sizes of the studies for one kind of machine."""

  retrieval_steps: int
  model: ModelConfig
  optimizer: OptimizerConfig
  lm_steps: int
  text: Literal['embedded', 'procedural']
  """embedded: bytes of the text that ships with Python. procedural: benchmarks/procedural_text.py, with a fixed first token."""
  batch_size: int
  length: int
  look_every: int
  """Number of steps between measurements of the sinks."""
  lm_rows: tuple[str, ...]


SETTINGS = {
  'cpu': Setting(
    retrieval_steps=1200,
    model=ModelConfig(
      vocab_size=259, num_layers=2, model_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, mlp_dim=512, max_length=256,
      dtype='float32',
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50), lm_steps=150,
    text='embedded', batch_size=16, length=256, look_every=50, lm_rows=tuple(r.name for r in LM_ROWS),
  ),
  'h200': Setting(
    retrieval_steps=0,
    model=ModelConfig(
      vocab_size=8192, num_layers=8, model_dim=512, num_heads=8, num_kv_heads=8, head_dim=64, mlp_dim=1024, max_length=512,
      dtype='bfloat16',
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, weight_decay=0.1), lm_steps=3000,
    text='procedural', batch_size=128, length=512, look_every=250, lm_rows=('softmax', 'sigmoid', 'k bias'),
  ),
}  # fmt: skip


def tiny(s: Setting) -> Setting:
  model = s.model.replace(num_layers=2, model_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64)
  model = model.replace(vocab_size=min(512, model.vocab_size))
  return dataclasses.replace(s, model=model, batch_size=4, length=64, look_every=2)


def main(config: Config) -> None:
  setting = tiny(SETTINGS[config.setting]) if config.tiny else SETTINGS[config.setting]
  retrieval_steps = setting.retrieval_steps if config.steps is None else config.steps
  lm_steps = setting.lm_steps if config.lm_steps is None else config.lm_steps
  wanted = lambda row: not config.only or row.name in config.only
  retrieval_rows = [row for row in RETRIEVAL_ROWS if wanted(row) and retrieval_steps]
  lm_rows = [row for row in LM_ROWS if wanted(row) and row.name in setting.lm_rows and lm_steps]
  if not retrieval_rows and not lm_rows:
    raise SystemExit(f'Nothing to run: {config.only=}, {retrieval_steps=}, {lm_steps=}, setting {config.setting}.')
  start, rows, curves = time.perf_counter(), [], []
  for row in retrieval_rows:
    rows += retrieval_runs(row, retrieval_steps, config.seeds)
  for seed in range(config.lm_seeds if lm_rows else 0):
    text = TEXTS[setting.text](setting, seed)
    for row in lm_rows:
      result, curve = lm_run(row, setting, text, lm_steps, seed)
      rows.append(result)
      curves.append(curve)
  verdicts = checks(rows, config.setting)
  name = 'attention_sink' if config.setting == 'cpu' else f'attention_sink.{config.setting}'
  more = {'config': dataclasses.asdict(config), 'seconds': round(time.perf_counter() - start, 1)}
  path = report.write(name, rows, **more, checks=verdicts, curves=curves)
  print('Drawn in', attention_sink_figure.draw(rows, curves, path.with_suffix('.png')))
  for v in verdicts:
    print('PASS' if v['pass'] else 'MISS', v['statement'], '--', v['measured'])


def retrieval_runs(row: Row, steps: int, seeds: int) -> list[dict[str, Any]]:
  """Trains a row on gated retrieval with each seed; returns its results."""
  from benchmarks import gated_retrieval as task
  from jaxlm.analysis import sinks
  from jaxlm.language_model import LanguageModel

  model, results, start = row.model(task.MODEL), [], time.perf_counter()
  trained, losses = task.train(model, row.first_token, steps, seeds)
  losses.block_until_ready()
  taken = round((time.perf_counter() - start) / seeds, 1)
  for seed, params in enumerate(trained):
    batch = task.held_out(seed, row.first_token, PROBE_ROWS)
    found = sinks(LanguageModel(model, params['transformer']), np.asarray(batch[0]))
    last = result('retrieval', row, seed, task.mse(model, params, batch), found)
    results.append({**last, 'seconds': taken})
    print(f'{row.name}, seed {seed}: error {last["loss"]:.1e}, Sink_1 {last["Sink_1"]:.3f}, {taken} s', flush=True)
  return results


def result(study: str, row: Row, seed: int, loss: float, found) -> dict[str, Any]:
  """Returns a row of the table: loss is the mean squared error (retrieval) or nats per token (lm), held out."""
  return {
    'study': study,
    'row': row.name,
    'seed': seed,
    'loss': loss,
    'Sink_1': float(found.sink_proxy[0, found.first]),
    'raw Sink_1': float(found.sink_raw[0, found.first]),
    'Sink_*': float(found.sink_proxy[0, 0]) if found.slot else None,
    'alpha_1 of heads': [round(float(a), 2) for a in found.alpha_proxy[:, :, found.first].mean(axis=0)],
    'row mass': float(found.row_mass.mean()),
    '|v_1| ratio': float(found.value_norm_ratio.mean()),
    'peak |h_1| ratio': float(found.hidden_norm_ratio.max()),
  }


def procedural(setting: Setting, seed: int) -> tuple[Any, list[dict[str, np.ndarray]], np.ndarray]:
  """Returns (training batches, held-out batches, the tokens on which sinks are measured)."""
  make = lambda rows, length, part: ProceduralBatches(setting.model.vocab_size, rows, length, (seed, part))
  held_out = make(setting.batch_size, setting.length, 1)
  probe = dataclasses.replace(make(PROBE_ROWS, PROBE_LENGTH, 2), at_once=1).batch(0)['tokens']
  return make(setting.batch_size, setting.length, 0), [held_out.batch(i) for i in range(8)], probe


def embedded(setting: Setting, seed: int) -> tuple[Any, list[dict[str, np.ndarray]], np.ndarray]:
  """Returns the same three for the text that ships with Python, as bytes; rows cross document borders, as in the paper."""
  from jaxlm.data import corpus, packing, tokenizers

  train, valid = corpus.corpora('embedded', tokenizers.ByteTokenizer(), progress=False)
  shape = dict(batch_size=setting.batch_size, length=setting.length, mode='concat')
  held_out = packing.eval_batches(valid, **shape, max_batches=8)
  probe = packing.make_batches(valid, batch_size=PROBE_ROWS, length=PROBE_LENGTH, mode='concat').batch(0)['tokens']
  return packing.make_batches(train, seed=seed, **shape), list(held_out), probe


TEXTS = {'procedural': procedural, 'embedded': embedded}


def lm_run(row: Row, setting: Setting, text, steps: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
  """Trains a language model; returns its row of the table, and its losses and sinks by step."""
  import jax

  from jaxlm.analysis import sinks
  from jaxlm.data.packing import prefetch
  from jaxlm.language_model import LanguageModel
  from jaxlm.models.transformer import init_params
  from trainers.next_token import next_token_loss
  from trainers.optimizer import make_optimizer
  from trainers.step import init_state, make_train_step

  model, start = row.model(setting.model), time.perf_counter()
  train, held_out, probe = text
  tx = make_optimizer(setting.optimizer, steps).tx
  # A row is one text, so the causal mask is enough.
  fields = lambda batch: jax.device_put({name: batch[name] for name in ('tokens', 'targets', 'mask')})
  loss_fn = lambda params, batch: next_token_loss(params, batch, model)
  train_step = jax.jit(
    make_train_step(lambda params, batch, _: loss_fn(params, batch), tx, seed=seed), donate_argnums=0
  )
  evaluate = jax.jit(loss_fn)
  state = init_state(jax.jit(lambda key: init_params(model, key))(jax.random.key(seed)), tx)
  curve = {'row': row.name, 'seed': seed, 'step': [], 'loss': [], 'Sink_1': [], 'Sink_*': []}
  with prefetch(train, 0, steps, transform=fields) as batches:
    for step, batch in enumerate(batches, 1):
      state, metrics = train_step(state, batch)
      if step % setting.look_every == 0 or step == steps:
        found = sinks(LanguageModel(model, state.params), probe)
        loss, tokens = np.sum([jax.device_get(evaluate(state.params, fields(batch))) for batch in held_out], axis=0)
        last = result('lm', row, seed, float(loss / tokens), found)
        curve['step'].append(step)
        for name in ('loss', 'Sink_1', 'Sink_*'):
          curve[name].append(last[name])
        print(f'{row.name} {step}/{steps}: train {metrics["loss"]:.3f}, held out {last["loss"]:.3f},', end=' ')
        print(f'Sink_1 {last["Sink_1"]:.3f}, {time.perf_counter() - start:.0f} s', flush=True)
  return {**last, 'seconds': round(time.perf_counter() - start, 1)}, curve


def checks(rows: list[dict[str, Any]], setting: str) -> list[dict[str, Any]]:
  """Returns which of the paper's statements hold in these rows; a statement holds only if it does for every seed."""
  verdicts = []

  def check(statement: str, study: str, names: tuple[str, ...], keys: tuple[str, ...], holds) -> None:
    columns = [[r[key] for r in rows if (r['study'], r['row']) == (study, name)] for name in names for key in keys]
    if all(columns):
      labels = [f'{name}: {key}' for name in names for key in keys]
      measured = '; '.join(f'{label} {" ".join(f"{v:.3g}" for v in values)}' for label, values in zip(labels, columns))
      passed = bool(np.all(holds(*map(np.array, columns))))
      verdicts.append({'statement': f'{study}, {statement}', 'pass': passed, 'measured': measured})

  high, low = (lambda sink, loss: (sink >= 0.9) & (loss < 1e-3)), (lambda sink, loss: (sink <= 0.1) & (loss < 1e-3))
  check('softmax: Sink_1 >= 90 % and MSE < 1e-3', 'retrieval', ('softmax',), ('Sink_1', 'loss'), high)
  check('sigmoid: proxy Sink_1 <= 10 % and MSE < 1e-3', 'retrieval', ('sigmoid',), ('Sink_1', 'loss'), low)
  check('sigmoid_norm: Sink_1 above sigmoid', 'retrieval', ('sigmoid_norm', 'sigmoid'), ('Sink_1',), np.greater)
  for name in ('k bias, random first', 'sink token, random first'):
    moved = lambda slot, first: (slot >= 0.4) & (first <= 0.05)
    check(f'{name}: Sink_* >= 40 % and Sink_1 <= 5 %', 'retrieval', (name,), ('Sink_*', 'Sink_1'), moved)
  if setting == 'h200':  # The byte-level model trains too briefly for its sinks to mean anything.
    both = ('softmax', 'sigmoid')
    check('softmax Sink_1 10 points above sigmoid proxy', 'lm', both, ('Sink_1',), lambda a, b: a - b >= 0.1)
    check('sigmoid loss within 0.05 of softmax', 'lm', both, ('loss',), lambda a, b: abs(a - b) <= 0.05)
    check('softmax peak |h_1| ratio > 3', 'lm', ('softmax',), ('peak |h_1| ratio',), lambda a: a > 3)
    check('sigmoid peak |h_1| ratio < 2', 'lm', ('sigmoid',), ('peak |h_1| ratio',), lambda a: a < 2)
  return verdicts


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
