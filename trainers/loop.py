"""The training loop that all trainers share. It knows steps, devices, checkpoints and signals; what is trained is a Task.

A run is a function of its config: a batch depends on (source, seed, step), randomness on (seed, step). So a run that was
stopped after any checkpoint and started again leaves the same parameters and the same metrics, bit for bit, as one that
never stopped. Stopping (SIGTERM, Ctrl-C) saves first and exits with 128 + the signal's number, as shells expect.
"""

from collections.abc import Callable, Iterable
import math
from pathlib import Path
import signal
from typing import Any

import jax
import numpy as np

from jaxlm import config as configs
from jaxlm.data.packing import prefetch
from jaxlm.errors import CheckpointError, DivergedError
from jaxlm.io import checkpoint
from trainers import distributed, report, run_directory
from trainers.config import TrainConfig
from trainers.metrics import MetricLog, Progress, evaluated, plot_losses
from trainers.optimizer import make_optimizer
from trainers.profiling import Clock, Trace
from trainers.saved import Notes, RunCheckpoints
from trainers.side import PATIENCE, left_out
from trainers.step import TrainState as TrainState
from trainers.step import data_parallel as data_parallel
from trainers.step import init_state
from trainers.step import make_train_step as make_train_step
from trainers.stopping import StopOnSignal as StopOnSignal
from trainers.stopping import Stopped as Stopped

Batch = dict[str, np.ndarray]


