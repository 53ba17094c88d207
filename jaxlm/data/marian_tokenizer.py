"""The tokenizers of OPUS-MT models: two SentencePiece models cut the text, and vocab.json numbers the pieces.

A source may begin with the code of a target language, '>>fra<<', which is one token. Text cannot write other markers: '</s>' in a
source is cut into pieces as any other text.
"""

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
import re
from typing import Any

from jaxlm.errors import CheckpointError, shown

SOURCE_MODEL, TARGET_MODEL = 'source.spm', 'target.spm'
VOCABULARY, TARGET_VOCABULARY = 'vocab.json', 'target_vocab.json'
UNKNOWN, EOS, PAD = '<unk>', '</s>', '<pad>'


class MarianTokenizer:
  """Source and target tokenizer of a translation model.

  Args:
    models: the bytes of source.spm and of target.spm.
    vocabularies: piece -> id of the source and of the target; one and the same for models that share it.

  Attributes:
    eos_id, pad_id, unk_id: ids of the target vocabulary.
    vocab_size, source_vocab_size: numbers of ids.

  Raises:
    ValueError: a vocabulary without '</s>', '<pad>' or '<unk>'.
  """

  def __init__(self, models: tuple[bytes, bytes], vocabularies: tuple[Mapping[str, int], Mapping[str, int]]):
    import sentencepiece

    self._protos = models
    self._source, self._target = (sentencepiece.SentencePieceProcessor(model_proto=proto) for proto in models)
    self._source_ids, self._target_ids = vocabularies
    for vocabulary in vocabularies:
      if missing := [piece for piece in (EOS, PAD, UNKNOWN) if piece not in vocabulary]:
        raise ValueError(f'the vocabulary has no {missing[0]!r}')
    self._pieces = {id: piece for piece, id in self._target_ids.items()}
    self.eos_id, self.pad_id, self.unk_id = (self._target_ids[piece] for piece in (EOS, PAD, UNKNOWN))
    self.source_vocab_size, self.vocab_size = (max(v.values()) + 1 for v in vocabularies)

  @property
  def shares_vocabulary(self) -> bool:
    return self._source_ids == self._target_ids

  def encode_source(self, text: str) -> list[int]:
    """Returns the ids of a source text, without EOS. A piece or a language that the vocabulary does not have is '<unk>'."""
    return _encode(text, self._source, self._source_ids)

  def encode_target(self, text: str) -> list[int]:
    """Returns the ids of a target text, without EOS; see `encode_source`."""
    return _encode(text, self._target, self._target_ids)

  def decode_target(self, ids: Iterable[int]) -> str:
    """Returns the text of target ids. EOS, padding and '<unk>' are left out."""
    special = {self.eos_id, self.pad_id, self.unk_id}
    pieces = [self._pieces[id] for id in map(int, ids) if id in self._pieces and id not in special]
    return self._target.decode_pieces(pieces).replace('\u2581', ' ').strip()

  def save(self, directory: str | Path) -> None:
    """Writes the files that transformers, and `from_directory`, read."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, proto in zip((SOURCE_MODEL, TARGET_MODEL), self._protos, strict=True):
      (directory / name).write_bytes(proto)
    write = lambda name, value: (directory / name).write_text(json.dumps(value, ensure_ascii=False), encoding='utf-8')
    write(VOCABULARY, dict(self._source_ids))
    settings: dict[str, Any] = {
      'tokenizer_class': 'MarianTokenizer',
      'eos_token': EOS,
      'pad_token': PAD,
      'unk_token': UNKNOWN,
    }
    if not self.shares_vocabulary:
      write(TARGET_VOCABULARY, dict(self._target_ids))
      settings |= {'separate_vocabs': True, 'target_vocab_file': TARGET_VOCABULARY}
    write('tokenizer_config.json', settings)


def _encode(text: str, model: Any, ids: Mapping[str, int]) -> list[int]:
  code = re.match('>>.*?<<', text)
  language, text = ([code.group()], text[code.end() :]) if code else ([], text)
  return [ids.get(piece, ids[UNKNOWN]) for piece in [*language, *model.encode(text, out_type=str)]]


def from_directory(directory: str | Path) -> MarianTokenizer | None:
  """Returns the tokenizer of a folder, None if it has neither model nor vocabulary.

  Raises:
    CheckpointError: a part is missing or damaged; the message names the file.
  """
  directory = Path(directory)
  files = [directory / name for name in (SOURCE_MODEL, TARGET_MODEL, VOCABULARY)]
  there = [file for file in files if file.is_file()]
  if not there:
    return None
  if missing := [file for file in files if file not in there]:
    raise CheckpointError(
      f'{missing[0]} is missing beside {there[0].name}: this translation model has no whole tokenizer.'
    )
  source = _vocabulary(files[2])
  target = _vocabulary(directory / TARGET_VOCABULARY) if (directory / TARGET_VOCABULARY).is_file() else source
  try:
    return MarianTokenizer((files[0].read_bytes(), files[1].read_bytes()), (source, target))
  except (OSError, RuntimeError, ValueError) as e:
    raise CheckpointError(f'The tokenizer in {directory} cannot be used: {e}. Copy it again.') from e


def _vocabulary(path: Path) -> dict[str, int]:
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise CheckpointError(f'{path} cannot be read: {e}. Copy it again.') from e
  if not isinstance(found, dict) or not found:
    raise CheckpointError(f'{path} holds {shown(found)}; expected an object of pieces and their ids.')
  for piece, id in found.items():
    if type(id) is not int or not 0 <= id < 10_000_000:
      raise CheckpointError(f'{path}: the id of {piece!r} is {shown(id)}; expected a whole number.')
  return found
