"""Added tokens, special ids and leftovers in all forms of tokenizer files: equal to transformers, and as numbers."""

import json
import random

import pytest

from jaxlm.data import tokenizers as T
from tests.tokenizers_made import CHATML, byte_level_bpe, llama_json

PLAIN = dict(lstrip=False, rstrip=False, normalized=False, single_word=False)
TEXTS = [
  'quick fox',
  ' quick  fox ',
  '\u2581quick',
  'a<|im_start|>user\nquick<|im_end|>\n fox<|im_end|> fox <tool> dog<tool>s <mid>  quick',
  '<|im_end|> the',
  '<s> the dog</s> the',
  '  <word> xx<word>yy <word>',
  ' ',
  '',
]


def write(directory, name, value):
  (directory / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding='utf-8')


@pytest.fixture(scope='module')
def sentencepiece():
  corpus = ['the quick brown fox jumps over the lazy dog, user and assistant speak'] * 50
  return T.train_sentencepiece(corpus, 320, dummy_prefix=True)


def beside(start, how, **settings):
  """tokenizer_config.json (and added_tokens.json) of a chat fine-tune that put four tokens behind a vocabulary."""
  texts = ['<|im_start|>', '<|im_end|>', '<tool>', '<mid>', '<word>']
  flags = {'<tool>': dict(special=False), '<mid>': dict(lstrip=True, rstrip=True), '<word>': dict(single_word=True)}
  config = {
    'eos_token': '<|im_end|>',
    'chat_template': CHATML,
    **settings,
  }
  if how == 'added_tokens.json':
    return config, {text: start + i for i, text in enumerate(texts)}
  tokens = {str(start + i): PLAIN | dict(content=t, special=True) | flags.get(t, {}) for i, t in enumerate(texts)}
  return config | {'added_tokens_decoder': tokens}, None


def write_sentencepiece(directory, t, how, model_type, **settings):
  (directory / 'tokenizer.model').write_bytes(t._proto)
  settings = {k: v for k, v in settings.items() if v is not None}
  config, added = beside(t.vocab_size, how, tokenizer_class='LlamaTokenizer', bos_token='<s>', **settings)
  write(directory, 'tokenizer_config.json', config)
  if added:
    write(directory, 'added_tokens.json', added)
  write(directory, 'config.json', {'model_type': model_type, 'vocab_size': 400})


def assert_equal_to_transformers(directory, seed=0):
  transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  peer, ours = transformers.AutoTokenizer.from_pretrained(directory), T.from_directory(directory)
  assert (ours.eos_id, ours.vocab_size) == (peer.eos_token_id, len(peer))
  for text in TEXTS:
    assert ours.encode(text, special=True) == peer.encode(text, add_special_tokens=False), text
    assert ours.chat(text) == peer.apply_chat_template([{'role': 'user', 'content': text}], add_generation_prompt=True)['input_ids'], text  # fmt: skip
  # Bytes that are no UTF-8 become U+FFFD one by one or together, as one likes; so no half characters here.
  rng, whole = random.Random(seed), [i for i in range(ours.vocab_size) if '\ufffd' not in ours.token_text(i)]
  for _ in range(100):
    ids = [rng.choice(whole) for _ in range(12)]
    for skip in (True, False):
      assert ours.decode(ids, skip_special=skip) == peer.decode(ids, skip_special_tokens=skip), ids


# ---- SentencePiece ----


@pytest.mark.parametrize('model_type', ['llama', 'mistral'])
@pytest.mark.parametrize('named', [True, False], ids=['class', 'no class'])
@pytest.mark.parametrize('legacy', [True, False, None])
@pytest.mark.parametrize('how', ['added_tokens.json', 'added_tokens_decoder'])
def test_sentencepiece_with_added_tokens_equals_transformers(sentencepiece, tmp_path, how, legacy, named, model_type):
  write_sentencepiece(tmp_path, sentencepiece, how, model_type, legacy=legacy)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  if not named:
    del config['tokenizer_class']
  write(tmp_path, 'tokenizer_config.json', config)
  assert_equal_to_transformers(tmp_path)


