"""Texts that the target continues itself, as training data for its draft: what a draft must predict is what its target writes.

The corpus FILE is JSON Lines: line i is {"prompt": n, "tokens": [...]}, the token ids of prompt i and of its continuation; the first n
are the prompt. `trainers.made_corpus` says what lies beside it, and how it is continued and used again.
"""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
import time
from typing import Any, ClassVar

import jax
import numpy as np

import decoders
from decoders.resumable import Blocks
from jaxlm.data.corpus import TokenCorpus, tokenizer_fingerprint
from jaxlm.errors import DataError
from jaxlm.io import digest
from jaxlm.language_model import LanguageModel
from trainers.glide.config import GenerationConfig
from trainers.made_corpus import MadeCorpus

BLOCK = 64
"""Number of texts that are written to the file together. The random numbers of a text depend on its place in its block, so a corpus
that was interrupted is continued from the last complete block."""


def prompts(
  corpus: TokenCorpus, tokenizer: Any, count: int, tokens: int, *, chat: bool = False, seed: int = 0
) -> list[list[int]]:
  """Returns token ids of `count` prompts, each from another place in a corpus.

  Args:
    corpus: documents tokenized by `tokenizer`.
    tokens: number of tokens of each prompt; in chats, the largest number of a document's tokens that become the message.
    chat: whether a prompt is the beginning of a document as a user's message in the tokenizer's chat format; if there are fewer
      documents than prompts, later pieces of them are messages too. Otherwise it is a piece of text, after BOS if the tokenizer adds it.
    seed: seed of the choice.

  Raises:
    DataError: the corpus has fewer pieces, or the tokenizer has no chat template.
  """
  special = {tokenizer.bos_id, tokenizer.eos_id}
  text = lambda i: [t for t in corpus.document(i).tolist() if t not in special]
  # A piece lies within one document, and does not overlap with another piece. A document may have EOS at its end.
  pieces = np.maximum(np.diff(corpus.offsets) - tokenizer.adds_bos - (tokenizer.eos_id is not None), 0) // tokens
  if chat:  # A short document is a message too.
    pieces = np.maximum(pieces, 1)
  if count > pieces.sum():
    raise DataError(
      f'{count} prompts are wanted, but the text has only {pieces.sum()} pieces of {tokens} tokens within a document: give more text, or '
      'ask for fewer prompts.'
    )
  if chat:
    most = next(n for n in range(1, count + 2) if np.minimum(pieces, n).sum() >= count)
    pieces = np.minimum(pieces, most)
  ends = np.cumsum(pieces)
  if not count:
    return []
  import grain  # takes a second to import

  chosen = [int(i) for i in grain.MapDataset.range(int(ends[-1])).shuffle(seed=seed)[:count]]
  documents, first = np.searchsorted(ends, chosen, side='right'), ends - pieces
  cuts = [text(i)[(piece - first[i]) * tokens :][:tokens] for i, piece in zip(documents, chosen)]
  if not chat:
    bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
    return [bos + ids for ids in cuts]
  try:
    return [tokenizer.chat(tokenizer.decode(ids)) for ids in cuts]
  except ValueError as e:
    raise DataError(f'Prompts cannot be put through the chat template: {e}') from e


@dataclasses.dataclass(frozen=True)
class SelfGenerated(MadeCorpus):
  """A corpus of the target's own texts, which is made, continued, or there already.

  Attributes:
    path: FILE.
    lm: the target, with parameters that this process can compute with.
    prompts: token ids of the prompts.
    longest: largest number of tokens of a prompt with its continuation.
    settings: how the target continues the prompts.
    say: prints a text.
  """

  path: Path
  lm: LanguageModel
  prompts: list[list[int]]
  longest: int
  settings: GenerationConfig
  say: Callable[[str], None]

  flag: ClassVar[str] = '--generation.file'

  @property
  def lines(self) -> int:
    return BLOCK

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """What the texts depend on, as JSON."""
    return {
      'number of texts': len(self.prompts),
      'sha256 of the prompts': hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest(),
      'longest text': self.longest,
      'temperature': self.settings.temperature,
      'seed': self.settings.seed,
      'dtype': self.lm.config.dtype,
      "target's digest": digest.of_tree(self.lm.params),
      'tokenizer': tokenizer_fingerprint(self.lm.tokenizer),
      # Texts are written block by block: a block is a source, whose lines are its texts.
      'sources': -(-len(self.prompts) // BLOCK),
    }

  def write(self, out: Blocks) -> None:
    blocks = [self.prompts[i : i + BLOCK] for i in range(0, len(self.prompts), BLOCK)]
    started, new = time.monotonic(), 0
    for number in range(out.done, len(blocks)):
      found = self._continued(blocks[number], number)
      lines = zip(blocks[number], found)
      out.write([json.dumps({'prompt': len(prompt), 'tokens': prompt + more}) for prompt, more in lines])
      new += sum(map(len, found))
      seconds, done = time.monotonic() - started, number + 1
      left = seconds / (done - out.done) * (len(blocks) - done)
      self.say(
        f'self-generation: {min(done * BLOCK, len(self.prompts)):,} of {len(self.prompts):,} texts, {new / seconds:,.0f} tokens/s, '
        f'{left:.0f} s left'
      )

  def _continued(self, block: list[list[int]], number: int) -> list[list[int]]:
    """Returns the new tokens of each prompt of a block, with EOS where the target ends a text."""
    s = self.settings
    # A seed has 32 bits; blocks of two corpora with neighbouring seeds must not share theirs.
    seed = int.from_bytes(hashlib.blake2b(f'{s.seed} {number}'.encode(), digest_size=4).digest(), 'big')
    out = decoders.generate(
      self.lm, block, max_new_tokens=self.longest - max(map(len, self.prompts)), seed=seed, batch_size=s.batch_size,
      sampling=decoders.Sampling(temperature=s.temperature), capacity=self.longest,
    )  # fmt: skip
    return out.rows()

  def read(self) -> tuple[TokenCorpus, list[int]]:
    """Returns (the texts as documents, number of prompt tokens of each). `make` must have been called."""
    with open(self.path, encoding='utf-8') as file:
      lines = [json.loads(line) for line in file]
    return TokenCorpus.from_documents(line['tokens'] for line in lines), [line['prompt'] for line in lines]


def local_target(lm: LanguageModel, layout: Any, load: Callable[[], LanguageModel]) -> LanguageModel:
  """Returns the target with parameters that one process can compute with. `load()` reads it again, for runs on several hosts."""
  if jax.process_count() > 1:
    return load()
  return dataclasses.replace(lm, params=layout.local(lm.params))
