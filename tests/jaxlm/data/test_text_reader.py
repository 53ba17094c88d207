"""Words and labels are saved and read, a damaged file is named, and texts are padded and cut as the model asks."""

import numpy as np
import pytest

from jaxlm.data import text_reader
from jaxlm.data.text_reader import LmTokens, TextReader
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.data.word_vocabulary import WordVocabulary
from jaxlm.errors import CheckpointError
from jaxlm.exam_config import Column, ExamConfig

WORDS = WordVocabulary('words', ('<pad>', '<unk>', 'a', 'ä', 'c'))
READER = TextReader(WORDS, (Column('topic', 3), Column('tags', 2, True)), (('x', 'y', 'z'), ('p', 'q')))


def test_what_was_saved_is_read(tmp_path):
  READER.save(tmp_path / 'r')
  assert text_reader.load(tmp_path / 'r') == READER
  TextReader.save_thresholds(tmp_path / 'r', {'tags': np.array([0.25, 0.5])})
  np.testing.assert_array_equal(text_reader.load(tmp_path / 'r').thresholds['tags'], [0.25, 0.5])
  tokens = TextReader(LmTokens(ByteTokenizer()), READER.columns, READER.labels)
  tokens.save(tmp_path / 'lm')
  found = text_reader.load(tmp_path / 'lm')
  assert (
    found.words.encode('ab') == [97, 98] and found.words.pieces('ab') == ['a', 'b'] and found.labels == READER.labels
  )


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('labels.json', '[{"name": "topic"}]', 'does not hold the words and labels'),
    ('labels.json', '{', 'labels.json cannot be read'),
    ('words.json', '{"kind": "word", "words": []}', "Unknown kind of words 'word'"),
    ('words.json', None, 'words.json cannot be read'),
    ('thresholds.json', '{"tags": [0.5]}', "thresholds.json has 1 thresholds for 'tags', which has 2 labels"),
  ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
  READER.save(tmp_path)
  if content is None:
    (tmp_path / name).unlink()
  else:
    (tmp_path / name).write_text(content)
  with pytest.raises(CheckpointError, match=message):
    text_reader.load(tmp_path)


def test_padding_and_cutting():
  config = ExamConfig(encoder='gru', max_length=4, front=1)
  assert READER.encode('a ä c a', config) == [2, 3, 4] and READER.pieces('a ä c a', config) == ['a', 'ä', 'c']
  last = config.replace(keep='last')
  assert READER.encode('a ä c a', last) == [3, 4, 2] and READER.pieces('a ä c a', last) == ['ä', 'c', 'a']
  tokens, mask = text_reader.padded([[2], [3, 4, 2]], config)
  np.testing.assert_array_equal(tokens, [[0, 2, 0, 0], [0, 3, 4, 2]])
  np.testing.assert_array_equal(mask, tokens > 0)
  tokens, _ = text_reader.padded([[2], [3, 4]], config.replace(side='left'))
  np.testing.assert_array_equal(tokens, [[0, 0, 0, 2], [0, 0, 3, 4]])
