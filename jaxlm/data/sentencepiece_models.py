"""SentencePiece tokenizers: loading a .model file with the settings beside it, and training new models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import io
import json
from pathlib import Path
import re
from typing import Any

from jaxlm.data import added_tokens, tokenizer_files
from jaxlm.data.byte_table import ByteTable


class SentencePieceTokenizer(ByteTable):
  """Tokenizer of a SentencePiece model. As in SentencePiece, the character U+2581 in a text is read as a space.

  A text is split at its added tokens, and the parts are encoded one by one. If the model adds a space before a text, the
  setting `space_rule` says before which parts: before all ('sentencepiece'), before those that do not begin with a space
  ('always'), or only before a part at the start of the text ('first'). The last two are transformers' legacy=True and
  legacy=False.

  Args:
    proto: the bytes of the .model file.
    settings: settings from the files beside it: added tokens, and the ids of BOS, EOS and padding.
  """

  def __init__(self, proto: bytes, settings: Mapping[str, Any] | None = None):
    import sentencepiece

    settings = {} if settings is None else settings
    self._proto = proto
    self._space_rule, prefix = tokenizer_files.space_rule(settings)
    self.strips_first_space = _dummy_prefix(proto) if prefix is None else prefix
    load = lambda prefix: sentencepiece.SentencePieceProcessor(model_proto=_with_dummy_prefix(proto, prefix))
    self._processor = sp = load(self.strips_first_space)
    self._bare = load(False) if self._space_rule != 'sentencepiece' else sp
    size = sp.get_piece_size()
    self._bytes = [self._piece_bytes(i) for i in range(size)]
    special = [i for i in range(size) if sp.is_control(i) or (sp.is_unknown(i) and tokenizer_files.names_unk(settings))]
    tokens = self._added_tokens({i: added_tokens.marker(sp.id_to_piece(i)) for i in special}, settings)
    self._special = {token.content: id for id, token in tokens.items() if token.special}
    self._added = {id: token for id, token in tokens.items() if id >= size or not sp.is_control(id)}
    self._splitter = added_tokens.Splitter(tokens)
    self._cuts_plain = any(not token.special for token in tokens.values())
    self._bytes += [b''] * (max(tokens, default=0) + 1 - size)
    for id, token in tokens.items():
      self._bytes[id] = token.content.encode()
    ids = {'bos': sp.bos_id(), 'eos': sp.eos_id(), 'pad': sp.pad_id()}
    # SentencePiece models expect BOS unless their settings say otherwise.
    tokenizer_files.set_specials(self, {n: id for n, id in ids.items() if id >= 0}, settings, adds_bos=True)
    beside = self._settings()
    marks = b'' if beside == {'space_rule': 'sentencepiece'} else json.dumps(beside, sort_keys=True).encode()
    self.fingerprint = hashlib.sha256(proto + marks).hexdigest()

  def _added_tokens(self, tokens: dict[int, Any], settings: Mapping[str, Any]) -> dict[int, Any]:
    """Returns the model's special tokens and the tokens that settings add, sorted by id."""
    sp = self._processor
    size = end = sp.get_piece_size()
    pieces = {sp.id_to_piece(i): i for i in range(size)}
    for id, token in added_tokens.declared(settings).items():
      if pieces.get(token.content, id) != id or id > end:
        where = f'the model has it as {pieces[token.content]}' if token.content in pieces else f'the next is {end}'
        raise ValueError(f'the added token {token.content!r} has the id {id}, but {where}')
      token.special |= id in tokens
      tokens[id] = token
      pieces[token.content] = id
      end = max(end, id + 1)
    for token in added_tokens.by_role(settings).values():
      if (id := pieces.get(token.content)) is not None:
        tokens.setdefault(id, token).special = True
    return dict(sorted(tokens.items()))

  def _piece_bytes(self, id: int) -> bytes:
    sp = self._processor
    if sp.is_byte(id):
      return bytes([int(sp.id_to_piece(id)[3:5], 16)])
    if sp.is_unknown(id):
      return '\ufffd'.encode()
    return sp.id_to_piece(id).replace('\u2581', ' ').encode()

  def _encode_part(self, text: str, begins: bool) -> list[int]:
    """Returns the ids of a text without added tokens. `begins`: whether it is at the start of the whole text."""
    if self._space_rule == 'sentencepiece':
      return self._processor.encode(text) if text else []
    spaced = text.startswith((' ', '\u2581')) or (self._space_rule == 'first' and not begins)
    return (self._bare if spaced else self._processor).encode(text) if text else []

  def _encode_parts(self, text: str, special: bool) -> list[int]:
    ids = []
    for id, part, begins in self._splitter.split(text, special=special):
      ids += self._encode_part(part, begins) if id is None else [id]
    return ids

  def _encode_plain(self, text: str) -> list[int]:
    return self._encode_parts(text, special=False) if self._cuts_plain else self._encode_part(text, True)

  def _encode_special(self, text: str) -> list[int]:
    return self._encode_parts(text, special=True)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    if self._cuts_plain or self._space_rule != 'sentencepiece':
      return [self._encode_plain(text) for text in texts]
    return self._processor.encode(list(texts))

  def _settings(self) -> dict[str, Any]:
    """Returns the settings that a file beside the model needs, so that a loaded copy encodes and decodes equally."""
    settings: dict[str, Any] = {'space_rule': self._space_rule}
    if self.strips_first_space != _dummy_prefix(self._proto):
      settings['add_prefix_space'] = self.strips_first_space
    if self._added:
      settings['added_tokens_decoder'] = {str(id): added_tokens.fields_of(token) for id, token in self._added.items()}
    return settings

  def save(self, directory: str | Path) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'tokenizer.model').write_bytes(self._proto)
    # transformers reads the class, `legacy` and `add_prefix_space`, which together give the same space rule.
    as_transformers = {'tokenizer_class': 'LlamaTokenizer', 'legacy': self._space_rule != 'first'}
    settings = tokenizer_files.settings_of(self) | as_transformers | {'add_prefix_space': self.strips_first_space}
    tokenizer_files.write_json(directory / 'tokenizer_config.json', settings | self._settings())


