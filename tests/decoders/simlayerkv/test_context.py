"""Contexts: read once and asked, continued, saved, loaded; with all layers whole they are plain decoding."""

import dataclasses
import functools
import json

import numpy as np
import pytest

import decoders
from decoders.simlayerkv import Context, KiviConfig, LazyConfig, compress
from decoders.speculative import PromptLookup, SpeculativeLoop
from decoders.strategies import PlainLoop
from jaxlm.caches import files
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import CheckpointError
from jaxlm.language_model import LanguageModel
from tests.lazy_models import MODEL, PROMPTS
from tests.models import tiny_model

LAZY = LazyConfig(n_initial=2, n_recent=8, n_full=1, stage='prefill')
WHOLE = LazyConfig(threshold=1.0, stage='prefill')
TURNS = [[3, 4, 5, 6, 7], [8], [9, 10]]
KINDS = {
  'whole': WHOLE,
  'pooled': LAZY,
  'static': LAZY.replace(layout='static', batch='all'),
  'ring': LAZY.replace(growth='ring'),
  'packed': LAZY.replace(quant=KiviConfig(8, group=8, residual=8)),
}


def test_questions_of_a_whole_context_are_answered_as_in_one_prompt():
  lm = tiny_model(MODEL)
  context = compress(lm, PROMPTS, lazy=WHOLE, room=24)
  out = context.ask(lm, TURNS, max_new_tokens=8)
  plain = decoders.generate(lm, [p + t for p, t in zip(PROMPTS, TURNS)], max_new_tokens=8)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  again = context.ask(lm, TURNS, max_new_tokens=8)
  np.testing.assert_array_equal(again.tokens, plain.tokens)


def test_one_context_answers_many_questions_and_stays_what_it_is():
  lm = tiny_model(MODEL)
  context = compress(lm, PROMPTS[:1], lazy=LAZY, room=24)
  before = context.nbytes
  out = context.ask(lm, TURNS, max_new_tokens=6)
  assert len(out.tokens) == 3 and context.nbytes == before
  for turn, row in zip(TURNS, out.tokens):
    np.testing.assert_array_equal(context.ask(lm, [turn], max_new_tokens=6).tokens[0], row)
  assert out.stats['new_tokens'] == 18 and out.stats['lazy_layers'] == context.stats['lazy_layers']


@pytest.mark.parametrize(
  'kind', ['whole', *(pytest.param(k, marks=pytest.mark.slow) for k in ('pooled', 'static', 'ring', 'packed'))]
)
def test_a_conversation_in_turns_equals_its_text_read_at_once(kind):
  """A reply, then a turn, against the same tokens read into the first context by `extend`."""
  lm = tiny_model(MODEL)
  context = compress(lm, PROMPTS, lazy=KINDS[kind], room=40)
  first, later = context.reply(lm, TURNS, max_new_tokens=6)
  second = later.ask(lm, [[1, 2], [3], [4, 5, 6]], max_new_tokens=4)
  read = context.extend(lm, [t + r for t, r in zip(TURNS, first.rows())])
  assert read.ids == later.ids
  at_once = read.ask(lm, [[1, 2], [3], [4, 5, 6]], max_new_tokens=4)
  if kind == 'packed':  # What is read together is exact to each other.
    assert (second.tokens == at_once.tokens).mean() > 0.5
  else:
    np.testing.assert_array_equal(second.tokens, at_once.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind, loop',
  [
    ('packed', PlainLoop()),
    pytest.param('ring', PlainLoop(), marks=pytest.mark.slow),
    *(pytest.param(k, SpeculativeLoop(PromptLookup(6)), marks=pytest.mark.slow) for k in ('ring', 'whole', 'pooled')),
  ],
)
def test_a_turn_after_a_stop_string_reads_nothing_behind_it(kind, loop):
  """The answer is cut at the stop string after more tokens are in the cache."""
  config = MODEL.replace(vocab_size=259, max_length=128)
  lm = LanguageModel(config, tiny_model(config).params, ByteTokenizer())
  context = compress(lm, PROMPTS, lazy=KINDS[kind], room=60)
  reply = functools.partial(context.reply, lm, TURNS, loop=loop, eos_id=None)
  whole, _ = reply(max_new_tokens=12)
  stop = lm.tokenizer.decode(whole.tokens[0, 4:6].tolist())
  out, later = reply(max_new_tokens=12, stop=[stop])
  assert out.lengths[0] < 12 and later.ids[0][-1] == whole.tokens[0, out.lengths[0] - 1]
  read = context.extend(lm, [t + r for t, r in zip(TURNS, out.rows())])
  turn = [[1, 2], [3], [4, 5, 6]]
  second, at_once = (c.ask(lm, turn, max_new_tokens=8, eos_id=None).tokens for c in (later, read))
  np.testing.assert_array_equal(second, at_once)


