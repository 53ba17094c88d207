"""Drafts for the part glide of `benchmarks.speculative`: each is trained once, by trainers.glide, and kept in the cache folder.

  GliDe      one layer that reads the keys and values of one layer of the target
  GliDe-3    one layer that reads those of three layers
  vanilla    the same layer without the cross-attention
  parallel   one that predicts a whole block in one call

for two targets, SmolLM2-135M and the redundant byte model of `benchmarks.stochastic_depth`, on texts that the target writes itself,
greedily; GliDe also on real text. A training that is interrupted goes on where it was.
"""

import dataclasses
import hashlib
import json
import statistics
from typing import Any

from benchmarks import stochastic_depth
from benchmarks.speculative_messages import write_messages
import jaxlm
from jaxlm.data.corpus import cache_folder
from trainers import glide, metrics
from trainers.config import OptimizerConfig, RunConfig
from trainers.glide.config import DraftFlags
from trainers.glide.presets import PRESETS

VERSION = 1
"""Raise it when training changes in a way that settings do not show: then no draft that was kept before is used."""
KINDS = {
  'GliDe': lambda setting: {},
  'GliDe-3': lambda setting: {'layers': setting.three},
  'vanilla': lambda setting: {'cross': False},
  'parallel': lambda setting: {'draft': 'parallel'},
}
"""What each kind changes in the draft of a setting."""
ABLATIONS = {
  'reads the first layer': {'layers': (0,)},
  'reads the middle layer': {'layers': (12,)},
  'norm before the cross-attention': {'cross_norm': True},
  'output of the cross-attention begins at random': {'cross_start': 'random'},
  'blocks of 2': {'block': 2},
  'blocks of 8': {'block': 8},
  'first block causal': {'first_block': 'causal'},
  'embedding of the target': {'embedding': 'target'},
  'two layers': {'num_layers': 2},
  'two layers, mask of the paper': {'num_layers': 2, 'eval_mask': 'paper'},
}
"""Changes to the GliDe draft of the redundant model."""
DATA = ('own', 'real')
"""own: texts that the target writes. real: the text that ships with Python."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """How the drafts of one target are trained."""

  target: str
  """Path or fetched name."""
  model: DraftFlags
  steps: int
  texts: int
  """Number of texts that the target writes."""
  length: int
  prompt_tokens: int
  batch_size: int = 8
  chat: bool = False
  learning_rate: float = 2e-3
  cross_learning_rate: float = 0.1
  """Learning rate of the cross-attention's output matrices, divided by `learning_rate`."""
  target_dtype: str = 'float32'
  """Type in which the target runs in training. It decodes in float32."""
  three: tuple[int, ...] = (0, 1, 2)
  """Layers of the target that GliDe-3 reads."""
  distill: float = 0.0
  """Share of the target's distribution in the loss."""


def smollm2(steps: int, texts: int) -> Setting:
  """Returns the setting for SmolLM2. Its draft has the width of the target, whose embedding and output layer it uses."""
  # At a learning rate of 2e-3 the loss of the first steps rises to three times that of new parameters.
  preset = PRESETS['smollm2'][1]
  return Setting(
    'smollm2', dataclasses.replace(preset.model, layers=(20,)), steps, texts, length=160, prompt_tokens=72, batch_size=4, chat=True,
    learning_rate=1e-3,
    cross_learning_rate=preset.cross_learning_rate, target_dtype='bfloat16', three=preset.model.layers,
  )  # fmt: skip


