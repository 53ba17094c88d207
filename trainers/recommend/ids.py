"""Stage ids: reads interactions, splits them, gives each item an identifier, and keeps all of it in a run directory.

  RUN/config.json      the settings and versions
  RUN/histories.npz    the items of each user in training, validation and test
  RUN/tokenizer/       the catalogue: items, titles, identifiers; targets and drafts copy it

There are no steps and no checkpoints: the stage takes a minute at most, and one that was interrupted is done again, with the same result.
"""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path

import numpy as np

from jaxlm import config as configs
from jaxlm.config import ModelConfig
from jaxlm.data import catalogue, interaction_files, interactions, recommendation, semantic_ids
from jaxlm.data.catalogue import Catalogue
from jaxlm.data.interactions import Histories
from jaxlm.data.items import Items
from jaxlm.errors import CheckpointError, DataError
from jaxlm.io import checkpoint
from jaxlm.io.atomic import write_atomically
from trainers import distributed, run_directory
from trainers.recommend.config import IdConfig, IdsConfig, LogConfig

TRAINER = 'recommend-ids'


@dataclasses.dataclass(frozen=True)
class Data:
  """What stage ids leaves for the next ones."""

  catalogue: Catalogue
  histories: Histories


def make(config: IdsConfig, say: Callable[[str], None] = print) -> Catalogue:
  """Returns the catalogue of a run directory, which is made if it is not there.

  Raises:
    CheckpointError: the directory holds something else, or was made with other settings.
    DataError: the interactions or the items cannot be used.
  """
  directory = Path(config.run.directory)
  settings = {name: value for name, value in configs.to_dict(config).items() if name != 'run'}
  if (directory / 'config.json').exists():
    before = checkpoint.run_config(directory)
    if before.get('trainer') != TRAINER:
      raise CheckpointError(
        f'{directory} is a run of {before.get("trainer")!r}, not of stage ids: pass --run.directory.'
      )
    changed = run_directory.changes({name: before.get(name) for name in settings}, settings)
    if changed:
      field, old, new = changed[0]
      raise CheckpointError(
        f'{directory} was made with {field} = {old!r}, and here it is {new!r}. Targets depend on its identifiers, so it is not changed: pass '
        'another --run.directory.'
      )
  elif directory.is_dir() and any(path.name not in run_directory.HIDDEN for path in directory.iterdir()):
    raise CheckpointError(
      f'{directory} holds files but no config.json: not a run directory, and nothing is overwritten.'
    )
  if not (directory / 'tokenizer').is_dir():
    distributed.on_first_host(lambda: _make(config, directory, settings, say), DataError)
  found = load(directory)
  say(f'{directory}: {found.catalogue.report}')
  say(f'Train a recommender on it: python -m trainers.recommend target --ids {directory}')
  return found.catalogue


def _make(config: IdsConfig, directory: Path, settings: dict, say: Callable[[str], None]) -> None:
  found = read(config, say)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with run_directory.lock(directory):
      text = json.dumps({'trainer': TRAINER, 'model': {}, **settings, 'versions': run_directory.versions()}, indent=2)
      write_atomically(directory / 'config.json', text)
      found.histories.save(directory / 'histories.npz')
      # The catalogue is written last: a run that has one is complete.
      run_directory.save_once(directory / 'tokenizer', found.catalogue.save)
  except OSError as e:
    raise CheckpointError(f'The run directory {directory} cannot be written: {e}') from e


def read(config: IdsConfig, say: Callable[[str], None]) -> Data:
  """Returns the histories and the catalogue of some settings. Raises DataError if the data cannot be used."""
  d, c = config.data, config.ids
  data = recommendation.open_data(
    d.source, items=d.items, columns=_columns(d), least_rating=d.least_rating, min_user=d.min_user, min_item=d.min_item,
    missing=d.missing, seed=d.seed, download=d.download,
  )  # fmt: skip
  log, items, given = data.log, data.items, None
  if c.method == 'file':
    given = interaction_files.read_ids(c.file)
    log = recommendation.without(log, tuple(given), d.missing, f'the file of identifiers {c.file}')
    number = {name: i for i, name in enumerate(items.ids)}
    items = items.taken([number[name] for name in log.item_ids])
  shares = 1 - d.valid_share - d.test_share, 1 - d.test_share
  histories = interactions.split(log, d.split, shares)
  parts = [int((histories.parts == part).sum()) for part in range(3)]
  say(
    f'{len(histories):,} users with {parts[0]:,} training, {parts[1]:,} validation and {parts[2]:,} test interactions of {len(items):,} '
    f'items, of which {int((histories.popularity == 0).sum()):,} are not in the training'
  )
  names = identifiers(c, items, histories.popularity, given, say)
  notes = {'method': c.method, 'source': d.source, 'histories': histories.digest}
  return Data(
    Catalogue.from_names(items.ids, items.titles, names, histories.popularity, history=c.history, notes=notes),
    histories,
  )


