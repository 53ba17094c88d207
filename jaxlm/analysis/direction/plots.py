"""Plots of a file of scores: the distribution of S, and S against the length of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxlm.analysis.direction.files import Scores
from jaxlm.analysis.plots import wrapped

if TYPE_CHECKING:
  from jaxtyping import Int

DOMAINS = 6


def plot_scores(scores: Scores, rows: Int[np.ndarray, ' R'], path: str | Path, title: str = '') -> None:
  """Draws a histogram of S (one for each of the six largest domains if there are several), and S against the text's length."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

  S, tokens, domain = scores.S[rows], scores.tokens[rows], scores.domain[rows]
  figure = Figure(figsize=(11, 4.6), layout='constrained')
  histogram, lengths = figure.subplots(1, 2, width_ratios=(1, 1.15))
  # The axis leaves out extreme quantiles: a few very short texts would press all others into one bar.
  low, high = np.quantile(S, (0.002, 0.998))
  room = 0.08 * (high - low) or 0.5
  low, high = low - room, high + room
  edges = np.linspace(low, high, int(np.clip(2 * len(S) ** 0.5, 12, 60)) + 1)
  size = np.bincount(domain, tokens, minlength=len(scores.domains))
  largest = [i for i in np.argsort(-size, kind='stable')[:DOMAINS] if size[i]]
  inside = np.clip(S, low, high)
  if len(largest) > 1:
    for i, color in zip(largest, ('C0', 'C1', 'C2', 'C3', 'C4', 'C5')):
      here = inside[domain == i]
      share = np.full(len(here), 1 / len(here))
      label = f'{scores.domains[i] or "(unknown)"} ({len(here):,})'
      histogram.hist(here, edges, weights=share, histtype='stepfilled', alpha=0.25, color=color)
      histogram.hist(here, edges, weights=share, histtype='step', color=color, linewidth=1.2, label=wrapped(label, 34))
    histogram.set_ylabel('share of the documents of a domain')
    histogram.legend(fontsize=7, framealpha=0.8, edgecolor='none')
  else:
    histogram.hist(inside, edges, color='#4c72b0', alpha=0.7)
    histogram.set_ylabel('documents')
  histogram.axvline(np.median(S), color='#c44e52', linewidth=1)
  histogram.text(
    np.median(S), 1.01, f'median {np.median(S):.3f}', color='#c44e52', fontsize=8, ha='center',
    transform=histogram.get_xaxis_transform(),
  )  # fmt: skip
  histogram.axvline(0, color='gray', linewidth=1, linestyle=':')
  histogram.set(xlabel='S = forward loss - reverse loss, nats per token', xlim=(low, high))

  scale = 'log' if tokens.max() >= 4 * tokens.min() else 'linear'
  if len(rows) > 2000:
    style = dict(gridsize=48, bins='log', mincnt=1, cmap='Blues', vmin=0.4, linewidths=0)
    figure.colorbar(lengths.hexbin(tokens, inside, xscale=scale, **style), ax=lengths, label='documents')
  else:
    lengths.scatter(tokens, inside, s=9, color='#4c72b0', alpha=0.6, linewidths=0)
    lengths.set_xscale(scale)
  if scale == 'log':  # Powers of ten would give too few ticks.
    powers = 2 ** np.arange(np.ceil(np.log2(tokens.min())), np.log2(tokens.max()) + 1e-9)
    shown = powers[:: -(-len(powers) // 8)]
    lengths.set_xticks(shown, [f'{x:,.0f}' for x in shown])
    lengths.minorticks_off()
  _spread(lengths, tokens, S)
  lengths.axhline(0, color='gray', linewidth=1, linestyle=':')
  lengths.set(xlabel='tokens of the text', ylabel='S, nats per token', ylim=(low, high))
  lengths.legend(fontsize=8, framealpha=0.8, edgecolor='none', loc='upper right')
  for axes in (histogram, lengths):
    axes.grid(alpha=0.3)
  figure.suptitle(wrapped(title, 120), fontsize=10)
  figure.savefig(path, dpi=120)


def _spread(axes, tokens, S) -> None:
  """Draws the median and the middle 80 % of S for each range of lengths with at least 10 texts."""
  from jaxlm.data.selection import length_buckets

  bucket = length_buckets(tokens)
  found = [b for b in range(bucket.max() + 1) if (bucket == b).sum() >= 10]
  if not found:
    axes.plot([], [], color='#c44e52', label='too few texts for a median')
    return
  middle = [np.exp(np.log(tokens[bucket == b]).mean()) for b in found]
  least, median, most = (np.array([np.quantile(S[bucket == b], q) for b in found]) for q in (0.1, 0.5, 0.9))
  for edge, label in ((most, 'middle 80 %'), (least, None)):
    axes.plot(middle, edge, color='#c44e52', linestyle='--', linewidth=1.2, label=label)
  axes.plot(middle, median, color='#c44e52', marker='o', markersize=3.5, linewidth=1.4, label='median')
