"""A tokenizer of each kind, small and trained here."""

import pytest

from jaxlm.data import tokenizers as T
from tests.tokenizers_made import TEXTS, byte_level_bpe, llama_json


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> dict[str, T.Tokenizer]:
  corpus = [*TEXTS * 4, *(f'The quick brown fox jumps over the lazy dog {i} times.' for i in range(300))]
  return {
    'bytes': T.ByteTokenizer(),
    'sentencepiece': T.train_sentencepiece(corpus, 420),
    'sentencepiece, prefix': T.train_sentencepiece(corpus, 420, dummy_prefix=True),
    'unigram': T.train_sentencepiece(corpus, 370, kind='unigram'),
    'byte-level BPE': byte_level_bpe(),
    'llama json': llama_json(),
  }
