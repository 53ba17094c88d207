"""A distilled corpus holds the teacher's translations, loses and repeats nothing when it is stopped, and is used for what it is."""

import dataclasses
import json
import re

import pytest

import decoders
from decoders.translation import blocks
import jaxlm
from jaxlm.data import pair_tokenizers, pairs, synthetic
from jaxlm.data.pair_corpus import tokenize_pairs
from jaxlm.errors import CheckpointError, DataError
from jaxlm.io import checkpoint
from tests.decoders.translation.models_made import tiny
from tests.interruption import interrupted_at
from tests.models import tiny_model
from tests.trainers.translate.test_train import MODEL, parse
from tests.trainers.translate.test_train import config as run_config
from trainers import translate
from trainers.config import ConfigError
from trainers.translate import distillation
from trainers.translate.config import DistillConfig
from trainers.translate.distillation import EMPTY, UNREADABLE, Corpus

SOURCES = ['abc', 'f', 'dede', 'bb', 'a' * 32, 'cafe', 'fa\u2028b', 'bed', 'ace']
SETTINGS = DistillConfig(beam_size=2, batch_size=2)


class Tolerant:
  """The tokenizer of `tiny`, which also reads the line separator."""

  def encode_source(self, source: str) -> list[int]:
    return tiny().tokenizer.encode_source(source.replace('\u2028', ''))

  def decode_target(self, ids) -> str:
    return tiny().tokenizer.decode_target(ids)


TEACHER = dataclasses.replace(tiny(), tokenizer=Tolerant())


@pytest.fixture
def train(tmp_path):
  examples = (json.dumps({'en': source, 'de': 'real'}) + '\n' for source in SOURCES)
  (tmp_path / 'real.jsonl').write_text(''.join(examples))
  return pairs.read(str(tmp_path / 'real.jsonl'))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(blocks, 'BATCHES', 2)


def corpus(tmp_path, pairs, **changes) -> Corpus:
  return dataclasses.replace(Corpus(tmp_path / 'made.jsonl', pairs, TEACHER, 'teacher', SETTINGS, print), **changes)


def expected() -> list[tuple[str, str]]:
  """Returns the pairs with the translations that the function gives, all in one call."""
  readable = [source for source in SOURCES if len(source) < 32]
  out = decoders.translate(TEACHER, readable, beam_size=2)
  return [(source, text) for source, text in zip(readable, out.text) if text]


def files(tmp_path) -> list[str]:
  return sorted(p.name for p in tmp_path.iterdir() if p.name.startswith('made'))


def test_targets_are_the_translations_and_what_has_none_is_counted(tmp_path, train, capsys):
  made = corpus(tmp_path, train)
  note = made.make()
  found = pairs.read(str(made.path), 'en', 'de')
  assert list(found) == expected() and 'distilling: 9 of 9 sources' in capsys.readouterr().out
  lines = [json.loads(line) for line in made.path.read_text(encoding='utf-8').split('\n')[:-1]]
  assert [line['en'] for line in lines] == SOURCES and lines[4]['left_out'] == UNREADABLE
  assert (note['sources'], note['pairs'], note[UNREADABLE], note[EMPTY]) == (9, 8, 1, 0)
  assert found.counts == pairs.Counts(kept=8, empty=1)
  assert '8 of 9 sources' in made.report(
    note
  ) and '1 sources that the teacher cannot read (no token, or more than 31)' in (made.report(note))
  assert files(tmp_path) == ['made.jsonl', 'made.jsonl.made-from.json']


def test_sources_of_a_generated_language_are_distilled(tmp_path, monkeypatch):
  class Words(Tolerant):
    def encode_source(self, source: str) -> list[int]:
      return [3 + len(word) for word in source.split()]

  monkeypatch.setitem(synthetic.SIZES, 'train', 5)
  real, valid = pairs.train_and_valid('grammar:monotone')
  made = corpus(tmp_path, real, teacher=dataclasses.replace(TEACHER, tokenizer=Words()))
  assert made.make()['pairs'] == 5 and valid.name == 'grammar:monotone:valid'
  found = list(pairs.read(str(made.path)))
  assert [source for source, _ in found] == [source for source, _ in real] and all(
    target.isupper() for _, target in found
  )