def _model(proto: bytes) -> Any:
  from sentencepiece import sentencepiece_model_pb2

  return sentencepiece_model_pb2.ModelProto.FromString(proto)


def _dummy_prefix(proto: bytes) -> bool:
  return _model(proto).normalizer_spec.add_dummy_prefix


def _with_dummy_prefix(proto: bytes, prefix: bool) -> bytes:
  model = _model(proto)
  if model.normalizer_spec.add_dummy_prefix == prefix:
    return proto
  model.normalizer_spec.add_dummy_prefix = prefix
  return model.SerializeToString()


def from_file(path: str | Path) -> SentencePieceTokenizer:
  """Returns the tokenizer of a .model file, with the settings from files in the same folder."""
  path = Path(path)
  settings = tokenizer_files.read_settings(path.parent)
  with tokenizer_files.naming(path, 'as a SentencePiece model'):
    return SentencePieceTokenizer(path.read_bytes(), settings)


# ---- training ----


def train_sentencepiece(
  texts: Iterable[str],
  vocab_size: int,
  directory: str | Path | None = None,
  *,
  kind: str = 'bpe',
  dummy_prefix: bool = False,
  max_bytes: int = 100_000_000,
) -> SentencePieceTokenizer:
  """Trains a lossless SentencePiece model: unseen characters become bytes; newlines and runs of spaces are kept.

  Ids: unk 0, bos 1, eos 2, pad 3, 256 bytes, then pieces. Training is deterministic: equal texts give equal models.

  Args:
    directory: folder to save the tokenizer to (None: it is not saved).
    kind: 'bpe' or 'unigram'.
    dummy_prefix: adds a space before each text, so that a word has the same piece at the start as later. Without it,
      decode(a + b) = decode(a) + decode(b).
    max_bytes: training reads at most about this much text.

  Raises:
    ValueError: the vocabulary is too large for the amount of text, or too small for its characters; the message has both
      numbers.
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
  # SentencePiece silently drops sentences longer than 4192 bytes, so long lines are split. Newlines are byte pieces.
  for text in texts:
    for line in text.splitlines():
      for start in range(0, len(line), 1000):
        piece = line[start : start + 1000]
        seen[0] += len(piece.encode())
        if piece:
          yield piece
    if seen[0] >= max_bytes:
      return
