"""Stop strings, EOS ids and logits that are not finite end rows alike in every decoder."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import directions, endings, speculative
from decoders.simlayerkv import LazyConfig
from decoders.swift import SwiftConfig
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import NotFiniteError
from jaxlm.language_model import LanguageModel
from tests.models import TINY, scripted_model, slow, tiny_model
from tests.tokenizers_made import byte_level_bpe

END = '<|im_end|>'


@functools.cache
def chatty(num_layers: int = 4) -> LanguageModel:
  """A model that says hi<|im_end|> and a new line for ever; the tokenizer is a base model's, which ends at <|endoftext|>."""
  t = byte_level_bpe()
  t.stop_ids, t.eos_id = (0,), 0
  h, i, line = (t.encode(text)[0] for text in ('h', 'i', '\n'))
  return scripted_model({h: i, i: 2, 2: line, line: h, 1: 1}, t.vocab_size, t, num_layers)


def drafted(drafter, lm, prompts, **settings):
  return speculative.generate(lm, prompts, drafter=drafter(), **settings)


DECODERS = {
  'plain': decoders.generate,
  'prompt lookup': functools.partial(drafted, speculative.PromptLookup),
  'draft model': functools.partial(drafted, lambda: speculative.DraftModel.of(chatty(1), threshold=0.0)),
  'swift': functools.partial(
    decoders.swift.generate,
    swift=SwiftConfig(guard=False, search=False, max_draft=3, greedy_widths=(1,) * 4, sampling_widths=(1,) * 4),
  ),
  'simlayerkv': functools.partial(decoders.simlayerkv.generate, lazy=LazyConfig(n_initial=1, n_recent=3, n_last=1)),
}
PROMPTS = ['h', 'hihi\nh']
SAID = 'i\nhi\nhi\nh'


@pytest.mark.parametrize('name', ['plain', *slow(*(name for name in DECODERS if name != 'plain'))])
def test_stop_strings_and_eos_end_rows_alike_in_every_decoder(name):
  decode = functools.partial(DECODERS[name], chatty(), PROMPTS, max_new_tokens=12)
  for ends, text, length in (
    ({}, SAID, 12),
    ({'stop': [END]}, 'i', 2),
    ({'stop': END}, 'i', 2),
    ({'stop': (f'{END}\nh',)}, 'i', 4),
    ({'stop': [f'i{END}']}, '', 2),
    ({'stop': ['zi', f'hi{END}\n']}, 'i\n', 7),
    ({'stop': 'im_end'}, 'i', 2),
    ({'stop': 'zi'}, SAID, 12),
    ({'stop': '\nhi\n'}, 'i', 7),  # Special tokens stand between these, and have no text.
    ({'eos_id': 2}, 'i', 2),
    ({'eos_id': END}, 'i', 2),
    ({'eos_id': [1, END]}, 'i', 2),
    ({'eos_id': np.array([1, 2])}, 'i', 2),
    ({'eos_id': '\n'}, 'i\n', 3),
    ({'eos_id': []}, SAID, 12),
    ({'eos_id': None, 'stop': None}, SAID, 12),
  ):
    streamed = {0: [], 1: []}
    for stream in (None, lambda row, ids, streamed=streamed: streamed[row].extend(ids)):
      out = decode(stream=stream, **ends)
      assert (out.text, out.lengths.tolist()) == ([text] * 2, [length] * 2), ends
    assert list(streamed.values()) == out.rows()


def test_a_row_ends_where_transformers_ends_it():
  reason = 'the peer is not installed: pip install jaxlm[parity]'
  transformers, torch = (pytest.importorskip(name, reason=reason) for name in ('transformers', 'torch'))
  lm = chatty()
  peer = transformers.PreTrainedTokenizerFast(tokenizer_object=lm.tokenizer._plain)

  free = decoders.generate(lm, PROMPTS[:1], max_new_tokens=12).rows()[0]
  for stop in (END, f'{END}\nh', f'i{END}', 'im_end', f'\nhi{END}', 'zi'):
    criterion = transformers.StopStringCriteria(peer, [stop])
    ends = (n for n in range(1, 13) if bool(criterion(torch.tensor([free[:n]]), None)[0]))
    assert decoders.generate(lm, PROMPTS[:1], max_new_tokens=12, stop=stop).lengths[0] == next(ends, 12), stop


