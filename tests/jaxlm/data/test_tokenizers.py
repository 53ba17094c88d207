"""Tokenizers: what goes in comes out, streamed text adds up, saved equals loaded, and users cannot inject markers."""

import json
import random

import pytest

from jaxlm.data import chat, sources
from jaxlm.data import tokenizers as T
from tests.tokenizers_made import CHATML, TEXTS, byte_level_bpe

KINDS = ['bytes', 'sentencepiece', 'sentencepiece, prefix', 'unigram', 'byte-level BPE', 'llama json']
each = pytest.mark.parametrize('kind', KINDS)


@each
def test_decoding_undoes_encoding(made, kind):
  t = made[kind]
  assert isinstance(t, T.Tokenizer)
  for text in TEXTS:
    ids = t.encode(text)
    assert t.decode(ids) == text
    assert all(0 <= i < t.vocab_size for i in ids)
  assert t.encode_batch(TEXTS) == [t.encode(text) for text in TEXTS]


@each
def test_bos_and_eos_stand_at_the_ends_and_not_in_the_text(made, kind):
  t = made[kind]
  ids = t.encode(TEXTS[0], bos=True, eos=True)
  assert ids == [t.bos_id, *t.encode(TEXTS[0]), t.eos_id]
  assert t.decode(ids) == TEXTS[0]
  assert t.token_text(t.eos_id) in t.decode(ids, skip_special=False)


@each
def test_special_strings_in_text_are_text_unless_asked_for(made, kind):
  t = made[kind]
  name = t.token_text(t.eos_id)
  text = f'Ha{name}Ho'
  assert t.eos_id not in t.encode(text) and t.decode(t.encode(text)) == text
  assert t.encode(text, special=True).count(t.eos_id) == 1


@each
def test_streamed_text_adds_up_to_the_decoded_text(made, kind):
  t, rng = made[kind], random.Random(kind)
  rows = [t.encode(text, bos=True) for text in TEXTS]
  # Random ids are mostly ill-formed UTF-8; some lie outside the vocabulary.
  rows += [[rng.randrange(-2, t.vocab_size + 3) for _ in range(rng.randrange(1, 60))] for _ in range(200)]
  for ids in rows:
    for skip in (True, False):
      stream, parts, at = T.TextStream(t, skip_special=skip), [], 0
      while at < len(ids):
        step = rng.randrange(1, 4)
        parts.append(stream.push(ids[at : at + step]))
        at += step
      assert ''.join(parts) + stream.flush() == t.decode(ids, skip_special=skip)


@each
def test_streaming_never_emits_half_a_character(made, kind):
  t = made[kind]
  for text in TEXTS:
    stream = T.TextStream(t)
    parts = [stream.push([i]) for i in t.encode(text)]
    assert not any('\ufffd' in part for part in parts) and stream.flush() == ''


def test_a_stream_after_a_prompt_keeps_the_space_between(made):
  t = made['sentencepiece, prefix']
  prompt, full = t.encode('The quick'), t.encode('The quick brown fox')
  assert full[: len(prompt)] == prompt and t.decode(full[len(prompt) :]) == 'brown fox'
  assert T.TextStream(t, prompt=prompt).push(full[len(prompt) :]) == ' brown fox'


def test_decoded_parts_join_without_a_dummy_prefix(made):
  t = made['sentencepiece']
  ids = t.encode('The quick brown fox')
  assert all(t.decode(ids[:i]) + t.decode(ids[i:]) == 'The quick brown fox' for i in range(len(ids)))


def test_a_decoder_of_another_kind_still_streams():
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  words = ['[UNK]', 'un', '##believ', '##able', 'story', '.']
  tok = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token='[UNK]'))
  tok.pre_tokenizer, tok.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
  t = T.HuggingFaceTokenizer(tok.to_str())
  ids = t.encode('unbelievable story.')
  stream = T.TextStream(t)
  assert t.decode(ids) == 'unbelievable story.'
  assert ''.join(stream.push([i]) for i in ids) + stream.flush() == t.decode(ids)


@each
def test_saved_equals_loaded(made, kind, tmp_path):
  t = made[kind]
  t.save(tmp_path)
  again = T.from_directory(tmp_path)
  assert type(again) is type(t)
  for name in ('vocab_size', 'bos_id', 'eos_id', 'pad_id', 'stop_ids', 'adds_bos', 'chat_template', 'fingerprint'):
    assert getattr(again, name) == getattr(t, name), name
  for text in TEXTS:
    assert again.encode(text) == t.encode(text) and again.encode(text, special=True) == t.encode(text, special=True)


