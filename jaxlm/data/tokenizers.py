"""Tokenizers: bytes, SentencePiece and Hugging Face JSON behind one protocol.

A tokenizer maps each id to bytes; the text of ids is those bytes joined and read as UTF-8, ill-formed parts becoming
U+FFFD. So text can be streamed token by token and adds up to exactly what `decode` of all ids says.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import functools
import hashlib
import io
import json
from pathlib import Path
import re
from typing import Any, Protocol, runtime_checkable

from jaxlm.data import byte_level_bpe, tokenizer_files
from jaxlm.data import chat as chat_lib
from jaxlm.data.text_stream import TextStream as TextStream


@runtime_checkable
class Tokenizer(Protocol):
  """What trainers and decoders ask of a tokenizer."""

  vocab_size: int
  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  stop_ids: tuple[int, ...]
  """Ids that end a generated text: eos_id and, for chat models, the end of a turn."""
  adds_bos: bool
  """Whether the model expects bos_id before a text."""

  def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
    """Returns ids. `special` reads strings such as '<|im_start|>' as their one id; otherwise they are plain text."""

  def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
    """Returns the text of ids; ids outside the vocabulary have none."""

  def chat(self, messages: list[dict] | str, *, add_generation_prompt: bool = True) -> list[int]:
    """Returns the ids of a conversation in the model's own format. Raises ValueError when it has none."""

  def save(self, directory: str | Path) -> None:
    """Writes files from which `from_directory` makes an equal tokenizer."""


