"""The training loop that all trainers share. It handles steps, devices, checkpoints and signals; a Task says what is trained.

A run is a function of its config: a batch depends on (source, seed, step), randomness on (seed, step). So a run that was
stopped after any checkpoint and started again gives the same parameters and the same metrics, bit for bit, as one that
never stopped. A run that is stopped (SIGTERM, Ctrl-C) saves first and exits with 128 + the signal's number, as shells expect.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
from pathlib import Path
import signal
from typing import Any

import jax

from jaxlm import config as configs
from jaxlm import errors
from jaxlm.attention import flash
from jaxlm.data.packing import prefetch
from jaxlm.errors import CheckpointError, DivergedError
from jaxlm.io import checkpoint
from trainers import averaging, best, distributed, metrics, report, run_directory, start
from trainers.config import ConfigError, TrainConfig
from trainers.evaluation import Evaluator
from trainers.metrics import MetricLog
from trainers.optimizer import make_optimizer
from trainers.plots import plot_losses
from trainers.profiling import Clock, Trace
from trainers.progress import Progress
from trainers.saved import Notes, RunCheckpoints
from trainers.side import PATIENCE, left_out
from trainers.step import Context as Context
from trainers.step import Term as Term
from trainers.step import TrainState as TrainState
from trainers.step import data_parallel as data_parallel
from trainers.step import init_state
from trainers.step import make_train_step as make_train_step
from trainers.stopping import StopOnSignal as StopOnSignal
from trainers.stopping import Stopped as Stopped
from trainers.task import Batch as Batch
from trainers.task import Task as Task


def fit(task: Task, config: TrainConfig) -> TrainState:
  """Trains until config.run.steps, from the last checkpoint in the run directory if there is one; returns the last state.

  Args:
    task: the task to train.
    config: a TrainConfig that also has a field `model`; all its fields are written to config.json.

  Raises:
    ConfigError: settings do not fit the devices.
    CheckpointError: the run directory cannot be used, or a checkpoint cannot be written or read.
    DivergedError: the loss, a gradient or a parameter is no longer finite; nothing is saved after that.
    Stopped: a signal stopped the run after it was saved.
  """
  run = _Run(task, config)
  try:
    return run.train()
  finally:
    run.close()


SHORT_PATIENCE = 3.0
"""Seconds that TensorBoard and Weights & Biases may take to finish after a signal stopped the run."""


def _check_attention(config: Any) -> None:
  if isinstance(config.model, configs.ModelConfig):
    try:
      flash.check(config.model)
    except ValueError as e:
      raise ConfigError(f'model.{e}') from e


class _Run:
  """The parts of one run, and the loop over them."""

  def __init__(self, task: Task, config: TrainConfig):
    self.task, self.config, c = task, config, config.run
    distributed.initialize(config.distributed)
    self.layout = distributed.make_layout(config.mesh)
    self.layout.check_batch_size(task.batch_size, c.accumulate)
    _check_attention(config)
    self.rows = self.layout.rows(task.batch_size)
    self.directory = Path(c.directory or f'runs/{task.trainer}')
    self.main = jax.process_index() == 0
    self.optimizer = make_optimizer(config.optimizer, c.steps, task.learning_rates)

    self.lock, self.changed = distributed.on_first_host(self._open, CheckpointError) or (None, [])
    self.checkpoints = RunCheckpoints(self.directory / 'checkpoints', keep=c.keep, keep_also=self._kept_steps)
    self.step = self.checkpoints.latest() or 0
    self.seen, self.evaluation_due, self.best = 0.0, False, best.first(c, task)
    self.progress = Progress(self.step, c.steps, show=self.main, unit=task.unit)
    self.frozen = self.layout.place(task.frozen())
    self.evaluator = Evaluator(task, self.layout, self.frozen, self.progress.say)

  def _kept_steps(self, there: Sequence[int]) -> list[int]:
    return [self.best.step, *averaging.averaged_steps(self.config.run, there)]

  def _open(self):
    run_directory.check_start(self.directory, self.config.start)
    opened = run_directory.open_run(self.directory, self.config, self.task.trainer)
    self.task.save_assets(self.directory)
    return opened

  def init(self) -> TrainState:
    return self.state(self.task.init_params(jax.random.key(self.config.run.seed)))

  def state(self, params: Any) -> TrainState:
    return init_state(params, self.optimizer.tx, ema=self.config.run.ema_decay > 0)

  def begin(self, abstract: TrainState) -> TrainState:
    given = self.task.given_params()
    if given is None and self.config.start is not None:
      given = start.parameters(self.config.start, self.task.trainer, abstract.params, self.layout)
      for line in self.task.begin(self.config.start, self.directory):
        self.progress.say(line)
    return self.layout.create(self.init) if given is None else self.layout.create(self.state, given)

  def restore(self, abstract: TrainState) -> TrainState:
    """Returns the state of the newest good checkpoint, and prints what has changed since it was saved."""
    say = self.progress.say
    newest = self.step
    self.step, state, notes = self.checkpoints.restore(abstract, say)
    if self.step != newest:
      say(f'Resuming at step {self.step}.')
      self.progress.begin(self.step)
    self.seen = notes.tokens
    self.evaluation_due = notes.evaluation_due and not metrics.evaluated(self.directory, self.step)
    # The evaluation of this step may have been made after the checkpoint; then only the log knows it.
    rows = [row for row in metrics.read(self.directory) if row['step'] <= self.step]
    self.best = self.best.noted({} if notes.evaluation_due else notes.best, rows)
    rate = float(self.optimizer.schedule(self.step))
    for line in run_directory.news(self.changed, self.task.kept, self.step, notes.learning_rate, rate):
      say(line)
    before = checkpoint.run_config(self.directory)
    for line in self.task.resume(self.step, notes.data, before):
      say(line)
    return state

  def save(self, state: TrainState) -> None:
    notes = Notes(
      tokens=self.seen,
      seed=self.config.run.seed,
      evaluation_due=self.evaluation_due,
      learning_rate=float(self.optimizer.schedule(self.step)),
      best=dataclasses.asdict(self.best),
      data=self.task.data_notes(self.step),
    )
    self.checkpoints.save(self.step, state, notes)

  def evaluate(self, state: TrainState, signals: StopOnSignal) -> bool:
    """Logs and prints the metrics of the parameters that `jaxlm.load` would load; returns whether they are the best so far.

    A signal stops the evaluation and leaves `evaluation_due` set, so that the resumed run starts with this evaluation.
    """
    valid = self.evaluator(state.params if state.ema is None else state.ema, self.step, signals)
    self.evaluation_due = valid is None
    if not valid:
      return False
    self.best = self.best.after(self.step, valid)
    self.log_evaluation('valid', 'validation', valid)
    return self.best.step == self.step

  def log_evaluation(self, prefix: str, what: str, found: dict[str, float]) -> None:
    self.log.write(self.step, {f'{prefix}/{k}': v for k, v in found.items()})
    shown = ', '.join(f'{k} {v:.4g}' for k, v in self.task.headline(found).items())
    self.progress.say(f'step {self.step}: {what} {shown}')

  @property
  def waited_enough(self) -> bool:
    return 0 < self.config.run.patience <= self.best.waited

  def train(self) -> TrainState:
    c = self.config.run
    abstract = self.layout.abstract(self.init)
    if self.main:
      report.print_start(
        self.progress.say, self.task, self.config, self.layout, abstract, self.frozen, self.directory, self.step
      )
    if c.best_metric is not None and c.best_metric not in (known := self.evaluator.metric_names(abstract.params)):
      raise errors.unknown('run.best_metric', c.best_metric, known, ConfigError)
    state = self.restore(abstract) if self.step else self.begin(abstract)
    write = lambda: run_directory.write_config(self.directory, self.config, self.task.trainer, self.task.kept)
    distributed.on_first_host(write, CheckpointError)
    complete = self.step >= c.steps and not self.evaluation_due and self.is_averaged()
    if complete:
      self.progress.say(f'{self.directory} is complete at step {self.step}; a larger --run.steps goes on from there.')
      self.finish()
      return state
    settings, say = configs.to_dict(self.config), self.progress.say
    self.log = MetricLog(self.directory, c, step=self.step, settings=settings, write=self.main, say=say)
    signals = StopOnSignal()
    try:
      with signals:
        if self.evaluation_due:
          self.evaluate(state, signals)
          if self.evaluation_due:
            self.stop(signals.received)
        if self.step < c.steps and not self.waited_enough:
          state = self.steps(state, signals)
        if self.waited_enough:
          say(f'Ended at step {self.step}: {self.best}. A larger --run.patience goes on from there.')
        self.average(abstract.params, signals)
    finally:
      # After a signal the run should end soon, so slow services get less time.
      self.log.close(patience=SHORT_PATIENCE if signals.received else PATIENCE)
    self.finish()
    return state

  def is_averaged(self) -> bool:
    """Returns whether the average of the last checkpoints is saved, or none is asked for."""
    return not self.config.run.average_last or averaging.saved(self.directory, self.step)

  def average(self, abstract_params: Any, signals: StopOnSignal) -> None:
    """Evaluates and saves the average of the last checkpoints. If a signal stops this, the same command does it again."""
    if self.is_averaged():
      return
    folder = self.directory / 'checkpoints'
    chosen = averaging.averaged_steps(self.config.run, checkpoint.steps(folder))
    params = averaging.average_checkpoints(folder, chosen, abstract_params)
    found = self.evaluator(params, self.step, signals)
    if found is None:
      self.stop(signals.received)
    if found and not metrics.evaluated(self.directory, self.step, 'average'):
      self.log_evaluation('average', f'average of the checkpoints {", ".join(map(str, chosen))}:', found)
    averaging.save(self.directory, self.step, params, chosen)

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
        unit=self.task.unit,
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
      state, values = train_step(state, batch, self.frozen)
      # Records the previous step's metrics; the device computes this step while the host waits for them.
      if pending is not None:
        self.record(*pending, clock)
      self.step += 1
      pending = self.step, values
      last = self.step == c.steps
      stop = signals.stop(self.step, c.log_every)
      evaluate, save = last or due(c.eval_every), last or stop or due(c.save_every)
      if not (evaluate or save):
        continue
      self.record(*pending, clock)  # Also checks that the state to be saved is finite.
      pending, improved = None, self.evaluate(state, signals) if evaluate else False
      stop = stop or self.evaluation_due
      if save or stop or improved or self.waited_enough:
        self.save(state)
      clock.restart()
      if stop and (self.evaluation_due or not last):
        self.stop(signals.received)
      if self.waited_enough:
        break
    with left_out('The profile', self.progress.say):
      trace.at(math.inf, state.step)
    return state

  def record(self, step: int, found: dict[str, jax.Array], clock: Clock) -> None:
    """Waits for a step's metrics, raises DivergedError if they are not finite, and logs them every `log_every` steps."""
    c, unit = self.config.run, self.task.unit
    values = {name: float(x) for name, x in jax.device_get(found).items()}
    for name in ('loss', 'grad_norm', 'param_norm'):
      if not math.isfinite(values[name]):
        self.diverged(step, name, values)
    self.seen += values[unit]
    rate = clock.rate(values[unit])
    self.progress.update(step, values['loss'], rate)
    if step % c.log_every == 0 or step in (1, c.steps):
      timing = {'seconds': clock.seconds, f'{unit}_per_second': rate}
      self.log.write(step, {**values, f'{unit}_seen': self.seen, **timing})

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
    """Prints that the run is saved, and raises Stopped."""
    self.checkpoints.wait()
    name = signal.Signals(number).name
    self.progress.say(f'{name}: saved step {self.step} in {self.directory}. Start the same command again to resume.')
    raise Stopped(128 + number)

  def close(self) -> None:
    """Waits for a save in the background, and ignores its error, because another error may be on its way to the user."""
    self.progress.close()
    try:
      self.checkpoints.close()
    except Exception:  # Without another error, `finish` has closed it before, and has raised this one.
      pass
    if self.lock is not None:
      self.lock.close()

  def finish(self) -> None:
    self.progress.close()
    self.checkpoints.close()
    if self.main:
      with left_out('The loss curve', self.progress.say):
        plot_losses(self.directory, label=self.task.loss_label)
      self.task.finish(self.directory, self.progress.say)