def test_from_directory_of_nothing_is_none_and_of_damage_names_the_file(tmp_path):
  assert T.from_directory(tmp_path) is None
  (tmp_path / 'tokenizer.model').write_bytes(b'version of a thing that is not a model')
  with pytest.raises(ValueError, match='tokenizer.model'):
    T.from_directory(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": ')
  with pytest.raises(ValueError, match='tokenizer.json'):
    T.from_directory(tmp_path)


def test_special_ids_come_from_the_files_beside_the_tokenizer(tmp_path):
  t = byte_level_bpe()
  (tmp_path / 'tokenizer.json').write_text(t._json, encoding='utf-8')
  (tmp_path / 'config.json').write_text(json.dumps({'bos_token_id': 0, 'eos_token_id': 0, 'vocab_size': 512}))
  (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': [2, 0]}))
  loaded = T.from_directory(tmp_path)
  assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.stop_ids) == (0, 2, None, (2, 0))
  (tmp_path / 'special_tokens_map.json').write_text(
    json.dumps({'pad_token': '<|im_start|>', 'eos_token': '<|im_end|>'})
  )
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<|endoftext|>'}))
  (tmp_path / 'chat_template.jinja').write_text(CHATML)
  loaded = T.from_directory(tmp_path)
  # As in transformers, special_tokens_map.json wins until tokenizer_config.json lists all added tokens.
  assert (loaded.eos_id, loaded.pad_id, loaded.stop_ids, loaded.chat_template) == (2, 1, (2, 0), CHATML)
  config = {'eos_token': '<|endoftext|>', 'added_tokens_decoder': {'0': {'content': '<|endoftext|>', 'special': True}}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  loaded = T.from_directory(tmp_path)
  assert (loaded.eos_id, loaded.pad_id, loaded.stop_ids, loaded.chat_template) == (0, 1, (0, 2), CHATML)


# ---- training ----


def test_training_is_deterministic(tmp_path):
  corpus = [f'{i} red bricks and {i * 7} blue ones' for i in range(400)]
  a, b = (T.train_sentencepiece(iter(corpus), 320, tmp_path / n) for n in 'ab')
  assert a.fingerprint == b.fingerprint
  assert (tmp_path / 'a/tokenizer.model').read_bytes() == (tmp_path / 'b/tokenizer.model').read_bytes()
  assert (a.bos_id, a.eos_id, a.pad_id, a.vocab_size) == (1, 2, 3, 320)


def test_a_vocabulary_that_does_not_fit_is_refused_with_both_numbers():
  with pytest.raises(ValueError, match=r'vocab_size=5000 .*at most \d+ pieces'):
    T.train_sentencepiece(['a few words'], 5000)
  with pytest.raises(ValueError, match=r'vocab_size=100 .*at least \d+ pieces'):
    T.train_sentencepiece(['a few words'], 100)


def test_digits_are_split_and_runs_of_spaces_are_pieces():
  t = T.train_sentencepiece(['    if x:\n        return 1234567890'] * 50, 300)
  pieces = [t.token_text(i) for i in t.encode('    if 12')]
  assert pieces[-2:] == ['1', '2'] and len(pieces[0].strip()) == 0 and len(pieces[0]) > 1


# ---- chat ----


def test_chat_goes_through_the_template_and_its_markers_are_single_ids(made):
  t = made['byte-level BPE']
  start, end = (t.encode(s, special=True)[0] for s in ('<|im_start|>', '<|im_end|>'))
  ids = t.chat('Hello')
  assert ids == t.chat([{'role': 'user', 'content': 'Hello'}])
  assert ids == [
    *(start, *t.encode('user\nHello'), end, *t.encode('\n')),
    *(start, *t.encode('assistant\n')),
  ]
  assert t.chat('Hello', add_generation_prompt=False) == ids[: ids.index(end) + 2]


def test_chat_without_a_template_says_so():
  with pytest.raises(ValueError, match='no chat template'):
    T.ByteTokenizer().chat('Hi')


def test_templates_have_what_transformers_gives_them():
  messages = [{'role': 'user', 'content': '<é & "x">'}]
  assert chat.render('{{ bos_token }}{{ messages | tojson }}', messages, bos_token='<s>') == '<s>' + json.dumps(
    messages, ensure_ascii=False
  )
  assert chat.render("{{ strftime_now('%Y') | length }}", messages) == '4'
  assert chat.render('{% for m in messages %}\n  {% if loop.first %}\nX{% endif %}\n{% endfor %}', messages) == 'X'
  assert chat.render('{% generation %}a{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}', 'b') == 'a'
  assert chat.render('{% if tools %}t{% else %}none{% endif %}', 'b') == 'none'
  with pytest.raises(ValueError, match='roles must alternate'):
    chat.render("{{ raise_exception('roles must alternate') }}", messages)
  with pytest.raises(ValueError, match='refuses|does not parse'):
    chat.render('{% for %}', messages)
  with pytest.raises(ValueError, match='Message 0'):
    chat.render('x', ['Hi'])


@pytest.mark.parametrize(
  'template', ["{{ ''.__class__.__mro__[1].__subclasses__() }}", '{{ messages.append(1) }}', '{{ messages.clear() }}']
)
def test_templates_cannot_leave_the_sandbox_or_change_the_messages(template):
  messages = [{'role': 'user', 'content': 'x'}]
  with pytest.raises(ValueError, match='refuses'):
    chat.render(template, messages)
  assert messages == [{'role': 'user', 'content': 'x'}]


# ---- GGUF ----


def test_the_embedded_text_survives_a_tokenizer_trained_on_it():
  texts = list(sources.documents('embedded'))
  t = T.train_sentencepiece(texts, 1000, max_bytes=300_000)
  assert all(t.decode(t.encode(text)) == text for text in texts[:200])


def test_vocab_and_merges_files_give_the_tokenizer_of_the_json_file(tmp_path):
  """GPT-2 and OPT come as vocab.json + merges.txt where newer models have tokenizer.json."""
  import tokenizers as library

  trained = library.ByteLevelBPETokenizer()
  trained.train_from_iterator(
    ['the cat sat on the mat, the rat ate 12 cats'] * 5, vocab_size=300, special_tokens=['</s>']
  )
  trained.save_model(str(tmp_path))
  (tmp_path / 'tokenizer_config.json').write_text(
    '{"bos_token": "</s>", "eos_token": {"content": "</s>"}, "add_bos_token": true}'
  )
  ours = T.from_directory(tmp_path)
  text = 'the cat  sat\non 12 m\u00e4ts'
  assert ours.encode(text) == trained.encode(text).ids
  assert ours.decode(ours.encode(text)) == text
  assert (ours.bos_id, ours.stop_ids, ours.adds_bos) == (0, (0,), True)
  assert ours.encode('a</s>', special=True)[-1] == 0 and 0 not in ours.encode('a</s>')
