"""A run goes on at the same place in its text, whatever the size of its batches, and says when the text has changed."""

import dataclasses

import numpy as np
import pytest

from jaxlm.data import corpus, directions, packing
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import CheckpointError
from tests.trainers.pretrain.test_train import smoke, text  # noqa: F401
from trainers import place_in_data, run_directory
from trainers.pretrain import task as language_modeling
from trainers.recommend import config as run_config

WORDS = corpus.TokenCorpus.from_documents([range(i, i + 50) for i in range(40)])


def made(batch_size, length=8, which=WORDS):
  return packing.make_batches(which, batch_size=batch_size, length=length, seed=3)


def rows(batches, steps):
  return [index for step in steps for index in batches.window_indices(step)]


@pytest.mark.parametrize('before, after', [(8, 16), (16, 8), (8, 6)])
def test_another_batch_size_reads_every_row_once(before, after):
  first = made(before)
  notes = {'rows': first.rows_before(10), 'length': 8}
  second = place_in_data.resumed(made(after), 10, notes, {})
  epoch = made(1)
  count = 10 * before + 5 * after
  assert rows(first, range(10)) + rows(second, range(10, 15)) == rows(epoch, range(count))
  # And a third time, from a checkpoint of the second.
  third = place_in_data.resumed(made(7), 15, {'rows': second.rows_before(15), 'length': 8}, {})
  assert rows(third, range(15, 17)) == rows(epoch, range(count, count + 14))
  with pytest.raises(ValueError, match='step=9 must not be less than 10'):
    second.batch(9)


def test_another_length_goes_on_behind_as_many_tokens():
  for length, expected in ((4, 160), (16, 40), (3, 214)):
    batches = place_in_data.resumed(made(8, length), 10, {'rows': 80, 'length': 8}, {})
    assert batches.rows_before(10) == expected


def test_the_config_tells_where_older_checkpoints_are():
  before = {'data': {'batch_size': 8, 'length': 8}}
  assert place_in_data.resumed(made(16), 10, {}, before).rows_before(10) == 80
  unchanged = made(8)
  assert place_in_data.resumed(unchanged, 10, {}, before) is unchanged


def test_directions_go_on_there_too():
  reading = directions.Reading('both', 256, 257, pairing='duplicate')
  make = lambda size: directions.make_batches(WORDS, reading, batch_size=size, length=8)
  second = place_in_data.resumed(make(16), 10, {'rows': 80, 'length': 8}, {})
  np.testing.assert_array_equal(second.batch(10)['tokens'][:8], make(8).batch(10)['tokens'])


@pytest.mark.parametrize('notes', [{'rows': 'many'}, {'rows': -1}, {'rows': True}, {'rows': 8, 'length': 0}])
def test_notes_that_are_no_numbers_are_named(notes):
  with pytest.raises(CheckpointError, match='notes of the checkpoint of step 10'):
    place_in_data.resumed(made(8), 10, notes, {})


def test_a_text_that_changed_is_said_and_one_that_was_only_touched_is_not(text):  # noqa: F811
  config = smoke(text)
  task = language_modeling.LanguageModeling(config, ByteTokenizer())
  notes, path = task.data_notes(10), text / 'text.txt'
  assert notes['rows'] == 80 and notes['length'] == 32
  path.touch()
  assert language_modeling.LanguageModeling(config, ByteTokenizer()).resume(10, notes, {}) == []
  path.write_text(path.read_text().replace('one', 'eno'))
  (said,) = language_modeling.LanguageModeling(config, ByteTokenizer()).resume(10, notes, {})
  assert 'The training text has changed since this run was saved' in said
  for broken in ({}, {'texts': 3}, {'texts': {'training': 'x'}}):
    assert task.resume(10, broken, {}) == []


def test_a_digest_is_of_tokens_and_borders_and_the_cache_has_it(text):  # noqa: F811
  path = str(text / 'text.txt')
  built = corpus.tokenize(corpus.sources.documents(path), ByteTokenizer(), progress=False)
  assert built.meta['digest'] == built.digest == dataclasses.replace(built, meta={}).digest
  documents = [[1, 2, 3], [4, 5]]
  digest = lambda documents: corpus.TokenCorpus.from_documents(documents).digest
  assert digest(documents) == digest(documents)
  assert len({digest(d) for d in (documents, [[1, 2], [3, 4, 5]], [[1, 2, 3], [4, 6]], [[1, 2, 3, 4, 5]])}) == 4


def test_settings_that_a_run_has_of_its_own_stay_as_they_were(text):  # noqa: F811
  config = smoke(text)
  directory = text / 'run'
  run_directory.open_run(directory, config, 'pretrain')[0].close()
  other = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer='train', batch_size=16))
  run_directory.write_config(directory, other, 'pretrain', language_modeling.LanguageModeling.kept)
  saved = run_directory.checkpoint.run_config(directory)['data']
  assert (saved['tokenizer'], saved['batch_size']) == ('bytes', 16)


def test_other_batches_are_told():
  data = run_config.RowConfig(batch_size=4, seed=1)
  assert place_in_data.changed_batches({}, data, 7) == []
  (said,) = place_in_data.changed_batches({'batch_size': 8, 'seed': 2}, data, 7)
  assert '(batch_size, seed): the run continues with batch 7' in said
