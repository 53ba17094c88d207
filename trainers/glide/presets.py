"""Presets of the trainer of drafts: small settings, and that of the paper."""

from trainers.config import OptimizerConfig, RunConfig
from trainers.glide.config import DistillConfig, DraftFlags, EvalConfig, GenerationConfig, GlideTrainConfig, TextConfig

PRESETS = {
  'embedded': (
    'A draft of a small Llama on text that ships with Python; minutes on a laptop CPU, the training of the target included.',
    GlideTrainConfig(
      model=DraftFlags(model_dim=96, num_heads=3, mlp_dim=256, embedding='target', dtype='float32'),
      data=TextConfig(batch_size=8, length=128),
      optimizer=OptimizerConfig(learning_rate=3e-3, schedule='cosine', warmup_steps=40, weight_decay=0.0),
      run=RunConfig(steps=400, eval_every=100, save_every=100),
    ),
  ),
  'smoke': (
    'A tiny target and a tiny draft on bytes; seconds on a CPU.',
    GlideTrainConfig(
      target_preset='smoke',
      model=DraftFlags(model_dim=32, num_heads=2, mlp_dim=64, dtype='float32'),
      data=TextConfig(batch_size=8, length=32),
      optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=4, weight_decay=0.0),
      run=RunConfig(steps=20, log_every=2, eval_every=10, save_every=10),
      eval=EvalConfig(batches=2, prompts=2, prompt_tokens=8, new_tokens=16),
    ),
  ),
  'smollm2': (
    'A draft of SmolLM2-135M-Instruct (--target smollm2) on texts that it writes itself; about 40 minutes on two cores of a CPU.',
    GlideTrainConfig(
      target='smollm2',
      target_dtype='bfloat16',
      # After 2400 steps a draft agrees with 49.0 % of held-out tokens if it reads these layers of 30, with 45.2 % if it reads layer 20
      # alone, and with 41.7 % without the target's cache. A norm before, and layer 20 instead of the last one, were better with two seeds.
      model=DraftFlags(
        model_dim=576,
        num_heads=9,
        mlp_dim=1536,
        embedding='target',
        vocabulary=16384,
        layers=(10, 20, 29),
        cross_norm=True,
        # The training texts are shorter than many prompts: with a window, no query sees further than in training.
        window=128,
        dtype='float32',
      ),
      data=TextConfig(batch_size=4, length=160),
      self_generate=4000,
      generation=GenerationConfig(chat=True, prompt_tokens=72, batch_size=64),
      distill=DistillConfig(weight=1.0, prompts=True),
      # A draft that reads layer 20 has a held-out loss of 1.521 after 300 steps, 1.536 with a tenth of the learning rate, and 1.657 with
      # the whole one.
      cross_learning_rate=0.3,
      keep_outputs='runs/glide-outputs',
      optimizer=OptimizerConfig(learning_rate=1e-3, schedule='cosine', warmup_steps=100, weight_decay=0.0),
      run=RunConfig(steps=2400, eval_every=800, save_every=200),
    ),
  ),
  'paper': (
    "The paper's setting for a 7B target, which --target names: one layer x 768, 46,000 steps of 131 thousand tokens.",
    GlideTrainConfig(
      model=DraftFlags(block=5, first_block='causal', cross_start='random'),
      cross_learning_rate=1.0,
      data=TextConfig(batch_size=64, length=2048),
      optimizer=OptimizerConfig(
        learning_rate=5e-4, schedule='cosine', warmup_steps=1150, weight_decay=0.0, min_lr_ratio=0.0
      ),
      run=RunConfig(steps=46_000, eval_every=1000, save_every=1000, seed=1998),
    ),
  ),
}
