"""CaPE, the confidence-aware expansion of drafted chains (https://arxiv.org/abs/2402.02082), as a policy of the shared draft loop.

  k_t = bins[floor(10 c_t)],   c_t = max softmax(l_t)

l_t are the draft's logits for drafted token t, and k_t is the number of candidates that are verified in its place. The candidates are
the likeliest tokens; those that are not on the chain are leaves.
"""

import numpy as np

from decoders.glide.config import GlideDecoding
from decoders.speculative.draft_loop import DraftPolicy

SHORT = (1, 2)  # Lengths of chains that the threshold ended for which smaller programs are compiled.


def policy(glide: GlideDecoding) -> DraftPolicy:
  """Returns the draft policy of these settings."""
  bounds, widths = [], [glide.bins[-1]]
  for i in reversed(range(len(glide.bins) - 1)):
    if glide.bins[i] != widths[-1]:
      # A policy's bounds are exclusive, and the edges of the bins belong to the upper bin.
      bounds.append(float(np.nextafter(np.float32((i + 1) / 10), np.float32(0))))
      widths.append(glide.bins[i])
  return DraftPolicy(
    glide.max_draft, glide.threshold, width_bounds=tuple(bounds), widths=tuple(widths), by_largest=True
  )


def sizes(policy: DraftPolicy) -> tuple[tuple[int, int], ...]:
  """Returns (depth, most leaves) of the trees for which programs are compiled: the largest tree, the one with half of its leaves if
  these are many, and with a threshold those of short chains."""
  short = [depth for depth in SHORT if policy.threshold and depth < policy.max_draft]
  *smaller, (depth, most) = policy.sizes([*short, policy.max_draft])
  return (*smaller, *((depth, leaves) for leaves in sorted({most // 2 if most > depth else most, most})))
