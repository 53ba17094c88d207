"""Where files may lie and what they may import: floors, rooms, tests beside their modules, and no circle of files.

Every import counts, at the top of a file or within a function; only those under TYPE_CHECKING do not. The names that a room's
`__init__` takes from elsewhere on first use (`jaxlm.exports`) are its public surface, not its imports.
"""

import ast
import importlib
from pathlib import Path
import sys

import pytest

ROOT = Path(__file__).parents[1]
TREES = ('pallas_kernels', 'jaxlm', 'decoders', 'trainers', 'benchmarks', 'colab', 'tests')

# From the ground up. A module stands where its longest prefix does. It may import what stands with that prefix or on a lower
# line, and nothing from its own line's other rooms: these are side by side.
FLOORS = (
  ('pallas_kernels',),
  ('jaxlm.errors', 'jaxlm.exports', 'jaxlm.lengths', 'jaxlm.cache_config', 'jaxlm.console'),
  ('jaxlm.config_fields',),
  ('jaxlm.config',),
  ('jaxlm.seq2seq_config', 'jaxlm.glide_config', 'jaxlm.exam_config'),
  ('jaxlm.attention',),
  ('jaxlm.caches',),
  ('jaxlm.models', 'jaxlm.losses'),
  ('jaxlm.data',),
  ('jaxlm.io',),
  ('jaxlm.translation_model', 'jaxlm.glide_model'),
  ('jaxlm.language_model',),
  ('jaxlm.lm_states', 'jaxlm.text_classifier'),  # The latter may hold a language model.
  ('jaxlm',),  # The package itself: `import jaxlm` is for what may load models.
  ('jaxlm.analysis.tables', 'jaxlm.analysis.plots', 'jaxlm.analysis.statistics'),
  ('jaxlm.analysis.sink', 'jaxlm.analysis.direction'),
  ('jaxlm.analysis.lazy',),
  ('jaxlm.analysis',),  # The package itself, and the modules that are run: sinks, laziness.
  ('jaxlm.evaluation',),
  ('jaxlm.analysis.evaluate',),  # Run as `python -m jaxlm.analysis.evaluate`.
  ('decoders',),
  ('decoders.speculative', 'decoders.simlayerkv', 'decoders.beam'),
  ('decoders.swift', 'decoders.glide', 'decoders.translation', 'decoders.classification', 'decoders.atspeed'),
  ('decoders.recommendation',),  # A command that searches with decoders.atspeed.
  ('decoders.command',),  # Knows the settings of all decoders.
  ('decoders.generate', 'decoders.translate', 'decoders.classify', 'decoders.recommend'),
  ('trainers',),
  ('trainers.pretrain', 'trainers.translate', 'trainers.classify', 'trainers.recommend'),
  ('trainers.glide',),  # Without a target, it trains one with trainers.pretrain.
  ('benchmarks',),
  ('colab',),
  ('tests',),
)
KERNELS_MAY_IMPORT = ('jax', 'numpy', 'pallas_kernels')
ROOMS = {
  'jaxlm': ('analysis', 'attention', 'caches', 'data', 'evaluation', 'io', 'losses', 'models'),
  'jaxlm/analysis': ('direction', 'lazy', 'sink'),
  'decoders': (
    'atspeed',
    'beam',
    'classification',
    'glide',
    'recommendation',
    'simlayerkv',
    'speculative',
    'swift',
    'translation',
  ),
  'trainers': ('classify', 'glide', 'pretrain', 'recommend', 'translate'),
  'benchmarks': ('accelerator',),
}


def modules() -> dict[str, Path]:
  """Returns every module of the tree by its dotted name; a package is its `__init__`."""
  found = {}
  for tree in TREES:
    for path in sorted((ROOT / tree).rglob('*.py')):
      parts = path.relative_to(ROOT).with_suffix('').parts
      found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
  return found