@pytest.mark.parametrize('how', ['added_tokens.json', 'added_tokens_decoder'])
def test_added_tokens_beside_a_sentencepiece_model_are_single_ids(sentencepiece, tmp_path, how):
  n = sentencepiece.vocab_size
  write_sentencepiece(tmp_path, sentencepiece, how, 'llama', legacy=False)
  t = T.from_directory(tmp_path)
  assert (n, t.vocab_size, t.eos_id, t.stop_ids) == (320, 325, 321, (321,))
  bare = lambda text: [id for part in [sentencepiece.encode(text)] for id in part[1:]]  # without the first space
  assert sentencepiece.token_text(sentencepiece.encode('user')[0]) == ' '
  assert t.chat('x', add_generation_prompt=False) == [320, *bare('user\nx'), 321, *t.encode('a\n')[-1:]]
  # Where only added_tokens.json lists tokens, those are special that have a role.
  assert t.special_ids == {0, 1, 2, 3, 321} | ({320, 323, 324} if how == 'added_tokens_decoder' else set())
  assert t.decode([321, 322, 1], skip_special=True) == '<tool>'
  # A user's text writes the token that no flag calls special, and no other.
  ids = t.encode('<|im_end|><tool><s>')
  assert 322 in ids and not t.special_ids & set(ids)
  assert t.decode(ids) == '<|im_end|><tool><s>'


@pytest.mark.parametrize(
  'legacy, spaces', [(True, ['first', 'after a token']), (False, ['first']), (None, ['first'])], ids=str
)
def test_legacy_says_where_a_space_is_put_before_text(sentencepiece, tmp_path, legacy, spaces):
  write_sentencepiece(tmp_path, sentencepiece, 'added_tokens_decoder', 'llama', legacy=legacy)
  t = T.from_directory(tmp_path)
  pieces = [t.token_text(id) for id in t.encode('fox<tool>fox')]
  assert pieces[0].startswith(' ') and pieces[pieces.index('<tool>') + 1].startswith(' ') == (len(spaces) == 2)


@pytest.mark.parametrize('legacy', [True, False])
def test_added_tokens_beside_a_sentencepiece_model_are_saved(sentencepiece, tmp_path, legacy):
  write_sentencepiece(tmp_path, sentencepiece, 'added_tokens_decoder', 'llama', legacy=legacy)
  t = T.from_directory(tmp_path)
  t.save(tmp_path / 'again')
  again = T.from_directory(tmp_path / 'again')
  names = ('vocab_size', 'bos_id', 'eos_id', 'stop_ids', 'adds_bos', 'chat_template', 'fingerprint', 'special_ids')
  assert [getattr(again, name) for name in names] == [getattr(t, name) for name in names]
  assert t.fingerprint != sentencepiece.fingerprint
  for text in TEXTS:
    for special in (True, False):
      assert again.encode(text, special=special) == t.encode(text, special=special)
  assert_equal_to_transformers(tmp_path / 'again')


# ---- vocab.json and merges.txt ----


@pytest.fixture(scope='module')
def merges(tmp_path_factory):
  import tokenizers

  directory = tmp_path_factory.mktemp('merges')
  trained = tokenizers.ByteLevelBPETokenizer()
  corpus = ["In 2024 there were 12345 cats.\n\nIt's 99% IT'S\n"] * 20
  trained.train_from_iterator(corpus, vocab_size=320, special_tokens=['<|endoftext|>'])
  trained.save_model(str(directory))
  return directory


def write_merges(directory, merges, how, name, model_type):
  for file in ('vocab.json', 'merges.txt'):
    write(directory, file, (merges / file).read_text(encoding='utf-8'))
  n = len(json.loads((merges / 'vocab.json').read_text(encoding='utf-8')))
  config, added = beside(n, how, tokenizer_class=name)
  write(directory, 'tokenizer_config.json', config)
  if added:
    write(directory, 'added_tokens.json', added)
  write(directory, 'config.json', {'model_type': model_type, 'eos_token_id': n + 1, 'vocab_size': n + 5})
  return n


@pytest.mark.parametrize('how', ['added_tokens.json', 'added_tokens_decoder'])
@pytest.mark.parametrize('name, model_type', [('Qwen2Tokenizer', 'qwen2'), ('GPT2Tokenizer', 'gpt2'), (None, 'qwen3')])
def test_merges_with_added_tokens_equal_transformers(merges, tmp_path, how, name, model_type):
  write_merges(tmp_path, merges, how, name, model_type)
  assert_equal_to_transformers(tmp_path)