def redundant(steps: int, texts: int) -> Setting:
  """Returns the setting for the redundant byte model, which is trained first if it is not there. Drafts of bytes need fewer steps."""
  stochastic_depth.trained()
  steps = -(-steps // 3)
  # Prompts with their continuations are longer than training texts. Without a window, drafts agreed with the target on 97 % of the tokens
  # before 320, and on 47 to 78 % after 352.
  model = DraftFlags(model_dim=128, num_heads=4, mlp_dim=384, embedding='own', window=128, dtype='float32')
  return Setting(str(stochastic_depth.folder()), model, steps, texts, length=256, prompt_tokens=64, three=(7, 15, 23))


def model_of(setting: Setting, kind: str) -> DraftFlags:
  """Returns the shape of a draft of one kind."""
  changes = KINDS[kind](setting) if kind in KINDS else ABLATIONS[kind]
  return dataclasses.replace(setting.model, **changes)


def config(setting: Setting, kind: str, data: str, seed: int = 0) -> glide.GlideTrainConfig:
  """Returns the config of one training. Its run directory is named after all settings, so that others do not use its draft."""
  own = data == 'own'
  made = glide.GlideTrainConfig(
    target=setting.target, target_dtype=setting.target_dtype,
    model=model_of(setting, kind),
    data=glide.TextConfig(
      source=str(write_messages()) if own and setting.chat else 'embedded', batch_size=setting.batch_size, length=setting.length, seed=seed,
    ),
    self_generate=setting.texts if own else 0,
    generation=glide.GenerationConfig(chat=setting.chat and own, prompt_tokens=setting.prompt_tokens, batch_size=64),
    # The target's distribution tells more of each token than the token, in prompts too, which are real text.
    distill=glide.DistillConfig(setting.distill, prompts=True), cross_learning_rate=setting.cross_learning_rate,
    keep_outputs=str(cache_folder() / 'trained' / 'glide-outputs'),
    optimizer=OptimizerConfig(
      learning_rate=setting.learning_rate, schedule='cosine', warmup_steps=max(1, setting.steps // 10), weight_decay=0.0
    ),
    run=RunConfig(
      steps=setting.steps, eval_every=0, save_every=max(1, setting.steps // 8), log_every=10, keep=1, seed=seed, tensorboard=False
    ),
    eval=glide.EvalConfig(prompts=0),
  )  # fmt: skip
  digest = lambda *facts: hashlib.sha256(json.dumps([VERSION, *facts], default=dataclasses.asdict).encode()).hexdigest()[:16]  # fmt: skip
  folder = cache_folder() / 'trained'
  texts = (
    folder
    / f'glide-texts-{digest(made.target, made.target_dtype, made.generation, made.self_generate, made.data.source, setting.length)}.jsonl'
  )
  facts = dataclasses.asdict(made)
  # The trainer fills it in. Here it is a model's defaults, and a new field there is no other training.
  del facts['model']['target']
  name = f'glide-{kind}-{data}-{digest(facts)}'.lower().replace(' ', '-').replace(',', '')
  return dataclasses.replace(
    made,
    run=dataclasses.replace(made.run, directory=str(folder / name)),
    generation=dataclasses.replace(made.generation, file=str(texts) if own else None),
  )


def trained(setting: Setting, kind: str, data: str, seed: int = 0) -> tuple[Any, dict[str, Any]]:
  """Returns (the draft, facts about its training). It is trained if it is not there."""
  made = config(setting, kind, data, seed)
  glide.main(made)
  rows = metrics.read(made.run.directory)
  rate = statistics.median(row['tokens_per_second'] for row in rows if 'tokens_per_second' in row)
  valid = [row for row in rows if 'valid/loss' in row][-1]
  draft = jaxlm.load(made.run.directory, 'float32')
  return draft, {
    'draft': kind, 'data': data, 'seed': seed, 'steps': setting.steps, 'parameters': count(draft.params),
    'held-out loss': valid['valid/loss'], 'agreement': valid['valid/agreement'], 'targets/s': rate,
    'minutes': setting.steps * mean_targets(rows) / rate / 60,
  }  # fmt: skip


def count(params: Any) -> int:
  import jax

  return sum(x.size for x in jax.tree.leaves(params))


def mean_targets(rows: list[dict[str, Any]]) -> float:
  """Returns the mean number of targets in a step, from the logged rows."""
  last = [row for row in rows if 'tokens_seen' in row][-1]
  return last['tokens_seen'] / last['step']
