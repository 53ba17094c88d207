"""Presets of the trainer of recommenders: its three stages on generated data, larger ones, and SASRec for comparison."""

from jaxlm.config import DropoutConfig
from trainers.config import OptimizerConfig, RunConfig
from trainers.recommend.config import (
  BeamConfig,
  DraftConfig,
  EvalConfig,
  IdConfig,
  IdsConfig,
  LogConfig,
  ModelFlags,
  RowConfig,
  SpeedConfig,
  TargetConfig,
)

DROPOUT = DropoutConfig(residual=0.2)
"""Histories are few and repeat often: without dropout, targets overfit after some ten epochs."""


def _model(layers: int, dim: int, **changes) -> ModelFlags:
  heads = max(1, dim // 32)
  return ModelFlags(
    num_layers=layers, model_dim=dim, num_heads=heads, num_kv_heads=heads, head_dim=32, mlp_dim=2 * dim, dtype='float32', **changes
  )  # fmt: skip


def _optimizer(rate: float, warmup: int = 50) -> OptimizerConfig:
  return OptimizerConfig(learning_rate=rate, schedule='cosine', warmup_steps=warmup, beta2=0.98, weight_decay=0.05)


def _run(steps: int, every: int, patience: int = 0) -> RunConfig:
  return RunConfig(steps=steps, eval_every=every, save_every=every, patience=patience)


PRESETS = {
  'ids': ('Identifiers by residual k-means, 1,000 generated items; seconds.', IdsConfig()),
  'target': (
    'A recommender of 3 layers x 128 on these; a few minutes on a CPU.',
    TargetConfig(model=_model(3, 128, dropout=DROPOUT), optimizer=_optimizer(2e-3), run=_run(400, 100)),
  ),
  'draft': (
    'All three stages: a draft of 1 layer x 64, and before it what it needs.',
    DraftConfig(
      model=_model(1, 64), optimizer=_optimizer(4e-3), run=_run(300, 100), beams=BeamConfig(examples=2000)
    ),
  ),
  'tiny': (
    'All three stages in a minute or two, mostly compilation; too small to recommend well.',
    DraftConfig(
      target_preset='target-tiny', model=_model(1, 32), optimizer=_optimizer(4e-3, 4), run=_run(20, 10),
      beams=BeamConfig(count=5, examples=64), eval=SpeedConfig(users=16, k=3, beam=6),
    ),
  ),
  'target-tiny': (
    'The target of tiny.',
    TargetConfig(
      ids_preset='ids-tiny', model=_model(1, 32), optimizer=_optimizer(4e-3, 4), run=_run(20, 10), eval=EvalConfig(users=16, k=5)
    ),
  ),
  'ids-tiny': (
    'The identifiers of tiny, 200 generated items.',
    IdsConfig(data=LogConfig(source='made-tiny'), ids=IdConfig(sizes=(8, 8), history=8)),
  ),
  'ids-medium': (
    'Identifiers of 12,000 generated items, with as many codes as the published ones.',
    IdsConfig(data=LogConfig(source='made-medium'), ids=IdConfig(sizes=(256, 256, 256))),
  ),
  'target-medium': (
    'A recommender of 6 layers x 256 on 12,000 items; for an accelerator.',
    TargetConfig(
      ids_preset='ids-medium', model=_model(6, 256, dropout=DROPOUT), data=RowConfig(batch_size=256), optimizer=_optimizer(1e-3, 200),
      run=_run(3000, 500),
    ),
  ),
  'draft-medium': (
    'A draft of 1 layer x 128 for it; for an accelerator.',
    DraftConfig(
      target_preset='target-medium', model=_model(1, 128), data=RowConfig(batch_size=256), optimizer=_optimizer(1e-3, 200),
      run=_run(2000, 500), beams=BeamConfig(examples=20_000, batch_size=256),
    ),
  ),
  'ids-sasrec': (
    'One token for each item instead of an identifier of several codes.',
    IdsConfig(ids=IdConfig(method='items', history=50)),
  ),
  'sasrec': (
    'SASRec, 2 layers x 64 on single items, with a cross-entropy over all items: a recommender to compare with.',
    TargetConfig(
      ids_preset='ids-sasrec',
      model=_model(2, 64, position='learned', norm='layernorm', activation='relu', gated_mlp=False, tied_embeddings=True,
        dropout=DROPOUT,
      ),
      optimizer=_optimizer(2e-3), run=_run(600, 100),
    ),
  ),
}  # fmt: skip