def test_the_class_says_how_text_is_cut_before_merging(merges, tmp_path):
  n = write_merges(tmp_path, merges, 'added_tokens_decoder', 'Qwen2Tokenizer', 'qwen2')
  t = T.from_directory(tmp_path)
  show = lambda text: [t.token_text(id) for id in t.encode(text)]
  assert show('2024 cats') == ['2', '0', '2', '4', ' cats']
  assert (t.vocab_size, t.eos_id, t.stop_ids) == (n + 5, n + 1, (n + 1,))
  assert t.chat('cats')[0] == n and t.chat('cats').count(n + 1) == 1
  write(tmp_path, 'tokenizer_config.json', beside(n, 'added_tokens_decoder', tokenizer_class='GPT2Tokenizer')[0])
  t = T.from_directory(tmp_path)
  assert show('2024 cats') == ['202', '4', ' cats']


# ---- tokenizer.json ----


def write_json(directory, config=None, **fields):
  t = byte_level_bpe()
  write(directory, 'tokenizer.json', json.dumps(json.loads(t._json) | fields))
  write(directory, 'tokenizer_config.json', {'tokenizer_class': 'PreTrainedTokenizerFast', **(config or {})})
  return t


PAD = dict(direction='Left', pad_to_multiple_of=None, pad_id=0, pad_type_id=0, pad_token='<|endoftext|>')
CUT = dict(max_length=16, strategy='LongestFirst', stride=0)


@pytest.mark.parametrize(
  'leftover',
  [
    {'truncation': CUT | {'direction': 'Right'}},
    {'truncation': CUT | {'direction': 'Left'}},
    {'padding': PAD | {'strategy': {'Fixed': 300}}},
    {'padding': PAD | {'strategy': 'BatchLongest'}, 'truncation': CUT | {'direction': 'Left'}},
  ],
  ids=['right', 'left', 'fixed', 'both'],
)
def test_padding_and_truncation_left_in_a_tokenizer_json_are_reset(tmp_path, leftover):
  """Also in what is saved: another program would obey them."""
  text = 'Hello, world! ' * 20
  plain = write_json(tmp_path, {'eos_token': '<|im_end|>'}, **leftover)
  t = T.from_directory(tmp_path)
  t.save(tmp_path / 'again')
  for each in (t, T.from_directory(tmp_path / 'again')):
    ids = each.encode(text)
    assert ids == each.encode(text, special=True) == plain.encode(text) and len(ids) == 160
    assert each.encode_batch([text, 'a']) == [ids, plain.encode('a')]
  spec = json.loads((tmp_path / 'again/tokenizer.json').read_text())
  assert spec['truncation'] is None and spec['padding'] is None


@pytest.mark.parametrize('how', ['added_tokens.json', 'added_tokens_decoder'])
def test_tokens_that_only_files_beside_a_tokenizer_json_add_equal_transformers(tmp_path, how):
  n = write_json(tmp_path).vocab_size
  config, added = beside(n, how)
  config['added_tokens_decoder'] = {'1': PLAIN | dict(content='<|im_start|>', special=True)} if added is None else None
  config['eos_token'] = {'__type': 'AddedToken', 'content': '<|im_end|>', 'lstrip': False}
  config['additional_special_tokens'] = ['end']  # a piece of the vocabulary until now
  write(tmp_path, 'tokenizer_config.json', {k: v for k, v in config.items() if v is not None})
  assert_equal_to_transformers(tmp_path)


@pytest.mark.parametrize('model_type', ['llama', 'mistral'])
@pytest.mark.parametrize('name', ['LlamaTokenizer', 'LlamaTokenizerFast', 'PreTrainedTokenizerFast', None])
@pytest.mark.parametrize('legacy', [True, False, None])
def test_the_spaces_of_a_tokenizer_json_are_those_of_its_class(tmp_path, name, legacy, model_type):
  config = {'eos_token': '</s>', 'bos_token': '<s>', 'unk_token': '<unk>', 'chat_template': CHATML}
  config |= {key: v for key, v in {'tokenizer_class': name, 'legacy': legacy}.items() if v is not None}
  write(tmp_path, 'tokenizer.json', llama_json()._json)
  write(tmp_path, 'tokenizer_config.json', config)
  write(tmp_path, 'config.json', {'model_type': model_type})
  t = T.from_directory(tmp_path)
  spaced = t.encode('<s>Hello', special=True)[1:] != t.encode('<s>ello', special=True)[1:] and (
    t.token_text(t.encode('<s>Hello', special=True)[1]).startswith(' ')
  )
  llama = model_type == 'llama' and name in ('LlamaTokenizer', 'LlamaTokenizerFast')
  assert spaced == (not llama or legacy is True)
  assert t.decode(t.encode('Hello Hello')) == 'Hello Hello'
  assert_equal_to_transformers(tmp_path)


