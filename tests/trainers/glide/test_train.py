"""A run of a draft learns, resumes bit for bit, is the same on any devices, and leaves a draft without its target's weights."""

import functools
import json
import shutil
import subprocess
import time

import chex
import jax
import numpy as np
import pytest

import jaxlm
from jaxlm import config as configs
from jaxlm.errors import CheckpointError, DataError
from jaxlm.glide_config import GlideConfig
from jaxlm.glide_model import GlideDraft
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from jaxlm.models.glide import init_params
from tests.models import init
from tests.trainers import tiny
from tests.trainers.glide.conftest import TARGET
from tests.trainers.glide.runs import config, parse
from tests.trainers.test_loop import interrupt_at, logged
from trainers import glide, metrics
from trainers.config import ConfigError, MeshConfig

MESH = MeshConfig(fsdp=2, tensor=2)


def test_help_lists_every_section_within_three_seconds():
  best = 99.0
  for _ in range(2):  # The machine may be busy with something else once.
    start = time.monotonic()
    done = subprocess.run(tiny.command('--help', module='trainers.glide'), capture_output=True, text=True)
    best = min(best, time.monotonic() - start)
  assert done.returncode == 0 and best < 3.0
  flags = ('--target', '--model.no-cross', '--model.draft', '--self-generate', '--generation.chat', '--distill.weight')
  for name in (*flags, '--eval.new-tokens', '--data.length', *glide.PRESETS):
    assert name in done.stdout, name
  assert '--model.target' not in done.stdout
  assert parse().run.directory == 'runs/glide-embedded' and parse('smoke').run.directory == 'runs/glide-smoke'


@pytest.fixture(scope='module')
def whole(target, text, tmp_path_factory):
  """Returns a function: mesh -> (run directory, last state) of a run that never stopped."""

  @functools.cache
  def run(mesh):
    directory = tmp_path_factory.mktemp('runs') / 'whole'
    return directory, jax.device_get(glide.main(config(target, text, directory, mesh=mesh)))

  return run


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [MeshConfig(), MESH], ids=['pmap', 'mesh'])
def test_a_resumed_run_is_bit_identical(target, text, whole, tmp_path, monkeypatch, mesh):
  directory, state = whole(mesh)
  interrupt_at(monkeypatch, 5)
  with pytest.raises(SystemExit):
    glide.main(config(target, text, tmp_path / 'parts', mesh=mesh))
  monkeypatch.undo()
  chex.assert_trees_all_equal(jax.device_get(glide.main(config(target, text, tmp_path / 'parts', mesh=mesh))), state)
  assert logged(tmp_path / 'parts') == logged(directory)


def test_a_mesh_gives_the_losses_of_one_device_each(whole):
  losses = [[row['loss'] for row in metrics.read(whole(mesh)[0]) if 'loss' in row] for mesh in (MeshConfig(), MESH)]
  assert len(losses[0]) == 8 and losses[0][-1] < losses[0][0]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_run_loads_as_a_draft_that_names_its_target_and_has_none_of_its_weights(whole, target):
  directory, state = whole(MeshConfig())
  draft = jaxlm.load(directory)
  assert isinstance(draft, GlideDraft) and draft.tokenizer.encode('a b') == [97, 32, 98]
  chex.assert_trees_all_equal(jax.device_get(draft.params), state.params)
  assert type(draft.config) is GlideConfig and draft.config.target.name == str(target)
  assert draft.config.target.model == jaxlm.load(target).config
  saved = json.loads((directory / 'config.json').read_text())
  assert saved['target'] == str(target) and saved['model'] == json.loads(json.dumps(configs.to_dict(draft.config)))
  folder = directory / 'checkpoints' / '8'
  own = {'embed/embedding', 'head', 'final_norm/scale'}
  names = set(checkpoint.names(folder / 'params'))
  assert {name for name in names if not name.startswith('layer_0/')} == own
  assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ['notes', 'params', 'state']
  valid = [row for row in metrics.read(directory) if 'valid/loss' in row]
  assert [row['step'] for row in valid] == [4, 8] and valid[1]['valid/ce'] < valid[0]['valid/ce']
  assert all(0 <= valid[-1][f'valid/{name}'] <= 1 for name in ('agreement', 'overlap'))


def test_the_output_of_the_cross_attention_starts_at_zero_and_learns_at_a_tenth_of_the_learning_rate(whole):
  directory, state = whole(MeshConfig())
  c = jaxlm.load(directory).config
  assert c.cross_start == 'zero'
  first = jax.jit(init_params, static_argnums=0)(c, jax.random.key(parse('smoke').run.seed))
  moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), state.params, first)['layer_0']
  np.testing.assert_array_equal(first['layer_0']['cross']['o']['kernel'], 0)
  # Adam moves each parameter by about the learning rate in each step.
  assert 0.05 < moved['cross']['o']['kernel'] / moved['mlp']['up']['kernel'] < 0.2, moved