def test_in_reverse_the_text_begins_behind_the_string():
  config = TINY.replace(vocab_size=259, direction='reverse')
  lm = LanguageModel(config, tiny_model(config).params, ByteTokenizer())
  text = lambda ids, skip_special: directions.generated_text(lm, [99], ids, 'reverse', skip_special)
  ids = [98, 97, 258, 122, 121, 257]  # reads: <eos>yz<pad>ab, then the prompt
  before = lambda *stop: endings.before_stop(text, ids, stop, 'reverse')
  assert before() == 'yzab'
  assert before('<pad>') == before('z<pad>') == 'ab' and before('y') == 'zab' and before('za') == 'b'
  assert before('<pad>a') == 'b' and before('<eos>') == 'yzab' and before('<eos>y') == 'zab'


def test_half_a_character_before_a_stop_string_is_kept_as_such():
  lm = LanguageModel(TINY, None, ByteTokenizer())
  text = lambda ids, skip_special: directions.generated_text(lm, [], ids, 'forward', skip_special)
  ids = [*'é'.encode(), 0xC3, 258, *b'b']
  assert endings.before_stop(text, ids, ['<pad>'], 'forward') == 'é\ufffd'
  assert endings.before_stop(text, ids, ['é'], 'forward') == ''


@pytest.mark.parametrize(
  'name, options',
  [*((name, {}) for name in DECODERS), ('plain', {'batch_size': 1}), ('plain', {'sampling': decoders.Sampling(0.01)}), pytest.param('draft model', {'rule': 'residual', 'sampling': decoders.Sampling(0.01)}, marks=pytest.mark.slow)],
)  # fmt: skip
def test_logits_that_are_not_finite_are_named_by_row_and_position(name, options):
  lm = chatty()
  h, i, line = (lm.tokenizer.encode(text)[0] for text in ('h', 'i', '\n'))
  embedding = lm.params['embed']['embedding'].at[line].set(jnp.inf)
  lm = dataclasses.replace(lm, params={**lm.params, 'embed': {'embedding': embedding}})
  decode = functools.partial(DECODERS[name], lm, max_new_tokens=3, stream=lambda row, ids: None, **options)
  # The token is generated last, and so it is never read.
  assert decode([[1, 1], [i, h, h]]).rows() == [[1, 1, 1], [i, 2, line]]
  for prompt, position in (([h, h, i], 4), ([h, i, line], 2)):
    with pytest.raises(NotFiniteError, match=f'Row 1: the logits after position {position} are .* in float32: check'):
      decode([[1, 1], prompt])


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'stop': ''}, "stop='' has the stop string ''"),
    ({'stop': ['a', '']}, 'at least one character'),
    ({'stop': [1]}, 'has the stop string 1'),
    ({'eos_id': 404}, 'eos_id=404 is no token: the vocabulary has ids 0 to'),
    ({'eos_id': [2, -1]}, 'eos_id=-1 is no token'),
    ({'eos_id': 'two tokens'}, "eos_id='two tokens' is no token of this tokenizer"),
    ({'eos_id': ['', 2]}, "eos_id='' is no token"),
    ({'eos_id': 2.0}, 'eos_id=2.0 cannot be used'),
    ({'eos_id': [True]}, 'eos_id=True cannot be used'),
    ({'eos_id': {2: 'x', 2.5: 'y'}}, 'eos_id=2.5 cannot be used'),
    ({'seed': -1}, 'seed=-1 must be a whole number within 0 .. 2'),
    ({'seed': 2**32}, 'seed=4294967296 must'),
    ({'seed': 2**64}, 'seed=18446744073709551616 must'),
    ({'seed': 1.5}, 'seed=1.5 must'),
  ],
)
def test_what_ends_no_text_is_refused_by_its_value(settings, message):
  with pytest.raises(ValueError, match=message):
    decoders.generate(chatty(), PROMPTS, **settings)


def test_a_text_without_a_tokenizer_is_refused():
  with pytest.raises(ValueError, match="eos_id='</s>' is a text, and this model has no tokenizer"):
    decoders.generate(tiny_model(), [[1]], max_new_tokens=4, eos_id='</s>')
