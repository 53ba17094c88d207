"""Models that read in reverse: prompts are the end of a text, and what comes out is in reading order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import decoders
from decoders import command, directions
from decoders.prompts import encode
from decoders.speculative import DraftModel, PromptLookup
from decoders.swift.config import SwiftConfig
import jaxlm
from jaxlm.data import directions as data
from jaxlm.data.corpus import TokenCorpus
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.language_model import LanguageModel
from tests.models import TINY, tiny_model
from tests.tokenizers_made import llama_json

BYTES = TINY.replace(vocab_size=259, max_length=96)
CYCLE = 'abcdefgh' * 12


def trained(direction: str, signal: str, seed: int = 0) -> LanguageModel:
  """A tiny model of cycles of eight letters; each document is a piece of them between BOS and EOS."""
  from trainers.next_token import next_token_loss

  tokenizer, rng = ByteTokenizer(), np.random.default_rng(0)
  config = BYTES.replace(
    vocab_size=259 + len(data.signal_ids(signal, 263)), direction=direction, direction_signal=signal
  )
  headed = data.Headed(tokenizer, signal)
  pieces = [CYCLE[at : at + n] for at, n in zip(rng.integers(0, 8, 80), rng.integers(8, 40, 80))]
  documents = [headed.encode(piece, bos=True, eos=True) for piece in pieces]
  reading = data.Reading(direction, headed.bos_id, config.vocab_size, signal)
  batches = data.make_batches(TokenCorpus.from_documents(documents), reading, batch_size=8, length=48)
  tx = optax.adam(1e-2)
  params = tiny_model(config, seed).params

  @jax.jit
  def step(params, state, batch):
    loss = lambda p: (lambda total, weight: total / weight)(*next_token_loss(p, batch, config))
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  state = tx.init(params)
  for i in range(120):
    params, state, value = step(params, state, {k: jnp.asarray(x) for k, x in batches.batch(i).items()})
  assert value < 0.5
  return LanguageModel(config, params, tokenizer)


@pytest.fixture(scope='module')
def both():
  return trained('both', 'token')


@pytest.fixture(scope='module')
def reverse():
  return trained('reverse', 'none')


def before(end: str, n: int) -> str:
  """The n letters of the cycle that stand before its letters `end`."""
  at = CYCLE.index(end, 40)
  return CYCLE[at - n : at]


def test_a_reverse_model_generates_what_stands_before(reverse):
  ends = ['cde', 'fghabc', 'h']
  out = decoders.generate(reverse, ends, max_new_tokens=20)
  assert out.text == [before(end, 20) for end in ends]
  # Tokens are in the order in which they were generated.
  assert [bytes(row).decode()[::-1] for row in out.rows()] == out.text
  explicit = decoders.generate(reverse, ends, max_new_tokens=20, direction='reverse')
  np.testing.assert_array_equal(explicit.tokens, out.tokens)


@pytest.mark.slow
def test_a_model_of_both_goes_either_way(both):
  assert decoders.generate(both, ['cde'], max_new_tokens=16).text == ['fghabcde' * 2]
  out = decoders.generate(both, ['cde', 'ab'], max_new_tokens=16, direction='reverse')
  assert out.text == [before('cde', 16), before('ab', 16)]


def test_a_text_ends_at_its_beginning(both, reverse):
  for lm in (both, reverse):
    out = decoders.generate(lm, ['cde', ''], max_new_tokens=20, direction='reverse', eos_id=ord('f'))
    assert out.text[0] == 'fghab' and out.lengths[0] == 5
    assert out.text[1][0] == 'f' and out.text[1] in CYCLE and len(out.text[1]) == out.lengths[1]
  assert directions.generated_text(reverse, [256, 99], [98, 97, 257], 'reverse') == 'ab'  # EOS is no text.


def test_prompts_are_what_the_model_was_trained_on(both):
  of = lambda direction, prompt='ab', lm=both: encode(lm, [prompt], direction)[0]
  assert of('forward') == [256, 259, 97, 98] and of('reverse') == [256, 260, 98, 97]
  # Ids may begin with BOS, a signal or neither, and are in reading order.
  for ids in ([97, 98], [256, 97, 98], [256, 260, 97, 98]):
    assert of('forward', ids) == [256, 259, 97, 98] and of('reverse', ids) == [256, 260, 98, 97]
  bos = dataclasses.replace(both, config=BYTES.replace(vocab_size=260, direction='both', direction_signal='bos'))
  assert of('forward', lm=bos) == [256, 97, 98] and of('reverse', lm=bos) == [259, 98, 97]
  none = dataclasses.replace(both, config=BYTES.replace(direction='both'))
  assert of('forward', lm=none) == [256, 97, 98] and of('reverse', lm=none) == [256, 98, 97]
  assert of('forward', [97, 98], none) == [97, 98]  # As they are: nothing must be in front.
  plain = dataclasses.replace(both, config=BYTES)
  assert of(None, lm=plain) == [97, 98] and of(None, lm=dataclasses.replace(both, config=none.config)) == [256, 97, 98]
  unread = dataclasses.replace(both, tokenizer=None)
  assert of('reverse', [97, 98], unread) == [260, 98, 97]


def test_samples_and_batch_sizes(both):
  settings = dict(max_new_tokens=6, direction='reverse', sampling=decoders.Sampling(temperature=1.0), num_samples=2)
  together = decoders.generate(both, ['ab', 'fgh', ''], **settings)
  apart = decoders.generate(both, ['ab', 'fgh', ''], batch_size=1, **settings)
  assert together.text == apart.text and len(together.text) == 6


def test_ids_are_streamed_in_the_order_of_generation(reverse):
  streamed = {0: [], 1: []}
  out = decoders.generate(reverse, ['cde', 'ab'], max_new_tokens=10, stream=lambda row, ids: streamed[row].extend(ids))
  assert list(streamed.values()) == out.rows()


def test_a_stop_string_ends_the_row_and_the_text_begins_behind_it(reverse):
  streamed = {0: [], 1: []}
  out = decoders.generate(
    reverse, ['cde', 'h'], max_new_tokens=40, stop=['hab', 'cd'], stream=lambda row, ids: streamed[row].extend(ids)
  )
  # Before cde stands ..fghab, which ends in the first string at once; before h stands ..cdefg.
  assert out.text == ['', 'efg'] and out.lengths.tolist() == [3, 5]
  assert list(streamed.values()) == out.rows()
  assert directions.cut('xxSTOPyySTOPzz', ['STOP', 'yy'], 'reverse') == 'zz'
  assert directions.cut('xxSTOPyySTOPzz', ['STOP', 'yy'], 'forward') == 'xx'


@pytest.mark.slow
def test_speculative_decoding_gives_the_same_text(both, reverse):
  cases = ((reverse, None, trained('reverse', 'none', seed=1)), (both, 'reverse', both), (both, 'forward', both))
  for lm, direction, draft in cases:
    settings = dict(max_new_tokens=24, direction=direction)
    plain = decoders.generate(lm, ['cde', 'fgh'], **settings)
    for drafter in (PromptLookup(), DraftModel.of(draft, max_draft=3)):
      out = decoders.speculative.generate(lm, ['cde', 'fgh'], drafter=drafter, **settings)
      assert out.text == plain.text and out.stats['accepted'] > 0
  with pytest.raises(ValueError, match="draft model was trained with direction='reverse' and the model with 'both'"):
    decoders.speculative.generate(both, ['cde'], drafter=DraftModel.of(reverse))


def test_a_direction_that_was_not_trained_names_both(both, reverse):
  with pytest.raises(ValueError, match="direction='forward', but this model was trained with direction='reverse'"):
    decoders.generate(reverse, ['abc'], direction='forward')
  plain = LanguageModel(BYTES, tiny_model(BYTES).params, ByteTokenizer())
  with pytest.raises(ValueError, match="direction='reverse', but this model was trained with direction='forward'"):
    decoders.generate(plain, ['abc'], direction='reverse')
  with pytest.raises(ValueError, match="Unknown direction 'both'"):
    decoders.generate(both, ['abc'], direction='both')


def test_contexts_refuse_models_whose_texts_do_not_grow_at_the_end(both, reverse):
  for lm in (both, reverse):
    with pytest.raises(ValueError, match='A context grows at its end.*direction='):
      decoders.simlayerkv.compress(lm, ['abcdefgh'])


def test_spaces_and_characters_at_the_border():
  """What is added and the prompt together are the text of all ids."""
  for tokenizer in (ByteTokenizer(), llama_json()):
    config = TINY.replace(vocab_size=tokenizer.vocab_size, direction='reverse')
    lm = LanguageModel(config, None, tokenizer)
    for text in ('Hello lo', 'lo Hel', 'naïve é'):
      whole = tokenizer.encode(text)
      for n in range(len(whole) + 1):
        new, prompt = whole[:n], [tokenizer.bos_id, *whole[n:][::-1]]
        added = directions.generated_text(lm, prompt, new[::-1], 'reverse')
        assert added + tokenizer.decode(whole[n:]) == text or '\ufffd' in added


@pytest.mark.slow
def test_the_command_prints_reading_order(both, reverse, monkeypatch, capsys):
  models = {'both': both, 'reverse': reverse}
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: models[path], raising=False)
  say = lambda model, **flags: command.main(command.GenerateConfig(model, max_new_tokens=8, stats=False, **flags))
  for flags in (dict(model='reverse'), dict(model='both', direction='reverse')):
    say(prompt=('cde',), **flags)
    assert capsys.readouterr().out == before('cde', 8) + 'cde\n'
  say('both', prompt=('cde',))
  assert capsys.readouterr().out == 'cde' + 'fghabcde' + '\n'
  say('reverse', prompt=('cde', 'h'), stop=('ga',))
  assert capsys.readouterr().out == f'--- 0\n{before("cde", 8)}cde\n--- 1\n{before("h", 8)}h\n'
  say('reverse', prompt=('cde',), decoder='draft', draft_model='reverse')
  assert capsys.readouterr().out == before('cde', 8) + 'cde\n'
  with pytest.raises(ValueError, match="trained with direction='reverse'"):
    say('reverse', prompt=('cde',), direction='forward')
  with pytest.raises(ValueError, match='--chat is answered forward'):
    say('reverse', chat='Hello')


@pytest.mark.slow
def test_other_decoders_inherit_it(reverse):
  config = reverse.config.replace(num_layers=4)
  lm = LanguageModel(config, tiny_model(config).params, reverse.tokenizer)
  plain = decoders.generate(lm, ['cde', 'fgh'], max_new_tokens=10)
  swift = SwiftConfig(max_draft=3, guard=False, search=False)
  assert decoders.swift.generate(lm, ['cde', 'fgh'], max_new_tokens=10, swift=swift).text == plain.text
  lazy = decoders.simlayerkv.LazyConfig(threshold=1.0)
  assert decoders.simlayerkv.generate(lm, ['cde', 'fgh'], max_new_tokens=10, lazy=lazy).text == plain.text


def test_a_hugging_face_directory_keeps_the_direction(both, tmp_path):
  jaxlm.save_huggingface(both, tmp_path / 'hf')
  back = jaxlm.load(tmp_path / 'hf')
  assert (back.config.direction, back.config.direction_signal) == ('both', 'token')
  prompts, settings = ['cde'], dict(max_new_tokens=8, direction='reverse')
  assert decoders.generate(back, prompts, **settings).text == decoders.generate(both, prompts, **settings).text
