"""Named settings of translation: small ones, those of https://arxiv.org/abs/1706.03762, and the CMLM of
https://arxiv.org/abs/1904.09324 with OaXE (https://arxiv.org/abs/2106.05093)."""

import dataclasses

from jaxlm.config import DropoutConfig
from jaxlm.seq2seq_config import Seq2SeqConfig
from trainers.config import OptimizerConfig, RunConfig
from trainers.translate.config import EvalConfig, OrderConfig, PairDataConfig, TranslateConfig


def _optimizer(learning_rate: float, warmup_steps: int) -> OptimizerConfig:
  """Adam as translation models are trained: a short memory of squared gradients, no weight decay, 1 / sqrt(step)."""
  return OptimizerConfig(
    learning_rate=learning_rate, schedule='inverse_sqrt', warmup_steps=warmup_steps, beta2=0.98, eps=1e-9, weight_decay=0.0
  )  # fmt: skip


def _transformer(dim: int, heads: int, mlp_dim: int, dropout: float, *, tokens: int, steps: int, rate: float):
  return TranslateConfig(
    model=Seq2SeqConfig(
      model_dim=dim, num_heads=heads, mlp_dim=mlp_dim, dropout=DropoutConfig(residual=dropout), max_length=256
    ),
    data=PairDataConfig(source='', vocab_size=32000, tokens=tokens, max_length=256, buckets=8),
    optimizer=_optimizer(rate, 4000),
    run=RunConfig(steps=steps, eval_every=2000, save_every=2000, average_last=5, log_every=100),
    eval=EvalConfig(sentences=1000, beam_size=4),
  )


GRAMMAR = TranslateConfig(
  model=Seq2SeqConfig(
    encoder_layers=2, decoder_layers=2, model_dim=128, num_heads=4, mlp_dim=256, max_length=64, dtype='float32'
  ),
  data=PairDataConfig(tokenizer='words', vocab_size=4000, tokens=1024, buckets=3, max_length=48),
  optimizer=_optimizer(2e-3, 100),
  run=RunConfig(steps=1200, eval_every=300, save_every=300),
  eval=EvalConfig(batches=20, sentences=200),
)


