"""Writes a run directory, a context and a file of skip sets with the code that is checked out, and what they gave.

  python -m tests.compatibility.make                # into the folder of this file

What lies in the folder was written by the commit that `expected.json` names; `test_compatibility.py` reads it with today's
code. Make it again only from an older commit than the change it is to guard: git worktree add OLD COMMIT, copy this file
there, run it there, and copy the folder back.
"""

import dataclasses
import json
from pathlib import Path
import shutil
import subprocess

import jax
import numpy as np

import decoders
from decoders.simlayerkv import KiviConfig, LazyConfig
from decoders.swift import SkipSet, SwiftConfig
import jaxlm
from trainers import pretrain

FOLDER = Path(__file__).parent
PROMPT = 'The house has many rooms, and each of them has a name.'
QUESTIONS = (' Which?', ' Why so?')
# Drawn, so that a change of the logits shows: the greedy tokens of a model that is hardly trained are all the same.
DRAWN = dict(max_new_tokens=12, sampling=decoders.Sampling(temperature=1.0), seed=0)
LAZY = LazyConfig(stage='prefill', n_full=2, n_initial=2, n_recent=8)
# Every class of cache that a file may name is in one of these contexts.
CONTEXTS = {
  'full': LAZY.replace(threshold=1.0, n_full=None),
  'static': LAZY.replace(layout='static'),
  'packed': LAZY.replace(quant=KiviConfig(bits=4, group=8, residual=8)),
}
SWIFT = SwiftConfig(sets=str(FOLDER / 'sets.json'), task='houses', search=False, guard=False)
SET = SkipSet((1,), (2,))


def train(directory: Path) -> None:
  """Four tiny layers, three steps, and nothing in the run directory that loading does not need."""
  _, config = pretrain.PRESETS['smoke']
  shape = dict(num_layers=4, model_dim=8, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=12, max_length=128)
  model = config.model.replace(**shape, tied_embeddings=True)
  run = dataclasses.replace(
    config.run, directory=str(directory), steps=3, eval_every=3, save_every=3, log_every=1, tensorboard=False
  )
  optimizer = dataclasses.replace(config.optimizer, learning_rate=0.05, warmup_steps=1)
  evaluation = dataclasses.replace(config.eval, batches=1, sample_tokens=0)
  pretrain.main(dataclasses.replace(config, model=model, run=run, eval=evaluation, optimizer=optimizer))
  for path in directory.rglob('*'):
    if path.suffix == '.png' or path.name == '.lock':
      path.unlink()
  shutil.rmtree(directory / 'checkpoints' / '3' / 'state')  # The optimizer's, half of all bytes.


def forget_places(folder: Path) -> None:
  """Takes the paths of this machine out of the files, which nothing reads."""
  for path in folder.rglob('commit_success.txt'):
    path.write_text('Checkpoint commit was successful.')
  config = folder / 'run' / 'config.json'
  config.write_text(config.read_text().replace(str(folder / 'run'), 'runs/compatibility'))


def total(cache) -> float:
  """Returns the sum of the absolute values of a cache's arrays, which the tokens of so small a model hardly depend on."""
  return round(sum(float(np.abs(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(cache)), 3)


def read(folder: Path = FOLDER) -> dict:
  """Returns what the code that is checked out makes of a folder."""
  lm = jaxlm.load(folder / 'run')
  contexts = {name: decoders.simlayerkv.Context.load(folder / 'contexts' / name, lm) for name in CONTEXTS}
  config = SWIFT.replace(sets=str(folder / 'sets.json'))
  stream = decoders.swift.Stream(lm, config)
  ids = lm.tokenizer.encode(PROMPT)
  return {
    'config': {
      'num_layers': lm.config.num_layers,
      'model_dim': lm.config.model_dim,
      'vocab_size': lm.config.vocab_size,
    },
    'ids': ids,
    'logits': np.asarray(jaxlm.forward(lm, np.array([ids]))[0, -1, :8], float).round(4).tolist(),
    'plain': decoders.generate(lm, [PROMPT], **DRAWN).tokens[0].tolist(),
    'caches': {name: [type(x.cache).__name__, int(x.nbytes), total(x.cache)] for name, x in contexts.items()},
    'answers': {name: [x.ask(lm, [q], **DRAWN).tokens[0].tolist() for q in QUESTIONS] for name, x in contexts.items()},
    'set': {
      'attention': list(stream.search.best.attention),
      'mlp': list(stream.search.best.mlp),
      'score': stream.score,
    },
    'swift': stream.generate([PROMPT], **DRAWN).tokens[0].tolist(),
  }


def main(folder: Path = FOLDER) -> None:
  for name in ('run', 'contexts'):
    shutil.rmtree(folder / name, ignore_errors=True)
  train(folder / 'run')
  lm = jaxlm.load(folder / 'run')
  for name, lazy in CONTEXTS.items():
    decoders.simlayerkv.compress(lm, [PROMPT], lazy=lazy, room=40).save(folder / 'contexts' / name)
  (folder / 'sets.json').unlink(missing_ok=True)
  decoders.swift.Stream(lm, SWIFT.replace(sets=str(folder / 'sets.json'), skip=SET)).ended()
  forget_places(folder)
  commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=folder, capture_output=True, text=True, check=True).stdout
  found = {'commit': commit.strip(), 'jax': jax.__version__, **read(folder)}
  (folder / 'expected.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