def imports(text: str, name: str, known) -> set[tuple[str, int]]:
  """Returns (what a module imports, line): our modules by their whole names, of others the first part."""
  found = set()

  def visit(node):
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      for child in node.orelse:
        visit(child)
      return
    if isinstance(node, ast.Import):
      found.update((alias.name, node.lineno) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f'{name}, line {node.lineno}: imports are absolute here.'
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        found.add((whole if whole in known else node.module, node.lineno))
    for child in ast.iter_child_nodes(node):
      visit(child)

  visit(ast.parse(text))
  ours = lambda target: target.split('.')[0] in TREES
  return {(target if ours(target) else target.split('.')[0], line) for target, line in found}


def place(name: str, floors=FLOORS) -> tuple[int, str]:
  """Returns (floor, prefix) of a module."""
  prefixes = {prefix: floor for floor, line in enumerate(floors) for prefix in line}
  parts = name.split('.')
  prefix = next('.'.join(parts[:n]) for n in range(len(parts), 0, -1) if '.'.join(parts[:n]) in prefixes)
  return prefixes[prefix], prefix


def upward(graph: dict[str, set[tuple[str, int]]]) -> list[str]:
  """Returns the imports that lead to a higher floor, or to another room of the same one."""
  found = []
  for name, targets in graph.items():
    floor, room = place(name)
    for target, line in sorted(targets):
      if target.split('.')[0] not in TREES:
        continue
      if place(target)[1] != room and place(target)[0] >= floor:
        found.append(f'{name}, line {line}: {room} may not import {target}.')
  return found


def circles(graph: dict[str, set[tuple[str, int]]]) -> list[list[str]]:
  """Returns the circles of files that import each other, each as the path that closes it."""
  edges = {name: sorted({target for target, _ in targets if target in graph}) for name, targets in graph.items()}
  found, done = [], set()

  def visit(name, path):
    if name in path:
      found.append([*path[path.index(name) :], name])
    elif name not in done:
      for target in edges[name]:
        visit(target, [*path, name])
      done.add(name)

  for name in edges:
    visit(name, [])
  return found


@pytest.fixture(scope='module')
def graph():
  known = modules()
  return {name: imports(path.read_text(encoding='utf-8'), name, known) for name, path in known.items()}


def test_what_is_imported_is_there(graph):
  """Also within functions, where nothing else notices a module that has moved. `from module import name` may name anything."""
  lost = [
    f'{name}, line {line}: there is no {target}.'
    for name, targets in graph.items()
    for target, line in sorted(targets)
    if target.split('.')[0] in TREES and target not in graph
  ]
  assert not lost


def test_imports_run_downwards(graph):
  assert not upward(graph)


def test_nothing_is_loaded_for_annotations(graph):
  """jaxtyping is no dependency: it is imported under TYPE_CHECKING alone, which `imports` leaves out."""
  assert not [name for name, targets in graph.items() for target, _ in targets if target == 'jaxtyping']


def test_kernels_import_jax_alone(graph):
  allowed = {*KERNELS_MAY_IMPORT, *sys.stdlib_module_names}
  found = {(name, t) for name, targets in graph.items() if name.split('.')[0] == 'pallas_kernels' for t, _ in targets}
  assert not {(name, target) for name, target in found if target.split('.')[0] not in allowed}


def test_no_files_import_each_other_in_a_circle(graph):
  assert not circles(graph)


def test_rooms_are_those_of_the_plan():
  folders = {path.parent.relative_to(ROOT).as_posix() for tree in TREES[:-1] for path in (ROOT / tree).rglob('*.py')}
  assert folders == {*TREES[:-1], *(f'{house}/{room}' for house, rooms in ROOMS.items() for room in rooms)}


@pytest.mark.parametrize('house', ROOMS)
def test_no_room_bears_the_name_of_a_public_function(house):
  public = getattr(importlib.import_module(house.replace('/', '.')), '_PUBLIC', {})
  assert not set(public) & set(ROOMS[house])


def test_what_other_versions_run_is_there():
  from tests.conftest import VERSIONED

  assert [part for part in VERSIONED if not (Path(__file__).parent / part).exists()] == []


def test_a_test_stands_where_its_module_does():
  """tests/decoders/swift/test_search.py is of decoders/swift/search.py; test_loop_processes.py is another one of loop.py."""
  strays = []
  for path in sorted((ROOT / 'tests').rglob('test_*.py')):
    folder = path.parent.relative_to(ROOT / 'tests')
    if folder.as_posix() in ('.', 'compatibility', 'colab'):  # Of the whole tree.
      continue
    name = path.stem.removeprefix('test_')
    stems = [p.stem for p in (ROOT / folder).iterdir() if p.suffix == '.py' or p.is_dir()]
    if not any(name == s or name.startswith(f'{s}_') or s.startswith(f'{name}_') for s in stems):
      strays.append(path.relative_to(ROOT).as_posix())
  assert not strays


# ---- the rules find what breaks them ----


@pytest.mark.parametrize(
  'name, text',
  [
    ('jaxlm.attention.rule', 'from jaxlm.caches.full import FullCache'),
    ('jaxlm.caches.full', 'def f():\n  from jaxlm import models'),
    ('jaxlm.data.corpus', 'import jaxlm'),
    ('decoders.plain', 'from decoders.swift import Stream'),
    ('decoders.simlayerkv.memory', 'from decoders.speculative import rounds'),
    ('pallas_kernels.attention', 'from jaxlm import errors'),
  ],
)
def test_an_import_that_leads_upwards_is_found(name, text):
  assert upward({name: imports(text, name, modules())})


def test_types_may_come_from_anywhere():
  text = 'if TYPE_CHECKING:\n  from jaxlm.models.transformer import Transformer\nelse:\n  import math'
  assert imports(text, 'jaxlm.caches.full', modules()) == {('math', 4)}


def test_a_circle_is_found_whatever_its_length():
  graph = {'a': {('b', 1)}, 'b': {('c', 1), ('d', 2)}, 'c': {('a', 1)}, 'd': set(), 'e': {('a', 1)}}
  assert circles(graph) == [['a', 'b', 'c', 'a']]