def _columns(d: LogConfig) -> interaction_files.Columns:
  return interaction_files.Columns(d.user, d.item, d.time, d.rating, d.title, d.text)


def identifiers(
  c: IdConfig,
  items: Items,
  popularity: np.ndarray,
  given: dict[str, tuple[str, ...]] | None = None,
  say: Callable[[str], None] = print,
) -> list[tuple[str, ...]]:
  """Returns the names of the tokens of each item's identifier. `given`: those of a file. Raises DataError as `features`."""
  if c.method == 'items':
    return catalogue.code_names(np.arange(len(items))[:, None])
  if given is not None:
    names = [given[item] for item in items.ids]
    groups = np.unique([' '.join(name) for name in names], return_inverse=True)[1].reshape(-1, 1)
  elif c.method == 'titles':
    groups, words = semantic_ids.title_codes(items.titles, c.words)
    names = [tuple(words[code] for code in row) for row in groups.tolist()]
  else:
    vectors = features(c, items)
    if c.method == 'kmeans':
      groups, _ = semantic_ids.residual_kmeans(vectors, c.sizes, c.seed)
    else:
      from jaxlm.data import rqvae

      groups = rqvae.fit(vectors, c.sizes, c.rqvae, c.seed, say)
    names = catalogue.code_names(groups)
  say(f'Identifiers ({c.method}): {semantic_ids.report(groups)}')
  unique = semantic_ids.unique(groups, popularity) if c.unique else groups
  if unique.shape[1] == groups.shape[1]:
    return names
  last = catalogue.code_names(unique[:, -1:], first=len(names[0]))
  return [name + more for name, more in zip(names, last)]


def features(c: IdConfig, items: Items) -> np.ndarray:
  """Returns the vectors [I, D] that similar items share.

  Raises:
    DataError: there are none of the kind that the settings name.
  """
  kind = c.features if c.features != 'auto' else 'words' if items.vectors is None else 'vectors'
  if kind == 'vectors':
    if items.vectors is None:
      raise DataError("ids.features='vectors' is for generated data: these items have texts only. Choose words or lm.")
    return items.vectors
  if kind == 'words':
    from jaxlm.data import text_features

    return text_features.word_vectors(items.texts)
  import jaxlm
  from jaxlm import lm_states

  try:
    lm = jaxlm.load(c.lm)
    return lm_states.embed(lm, items.texts, max_tokens=min(c.lm_tokens, lm.config.max_length))
  except (CheckpointError, ValueError) as e:
    raise DataError(f'ids.lm={c.lm!r} cannot embed the items: {e}') from e


def load(directory: str | Path) -> Data:
  """Returns what a run of stage ids holds.

  Raises:
    CheckpointError: it is not one, or is not complete.
  """
  path = Path(directory)
  if (path / 'config.json').exists() and (trainer := checkpoint.run_config(path).get('trainer')) != TRAINER:
    raise CheckpointError(f'--ids {path} is a run of {trainer!r}, not of stage ids.')
  if not (path / 'tokenizer').is_dir():
    raise CheckpointError(
      f'--ids {path} holds no identifiers. Make them: python -m trainers.recommend ids --run.directory {path}'
    )
  found = catalogue.load(path / 'tokenizer')
  histories = Histories.load(path / 'histories.npz')
  if histories.digest != found.notes.get('histories') or histories.num_items != len(found):
    raise CheckpointError(f'{path}: the histories are not those that the identifiers were made with; make them again.')
  return Data(found, histories)


def fitted(model: ModelConfig, items: Catalogue) -> ModelConfig:
  """Returns the model's config with the sizes that the catalogue gives."""
  return model.replace(vocab_size=items.vocab_size, max_length=items.longest_prompt + items.depth)