def test_empty_translations_are_counted(tmp_path, train):
  class Silent(Tolerant):
    def decode_target(self, ids) -> str:
      return ' ' if len(ids) % 2 else super().decode_target(ids)

  made = corpus(tmp_path, train, teacher=dataclasses.replace(TEACHER, tokenizer=Silent()))
  note = made.make()
  odd = sum(len(text) % 2 for _, text in expected())
  assert 0 < odd < 8 and note[EMPTY] == odd and note['pairs'] == 8 - odd
  assert f'{odd} sources with an empty translation' in made.report(note)


@pytest.mark.parametrize('cut', [0, 3], ids=['between lines', 'within a line'])
def test_an_interrupted_corpus_is_gone_on_with(tmp_path, train, monkeypatch, cut):
  with interrupted_at(monkeypatch, decoders, 'translate', 2):
    corpus(tmp_path, train).make()
  made = corpus(tmp_path, train)
  content = made.path.read_bytes()
  assert content.count(b'\n') == 4 and not made.is_finished
  made.path.write_bytes(content[: len(content) - cut])
  with pytest.raises(DataError, match='unfinished output of another run: its beam_size is 2, and here it is 3'):
    corpus(tmp_path, train, settings=DistillConfig(beam_size=3)).make()
  made.make()
  assert list(pairs.read(str(made.path))) == expected()