def test_a_flag_in_one_file_makes_a_token_special(tmp_path):
  t = write_json(tmp_path)
  both = t.token_id('  both halves ')
  assert both in t.encode('  both halves ')
  tokens = {str(both): PLAIN | dict(content='  both halves ', special=True)}
  write_json(tmp_path, {'eos_token': '<|im_end|>', 'added_tokens_decoder': tokens})
  again = T.from_directory(tmp_path)
  assert both not in again.encode('  both halves ') and again.encode('  both halves ', special=True) == [both]
  assert again.decode([both]) == '' and again.decode([both], skip_special=False) == '  both halves '


@pytest.mark.parametrize('name, also', [('add_bos_token', True), ('add_bos_token', False)])
def test_settings_say_whether_texts_begin_with_bos(tmp_path, name, also):
  template = {'type': 'TemplateProcessing', 'pair': [], 'special_tokens': {}}
  template['single'] = [
    {'SpecialToken': {'id': '<|endoftext|>', 'type_id': 0}},
    {'Sequence': {'id': 'A', 'type_id': 0}},
  ]
  template['special_tokens'] = {'<|endoftext|>': {'id': '<|endoftext|>', 'ids': [0], 'tokens': ['<|endoftext|>']}}
  template['pair'] = [*template['single'], {'Sequence': {'id': 'B', 'type_id': 1}}]
  write_json(tmp_path, {'bos_token': '<|endoftext|>'}, post_processor=template)
  assert T.from_directory(tmp_path).adds_bos
  write_json(tmp_path, {'bos_token': '<|endoftext|>', name: also}, post_processor=template)
  assert T.from_directory(tmp_path).adds_bos == also


@pytest.mark.parametrize('text', ['\u0120foo', 'caf\u00e9!', '<|na\u00efve|>', '\u00ff\u0100'])
@pytest.mark.parametrize('special', [True, False])
def test_added_tokens_with_letters_of_the_byte_alphabet_decode_to_themselves(tmp_path, text, special):
  t = write_json(tmp_path)
  added = [*json.loads(t._json)['added_tokens'], PLAIN | dict(id=t.vocab_size, content=text, special=special)]
  write_json(tmp_path, {'eos_token': '<|im_end|>'}, added_tokens=added)
  again = T.from_directory(tmp_path)
  ids = again.encode(f'Hello{text}Hello', special=True)
  assert t.vocab_size in ids and again.decode(ids, skip_special=False) == f'Hello{text}Hello'
  stream = T.TextStream(again, skip_special=False)
  assert ''.join(stream.push([i]) for i in ids) + stream.flush() == f'Hello{text}Hello'


# ---- ids and names that do not exist ----


def test_an_eos_that_no_file_has_is_refused_with_the_file_that_names_it(tmp_path, sentencepiece, merges):
  write_json(tmp_path, {'eos_token': '<|end|>'})
  with pytest.raises(ValueError, match=r"tokenizer_config\.json: eos_token='<\|end\|>' cannot be used.*neither"):
    T.from_directory(tmp_path)
  write(tmp_path, 'special_tokens_map.json', {'eos_token': {'content': '<|fin|>'}})
  with pytest.raises(ValueError, match=r'special_tokens_map\.json: eos_token=.*<\|fin\|>'):
    T.from_directory(tmp_path)
  for name in ('tokenizer.json', 'special_tokens_map.json'):
    (tmp_path / name).unlink()
  (tmp_path / 'tokenizer.model').write_bytes(sentencepiece._proto)
  with pytest.raises(ValueError, match=r"tokenizer_config\.json: eos_token='<\|end\|>'"):
    T.from_directory(tmp_path)
  (tmp_path / 'tokenizer.model').unlink()
  write_merges(tmp_path, merges, 'added_tokens_decoder', 'GPT2Tokenizer', 'gpt2')
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  write(tmp_path, 'tokenizer_config.json', config | {'eos_token': '<|end|>'})
  with pytest.raises(ValueError, match=r"tokenizer_config\.json: eos_token='<\|end\|>'"):
    T.from_directory(tmp_path)