@pytest.mark.parametrize('kind', ['static', *(pytest.param(k, marks=pytest.mark.slow) for k in ('whole', 'packed'))])
def test_a_saved_context_answers_as_the_one_that_was_saved(kind, tmp_path):
  lm = tiny_model(MODEL)
  _, context = compress(lm, PROMPTS, lazy=KINDS[kind], room=24).reply(lm, TURNS, max_new_tokens=3)
  context.save(tmp_path / 'saved')
  loaded = Context.load(tmp_path / 'saved', lm)
  assert loaded.nbytes == context.nbytes and loaded.stats == context.stats
  asked = [c.ask(lm, [[1], [2, 3], [4]], max_new_tokens=5).tokens for c in (context, loaded)]
  np.testing.assert_array_equal(*asked)


def test_a_cache_that_does_not_fit_the_model_is_refused(tmp_path):
  lm = tiny_model(MODEL)
  context = compress(lm, PROMPTS[:1], lazy=LAZY, room=16)
  context.save(tmp_path / 'saved')
  with pytest.raises(FileExistsError, match='is there already'):
    context.save(tmp_path / 'saved')
  with pytest.raises(CheckpointError, match='saved: This cache belongs to a model with num_layers=3; this one has 2'):
    Context.load(tmp_path / 'saved', tiny_model())
  other = tiny_model(MODEL, seed=1)
  with pytest.raises(CheckpointError, match='checksum of weights'):
    Context.load(tmp_path / 'saved', other)
  with pytest.raises(ValueError, match='belongs to a model with rope'):
    changed = MODEL.replace(rope=dataclasses.replace(MODEL.rope, theta=5e5))
    context.ask(LanguageModel(changed, lm.params), [[1]])
  with pytest.raises(CheckpointError, match='holds no saved cache'):
    Context.load(tmp_path / 'nowhere', lm)
  damaged = tmp_path / 'saved' / 'cache.json'
  damaged.write_text(damaged.read_text()[:200])
  with pytest.raises(CheckpointError, match='saved is no whole saved cache'):
    Context.load(tmp_path / 'saved', lm)


def test_what_a_context_cannot_do_is_refused():
  lm = tiny_model(MODEL)
  with pytest.raises(ValueError, match="use stage='prefill'"):
    compress(lm, PROMPTS, lazy=LazyConfig())
  context = compress(lm, PROMPTS, lazy=LAZY, room=8)
  with pytest.raises(ValueError, match='13 tokens are more than the room for 8'):
    context.ask(lm, TURNS, max_new_tokens=8)
  with pytest.raises(ValueError, match='2 texts for 3 rows'):
    context.ask(lm, TURNS[:2])
  with pytest.raises(ValueError, match='leave batch_size and num_samples out'):
    context.ask(lm, TURNS, num_samples=2)
  with pytest.raises(ValueError, match="use layout='pooled'"):
    compress(lm, PROMPTS, lazy=LAZY.replace(layout='static'))


VALUES = (None, True, 'text', -1, 10**30, 0.5, [], [1], {})


def edits(tree, path=()):
  """Yields (path, edit) for every field and item, of which at most two of each list."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
  for key, value in items:
    yield (*path, key), None
    yield from (((*path, key), new) for new in map(lambda x: (x,), VALUES))
    yield from edits(value, (*path, key))


@pytest.mark.slow
def test_every_field_of_a_saved_context_is_checked_before_arrays_are_read(tmp_path, monkeypatch):
  lm = tiny_model(MODEL)

  def stop(metadata, wanted):
    raise ValueError('arrays would be read')

  monkeypatch.setattr(files, '_check_stored', stop)
  for kind in ('whole', 'pooled', 'packed'):
    compress(lm, PROMPTS, lazy=KINDS[kind], room=16).save(tmp_path / kind)
    file = tmp_path / kind / 'cache.json'
    whole = file.read_text()
    for path, edit in edits(json.loads(whole)):
      saved = json.loads(whole)
      place = functools.reduce(lambda x, key: x[key], path[:-1], saved)
      if edit is None:
        del place[path[-1]]
      else:
        place[path[-1]] = edit[0]
      file.write_text(json.dumps(saved))
      with pytest.raises(CheckpointError, match=str(tmp_path / kind)) as refused:
        Context.load(tmp_path / kind, lm)
      # What is left is no damage that a file shows: a field of the model that is not there had its default when the context was
      # saved, and other ids, sizes and statistics could have been.
      default = edit is None and (
        path[:2] == ('notes', 'model') or path[-1] in ('recent', 'initial', 'tokens_last', 'valid')
      )
      other = path[-1] in ('recent', 'initial') or path[:2] in [('notes', x) for x in ('ids', 'pending', 'stats')]
      passed = 'arrays would be read' in str(refused.value)
      assert passed <= (default or other or json.loads(whole) == saved), (path, edit)
      assert not (
        passed and edit is not None and (edit[0] in (None, 'text', -1) or edit[0] == {})
      ) or saved == json.loads(whole)


def test_arrays_of_other_shapes_on_disk_are_refused(tmp_path):
  lm = tiny_model(MODEL)
  for name, room in (('less', 8), ('more', 24)):
    compress(lm, PROMPTS, lazy=WHOLE, room=room).save(tmp_path / name)
  (tmp_path / 'less' / 'cache.json').write_text((tmp_path / 'more' / 'cache.json').read_text())
  with pytest.raises(CheckpointError, match='on disk, and cache.json says'):
    Context.load(tmp_path / 'less', lm)
