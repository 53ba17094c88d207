"""Multiple choice: a model's answer is the choice with the highest log-likelihood after the context.

  chosen = argmax_c log p(c | context) / n_c,   n_c = 1, the choice's tokens, or its bytes

With n_c = 1, long choices are at a disadvantage. The best normalisation depends on the questions, so all three are reported.
"""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import errors
from jaxlm.evaluation.bootstrap import Difference, paired_difference
from jaxlm.evaluation.likelihood import encode_pair, likelihoods
from jaxlm.language_model import LanguageModel

RULES = ('sum', 'token', 'byte')
"""Normalisations of the score of a choice: log p, log p per token, log p per byte."""


@dataclasses.dataclass(frozen=True)
class Question:
  """A context, the choices that may follow it, and the index of the correct choice (from 0)."""

  context: str
  choices: tuple[str, ...]
  answer: int


@dataclasses.dataclass(frozen=True)
class Choices:
  """A model's log-likelihoods of the choices of Q questions.

  Attributes:
    log_p: for each question, log p of its choices, in nats.
    tokens, bytes: for each question, the lengths of its choices.
    answers: [Q] index of the correct choice.
  """

  log_p: list[np.ndarray]
  tokens: list[np.ndarray]
  bytes: list[np.ndarray]
  answers: np.ndarray

  def __repr__(self) -> str:
    accuracies = ', '.join(f'{self.accuracy(rule):.1%} by {rule}' for rule in RULES)
    return f'Choices({accuracies}; {len(self.answers)} questions)'

  def chosen(self, rule: str = 'sum') -> np.ndarray:
    """Returns the index of the likeliest choice, [Q]; the first one for equal likelihoods."""
    if rule not in RULES:
      raise errors.unknown('rule', rule, RULES)
    sizes = {'sum': [1] * len(self.log_p), 'token': self.tokens, 'byte': self.bytes}[rule]
    return np.array([int(np.argmax(x / n)) for x, n in zip(self.log_p, sizes, strict=True)])

  def correct(self, rule: str = 'sum') -> np.ndarray:
    """Returns whether the likeliest choice is the correct one, [Q] bool."""
    return self.chosen(rule) == self.answers

  def accuracy(self, rule: str = 'sum') -> float:
    return float(self.correct(rule).mean())

  def difference(self, other: 'Choices', rule: str = 'sum', **options: Any) -> Difference:
    """Returns the paired difference of accuracy to another model's; `options` are those of `paired_difference`."""
    if not np.array_equal(self.answers, other.answers):
      raise ValueError('The two models have not answered the same questions.')
    return paired_difference(self.correct(rule), other.correct(rule), **options)


def answer_choices(
  lm: LanguageModel, questions: Sequence[Question], *, delimiter: str = ' ', **options: Any
) -> Choices:
  """Returns a model's log-likelihood of each choice after its context.

  Args:
    delimiter: inserted between context and choice if there is no white space between them.
    options: keyword arguments of `jaxlm.evaluation.likelihood.likelihoods`.

  Raises:
    ValueError: no questions, or an error of `encode_pair` or `likelihoods`.
  """
  if not questions:
    raise ValueError('There are no questions to answer.')
  pairs = []
  for q in questions:
    for choice in q.choices:
      bare = q.context and not q.context[-1].isspace() and not choice[:1].isspace()
      pairs.append(encode_pair(lm, q.context, delimiter + choice if bare else choice))
  log_p = np.array([found.log_p for found in likelihoods(lm, pairs, **options)])
  tokens = np.array([len(after) for _, after in pairs])
  sizes = np.array([len(choice.encode()) for q in questions for choice in q.choices])
  ends = np.cumsum([len(q.choices) for q in questions])[:-1]
  parts = (np.split(x, ends) for x in (log_p, tokens, sizes))
  return Choices(*parts, np.array([q.answer for q in questions]))


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
  """Returns the questions of a JSONL file: {"context": text, "choices": [text, ...], "answer": number from 0, or text}.

  Raises:
    DataError: the file cannot be read, or a line has another form; the message names it.
  """
  questions, number = [], 0
  try:
    with open(path, encoding='utf-8') as file:
      for number, line in enumerate(file, 1):
        if line.strip() and (limit is None or len(questions) < limit):
          questions.append(_question(json.loads(line), f'{path}, line {number}'))
  except errors.DataError:
    raise
  except (OSError, ValueError) as e:
    raise errors.DataError(f'{path}{f", line {number}," if number else ""} cannot be read: {e}') from e
  if not questions:
    raise errors.DataError(f'{path} holds no questions.')
  return questions


def _question(entry: Any, where: str) -> Question:
  if not isinstance(entry, dict) or {'context', 'choices', 'answer'} - set(entry):
    raise errors.DataError(f'{where}: expected an object with context, choices and answer.')
  context, choices, answer = entry['context'], entry['choices'], entry['answer']
  fits = isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)
  if not isinstance(context, str) or not fits:
    raise errors.DataError(f'{where}: context is a text and choices are two or more texts, none of them empty.')
  if isinstance(answer, str) and answer in choices:
    answer = choices.index(answer)
  if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
    raise errors.DataError(
      f'{where}: answer={answer!r} is neither a number within 0 .. {len(choices) - 1} nor one of the choices.'
    )
  return Question(context, tuple(choices), answer)
