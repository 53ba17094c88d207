"""Vocabularies as GGUF files hold them, and a real one beside its reference."""

import json
import random
import warnings

import pytest

from jaxlm.data import byte_level_bpe, fetch, gguf_vocabulary, piece_bytes
from jaxlm.data import tokenizers as T
from tests.tokenizers_made import CHATML, TEXTS


def test_a_gguf_sentencepiece_vocabulary_encodes_like_the_model_it_came_from(made):
  for kind in ('sentencepiece', 'sentencepiece, prefix'):
    t = made[kind]
    sp = t._processor
    size = t.vocab_size
    kinds = ['is_unknown', 'is_control', 'is_unused', 'is_byte']
    numbers = {'is_unknown': 2, 'is_control': 3, 'is_unused': 5, 'is_byte': 6}
    types = [next((numbers[k] for k in kinds if getattr(sp, k)(i)), 1) for i in range(size)]
    again = gguf_vocabulary.from_gguf(
      {
        'tokenizer.ggml.model': 'llama',
        'tokenizer.ggml.tokens': [sp.id_to_piece(i) for i in range(size)],
        'tokenizer.ggml.scores': [sp.get_score(i) for i in range(size)],
        'tokenizer.ggml.token_type': types,
        'tokenizer.ggml.bos_token_id': 1,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.ggml.padding_token_id': 3,
        'tokenizer.ggml.add_space_prefix': t.strips_first_space,
      }
    )
    assert (again.bos_id, again.eos_id, again.pad_id, again.adds_bos) == (1, 2, 3, True)
    for text in TEXTS:
      assert again.encode(text) == t.encode(text) and again.decode(again.encode(text)) == text


def test_a_gguf_byte_level_vocabulary_encodes_like_the_json_it_came_from(made):
  t = made['byte-level BPE']
  spec = json.loads(t._json)
  vocab = {**spec['model']['vocab'], **{a['content']: a['id'] for a in spec['added_tokens']}}
  special = {a['id']: 3 if a['special'] else 4 for a in spec['added_tokens']}
  fields = {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': sorted(vocab, key=vocab.get),
    'tokenizer.ggml.token_type': [special.get(i, 1) for i in range(len(vocab))],
    'tokenizer.ggml.merges': [' '.join(m) for m in spec['model']['merges']],
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.add_bos_token': True,
    'tokenizer.chat_template': CHATML,
  }
  again = gguf_vocabulary.from_gguf(fields)
  assert again.adds_bos and again.stop_ids == (2,) and again.chat('Hi') == t.chat('Hi')
  for text in TEXTS:
    assert again.encode(text) == t.encode(text) and again.encode(text, special=True) == t.encode(text, special=True)
  with pytest.raises(ValueError, match="'smolm'.*Did you mean 'smollm'"):
    gguf_vocabulary.from_gguf(fields | {'tokenizer.ggml.pre': 'smolm'})
  with pytest.raises(ValueError, match='Unknown GGUF vocabulary'):
    gguf_vocabulary.from_gguf(fields | {'tokenizer.ggml.model': 'rwkv'})


@pytest.mark.parametrize(
  'tag, text, parts',
  [
    ('gpt-2', "It's 2024  now", ['It', "'s", ' 2024', ' ', ' now']),
    ('smollm', "It's 2024  now", ['It', "'s", ' ', '2', '0', '2', '4', ' ', ' now']),
    ('llama-bpe', "IT'S 20245!\n\n x", ['IT', "'S", ' ', '202', '45', '!\n\n', ' x']),
    ('qwen2', '20 a\n', ['2', '0', ' a', '\n']),
  ],
)
def test_text_is_cut_as_the_tag_says(tag, text, parts):
  from tokenizers import pre_tokenizers

  steps = []
  for step in byte_level_bpe.PRE_TOKENIZERS[tag]:
    arguments = {k: v for k, v in step.items() if k != 'type'}
    if step['type'] == 'Split':
      import tokenizers

      arguments['pattern'] = tokenizers.Regex(arguments['pattern']['Regex'])
      arguments['behavior'] = 'isolated'
    steps.append(getattr(pre_tokenizers, step['type'])(**arguments))
  cut = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
  assert [piece_bytes.byte_level(piece).decode() for piece, _ in cut] == parts


