"""Answers to the requests of lm-evaluation-harness. This file does not import the harness.

  log-likelihood            log p(continuation | context), and whether greedy decoding yields the continuation
  rolling log-likelihood    log p(text), each token predicted once, with as much context as the model reads
  generate until            the generated text up to the first stop string, or up to the end token

The first token of a text, and the split of a pair into context and continuation, are those of the harness's `hf` models: see
jaxlm.evaluation.likelihood. One difference: if a tokenizer puts BOS before texts, the rolling likelihood does not count that
BOS as a token to be predicted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from typing import Any

from decoders.options import Sampling
from decoders.plain import generate
from jaxlm.evaluation.likelihood import Likelihood, encode, encode_pair, first, lead, likelihoods
from jaxlm.language_model import LanguageModel

Done = Callable[[int, Any], None]
"""Called with (number of the request, its answer) for each answer."""

LENGTHS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
"""Names that tasks use for the number of new tokens; the first one that is given counts."""
IGNORED = {'num_beams': (1,), 'num_return_sequences': (1,), 'early_stopping': (True, False), 'use_cache': (True, False)}
"""Arguments for transformers that have no effect when they have these values."""


def _nothing(number: int, answer: Any) -> None:
  pass


def loglikelihoods(
  lm: LanguageModel, pairs: Sequence[tuple[str, str]], done: Done = _nothing, **options: Any
) -> list[Likelihood]:
  """Returns (log p, greedy) of each continuation; `options` are those of `jaxlm.evaluation.likelihood.likelihoods`.

  Strings such as '<|im_start|>' are read as special tokens, because chat templates are rendered to text.
  """
  found = likelihoods(lm, [encode_pair(lm, *pair, special=True) for pair in pairs], **options)
  for number, answer in enumerate(found):
    done(number, answer)
  return found


def rolling_windows(
  ids: Sequence[int], begin: Sequence[int], length: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
  """Yields (context ids, ids scored after them) so that each id is scored once, in rows of at most `length` inputs.

  The first row begins with `begin`; the last one has as much context as fits, so it overlaps the one before it.

    ids 0 .. 9, length 4:   BOS | 0 1 2 3    3 | 4 5 6 7    5 6 7 | 8 9
  """
  n = length - len(begin) + 1
  if ids:
    yield begin, ids[:n]
  for start in range(n, len(ids), length):
    end = min(start + length, len(ids))
    yield ids[max(end - length - 1, 0) : start], ids[start:end]


def rolling_loglikelihoods(
  lm: LanguageModel, texts: Sequence[str], done: Done = _nothing, *, max_length: int | None = None, **options: Any
) -> list[float]:
  """Returns log p of each whole text, 0 for an empty text; `options` as for `loglikelihoods`."""
  length = max_length or lm.config.max_length
  begin, windows, owners = first(lm), [], []
  if len(begin) > length:
    raise ValueError(f'max_length={length} leaves no room after the {len(begin)} ids at the start of each text.')
  for number, text in enumerate(texts):
    ids = encode(lm, text)[len(lead(lm)) :]
    for window in rolling_windows(ids, begin, length):
      windows.append(window)
      owners.append(number)
  sums = [0.0] * len(texts)
  for number, found in zip(owners, likelihoods(lm, windows, max_length=length, **options), strict=True):
    sums[number] += found.log_p
  for number, total in enumerate(sums):
    done(number, total)
  return sums


def generation(arguments: Mapping[str, Any], default: int = 256) -> tuple[int, list[str], Sampling]:
  """Returns (most new tokens, strings to stop at, sampling) of a task's generation arguments.

  Raises:
    ValueError: an argument that would be ignored; the message names it.
  """
  rest = dict(arguments)
  lengths = [int(n) for name in LENGTHS if (n := rest.pop(name, None)) is not None]
  until = rest.pop('until', None) or []
  until = [until] if isinstance(until, str) else list(until)
  temperature = rest.pop('temperature', None)
  sample = rest.pop('do_sample', bool(temperature))
  filters = {name: rest.pop(name) for name in ('top_k', 'top_p', 'min_p', 'repetition_penalty') if name in rest}
  for name, value in rest.items():
    if value not in IGNORED.get(name, ()) and value is not None:
      raise ValueError(f'The generation argument {name}={value!r} is not known.')
  filters = {name: value for name, value in filters.items() if value is not None}
  temperature = (1.0 if temperature is None else float(temperature)) if sample else 0.0
  sampling = Sampling(temperature=temperature, **filters)
  return (lengths or [default])[0], [s for s in until if s], sampling


def generate_until(
  lm: LanguageModel,
  requests: Sequence[tuple[str, Mapping[str, Any]]],
  done: Done = _nothing,
  *,
  batch_size: int = 16,
  max_length: int | None = None,
  max_new_tokens: int = 256,
  seed: int = 0,
) -> list[str]:
  """Returns the text generated after each context, up to the first stop string of its request.

  Requests with the same arguments are batched, the longest contexts first. A context that is too long loses its beginning.

  Args:
    requests: (context, generation arguments: until, max_gen_toks, do_sample, temperature, ...).
    max_length: largest number of tokens in context and output together (None: the model's context).
    max_new_tokens: number of new tokens for requests that give no number.

  Raises:
    ValueError: an argument is unknown, or there are more new tokens than the model can read.
  """
  length, begin = max_length or lm.config.max_length, lead(lm)
  groups: dict[str, list[int]] = {}
  for number, (_, arguments) in enumerate(requests):
    groups.setdefault(json.dumps(arguments, sort_keys=True), []).append(number)
  texts = [''] * len(requests)
  for numbers in groups.values():
    n, until, sampling = generation(requests[numbers[0]][1], max_new_tokens)
    room = length - n
    if room <= len(begin):
      raise ValueError(f'{n} new tokens leave no room for a context: the model reads {length}.')
    ids = {i: encode(lm, requests[i][0], special=True) or first(lm) for i in numbers}
    ids = {i: x if len(x) <= room else [*begin, *x[len(x) - room + len(begin) :]] for i, x in ids.items()}
    numbers = sorted(numbers, key=lambda i: -len(ids[i]))
    for start in range(0, len(numbers), batch_size):
      some = numbers[start : start + batch_size]
      # The last batch is padded to the size of the others, so that no further program is compiled.
      rows = [ids[i] for i in some] + [ids[some[-1]]] * (min(batch_size, len(numbers)) - len(some))
      out = generate(lm, rows, max_new_tokens=n, sampling=sampling, seed=seed, stop=until, direction='forward')
      for i, text in zip(some, out.text):
        texts[i] = text
        done(i, text)
  return texts
