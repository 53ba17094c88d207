"""Prompts of five kinds for speculative decoding, from questions and from text and code that ship with Python.

summarise   a paragraph to summarise in one sentence
code        the first half of a function's source, to complete
chat        questions as users ask them
translate   a sentence to translate into French
repeat      a function's source to write again with one change
"""

import inspect
import re
import shutil
import statistics
import textwrap

import numpy as np

from jaxlm.data import embedded
from jaxlm.language_model import LanguageModel

QUESTIONS = (
  'Why is the sky blue?',
  'How do I learn to play the guitar?',
  'What should I see in Rome in two days?',
  'Explain how a bicycle stays upright.',
  'Write a short poem about the sea.',
  'What is the difference between a virus and a bacterium?',
  'Give me a recipe for pancakes.',
  'My friend forgot my birthday. What should I say to him?',
)
FUNCTIONS = (
  shutil.which, shutil.copyfileobj, shutil.move, textwrap.shorten, textwrap.indent, statistics.median, statistics.quantiles,
  statistics.fmean,
)  # fmt: skip
KINDS = ('summarise', 'code', 'chat', 'translate', 'repeat')


def prompts(lm: LanguageModel, each: int = 8) -> list[tuple[str, list[int]]]:
  """Returns (kind, ids) of `each` prompts, at most 8, of every kind. The kinds take turns, as in a stream of requests."""
  if not 1 <= each <= len(QUESTIONS):
    raise ValueError(f'{each=} prompts of a kind: there are 1 to {len(QUESTIONS)}.')
  sources = [textwrap.dedent(inspect.getsource(f)) for f in FUNCTIONS]
  halves = ['\n'.join((lines := source.splitlines()[:24])[: len(lines) // 2]) + '\n' for source in sources]
  asked = {
    'summarise': [f'Summarise this in one sentence:\n\n{p}' for p in passages(50, 110)],
    'chat': QUESTIONS,
    'translate': [f'Translate into French:\n\n{s}' for s in passages(12, 25)],
    'repeat': [
      f'Write this function again, and name it `other`:\n\n```python\n{s}```'
      for s in ('\n'.join(source.splitlines()[:24]) + '\n' for source in sources)
    ],
  }
  of_kind = {kind: [lm.tokenizer.chat(text) for text in texts] for kind, texts in asked.items()}
  of_kind['code'] = [lm.tokenizer.encode(half) for half in halves]
  return [(kind, of_kind[kind][i]) for i in range(each) for kind in KINDS]


def passages(least: int, most: int, count: int = 8) -> list[str]:
  """Returns paragraphs of prose with `least` to `most` words, evenly spread over the embedded text."""
  paragraphs = (' '.join(p.split()) for text in embedded.read() for p in text.split('\n\n') if not p.startswith(' '))
  prose = [p for p in paragraphs if least <= len(p.split()) <= most and re.fullmatch(r'[A-Z][\w ,;.()\'’-]+\.', p)]
  return [prose[i] for i in np.linspace(0, len(prose) - 1, count).astype(int)]
