"""Small encoder-decoders and a tokenizer for the tests of translation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.models import seq2seq
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel
from tests.decoders.beam.reference import EOS, PAD, V

TINY = Seq2SeqConfig(
  vocab_size=V, source_vocab_size=9, embeddings='tied', encoder_layers=1, decoder_layers=2, model_dim=8, num_heads=2, mlp_dim=12,
  max_length=32, start_id=1, eos_id=EOS, pad_id=PAD, dtype='float32',
)  # fmt: skip
MARKOV = TINY.replace(markov_order=2)
UNROLL = TINY.replace(markov_order=2, markov_mode='unroll', position='relative')
NAIVE = TINY.replace(markov_order=2, markov_mode='naive')
SOURCES = [[3, 4, 5], [8], [6, 7, 6, 7, 6, 7, 8], [4]]

init = jax.jit(seq2seq.init_params, static_argnums=0)


class Letters:
  """A tokenizer: source ids are the letters from 'a' on, target ids are printed as capitals."""

  def encode_source(self, text: str) -> list[int]:
    return [3 + ord(letter) - ord('a') for letter in text]

  def decode_target(self, ids) -> str:
    return ''.join(chr(ord('A') + i) for i in ids)


@functools.cache
def tiny(config: Seq2SeqConfig = TINY, seed: int = 0) -> Seq2SeqModel:
  """Returns a random model whose distributions are far from even."""
  params = init(config, jax.random.key(seed))
  params['embed']['embedding'] = 2 * params['embed']['embedding']
  return Seq2SeqModel(config, params, Letters())


@functools.partial(jax.jit, static_argnums=1)
def _log_p(params, config, source_1S, tokens_1T):
  lengths_1 = jnp.full((1,), source_1S.shape[1])
  memory = seq2seq.memory(params, config, seq2seq.encode(params, config, source_1S, lengths_1), lengths_1)
  return jax.nn.log_softmax(seq2seq.logits(params, config, seq2seq.hidden(params, config, tokens_1T, memory)[0]))[0]


def model_log_p(model: Seq2SeqModel, source: list[int], room: int):
  """Returns prefix -> log-probabilities of the next id, computed anew from the whole prefix, without a cache or padding."""
  source_1S = jnp.asarray([[*source, model.config.eos_id]])

  @functools.cache
  def of(prefix: tuple[int, ...]) -> np.ndarray:
    tokens = np.zeros((1, room), np.int32)
    tokens[0, : 1 + len(prefix)] = (model.config.start_id, *prefix)
    return np.asarray(_log_p(model.params, model.config, source_1S, tokens)[len(prefix)], np.float64)

  return of
