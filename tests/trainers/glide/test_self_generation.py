"""The corpus of a target's own texts holds what the target writes, loses nothing when it is stopped, and is used for what it is."""

import dataclasses
import json

import jax
import pytest

import decoders
from jaxlm.data.corpus import TokenCorpus
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from tests.interruption import interrupted_at
from tests.models import init
from tests.trainers.glide.conftest import TARGET
from trainers.glide import self_generation
from trainers.glide.config import GenerationConfig
from trainers.glide.self_generation import SelfGenerated

BYTES = ByteTokenizer()
SETTINGS = GenerationConfig(temperature=1.0, batch_size=2)
PROMPTS = [[10 + i, 20 + i, 30][: 2 + i % 2] for i in range(7)]


class Chatting(ByteTokenizer):
  def chat(self, message, **_):
    return [self.bos_id, *self.encode(f'{message}?')]


@pytest.fixture(scope='module')
def lm():
  return LanguageModel(TARGET, init(TARGET, jax.random.key(7)), BYTES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(self_generation, 'BLOCK', 3)


def made(tmp_path, target, **changes) -> SelfGenerated:
  return dataclasses.replace(SelfGenerated(tmp_path / 'made.jsonl', target, PROMPTS, 11, SETTINGS, print), **changes)


def files(tmp_path) -> list[str]:
  return sorted(p.name for p in tmp_path.iterdir())


def test_texts_are_prompts_and_what_the_target_writes_after_them(tmp_path, lm, capsys):
  texts = made(tmp_path, lm, settings=dataclasses.replace(SETTINGS, temperature=0.0))
  texts.make()
  corpus, firsts = texts.read()
  assert firsts == [len(p) for p in PROMPTS] and corpus.num_documents == 7
  # The longest prompt has three tokens, which leaves 8 new ones in a text of 11.
  expected = decoders.generate(lm, PROMPTS, max_new_tokens=8, batch_size=2, capacity=11).rows()
  assert [corpus.document(i).tolist() for i in range(7)] == [p + row for p, row in zip(PROMPTS, expected)]
  out = capsys.readouterr().out
  assert '3 of 7 texts' in out and '7 of 7 texts' in out and 'tokens/s' in out
  assert files(tmp_path) == ['made.jsonl', 'made.jsonl.made-from.json']


@pytest.mark.parametrize('cut', [0, 5], ids=['between blocks', 'within a block'])
def test_an_interrupted_corpus_is_continued_with_the_same_texts(tmp_path, lm, monkeypatch, cut):
  whole = made(tmp_path, lm, path=tmp_path / 'whole.jsonl')
  whole.make()
  with interrupted_at(monkeypatch, decoders, 'generate', 3):
    made(tmp_path, lm).make()
  texts = made(tmp_path, lm)
  content = texts.path.read_bytes()
  assert content.count(b'\n') == 6 and not texts.is_finished
  texts.path.write_bytes(content[: len(content) - cut])
  with pytest.raises(DataError, match='unfinished output of another run: its temperature is 1.0, and here it is 0.5'):
    made(tmp_path, lm, settings=dataclasses.replace(SETTINGS, temperature=0.5)).make()
  # How many texts are generated together changes nothing.
  made(tmp_path, lm, settings=dataclasses.replace(SETTINGS, batch_size=3)).make()
  assert texts.path.read_bytes() == whole.path.read_bytes()


def test_blocks_have_other_random_numbers(tmp_path, lm):
  texts = made(tmp_path, lm, prompts=[[65, 66]] * 6)
  texts.make()
  rows = [json.loads(line)['tokens'] for line in texts.path.read_text().splitlines()]
  assert len({tuple(row) for row in rows}) == 6
  other = made(
    tmp_path, lm, prompts=[[65, 66]] * 6, path=tmp_path / 'o.jsonl', settings=dataclasses.replace(SETTINGS, seed=1)
  )
  other.make()
  assert not {tuple(json.loads(line)['tokens']) for line in other.path.read_text().splitlines()} & set(map(tuple, rows))


def test_a_finished_corpus_is_used_only_for_what_it_was_made_from(tmp_path, lm, monkeypatch):
  texts = made(tmp_path, lm)
  texts.make()
  content = texts.path.read_bytes()
  monkeypatch.setattr(decoders, 'generate', None, raising=False)  # Nothing is generated again.
  made(tmp_path, lm).make()

  def refused(message, **changes):
    with pytest.raises(DataError, match=message):
      made(tmp_path, lm, **changes).make()
    assert texts.path.read_bytes() == content

  moved = jax.tree.map(lambda x: x + 1e-3, lm.params)
  refused("its target's digest is .* Name another file with --gener", lm=dataclasses.replace(lm, params=moved))
  refused('its seed is 0, and here it is 1', settings=dataclasses.replace(SETTINGS, seed=1))
  refused('its sha256 of the prompts', prompts=PROMPTS[::-1])
  refused('its longest text is 11, and here it is 12', longest=12)
  content = content.replace(b'"prompt": 2', b'"prompt": 1')
  texts.path.write_bytes(content)
  refused('was changed after it was made')
  texts.note.unlink()
  refused('is there already, and is not the unfinished output of this command')


def test_prompts_are_pieces_of_text_or_messages_and_never_repeat():
  texts = [f'document {i:02} has a few words' for i in range(20)]
  corpus = TokenCorpus.from_documents(BYTES.encode(text, eos=True) for text in texts)
  found = self_generation.prompts(corpus, BYTES, 60, 9)
  assert sorted(map(bytes, found)) == sorted(text[i : i + 9].encode() for text in texts for i in (0, 9, 18))
  assert found != self_generation.prompts(corpus, BYTES, 60, 9, seed=1)
  assert (
    self_generation.prompts(corpus, BYTES, 5, 9) == found[:5] and self_generation.prompts(corpus, BYTES, 0, 9) == []
  )
  chats = self_generation.prompts(corpus, Chatting(), 20, 11, chat=True)
  assert {bytes(p[1:]).decode() for p in chats} == {f'document {i:02}?' for i in range(20)}
  # Fewer documents than messages: the next piece of each document is a message too.
  pieces = {bytes(p[1:]).decode() for p in self_generation.prompts(corpus, Chatting(), 40, 11, chat=True)}
  assert pieces == {f'{text[i : i + 11]}?' for text in texts for i in (0, 11)}
  with pytest.raises(
    DataError, match='41 prompts are wanted, but the text has only 40 pieces of 11 tokens within a doc'
  ):
    self_generation.prompts(corpus, Chatting(), 41, 11, chat=True)
  with pytest.raises(DataError, match='only 60 pieces of 9 tokens within a document'):
    self_generation.prompts(corpus, BYTES, 61, 9)
  with pytest.raises(DataError, match='chat template'):
    self_generation.prompts(corpus, BYTES, 1, 9, chat=True)