@pytest.mark.parametrize(
  'tag, rule',
  [
    *(('llama3', 'llama-bpe'), ('llama-v3', 'llama-bpe'), ('deepseek-r1-qwen', 'qwen2'), ('smaug-bpe', 'llama-bpe')),
    *(('phi-2', 'gpt-2'), ('starcoder', 'smollm'), ('command-r', 'smollm'), ('stablelm2', 'qwen2')),
    *(('glm4', 'llama-bpe'), ('chatglm-bpe', 'llama-bpe'), ('jina-v5-nano', 'llama-bpe'), ('f2llmv2', 'qwen2')),
    *(
      ('solar-open', 'qwen2'),
      ('grok-2', 'qwen2'),
      ('mellum2', 'smollm'),
      ('exaone4', 'gpt-2'),
      ('modern-bert', 'gpt-2'),
    ),
    *(('jais', 'gpt-2'), ('trillion', 'gpt-2'), ('granite-docling', 'gpt-2')),
  ],
)
def test_tags_that_stand_for_one_rule(tag, rule):
  assert byte_level_bpe.PRE_TOKENIZERS[tag] == byte_level_bpe.PRE_TOKENIZERS[rule]


def byte_level_fields(made, **fields):
  """A file's metadata in which all tokens are typed as ordinary ones."""
  spec = json.loads(made['byte-level BPE']._json)
  vocab = {**spec['model']['vocab'], **{a['content']: a['id'] for a in spec['added_tokens']}}
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': sorted(vocab, key=vocab.get),
    'tokenizer.ggml.merges': [' '.join(m) for m in spec['model']['merges']],
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.eos_token_id': 0,
    'tokenizer.chat_template': CHATML,
  } | {f'tokenizer.ggml.{name}': value for name, value in fields.items()}


@pytest.mark.parametrize('type', [None, gguf_vocabulary.NORMAL, gguf_vocabulary.USER_DEFINED])
def test_markers_are_special_however_a_gguf_file_types_them(made, type):
  """The end of a turn, 2, ends a text beside EOS, 0, though only its text says so."""
  n = made['byte-level BPE'].vocab_size
  t = gguf_vocabulary.from_gguf(byte_level_fields(made, **({} if type is None else {'token_type': [type] * n})))
  assert (t.bos_id, t.eos_id, t.stop_ids, t.special_ids) == (0, 0, (0, 2), {0, 1, 2})
  assert t.chat('Hi') == made['byte-level BPE'].chat('Hi')
  assert not t.special_ids & set(t.encode('<|im_end|><|im_start|>'))


@pytest.mark.parametrize(
  'tag, adds',
  [
    ('llama-bpe', True),
    ('llama3', True),
    ('tekken', True),
    ('gpt-2', False),
    ('smaug-bpe', False),
    ('jina-v5-nano', True),
    ('glm4', False),
  ],
)
def test_bos_where_the_file_does_not_say(made, tag, adds):
  assert gguf_vocabulary.from_gguf(byte_level_fields(made, pre=tag)).adds_bos == adds
  assert gguf_vocabulary.from_gguf(byte_level_fields(made, pre=tag, add_bos_token=not adds)).adds_bos != adds


def test_a_gguf_file_without_a_splitting_rule_warns(made):
  fields = byte_level_fields(made)
  del fields['tokenizer.ggml.pre']
  with pytest.warns(UserWarning, match="tokenizer.ggml.pre is missing.*GPT-2's rule"):
    t = gguf_vocabulary.from_gguf(fields)
  assert t.encode('Hello 2024') == made['byte-level BPE'].encode('Hello 2024')


@pytest.mark.parametrize('name', ['bos', 'eos', 'padding'])
def test_ids_of_a_gguf_file_that_no_token_has_are_left_out(made, name):
  with pytest.warns(UserWarning, match=f'{name}_token_id=4294967295 is no id of the 401 tokens') as said:
    t = gguf_vocabulary.from_gguf(byte_level_fields(made, **{f'{name}_token_id': 4294967295}))
  assert len(said) == 1 and getattr(t, {'padding': 'pad'}.get(name, name) + '_id') is None


def sentencepiece_fields(made):
  sp = made['sentencepiece, prefix']._processor
  size = sp.get_piece_size()
  type = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
  return {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': [sp.id_to_piece(i) for i in range(size)],
    'tokenizer.ggml.scores': [sp.get_score(i) for i in range(size)],
    'tokenizer.ggml.token_type': [type(i) for i in range(size)],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
  }


def test_empty_and_repeated_pieces_are_repaired(made):
  for fields in (sentencepiece_fields(made), byte_level_fields(made, token_type=[1] * 401)):
    good = gguf_vocabulary.from_gguf(fields)
    more = {'tokens': ['', '[PAD]', '[PAD]'], 'token_type': [5, 5, 5], 'scores': [-1e3] * 3}
    more = {f'tokenizer.ggml.{k}': v for k, v in more.items() if f'tokenizer.ggml.{k}' in fields}
    with pytest.warns(UserWarning, match=f'2 tokens are empty or repeated, the first with id {good.vocab_size}'):
      t = gguf_vocabulary.from_gguf(fields | {k: [*fields[k], *v] for k, v in more.items()})
    assert t.vocab_size == good.vocab_size + 3
    for text in TEXTS:
      assert t.encode(text) == good.encode(text) and t.decode(t.encode(text)) == text


