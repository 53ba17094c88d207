"""Tasks with a known need of target history: how often a model of some order is right where a word has to agree with an earlier one.

The earlier words are those of the reference, whose class is drawn at random (teacher forcing). A model that translates freely could
always write the same class, and agree with it without seeing it.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import translation_mat_models as models
from benchmarks.made_before import kept
from benchmarks.translation_corpora import Corpus
from benchmarks.translation_mat_scores import verdict
from jaxlm.models import seq2seq
from jaxlm.seq2seq_config import MarkovMode
from jaxlm.translation_model import Seq2SeqModel

CLAUSE_ORDERS = {'independent': (1, 2, 5), 'shared': (2, 4, 5)}
"""Orders below, at and above what the clauses need; for shared ones two below."""
NEEDS = {'independent': 2, 'shared': 5}
NEAR, RIGHT, LEAK = 0.05, 0.95, 0.3
"""Accuracy above chance that still counts as guessing, accuracy from which a task counts as solved, and accuracy above chance that
shows that a model sees more than its order."""


def right_at(
  model: Seq2SeqModel, pairs: Sequence[tuple[str, str]], places: Callable[[str], Sequence[int]]
) -> list[list[bool]]:
  """Returns for each pair whether the likeliest word is that of the target at each of the places of its source."""
  c, tokenizers = model.config, model.tokenizer
  sources = [[*tokenizers.source.encode(source), c.source_end_id] for source, _ in pairs]
  targets = [tokenizers.target.encode(target) for _, target in pairs]
  filled = lambda rows: np.array([row + [c.pad_id] * (max(map(len, rows)) - len(row)) for row in rows], np.int32)
  lengths_B, target_BT = np.array(list(map(len, sources)), np.int32), filled(targets)
  tokens_BT = np.concatenate([np.full((len(pairs), 1), c.start_id, np.int32), target_BT[:, :-1]], axis=1)

  @jax.jit
  def likeliest(params, source_BS, lengths_B, tokens_BT):
    memory = seq2seq.memory(params, c, seq2seq.encode(params, c, source_BS, lengths_B), lengths_B)
    return jnp.argmax(seq2seq.logits(params, c, seq2seq.hidden(params, c, tokens_BT, memory)[0]), axis=-1)

  right_BT = np.asarray(likeliest(model.params, filled(sources), lengths_B, tokens_BT)) == target_BT
  return [[bool(right_BT[b, t]) for t in places(source)] for b, (source, _) in enumerate(pairs)]


def _measured(
  kind: str, setting: models.Setting, corpus: Corpus, order: int, mode: MarkovMode, places: Callable[[str], Sequence[int]]
) -> list[list[bool]]:  # fmt: skip
  """Returns `right_at` of the test pairs, by a model that is trained if that was not done before."""
  make = lambda: right_at(models.train(setting, corpus, order, mode, 0), corpus.test(), places)
  return kept(f'markov-{kind}', [setting.facts, corpus.facts, order, mode, 0], make)


def rows(distances: Sequence[int], modes: Sequence[MarkovMode], tiny: bool) -> list[dict[str, Any]]:
  """Returns the accuracy of the agreeing word for each distance, mode and order around the distance."""
  setting, found = models.setting('agreement', tiny), []
  for distance in distances:
    corpus = models.agreement(distance)
    places = lambda source: [source.split().index('same')]
    for mode in modes:
      for order in range(max(1, distance - 2), distance + 2):
        right = _measured('agreement', setting, corpus, order, mode, places)
        found.append({
          'distance': distance, 'mode': mode, 'order': order, 'accuracy': float(np.mean(right)), 'words': len(right),
          'chance': 1 / corpus.language.classes,
        })  # fmt: skip
        print(found[-1], flush=True)
  return found


def asked(source: str, shared: bool) -> list[int]:
  """Returns the places of the words that have to agree: `same` with `pick`, or each later `pick` with the clause before."""
  words = source.split()
  return [i for i, word in enumerate(words) if (word == 'pick' and i > 0 if shared else word == 'same')]


def clause_rows(mode: MarkovMode, tiny: bool) -> list[dict[str, Any]]:
  """Returns the accuracy of agreeing words for each task of clauses, order and number of clauses."""
  setting, found = models.setting('clauses', tiny), []
  for task, orders in CLAUSE_ORDERS.items():
    corpus, places = models.clauses(task == 'shared'), functools.partial(asked, shared=task == 'shared')
    for order in orders:
      right = _measured('clauses', setting, corpus, order, mode, places)
      by_number: dict[int, list[bool]] = {}
      for (source, _), of_pair in zip(corpus.test(), right):
        by_number.setdefault(source.split().count('pick'), []).extend(of_pair)
      for number, of_number in sorted(by_number.items()):
        if of_number:  # The only clause of a sentence has no clause before it.
          found.append({
            'task': task, 'order': models.named(order), 'clauses': number, 'accuracy': float(np.mean(of_number)),
            'words': len(of_number), 'chance': 1 / corpus.language.classes,
          })  # fmt: skip
          print(found[-1], flush=True)
  return found


def checks(rows: list[dict[str, Any]], clauses: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns which of the claims hold: exact modes solve a task if and only if the order reaches, and naive ones solve more."""
  verdicts = []
  percent = lambda values: ', '.join(f'{100 * v:.1f} %' for v in values)
  for mode in dict.fromkeys(r['mode'] for r in rows):
    of_mode = [r for r in rows if r['mode'] == mode]
    below, reached = ([r for r in of_mode if (r['order'] >= r['distance']) == there] for there in (False, True))
    over = [r['accuracy'] - r['chance'] for r in below]
    least = min(r['accuracy'] for r in reached)
    if mode == 'naive' and over:
      statement = 'naive: at some order below the distance 30 points above chance'
      verdicts.append(verdict(statement, max(over) >= LEAK, percent([max(over)])))
    elif mode != 'naive' and over:
      statement = f'{mode}: at most 5 points above chance wherever the order is below the distance'
      verdicts.append(verdict(statement, max(over) <= NEAR, percent([max(over)])))
    if mode != 'naive':
      verdicts.append(verdict(f'{mode}: at least 95 % wherever the order reaches', least >= RIGHT, percent([least])))
  for task in dict.fromkeys(r['task'] for r in clauses):
    for order in dict.fromkeys(r['order'] for r in clauses if r['task'] == task):
      some = [r for r in clauses if (r['task'], r['order']) == (task, order)]
      values = [r['accuracy'] for r in some]
      if int(order) >= NEEDS[task]:
        statement = f'{task} clauses: order {order} is right in 95 % whatever the number of clauses'
        verdicts.append(verdict(statement, min(values) >= RIGHT, percent(values)))
      else:
        overall = sum(r['accuracy'] * r['words'] for r in some) / sum(r['words'] for r in some)
        statement = f'{task} clauses: order {order} guesses, at most 5 points above chance'
        verdicts.append(verdict(statement, overall <= some[0]['chance'] + NEAR, percent([overall])))
  for found in verdicts:
    print('PASS' if found['pass'] else 'MISS', found['statement'], '--', found['measured'])
  return verdicts