@pytest.mark.parametrize('file', ['config.json', 'generation_config.json'])
@pytest.mark.parametrize('as_list', [False, True])
@pytest.mark.parametrize('id', [-1, 401, 402, 10**30])
def test_ids_that_no_token_has_are_dropped_but_for_eos(tmp_path, file, as_list, id):
  assert write_json(tmp_path).vocab_size == 401
  value = [id] if as_list else id
  for name in ('bos', 'pad'):
    write(tmp_path, file, {'eos_token_id': 2, f'{name}_token_id': value})
    with pytest.warns(UserWarning, match=rf'{file}: {name}_token_id=.*0 to 400; {id} is none\. It is left out'):
      t = T.from_directory(tmp_path)
    assert (t.bos_id, t.eos_id, t.pad_id, t.stop_ids) == (None, 2, None, (2,))
  write(tmp_path, file, {'eos_token_id': [2, id] if as_list else id})
  with pytest.raises(ValueError, match=rf'{file}: eos_token_id=.*0 to 400; {id} is none') as error:
    T.from_directory(tmp_path)
  assert 'tokenizer.json' not in str(error.value)


@pytest.mark.parametrize('value', ['2', 2.0, True, {}, [None], [[2]]])
def test_ids_of_the_wrong_kind_are_refused(tmp_path, value):
  write_json(tmp_path)
  write(tmp_path, 'config.json', {'eos_token_id': value})
  with pytest.raises(ValueError, match=r'config\.json: eos_token_id=.*expected a token id, a list of them, or null'):
    T.from_directory(tmp_path)


@pytest.mark.parametrize('id', [900, 7, '-1', 'x', '4000000000', 3.5])
def test_added_tokens_with_ids_out_of_place_are_refused(tmp_path, sentencepiece, id):
  """One id of four thousand million would take gigabytes; another one's id, or a hole, means files of two models."""
  write_json(tmp_path, {'added_tokens_decoder': {str(id): {'content': '<new>'}}})
  with pytest.raises(ValueError, match=r"the added token '<new>' has the id '?" + str(id)):
    T.from_directory(tmp_path)
  (tmp_path / 'tokenizer.json').unlink()
  (tmp_path / 'tokenizer.model').write_bytes(sentencepiece._proto)
  if id != 7:  # a placeholder of a SentencePiece model may be given a name
    with pytest.raises(ValueError, match=r"the added token '<new>' has the id '?" + str(id)):
      T.from_directory(tmp_path)


def test_a_tokenizer_json_cannot_make_texts_without_end(tmp_path):
  """The tokenizers package would end the process for want of memory."""
  replace = {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'a' * 100}
  write_json(tmp_path, normalizer={'type': 'Sequence', 'normalizers': [replace] * 5})
  with pytest.raises(ValueError, match=r'tokenizer\.json.*normalizer makes a text up to 10000000000 times as long'):
    T.from_directory(tmp_path)
  write_json(tmp_path, normalizer={'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'})
  assert T.from_directory(tmp_path) is not None


def test_a_rule_that_does_not_end_is_named(tmp_path):
  pattern = {'type': 'Split', 'pattern': {'Regex': '(a|aa)+$'}, 'behavior': 'Isolated', 'invert': False}
  write_json(tmp_path, pre_tokenizer=pattern)
  t = T.from_directory(tmp_path)
  for encode in (t.encode, lambda text: t.encode(text, special=True), lambda text: t.encode_batch([text])):
    with pytest.raises(ValueError, match='a rule that fails on this text'):
      encode('a' * 60 + 'b')


@pytest.mark.parametrize('vocabulary', ['{"a": 4294967295}', '{"a": 99999999}', '{"a": -1}', '[]', '5', '{"a": "x"}'])
def test_vocabularies_that_lie_are_named_at_once(tmp_path, vocabulary):
  write(tmp_path, 'tokenizer.json', {'model': {'type': 'BPE', 'vocab': json.loads(vocabulary), 'merges': []}})
  with pytest.raises(ValueError, match=r'tokenizer\.json cannot be used'):
    T.from_directory(tmp_path)
