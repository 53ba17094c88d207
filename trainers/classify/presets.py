"""Presets of the trainer of classifiers: small settings on docstrings, and those of the paper's tables."""

from trainers.classify.config import ClassDataConfig, ClassifyConfig, EvalConfig, ModelFlags
from trainers.config import OptimizerConfig, RunConfig


def _small(model: ModelFlags, rate: float = 2e-3, steps: int = 900, **changes) -> ClassifyConfig:
  """Returns a setting for a few thousand texts on a CPU."""
  return ClassifyConfig(
    model=model,
    data=ClassDataConfig(batch_size=32, **changes),
    optimizer=OptimizerConfig(
      learning_rate=rate, schedule='cosine', warmup_steps=20, beta2=0.999, weight_decay=0.0, clip_norm=0.0
    ),
    run=RunConfig(steps=steps, eval_every=90, save_every=90, patience=4),
  )


SMALL = dict(dim=64, max_length=96)
# The released code for texts with one label: residual sum, biases, padding that counts, 2 L hidden units.
RELEASED = dict(
  front=4, residual='sum', class_bias=True, output_bias=True, mask='before', dim=128
)  # fmt: skip


def _paper(length: int, texts: int, source: str = '', header: bool = False) -> ClassifyConfig:
  """Returns the setting of the released code: Adam 1e-4, batches of 16, at most 20 epochs; selection on held-out texts."""
  epoch = texts // 16
  return ClassifyConfig(
    model=ModelFlags(max_length=length, hidden=2 * length, **RELEASED),
    data=ClassDataConfig(source=source, words='kim', header=header, empty='skip'),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, beta2=0.999, weight_decay=0.0, clip_norm=0.0),
    run=RunConfig(steps=20 * epoch, log_every=100, eval_every=epoch, save_every=epoch, patience=3),
    eval=EvalConfig(batch_size=128),
  )


PRESETS = {
  'docstrings': (
    'EXAM on docstrings of the standard library: the package of each, 18 classes; a few minutes on a laptop CPU.',
    _small(ModelFlags(**SMALL, residual='sum', class_bias=True, output_bias=True, dropout=0.2)),
  ),
  'region': ('Baseline: region embeddings alone, summed over the text.', _small(ModelFlags(**SMALL, aggregator='sum', class_bias=True, dropout=0.2))),
  'fasttext': (
    'Baseline: the mean of word and word-pair vectors.',
    _small(ModelFlags(**SMALL, encoder='ngrams', aggregator='mean', class_bias=True), rate=2e-2),
  ),
  'gru': (
    'Baseline: the last state of a recurrent network.',
    _small(ModelFlags(**SMALL, encoder='gru', aggregator='last', class_bias=True, dropout=0.2), rate=1e-2),
  ),
  'lm': (
    'EXAM on the hidden states of a frozen language model, --lm smollm2 or minilm, which are computed once before the first step.',
    _small(
      ModelFlags(encoder='lm', max_length=48, residual='mean', class_bias=True, output_bias=True), steps=200, empty='skip'
    ),
  ),
  'tiny': (
    'A tiny model on docstrings; seconds on a CPU.',
    ClassifyConfig(
      model=ModelFlags(dim=8, max_length=24),
      data=ClassDataConfig(vocab_size=500),
      optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=4, weight_decay=0.0),
      run=RunConfig(steps=20, log_every=2, eval_every=10, save_every=10),
    ),
  ),
  'exam': (
    "The paper's model as its text has it: no residual, no biases of classes and outputs. Pass --data.source.",
    ClassifyConfig(
      model=ModelFlags(),
      data=ClassDataConfig(source='', words='kim', empty='skip'),
      optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, beta2=0.999, weight_decay=0.0, clip_norm=0.0),
      run=RunConfig(steps=100_000, log_every=100, eval_every=5000, save_every=5000, patience=3),
    ),
  ),
  'ag-news': ('Released code on AG News, 120,000 texts from TFDS; the paper has 93.0 %.', _paper(256, 108_000, 'tfds:ag_news_subset')),
  'yelp-polarity': ('The same on Yelp polarity, 560,000 texts from TFDS; no figure of EXAM.', _paper(1024, 504_000, 'tfds:yelp_polarity_reviews')),
  'dbpedia': ('The same on DBpedia, CSV files with the label first; the paper has 99.0 %.', _paper(256, 504_000)),
  'yahoo': ('The same on Yahoo Answers; the paper has 74.8 %.', _paper(1024, 1_260_000)),
  'amazon-polarity': ('The same on Amazon polarity; the paper has 95.5 %.', _paper(256, 3_240_000)),
  'amazon-full': ('The same on Amazon reviews with five stars; the paper has 61.9 %.', _paper(256, 2_700_000)),
  'kanshan': (
    'Released code for many labels: two GRU layers of 1,024, texts of 30 words. Pass --data.source and --data.multilabel.',
    ClassifyConfig(
      model=ModelFlags(
        encoder='gru', gru_layers=2, dim=1024, embed_dim=256, max_length=30, side='left', hidden=60, output_bias=True, mask='none',
        class_tile=50,
      ),
      data=ClassDataConfig(source='', words='kim', batch_size=1000, empty='skip'),
      optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0, beta2=0.999, weight_decay=0.0, clip_norm=0.0),
      run=RunConfig(steps=28_000, eval_every=2800, save_every=2800, patience=2),
      eval=EvalConfig(batch_size=1000),
    ),
  ),
}  # fmt: skip