def _parallel(kind: str, steps: int, **changes) -> TranslateConfig:
  """A small model that predicts all tokens at once, on the language `short`.

  It has to compute the position of every word from the lengths of the phrases, since no target token says where it is, and learns that
  far more slowly than words: sentences are short, and positions learned.
  """
  config = TranslateConfig(
    model=Seq2SeqConfig(
      kind=kind, encoder_layers=2, decoder_layers=2, model_dim=64, num_heads=4, mlp_dim=128, max_length=64, position='learned',
      dtype='float32',
    ),
    data=PairDataConfig(source='grammar:short', tokenizer='words', vocab_size=4000, tokens=1024, buckets=1, max_length=48),
    optimizer=OptimizerConfig(
      learning_rate=4e-3, schedule='cosine', warmup_steps=50, beta2=0.98, eps=1e-9, weight_decay=0.0
    ),
    run=RunConfig(steps=steps, eval_every=steps // 4, save_every=steps // 4),
    # Lengths are certain here. With more of them, repetitive translations of a wrong length win, because their tokens are surer.
    eval=EvalConfig(batches=20, sentences=200, length_beam=1),
  )  # fmt: skip
  return dataclasses.replace(config, **changes)


def _cmlm(dropout: float, *, tokens: int, steps: int, rate: float, warmup_steps: int, **changes) -> TranslateConfig:
  """CMLM-base as published: norms after the sub-layers, learned positions, GELU, and new parameters from N(0, 0.02)."""
  return TranslateConfig(
    model=Seq2SeqConfig(
      kind='cmlm', norm_placement='post', norm_eps=1e-12, position='learned', activation='gelu', scaled_embeddings=False,
      init='normal', init_std=0.02, dropout=DropoutConfig(residual=dropout), max_length=256,
    ),
    data=PairDataConfig(source='', vocab_size=32000, tokens=tokens, max_length=256, buckets=8),
    optimizer=OptimizerConfig(
      learning_rate=rate, schedule='inverse_sqrt', warmup_steps=warmup_steps, beta2=0.999, eps=1e-6, weight_decay=0.01
    ),
    run=RunConfig(steps=steps, eval_every=2000, save_every=2000, average_last=5, log_every=100),
    eval=EvalConfig(sentences=1000),
    **changes,
  )  # fmt: skip


PRESETS = {
  'grammar': (
    'A small model on generated pairs whose translations are all known; minutes on a CPU.',
    GRAMMAR,
  ),
  'small': (
    'transformer-small: 3 + 3 layers x 256, 8 million parameters, which suit 10,000 to 100,000 pairs; hours on a CPU. Name them with '
    '--data.source.',
    TranslateConfig(
      # A larger model would learn so few pairs by heart. float32 is the fastest on CPUs, and runs everywhere.
      model=Seq2SeqConfig(
        encoder_layers=3,
        decoder_layers=3,
        model_dim=256,
        num_heads=4,
        mlp_dim=1024,
        dropout=DropoutConfig(residual=0.2),
        max_length=128,
        dtype='float32',
      ),
      data=PairDataConfig(source='', vocab_size=8000, tokens=2048, max_length=128),
      optimizer=_optimizer(1e-3, 500),
      run=RunConfig(steps=6000, eval_every=500, save_every=500, average_last=5, log_every=50),
      eval=EvalConfig(sentences=200),
    ),
  ),
  'iwslt': (
    'transformer-iwslt: 6 + 6 layers x 512 with 4 heads, for some 200,000 pairs. Name them with --data.source.',
    _transformer(512, 4, 1024, 0.3, tokens=4096, steps=50_000, rate=5e-4),
  ),
  'base': (
    'transformer-base: 6 + 6 layers x 512, for millions of pairs. Name them with --data.source.',
    _transformer(512, 8, 2048, 0.1, tokens=32_768, steps=100_000, rate=7e-4),
  ),
  'big': (
    'transformer-big: 6 + 6 layers x 1024, for millions of pairs. Name them with --data.source.',
    _transformer(1024, 16, 4096, 0.3, tokens=32_768, steps=300_000, rate=5e-4),
  ),
  # Two orders of each sentence are equally likely, and cross-entropy learns a mixture of them: 4 % of its translations are valid after
  # 2000 steps, and 81 % after 600 more of OaXE, three minutes and one on two busy cores (docs/non_autoregressive.md).
  'nat': (
    'A small model that predicts all target tokens at once, from masks alone, on short generated pairs; minutes on a CPU.',
    _parallel('nat', 2000),
  ),
  'cmlm': (
    'The same, trained on random masks, so that decoding can refine (--eval.iterations 4); minutes on a CPU.',
    _parallel('cmlm', 4000),
  ),
  'oaxe': (
    'Goes on from a run of nat or cmlm, with --start RUN: order-agnostic cross-entropy with all tokens masked; a minute on a CPU.',
    _parallel(
      'nat',
      600,
      loss='oaxe',
      oaxe=OrderConfig(pi=0.15),
      optimizer=OptimizerConfig(
        learning_rate=1e-3, schedule='cosine', warmup_steps=20, beta2=0.98, eps=1e-9, weight_decay=0.0
      ),
    ),
  ),
  # Published: 8192 tokens on each of several devices, 300,000 updates.
  'cmlm-base': (
    'CMLM-base: 6 + 6 layers x 512, for millions of pairs whose targets a teacher writes (--distill-from). Name them with --data.source.',
    _cmlm(0.3, tokens=65_536, steps=300_000, rate=5e-4, warmup_steps=10_000),
  ),
  # Published: 16,384 tokens on each of 8 devices. The released recipe names no number of updates; https://arxiv.org/abs/2207.04206
  # takes 200,000.
  'oaxe-base': (
    'OaXE: goes on from a run of cmlm-base, with --start RUN, on the same pairs.',
    _cmlm(
      0.2, tokens=131_072, steps=200_000, rate=5e-6, warmup_steps=500, loss='oaxe', oaxe=OrderConfig(pi=0.15, base='2')
    ),
  ),
}
