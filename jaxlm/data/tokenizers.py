"""Tokenizers: bytes, SentencePiece and Hugging Face JSON behind one protocol.

A tokenizer maps each id to bytes. The text of several ids is the joined bytes decoded as UTF-8; ill-formed parts become U+FFFD.
So text can be streamed token by token, and the joined parts equal `decode` of all ids.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxlm.data import added_tokens, byte_level_bpe, decoder_steps, piece_bytes, sentencepiece_models, tokenizer_files
from jaxlm.data.byte_table import ByteTable
from jaxlm.data.sentencepiece_models import SentencePieceTokenizer as SentencePieceTokenizer
from jaxlm.data.sentencepiece_models import train_sentencepiece as train_sentencepiece
from jaxlm.data.text_stream import TextStream as TextStream


@runtime_checkable
class Tokenizer(Protocol):
  """The interface of a tokenizer that trainers and decoders use."""

  vocab_size: int
  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  stop_ids: tuple[int, ...]
  """Ids that end a generated text: eos_id and, for chat models, the end of a turn."""
  adds_bos: bool
  """Whether the model expects bos_id before a text."""

  def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
    """Returns ids. With `special`, a string such as '<|im_start|>' becomes its single id; otherwise it is plain text."""

  def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
    """Returns the text of ids; ids outside the vocabulary are skipped."""

  def token_id(self, text: str) -> int | None:
    """Returns the id of the token with this text (special tokens first), or None if there is none."""

  def chat(self, messages: list[dict] | str, *, add_generation_prompt: bool = True, **variables: Any) -> list[int]:
    """Returns the ids of a conversation in the model's chat format. Raises ValueError if the model has no chat template.

    `variables` are passed to the template: tools=[...], documents=[...], enable_thinking=False, ...
    """

  def save(self, directory: str | Path) -> None:
    """Writes files from which `from_directory` makes an equal tokenizer."""


class ByteTokenizer(ByteTable):
  """A lossless tokenizer without training: ids 0 to 255 are UTF-8 bytes, then bos 256, eos 257, pad 258."""

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


class HuggingFaceTokenizer(ByteTable):
  """A tokenizer of a tokenizer.json, with the `tokenizers` package.

  Args:
    json_text: the text of tokenizer.json.
    settings: fields of tokenizer_config.json and related files: bos_token, eos_token, pad_token, chat_template,
      add_bos_token, eos_token_id (a number or a list), ...
  """

  def __init__(self, json_text: str, settings: Mapping[str, Any] | None = None):
    import tokenizers

    settings = {} if settings is None else settings
    # Padding and truncation are settings of a training run; they are removed, because they would change every text.
    json_text, spec = piece_bytes.without_padding(json_text)
    rule, prefix = tokenizer_files.space_rule(settings)
    if prefix is not None:
      json_text, spec = piece_bytes.with_space_rule(json_text, spec, rule, prefix)
    self._plain = tokenizers.Tokenizer.from_str(json_text)
    if added_tokens.install(self._plain, settings):
      json_text = self._plain.to_str()
    self._json = json_text
    self._parsing = tokenizers.Tokenizer.from_str(json_text)
    self._plain.encode_special_tokens = True  # Despite the name, this makes special strings plain text.
    vocab = self._plain.get_vocab(with_added_tokens=True)
    piece_bytes.check_ids(vocab)
    kind, self.strips_first_space = piece_bytes.decoder_kind(spec.get('decoder'))
    self._bytes = [b''] * (max(vocab.values(), default=-1) + 1)
    self._joins_bytes = kind != 'other'
    self._settling = decoder_steps.settling(spec.get('decoder'))
    if self._joins_bytes:
      for piece, id in vocab.items():
        self._bytes[id] = piece_bytes.byte_level(piece) if kind == 'byte_level' else piece_bytes.metaspace(piece)
    added, pieces = self._plain.get_added_tokens_decoder(), self._plain.get_vocab(with_added_tokens=False)
    self._special = {token.content: id for id, token in added.items() if token.special}
    for id, token in added.items():
      # The text of an added token is not written in the byte alphabet, where "é" would be half a character. An added token
      # that is also an ordinary piece is the exception, because plain text is encoded to its id too.
      if token.special or (kind == 'byte_level' and token.content not in pieces):
        self._bytes[id] = token.content.encode()
    # A tokenizer.json says in its post-processor whether texts start with BOS; encoding a text shows it.
    first = self._parsing.encode('a', add_special_tokens=True).ids[:1]
    tokenizer_files.set_specials(self, {}, settings)
    if settings.get('add_bos_token') is None:
      self.adds_bos = self.bos_id is not None and first == [self.bos_id]
    self.fingerprint = hashlib.sha256(json_text.encode()).hexdigest()

  def token_id(self, text: str) -> int | None:
    found = self._plain.token_to_id(text)
    return super().token_id(text) if found is None else found

  def _encode_plain(self, text: str) -> list[int]:
    with _rules_that_end():
      return self._plain.encode(text, add_special_tokens=False).ids

  def _encode_special(self, text: str) -> list[int]:
    with _rules_that_end():
      return self._parsing.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    with _rules_that_end():
      return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    if self._joins_bytes:
      return super().decode(ids, skip_special=skip_special)
    with _rules_that_end():
      return self._plain.decode([int(i) for i in ids if i >= 0], skip_special_tokens=skip_special)

  def stable_length(self, ids: Sequence[int], text: str, *, skip_special: bool = True) -> int:
    """Returns how many first characters of `text` are final whatever ids follow. `text` is `decode(ids)`."""
    steps, n = self._settling, len(ids)
    piece = lambda id: None if id < 0 or (skip_special and id in self.special_ids) else self._plain.id_to_token(id)
    while n and ((last := piece(ids[n - 1])) is None or (steps.byte_runs and decoder_steps.is_byte_piece(last))):
      n -= 1
    n = max(n - steps.last, 0)
    if n == 0:
      return 0
    before = self.decode(ids[:n], skip_special=skip_special)
    return steps.stable_length(os.path.commonprefix([before, text]))

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


@contextlib.contextmanager
def _rules_that_end() -> Iterator[None]:
  """Turns a panic of the tokenizers package, caused by a rule that fails or does not end, into a ValueError."""
  try:
    yield
  except BaseException as e:
    if type(e).__name__ != 'PanicException':
      raise
    raise ValueError(f'This tokenizer.json has a rule that fails on this text: {e}.') from e


# ---- making tokenizers ----


def from_directory(path: str | Path) -> Tokenizer | None:
  """Returns the tokenizer of a directory with tokenizer.json, *.model, vocab.json and merges.txt, or tokenizer_bytes.json.

  Returns None if there is none of these files.

  Raises:
    ValueError: a file cannot be read, or there are several SentencePiece models; the message names the files.
  """
  path = Path(path)
  if (file := path / 'tokenizer.json').is_file():
    settings = tokenizer_files.read_settings(path)
    with tokenizer_files.naming(file, 'as a tokenizer'):
      return HuggingFaceTokenizer(file.read_text(encoding='utf-8'), settings)
  models = sorted(path.glob('*.model'))
  preferred = [m for m in models if m.name == 'tokenizer.model'] or models
  if len(preferred) > 1:
    raise ValueError(f'{path} holds several SentencePiece models: {", ".join(m.name for m in preferred)}.')
  if preferred:
    return from_sentencepiece(preferred[0])
  if (path / 'vocab.json').is_file() and (path / 'merges.txt').is_file():
    settings = tokenizer_files.read_settings(path)
    with tokenizer_files.naming(path / 'vocab.json', 'with merges.txt as a tokenizer'):
      return _from_merges(path, settings)
  if (path / ByteTokenizer.FILE).is_file():
    return ByteTokenizer()
  return None


def _from_merges(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
  """Returns the tokenizer of vocab.json and merges.txt, an older format that GPT-2, OPT and Qwen2 use."""
  vocabulary = json.loads((path / 'vocab.json').read_text(encoding='utf-8'))
  lines = (path / 'merges.txt').read_text(encoding='utf-8').splitlines()
  merges = [line.split(' ') for line in lines if line and not line.startswith('#version')]
  rule, defaults = tokenizer_files.merges_rule(settings)
  settings.update({k: v for k, v in defaults.items() if k not in settings and added_tokens.text_of(v) in vocabulary})
  return HuggingFaceTokenizer(byte_level_bpe.tokenizer_json(vocabulary, merges, settings, added={}, pre=rule), settings)


from_sentencepiece = sentencepiece_models.from_file