def test_types_of_sentencepiece_follow_from_the_pieces(made):
  fields = sentencepiece_fields(made)
  good = gguf_vocabulary.from_gguf(fields)
  del fields['tokenizer.ggml.token_type']
  t = gguf_vocabulary.from_gguf(fields)
  assert (t.bos_id, t.eos_id, t.special_ids) == (1, 2, {1, 2})
  for text in TEXTS:
    assert t.encode(text) == good.encode(text) and t.decode(t.encode(text)) == text


def test_user_defined_pieces_with_spaces_are_found_in_texts(made):
  """llama.cpp's converter writes spaces in them where the model has U+2581. A piece that is there in both forms stays."""
  fields = sentencepiece_fields(made) | {'tokenizer.ggml.add_space_prefix': False}
  n = len(fields['tokenizer.ggml.tokens'])
  assert '\u2581\u2581' in fields['tokenizer.ggml.tokens']
  more = {'tokens': ['q  q', '  '], 'token_type': [gguf_vocabulary.USER_DEFINED] * 2, 'scores': [-1e3] * 2}
  more = {f'tokenizer.ggml.{name}': [*fields[f'tokenizer.ggml.{name}'], *values] for name, values in more.items()}
  t = gguf_vocabulary.from_gguf(fields | more)
  assert t.encode('xq  qx').count(n) == 1
  for text in ('xq  qx', 'a  b', '  '):
    assert t.decode(t.encode(text)) == text


BAD = [None, -1, 0, 1.5, 10**9, 'x', '', True, [], [1], [[1]], {}, float('nan'), ['a'] * 401, [1] * 401, [[]] * 401]


@pytest.mark.parametrize('make', [byte_level_fields, sentencepiece_fields])
def test_fields_of_a_gguf_vocabulary_are_checked(made, make):
  """Every value of every field gives a tokenizer that works or a ValueError that names the field."""
  good = make(made)
  names = [*good, 'tokenizer.ggml.token_type', 'tokenizer.ggml.pre', 'tokenizer.ggml.add_bos_token']
  names += ['tokenizer.ggml.add_space_prefix', 'tokenizer.ggml.unknown_token_id', 'tokenizer.ggml.eot_token_id']
  for name in dict.fromkeys(names):
    for value in BAD:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
          t = gguf_vocabulary.from_gguf(good | {name: value})
        except ValueError as e:
          assert len(str(e)) < 1500
          continue
      t.decode(t.encode('Hello'))
  for name in ('tokens', 'scores', 'merges'):
    fields = {k: v for k, v in good.items() if k != f'tokenizer.ggml.{name}'}
    if fields != good:
      with pytest.raises(ValueError, match=f'tokenizer.ggml.{name} is missing'):
        gguf_vocabulary.from_gguf(fields)


# ---- the real vocabulary ----


@pytest.fixture(scope='module')
def smollm():
  path = fetch.locate('smollm2')
  if path is None:
    pytest.skip('SmolLM2 is not fetched: python -m jaxlm.data.fetch smollm2')
  import gguf

  reader = gguf.GGUFReader(path)
  return gguf_vocabulary.from_gguf({k: v.contents() for k, v in reader.fields.items() if k.startswith('tokenizer.')})


@pytest.mark.real
def test_the_real_vocabulary_encodes_known_strings(smollm):
  assert (smollm.vocab_size, smollm.bos_id, smollm.eos_id, smollm.pad_id) == (49152, 1, 2, 2)
  assert smollm.encode('Hello world 123') == [19556, 905, 216, 33, 34, 35]
  assert smollm.decode(smollm.chat('Hi'), skip_special=False) == (
    '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n'
    '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  )
  assert smollm.chat('Hi')[0] == 1 and smollm.chat('Hi').count(2) == 2
  for text in TEXTS:
    ids = smollm.encode(text)
    assert smollm.decode(ids) == text and not smollm.special_ids & set(ids)
    stream = T.TextStream(smollm)
    assert ''.join(stream.push([i]) for i in ids) + stream.flush() == text


@pytest.mark.real
def test_the_real_vocabulary_agrees_with_transformers(smollm, tmp_path):
  transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  smollm.save(tmp_path)
  peer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  rng = random.Random(0)
  for text in TEXTS:
    assert peer.encode(text, add_special_tokens=False) == smollm.encode(text, special=True)
  for _ in range(200):
    ids = [rng.randrange(49152) for _ in range(30)]
    for skip in (True, False):
      assert peer.decode(ids, skip_special_tokens=skip) == smollm.decode(ids, skip_special=skip)
  messages = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yes?'}]
  for prompt in (True, False):
    rendered = peer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert smollm.chat(messages, add_generation_prompt=prompt) == peer.encode(rendered, add_special_tokens=False)
