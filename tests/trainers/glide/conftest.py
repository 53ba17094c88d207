"""A tiny target with a tokenizer, its text, and the command line of a small run, for all tests of the trainer of drafts."""

import json

import jax
import pytest

import jaxlm
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.language_model import LanguageModel
from tests.models import TINY, init

# Grouped queries, and a width that is not the draft's. Padded: the tokenizer has 259 ids.
TARGET = TINY.replace(vocab_size=264, max_length=64)


@pytest.fixture(scope='session')
def target(tmp_path_factory):
  """Returns the Hugging Face directory of a target."""
  path = tmp_path_factory.mktemp('glide') / 'target'
  jaxlm.save_huggingface(LanguageModel(TARGET, init(TARGET, jax.random.key(7))), path)
  ByteTokenizer().save(path)
  return path


@pytest.fixture(scope='session')
def text(tmp_path_factory):
  """Returns a folder with train.jsonl and valid.jsonl."""
  folder = tmp_path_factory.mktemp('text')
  lines = [json.dumps({'text': f'{i} is less than {i + 1} and {i + 2}. ' * (1 + i % 3)}) for i in range(60)]
  for name, some in (('train', lines[:50]), ('valid', lines[50:])):
    (folder / f'{name}.jsonl').write_text('\n'.join(some))
  return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