class Task:
  """What differs between trainers. Rows are the part of a batch that this process reads."""

  trainer: str
  """Name of the command that made the run, kept in its config.json."""
  batch_size: int
  """Rows of a batch over all devices and hosts."""
  kept: tuple[str, ...] = ()
  """Settings that a resumed run ignores, because `save_assets` has written what they once said."""

  def init_params(self, key: jax.Array) -> Any:
    raise NotImplementedError

  def given_params(self) -> Any:
    """Returns parameters on the run's devices that a new run begins with, of the shapes of `init_params`; None: those."""
    return None

  def loss(self, params: Any, batch: Any, key: jax.Array | None) -> tuple:
    """Returns (loss_sum, weight) or (loss_sum, weight, further sums); key is None in evaluation."""
    raise NotImplementedError

  def batch(self, step: int, rows: slice) -> Batch:
    """Returns `rows` of the batch of a step: a function of the task's seed and the step, nothing else."""
    raise NotImplementedError

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    """Yields `rows` of held-out batches of batch_size, padded with rows of weight 0; the same ones every time."""
    return ()

  def eval_sums(self, params: Any, batch: Any) -> dict[str, jax.Array]:
    """Returns sums that `eval_metrics` makes metrics of."""
    loss_sum, weight, *_ = self.loss(params, batch, None)
    return {'loss': loss_sum, 'weight': weight}

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    """Returns metrics of the summed sums; 'loss' decides which checkpoint is the best."""
    return {'loss': sums['loss'] / max(sums['weight'], 1e-8)}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    """Returns those metrics of an evaluation that are shown on the screen; all are logged."""
    return metrics

  def activation_bytes(self, rows: int) -> int | None:
    """Returns about how much memory the forward pass keeps for `rows` rows on one device."""
    return None

  def describe(self) -> str:
    """Returns a line about the data, for the start of a run."""
    return ''

  def data_notes(self, step: int) -> dict[str, Any]:
    """Returns what a checkpoint notes, as JSON, of the data and of how far it has been read before `step`."""
    return {}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Goes on at `step` from where `data_notes` said the data was; returns what is to be said aloud of it.

    `before` is the config of the run so far; notes are {} in checkpoints that are older than these.
    """
    return []

  def save_assets(self, directory: Path) -> None:
    """Writes what the run directory needs besides checkpoints, such as a tokenizer. May be called again on resuming."""

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    """Runs in one process after the last step, with everything saved: samples, plots, the next command."""


def fit(task: Task, config: TrainConfig) -> TrainState:
  """Trains until config.run.steps, resuming whatever the run directory holds; returns the last state.

  Args:
    task: what to train.
    config: a TrainConfig with a `model` field besides; the whole of it is written to config.json.

  Raises:
    ConfigError: settings that do not fit the devices.
    CheckpointError: a run directory that cannot be used, or a checkpoint that cannot be written or read.
    DivergedError: the loss, a gradient or a parameter is no longer finite; nothing is saved after that.
    Stopped: a signal stopped the run; it is saved.
  """
  run = _Run(task, config)
  try:
    return run.train()
  finally:
    run.close()


SHORT_PATIENCE = 3.0
"""Seconds that services have to finish in a run that a signal stopped."""


class _Run:
  """The parts of one run, and the loop over them."""

  def __init__(self, task: Task, config: TrainConfig):
    self.task, self.config, c = task, config, config.run
    distributed.initialize(config.distributed)
    self.layout = distributed.make_layout(config.mesh)
    self.layout.check_batch_size(task.batch_size, c.accumulate)
    self.rows = self.layout.rows(task.batch_size)
    self.directory = Path(c.directory or f'runs/{task.trainer}')
    self.main = jax.process_index() == 0
    self.optimizer = make_optimizer(config.optimizer, c.steps)

    self.lock, self.changed = distributed.on_first_host(self._open, CheckpointError) or (None, [])
    self.checkpoints = RunCheckpoints(self.directory / 'checkpoints', keep=c.keep)
    self.step = self.checkpoints.latest() or 0
    self.tokens, self.evaluation_due = 0.0, False
    self.progress = Progress(self.step, c.steps, show=self.main)

  def _open(self):
    opened = run_directory.open_run(self.directory, self.config, self.task.trainer)
    self.task.save_assets(self.directory)
    return opened

  def init(self) -> TrainState:
    return self.state(self.task.init_params(jax.random.key(self.config.run.seed)))

  def state(self, params: Any) -> TrainState:
    return init_state(params, self.optimizer.tx, ema=self.config.run.ema_decay > 0)

  def begin(self) -> TrainState:
    given = self.task.given_params()
    return self.layout.create(self.init) if given is None else self.layout.create(self.state, given)

  def restore(self, abstract: TrainState) -> TrainState:
    """Returns the state to go on from; the config of the run is only written once there is one."""
    say = self.progress.say
    newest = self.step
    self.step, state, notes = self.checkpoints.restore(abstract, say)
    if self.step != newest:
      say(f'Resuming at step {self.step}.')
      self.progress.begin(self.step)
    self.tokens = notes.tokens
    self.evaluation_due = notes.evaluation_due and not evaluated(self.directory, self.step)
    rate = float(self.optimizer.schedule(self.step))
    for line in run_directory.news(self.changed, self.task.kept, self.step, notes.learning_rate, rate):
      say(line)
    before = checkpoint.run_config(self.directory)
    for line in self.task.resume(self.step, notes.data, before):
      say(line)
    return state

  def save(self, state: TrainState, loss: float | None) -> None:
    notes = Notes(
      tokens=self.tokens,
      seed=self.config.run.seed,
      evaluation_due=self.evaluation_due,
      learning_rate=float(self.optimizer.schedule(self.step)),
      data=self.task.data_notes(self.step),
    )
    self.checkpoints.save(self.step, state, notes, loss)

  def evaluate(self, state: TrainState, signals: StopOnSignal) -> float | None:
    """Logs and shows the task's metrics of the held-out batches; returns the loss if it is finite.

    A signal breaks it off, and leaves `evaluation_due` set: the run that resumes here begins with it.
    """
    params = state.params if state.ema is None else state.ema
    params = jax.device_put(params, self.layout.shardings(params))
    sums: list[dict[str, jax.Array]] = []
    self.evaluation_due = True
    for batch in self.task.eval_batches(self.rows):
      sums.append(self._eval_sums(params, self.layout.put_whole(batch, self.task.batch_size)))
      # Without waiting all batches would be on their way at once, and no signal could stop them.
      jax.block_until_ready(sums[-2:][0])
      if signals.stop_evaluation(len(sums)):
        return None
    self.evaluation_due = False
    if not sums:
      return None
    valid = self.task.eval_metrics({name: sum(float(s[name]) for s in sums) for name in sums[0]})
    self.log.write(self.step, {f'valid/{k}': v for k, v in valid.items()})
    shown = ', '.join(f'{k} {v:.4g}' for k, v in self.task.headline(valid).items())
    self.progress.say(f'step {self.step}: validation {shown}')
    return valid['loss'] if math.isfinite(valid.get('loss', math.nan)) else None

  def train(self) -> TrainState:
    c = self.config.run
    abstract = self.layout.abstract(self.init)
    if self.main:
      report.print_start(self.progress.say, self.task, self.config, self.layout, abstract, self.directory, self.step)
    state = self.restore(abstract) if self.step else self.begin()
    write = lambda: run_directory.write_config(self.directory, self.config, self.task.trainer, self.task.kept)
    distributed.on_first_host(write, CheckpointError)
    if self.step >= c.steps and not self.evaluation_due:
      self.progress.say(f'{self.directory} is complete at step {self.step}; a larger --run.steps goes on from there.')
      self.finish()
      return state
    self._eval_sums = jax.jit(self.task.eval_sums)
    settings, say = configs.to_dict(self.config), self.progress.say
    self.log = MetricLog(self.directory, c, step=self.step, settings=settings, write=self.main, say=say)
    signals = StopOnSignal()
    try:
      with signals:
        if self.evaluation_due:
          self.evaluate(state, signals)
          if self.evaluation_due:
            self.stop(signals.received)
        state = self.steps(state, signals)
    finally:
      # Who sent a signal does not wait for a service that is slow to answer.
      self.log.close(patience=SHORT_PATIENCE if signals.received else PATIENCE)
    self.finish()
    return state

  def steps(self, state: TrainState, signals: StopOnSignal) -> TrainState:
    c = self.config.run
    train_step = self.layout.compile(
      make_train_step(
        self.task.loss,
        self.optimizer.tx,
        schedule=self.optimizer.schedule,
        seed=c.seed,
        accumulate=c.accumulate,
        ema_decay=c.ema_decay,
      )
    )
    put = lambda batch: self.layout.put(batch, self.task.batch_size)
    with prefetch(self.task, self.step, c.steps, rows=self.rows, transform=put) as batches:
      state = self.each_step(state, train_step, batches, signals)
    self.checkpoints.wait()
    return state

  def each_step(self, state: TrainState, train_step: Callable, batches: Iterable, signals: StopOnSignal) -> TrainState:
    c = self.config.run
    due = lambda every: every > 0 and self.step % every == 0
    pending, clock = None, Clock()
    trace = Trace(self.directory / 'profile', self.step + 3, c.profile if self.main else 0)
    for batch in batches:
      with left_out('The profile', self.progress.say):
        trace.at(self.step, state.step)
      state, metrics = train_step(state, batch)
      # The metrics of the step before: the device already has this one to work on while we wait for them.
      if pending is not None:
        self.record(*pending, clock)
      self.step += 1
      pending = self.step, metrics
      last = self.step == c.steps
      stop = signals.stop(self.step, c.log_every)
      evaluate, save = last or due(c.eval_every), last or stop or due(c.save_every)
      if not (evaluate or save):
        continue
      self.record(*pending, clock)  # Also proves that what we are about to save is finite.
      pending, loss = None, self.evaluate(state, signals) if evaluate else None
      stop = stop or self.evaluation_due
      if save or stop:
        self.save(state, loss)
      clock.restart()
      if stop and (self.evaluation_due or not last):
        self.stop(signals.received)
    with left_out('The profile', self.progress.say):
      trace.at(math.inf, state.step)
    return state

  def record(self, step: int, metrics: dict[str, jax.Array], clock: Clock) -> None:
    """Waits for a step's metrics, refuses those that are not finite, logs some."""
    c = self.config.run
    values = {name: float(x) for name, x in jax.device_get(metrics).items()}
    for name in ('loss', 'grad_norm', 'param_norm'):
      if not math.isfinite(values[name]):
        self.diverged(step, name, values)
    self.tokens += values['tokens']
    rate = clock.rate(values['tokens'])
    self.progress.update(step, values['loss'], rate)
    if step % c.log_every == 0 or step in (1, c.steps):
      timing = {'seconds': clock.seconds, 'tokens_per_second': rate}
      self.log.write(step, {**values, 'tokens_seen': self.tokens, **timing})

  def diverged(self, step: int, name: str, values: dict[str, float]) -> None:
    self.checkpoints.wait()
    latest = self.checkpoints.latest()
    folder = self.directory / 'checkpoints'
    good = f'the last good checkpoint is {folder / str(latest)}' if latest else 'there is no checkpoint yet'
    raise DivergedError(
      f'{name} is {values[name]} at step {step}, learning rate {values["learning_rate"]:.3g}; {good}. Nothing was saved '
      'after it. Starting the same command again repeats this; a lower --optimizer.learning-rate, a longer '
      '--optimizer.warmup-steps or a smaller --optimizer.clip-norm may go on from there.'
    )

  def stop(self, number: int) -> None:
    """Ends a run that is saved."""
    self.checkpoints.wait()
    name = signal.Signals(number).name
    self.progress.say(f'{name}: saved step {self.step} in {self.directory}. Start the same command again to resume.')
    raise Stopped(128 + number)

  def close(self) -> None:
    """Lets a save in the background come to its end, without hiding the error that may have brought us here."""
    self.progress.close()
    try:
      self.checkpoints.close()
    except Exception:
      pass
    if self.lock is not None:
      self.lock.close()

  def finish(self) -> None:
    self.progress.close()
    self.checkpoints.close()
    if self.main:
      with left_out('The loss curve', self.progress.say):
        plot_losses(self.directory)
      self.task.finish(self.directory, self.progress.say)