def test_a_process_that_dies_between_the_two_notes_loses_nothing(tmp_path, train, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr('decoders.resumable.Blocks.end', lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      corpus(tmp_path, train).make()
  assert files(tmp_path) == ['made.jsonl', 'made.jsonl.made-from.json', 'made.jsonl.unfinished.json']
  monkeypatch.setattr(decoders, 'translate', None, raising=False)  # Nothing is translated again.
  corpus(tmp_path, train).make()
  assert list(pairs.read(str(tmp_path / 'made.jsonl'))) and len(files(tmp_path)) == 2


def test_a_finished_corpus_is_used_only_for_what_it_is_made_from(tmp_path, train, monkeypatch):
  made = corpus(tmp_path, train)
  note, content = made.make(), made.path.read_bytes()
  monkeypatch.setattr(decoders, 'translate', None, raising=False)
  assert corpus(tmp_path, train, name='moved').make() == note

  def refused(message, **changes):
    with pytest.raises(DataError, match=message):
      corpus(tmp_path, train, **changes).make()
    assert made.path.read_bytes() == content

  (tmp_path / 'other.tsv').write_text('abc\tx\nf\ty\n')
  refused('was made from something else: its length_penalty is 1.0, and here it is 0.5. Name another file with --dist',
          settings=dataclasses.replace(SETTINGS, length_penalty=0.5))  # fmt: skip
  refused("its teacher's digest is", teacher=dataclasses.replace(TEACHER, params=tiny(seed=1).params))
  refused('its sha256 of the sources is', train=pairs.read(str(tmp_path / 'other.tsv')))
  refused(re.escape("its pair of languages is ['en', 'de'], and here it is ['en', 'fr']"),
          train=dataclasses.replace(train, languages=('en', 'fr')))  # fmt: skip
  content = content.replace(b'abc', b'abd')
  made.path.write_bytes(content)
  refused('was changed after it was made.* pass it as --data.source')
  made.note.write_text('[]')
  refused('made-from.json is damaged, so what lies beside it is not known')
  made.note.unlink()
  refused('is there already, and is not the unfinished output of this command')


@pytest.mark.slow
def test_a_run_learns_the_translations_and_is_judged_by_real_pairs(text, tmp_path, monkeypatch):
  teacher, shared = tmp_path / 'teacher', tmp_path / 'shared' / 'made.jsonl'
  short = (
    '--run.steps',
    '2',
    '--data.max-length',
    '32',
  )  # The teacher has learned little, and its translations are long.
  translate.main(run_config(text, teacher, *short))
  distil = '--distill-from', str(teacher), '--distill.beam-size', '2', '--distill.corpus', str(shared)
  translate.main(run_config(text, tmp_path / 'student', *short, *distil))
  note = json.loads((shared.parent / 'made.jsonl.made-from.json').read_text())
  assert note["teacher's step"] == 2 and note['sources'] == 160 and note['teacher'] == str(teacher)
  texts = lambda path: checkpoint.read_notes(path / 'checkpoints' / '2')['data']['texts']
  assert texts(tmp_path / 'student')['held-out'] == texts(teacher)['held-out']
  found = tokenize_pairs(pairs.read(str(shared)), pair_tokenizers.load(tmp_path / 'student' / 'tokenizer'))
  assert texts(tmp_path / 'student')['training']['digest'] == f'{found.source.digest} {found.target.digest}'
  sources = [source for source, _ in pairs.read(str(text / 'train.tsv'))]
  model = jaxlm.load(teacher, dtype='float32')
  assert list(pairs.read(str(shared))) == list(zip(sources, decoders.translate(model, sources, beam_size=2).text))
  # A student that predicts all tokens at once uses the same corpus.
  at_once = run_config(text, tmp_path / 'at once', *short, *distil, model=MODEL.replace(kind='cmlm'))
  monkeypatch.setattr(decoders, 'translate', None, raising=False)
  translate.main(at_once)
  assert texts(tmp_path / 'at once') == texts(tmp_path / 'student')


def test_what_cannot_be_a_teacher_is_named_before_anything_is_written(text, tmp_path, monkeypatch):
  made = lambda *flags: run_config(text, tmp_path / 'student', *flags)
  with pytest.raises(DataError, match='--distill-from .*nowhere: .*nowhere'):
    translate.main(made('--distill-from', str(tmp_path / 'nowhere')))
  monkeypatch.setattr('jaxlm.load', lambda path, dtype: tiny_model(), raising=False)
  with pytest.raises(DataError, match='--distill-from .*: .* is no encoder-decoder but a LanguageModel'):
    translate.main(made('--distill-from', str(tmp_path)))
  at_once = dataclasses.replace(TEACHER, config=TEACHER.config.replace(kind='cmlm'))
  monkeypatch.setattr('jaxlm.load', lambda path, dtype: at_once, raising=False)
  with pytest.raises(DataError, match="--distill-from .*: this model has kind='cmlm' .* Name a model of kind 'autoreg"):
    translate.main(made('--distill-from', str(tmp_path)))
  with pytest.raises(ConfigError, match='is the run directory itself: pass --run.directory'):
    translate.main(made('--distill-from', str(tmp_path / 'student')))
  assert not (tmp_path / 'student').exists()
  monkeypatch.setattr('jaxlm.load', lambda path, dtype: TEACHER, raising=False)
  (tmp_path / 'student').mkdir()
  (tmp_path / 'student' / 'mine').touch()
  monkeypatch.setattr(distillation.Corpus, 'make', None)
  with pytest.raises(CheckpointError, match="holds 'mine' but no config.json"):
    translate.main(made('--distill-from', str(tmp_path)))


def test_settings_of_distillation_are_checked():
  assert parse('--distill-from', 'runs/grammar').run.directory == 'runs/grammar-distilled'
  assert parse('--distill-from=runs/grammar', '--run.directory', 'x').run.directory == 'x'
  for field, bad in (('beam_size', 0), ('batch_size', 0), ('length_penalty', float('nan')), ('corpus', 'a.tsv')):
    with pytest.raises(ConfigError, match=f'distill.{field}=.*{bad}'):
      DistillConfig(**{field: bad})
  with pytest.raises(ConfigError, match='name one with --distill-from'):
    translate.TranslateConfig(distill=DistillConfig(beam_size=3))