@pytest.fixture
def half(target, text, whole, tmp_path):
  """Returns copies of a run that stopped after step 4, and of its target."""
  shutil.copytree(whole(MeshConfig())[0], tmp_path / 'run')
  for step in (6, 8):
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step), ignore_errors=True)
  shutil.copytree(target, tmp_path / 'target')
  return tmp_path / 'run', tmp_path / 'target'


def test_a_run_goes_on_with_a_target_that_moved_and_says_so(half, text, target, whole, capsys):
  directory, copy = half
  state = glide.main(config(copy, text, directory))
  out = capsys.readouterr().out
  assert f'target {str(target)!r} -> {str(copy)!r}' in out and 'numbers differ' not in out
  chex.assert_trees_all_equal(jax.device_get(state), whole(MeshConfig())[1])
  shutil.rmtree(copy)
  with pytest.raises(CheckpointError, match='--target .*if it has moved, pass --target with its new place'):
    glide.main(config(copy, text, directory))


def test_another_target_is_refused(half, text):
  directory, copy = half
  other = TARGET.replace(num_layers=1)
  jaxlm.save_huggingface(LanguageModel(other, init(other, jax.random.key(8)), None), copy, overwrite=True)
  shutil.copy(directory / 'tokenizer' / 'tokenizer_bytes.json', copy)
  with pytest.raises(CheckpointError, match=r'model.target.model.num_layers = 2; it cannot be resumed with 1'):
    glide.main(config(copy, text, directory))


def test_a_run_learns_from_the_targets_own_texts(target, text, tmp_path, capsys):
  shared = tmp_path / 'shared' / 'made.jsonl'
  flags = '--self-generate', '20', '--generation.prompt-tokens', '5', '--generation.file', str(shared)
  short = '--run.steps', '2'
  glide.main(config(target, text, tmp_path / 'run', *flags, *short))
  out = capsys.readouterr().out
  assert '20 of 20 texts' in out and 'tokens that the target wrote' in out
  rows = [json.loads(line) for line in shared.read_text().splitlines()]
  assert len(rows) == 20 and all(row['prompt'] == 5 and len(row['tokens']) <= 25 for row in rows)
  notes = checkpoint.read_notes(tmp_path / 'run' / 'checkpoints' / '2')['data']
  count = lambda part: sum(len(row['tokens']) for row in part)
  assert notes['texts']['training']['tokens'] == count(rows[:19]) and notes['texts']['held-out']['tokens'] == count(
    rows[19:]
  )
  with pytest.raises(DataError, match='its number of texts is 20, and here it is 10'):
    glide.main(config(target, text, tmp_path / 'third', *flags, *short, '--self-generate', '10'))


@pytest.mark.slow
def test_a_run_starts_with_the_draft_of_another_run(target, text, whole, tmp_path):
  directory, state = whole(MeshConfig())
  flags = '--start', str(directory), '--run.steps', '2', '--optimizer.learning-rate', '0', '--distill.weight', '1'
  new = glide.main(config(target, text, tmp_path / 'run', *flags, '--distill.divergence', 'tv'))
  chex.assert_trees_all_equal(jax.device_get(new.params), state.params)
  assert 0 <= metrics.read(tmp_path / 'run')[-1]['valid/tv'] <= 1


def test_settings_that_cannot_work_are_named():
  with pytest.raises(ConfigError, match='distill.weight=1.5 must be within'):
    glide.DistillConfig(weight=1.5)
  with pytest.raises(ConfigError, match='cross_learning_rate=-1 must be a number and not negative'):
    glide.GlideTrainConfig(cross_learning_rate=-1)
  with pytest.raises(ConfigError, match='self_generate=1 leaves no text for training'):
    glide.GlideTrainConfig(self_generate=1)
  with pytest.raises(ConfigError, match='prompt_tokens=2000 leaves no room for new tokens in data.length=1024'):
    glide.GlideTrainConfig(self_generate=9, generation=glide.GenerationConfig(prompt_tokens=2000))
  with pytest.raises(ConfigError, match="generation.file='a.txt' is a JSON Lines file"):
    glide.GenerationConfig(file='a.txt')
  for field, bad in (('prompts', -1), ('batches', 0), ('new_tokens', 0)):
    with pytest.raises(ConfigError, match=f'eval.{field}={bad}'):
      glide.EvalConfig(**{field: bad})