class _ByteTable:
  """Shared by all tokenizers: decoding through a table id -> bytes, chat, and the parsing of special strings."""

  bos_id: int | None = None
  eos_id: int | None = None
  pad_id: int | None = None
  stop_ids: tuple[int, ...] = ()
  """Ids that end a generated text: eos_id and, for chat models, the end of a turn."""
  adds_bos: bool = False
  """Whether the model expects bos_id before a text."""
  chat_template: str | None = None
  strips_first_space: bool = False
  """SentencePiece puts a space before a text; decoding takes it away again."""
  _bytes: list[bytes]
  _special: dict[str, int]
  """Strings that `special=True` reads as one id."""

  @property
  def vocab_size(self) -> int:
    return len(self._bytes)

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """Ids that `skip_special` leaves out of the text."""
    return frozenset(self._special.values())

  def token_bytes(self, id: int, *, skip_special: bool = True) -> bytes:
    """Returns the UTF-8 bytes (perhaps part of a character) that an id stands for."""
    if not 0 <= id < len(self._bytes) or (skip_special and id in self.special_ids):
      return b''
    return self._bytes[id]

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    data = b''.join(self.token_bytes(int(i), skip_special=skip_special) for i in ids)
    if self.strips_first_space and data.startswith(b' '):
      data = data[1:]
    return data.decode('utf-8', errors='replace')

  def _encode_plain(self, text: str) -> list[int]:
    raise NotImplementedError

  def _encode_special(self, text: str) -> list[int]:
    ids, start = [], 0
    if self._special:
      longest_first = sorted(self._special, key=len, reverse=True)
      for match in re.finditer('|'.join(map(re.escape, longest_first)), text):
        ids += [*self._encode_plain(text[start : match.start()]), self._special[match[0]]]
        start = match.end()
    return ids + self._encode_plain(text[start:])

  def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
    ids = self._encode_special(text) if special else self._encode_plain(text)
    return [*self._ends('bos', bos), *ids, *self._ends('eos', eos)]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns `encode` of each text, faster."""
    return [self._encode_plain(text) for text in texts]

  def _ends(self, name: str, wanted: bool) -> list[int]:
    if not wanted:
      return []
    if (id := getattr(self, f'{name}_id')) is None:
      raise ValueError(f'{name}=True, but this tokenizer has no {name} token.')
    return [id]

  def chat(self, messages: list[dict] | str, *, add_generation_prompt: bool = True) -> list[int]:
    # As in transformers, the template's own markers are parsed, and so are markers that a message smuggles in.
    names = {f'{n}_token': self.token_text(getattr(self, f'{n}_id')) for n in ('bos', 'eos', 'pad')}
    text = chat_lib.render(self.chat_template, messages, add_generation_prompt=add_generation_prompt, **names)
    return self.encode(text, special=True)

  def token_text(self, id: int | None) -> str:
    """Returns the string of a token, special or not ('' for None)."""
    return '' if id is None else self.token_bytes(id, skip_special=False).decode('utf-8', errors='replace')


class ByteTokenizer(_ByteTable):
  """UTF-8 bytes as ids 0..255, then bos 256, eos 257, pad 258. Needs no training and loses nothing."""

  FILE = 'tokenizer_bytes.json'

  def __init__(self):
    self._special = {'<bos>': 256, '<eos>': 257, '<pad>': 258}
    self._bytes = [bytes([i]) for i in range(256)] + [name.encode() for name in self._special]
    self.bos_id, self.eos_id, self.pad_id = 256, 257, 258
    self.stop_ids = (257,)
    self.fingerprint = 'bytes-1'

  def _encode_plain(self, text: str) -> list[int]:
    return list(text.encode())

  def save(self, directory: str | Path) -> None:
    tokenizer_files.write_json(Path(directory) / self.FILE, {'kind': 'bytes', 'vocab_size': self.vocab_size})


class SentencePieceTokenizer(_ByteTable):
  """A SentencePiece model, given as the bytes of its .model file. A literal U+2581 reads as a space, as always there."""

  def __init__(self, proto: bytes, settings: Mapping[str, Any] | None = None):
    import sentencepiece

    self._proto = proto
    self._processor = sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
    size = sp.get_piece_size()
    self._bytes = [self._piece_bytes(i) for i in range(size)]
    self._special = {sp.id_to_piece(i): i for i in range(size) if sp.is_control(i)}
    self.strips_first_space = self._adds_dummy_prefix(proto)
    ids = {'bos': sp.bos_id(), 'eos': sp.eos_id(), 'pad': sp.pad_id()}
    # Models of this kind expect BOS unless their files say otherwise.
    settings = {'add_bos_token': True, **(settings or {})}
    tokenizer_files.set_specials(self, {name: id for name, id in ids.items() if id >= 0}, settings)
    self.fingerprint = hashlib.sha256(proto).hexdigest()

  def _piece_bytes(self, id: int) -> bytes:
    sp = self._processor
    if sp.is_byte(id):
      return bytes([int(sp.id_to_piece(id)[3:5], 16)])
    if sp.is_unknown(id):
      return '\ufffd'.encode()
    return sp.id_to_piece(id).replace('\u2581', ' ').encode()

  @staticmethod
  def _adds_dummy_prefix(proto: bytes) -> bool:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    return model.normalizer_spec.add_dummy_prefix

  def _encode_plain(self, text: str) -> list[int]:
    return self._processor.encode(text) if text else []

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.encode(list(texts))

  def save(self, directory: str | Path) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'tokenizer.model').write_bytes(self._proto)
    tokenizer_files.write_json(directory / 'tokenizer_config.json', tokenizer_files.settings_of(self))


class HuggingFaceTokenizer(_ByteTable):
  """A tokenizer.json, through the `tokenizers` package.

  Args:
    json_text: the text of tokenizer.json.
    settings: what tokenizer_config.json and its neighbours say: bos_token, eos_token, pad_token, chat_template,
      add_bos_token, eos_token_id (a number or a list), ...
  """

  def __init__(self, json_text: str, settings: Mapping[str, Any] | None = None):
    import tokenizers

    self._json = json_text
    self._plain = tokenizers.Tokenizer.from_str(json_text)
    self._parsing = tokenizers.Tokenizer.from_str(json_text)
    self._plain.encode_special_tokens = True  # the other way round than it sounds: special strings become plain text
    vocab = self._plain.get_vocab(with_added_tokens=True)
    kind, self.strips_first_space = tokenizer_files.decoder_kind(json.loads(json_text).get('decoder'))
    self._bytes = [b''] * (max(vocab.values(), default=-1) + 1)
    self._joins_bytes = kind != 'other'
    if self._joins_bytes:
      for piece, id in vocab.items():
        self._bytes[id] = (
          tokenizer_files.byte_level(piece) if kind == 'byte_level' else tokenizer_files.metaspace(piece)
        )
    added = self._plain.get_added_tokens_decoder()
    self._special = {token.content: id for id, token in added.items() if token.special}
    for piece, id in self._special.items():
      self._bytes[id] = piece.encode()
    tokenizer_files.set_specials(self, {}, settings or {})
    # The post-processor is where a tokenizer.json says that texts start with BOS.
    first = self._parsing.encode('a', add_special_tokens=True).ids[:1]
    self.adds_bos = self.bos_id is not None and first == [self.bos_id]
    self.fingerprint = hashlib.sha256(json_text.encode()).hexdigest()

  def _encode_plain(self, text: str) -> list[int]:
    return self._plain.encode(text, add_special_tokens=False).ids

  def _encode_special(self, text: str) -> list[int]:
    return self._parsing.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    if self._joins_bytes:
      return super().decode(ids, skip_special=skip_special)
    return self._plain.decode([int(i) for i in ids if i >= 0], skip_special_tokens=skip_special)

  def save(self, directory: str | Path) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'tokenizer.json').write_text(self._json, encoding='utf-8')
    settings = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      **tokenizer_files.settings_of(self),
    }
    tokenizer_files.write_json(directory / 'tokenizer_config.json', settings)


# ---- making tokenizers ----


def from_directory(path: str | Path) -> Tokenizer | None:
  """Returns the tokenizer whose files lie in a directory (tokenizer.json, *.model, vocab.json with
  merges.txt, tokenizer_bytes.json), or None.

  Raises:
    ValueError: a file is there but cannot be read; the message names it.
  """
  path = Path(path)
  if (file := path / 'tokenizer.json').is_file():
    try:
      return HuggingFaceTokenizer(file.read_text(encoding='utf-8'), tokenizer_files.read_settings(path))
    except Exception as e:  # tokenizers raises bare Exception
      raise ValueError(f'{file} cannot be used as a tokenizer: {e}') from e
  models = sorted(path.glob('*.model'))
  preferred = [m for m in models if m.name == 'tokenizer.model'] or models
  if len(preferred) > 1:
    raise ValueError(f'{path} holds several SentencePiece models: {", ".join(m.name for m in preferred)}.')
  if preferred:
    return from_sentencepiece(preferred[0])
  if (path / 'vocab.json').is_file() and (path / 'merges.txt').is_file():
    return _from_merges(path)
  if (path / ByteTokenizer.FILE).is_file():
    return ByteTokenizer()
  return None


def _from_merges(path: Path) -> Tokenizer:
  """The older pair of files that GPT-2 and OPT come with."""
  try:
    vocabulary = json.loads((path / 'vocab.json').read_text(encoding='utf-8'))
    lines = (path / 'merges.txt').read_text(encoding='utf-8').splitlines()
    merges = [line.split(' ') for line in lines if line and not line.startswith('#version')]
    settings = tokenizer_files.read_settings(path)
    if (bos := tokenizer_files.text_of(settings.get('bos_token'))) in vocabulary:
      settings['bos_token_id'] = vocabulary[bos]
    texts = {tokenizer_files.text_of(settings.get(f'{name}_token')) for name in ('bos', 'eos', 'pad', 'unk')}
    added = {vocabulary[t]: True for t in texts if t in vocabulary}
    return HuggingFaceTokenizer(byte_level_bpe.tokenizer_json(vocabulary, merges, settings, added=added), settings)
  except Exception as e:  # tokenizers raises bare Exception
    raise ValueError(f'vocab.json and merges.txt in {path} cannot be used as a tokenizer: {e}') from e


def from_sentencepiece(path: str | Path) -> SentencePieceTokenizer:
  """Returns the tokenizer of one .model file, with the settings that lie beside it."""
  path = Path(path)
  try:
    return SentencePieceTokenizer(path.read_bytes(), tokenizer_files.read_settings(path.parent))
  except (RuntimeError, ValueError) as e:
    raise ValueError(f'{path} cannot be used as a SentencePiece model: {e}') from e


def train_sentencepiece(
  texts: Iterable[str],
  vocab_size: int,
  directory: str | Path | None = None,
  *,
  kind: str = 'bpe',
  dummy_prefix: bool = False,
  max_bytes: int = 100_000_000,
) -> SentencePieceTokenizer:
  """Trains a SentencePiece model that loses nothing: unseen characters become bytes, newlines and runs of spaces stay.

  Ids: unk 0, bos 1, eos 2, pad 3, 256 bytes, then pieces. One thread, no sampling: equal texts give an equal model.

  Args:
    directory: where to save it, if anywhere.
    kind: 'bpe' or 'unigram'.
    dummy_prefix: puts a space before each text, so that a first word is the same piece as a later one. Without it,
      decode(a + b) = decode(a) + decode(b).
    max_bytes: training stops reading after this much text.

  Raises:
    ValueError: the vocabulary is larger than the texts can fill, or too small for their characters; with both numbers.
  """
  import sentencepiece

  model = io.BytesIO()
  seen = [0]
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_lines(texts, max_bytes, seen),
      model_writer=model,
      vocab_size=vocab_size,
      model_type=kind,
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      add_dummy_prefix=dummy_prefix,
      split_digits=True,
      character_coverage=0.9999,
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=3,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as e:
    words = str(e)
    if found := re.search(r'value <= (\d+)', words):
      hint = f'at most {found[1]} pieces: ask for a smaller vocabulary, or give more text'
    elif found := re.search(r'smaller than required_chars\.? *(\d+) vs (\d+)', words):
      hint = f'at least {found[2]} pieces for its characters and the 256 bytes: ask for a larger vocabulary'
    else:
      hint = f'another vocabulary ({words.strip()})'
    raise ValueError(f'{vocab_size=} does not fit: {seen[0]} bytes of text allow {hint}.') from e
  tokenizer = SentencePieceTokenizer(model.getvalue(), {'add_bos_token': False})
  if directory is not None:
    tokenizer.save(directory)
  return tokenizer


def _lines(texts: Iterable[str], max_bytes: int, seen: list[int]) -> Iterator[str]:
  # SentencePiece drops sentences longer than 4192 bytes without a word, so lines are cut; newlines are byte pieces.
  for text in texts:
    for line in text.splitlines():
      for start in range(0, len(line), 1000):
        piece = line[start : start + 1000]
        seen[0] += len(piece.encode())
        if piece:
          yield piece
    if seen[0] >= max_bytes:
      return
