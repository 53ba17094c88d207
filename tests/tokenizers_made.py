"""Texts that tokenizers stumble over, and small tokenizers."""

from jaxlm.data import tokenizers as T

TEXTS = [
  'Hello, world! 12345 + 6.',
  '  two  spaces\tand\ttabs\n\n\nlines\r\n end ',
  'Füße, naïve café, Ελληνικά, русский, עברית',
  '日本語とかな 中文 한국어 ไทย हिन्दी',
  '👩‍👩‍👧 e\u0301 \u200b \x00 𝔘𝔫𝔦',
  'def f(x):\n    return {"a": x ** 2}  # <|im_end|> <s> </s> <eos>',
  '',
]
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level_bpe() -> T.HuggingFaceTokenizer:
  """A little byte-level BPE, trained here."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  tok = tokenizers.Tokenizer(models.BPE())
  tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tok.decoder = decoders.ByteLevel()
  special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
  tok.train_from_iterator(TEXTS * 3, trainer)
  tok.add_tokens(['  both halves '])  # an added token that is not special and holds plain spaces
  settings = {'bos_token': '<|endoftext|>', 'eos_token': {'content': '<|im_end|>'}, 'chat_template': CHATML}
  return T.HuggingFaceTokenizer(tok.to_str(), settings)


def llama_json() -> T.HuggingFaceTokenizer:
  """A tokenizer.json as Llama 2 has it: spaces as U+2581, unknown characters as bytes, one space put in front."""
  import tokenizers
  from tokenizers import AddedToken, decoders, models, normalizers

  pieces = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256)), '▁', 'H', 'e', 'l', 'o', 'lo', '▁H', 'el']
  tok = tokenizers.Tokenizer(
    models.BPE(
      {p: i for i, p in enumerate(pieces)},
      [('l', 'o'), ('▁', 'H'), ('e', 'l')],
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  tok.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  tok.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ('<unk>', '<s>', '</s>')])
  return T.HuggingFaceTokenizer(tok.to_str(), {'bos_token': '<s>', 'eos_token': '</s>'})
