"""Two plots of a SinkReport: mean attention to the first token by layer and head, and Sink_k by position."""

from pathlib import Path

from jaxlm.analysis.plots import wrapped
from jaxlm.analysis.sink.report import SinkReport


def plot_heads(report: SinkReport, path: str | Path, title: str = '') -> None:
  """Draws a heat map of alpha_1 (proxy), layers x heads, and a second one for the slot if the model has one."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.
  from matplotlib.ticker import MaxNLocator

  L, N, _ = report.alpha_proxy.shape
  panels = range(report.first + 1)
  width = min(max(0.3 * N, 2.2), 9) * len(panels) + 1.6
  figure = Figure(figsize=(max(width, 4.5), min(max(0.22 * L, 2.2), 12) + 1.2), layout='constrained')
  grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
  for index, axes in zip(panels, grid):
    image = axes.imshow(
      report.alpha_proxy[:, :, index], vmin=0, vmax=1, cmap='magma', aspect='auto', interpolation='nearest'
    )
    axes.set(xlabel='head', title=r'$\alpha$ of ' + ('the slot' if index < report.first else 'token 1'))
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
  grid[0].set_ylabel('layer')
  figure.colorbar(image, ax=list(grid), label='mean attention')
  figure.suptitle(wrapped(title, 12 * figure.get_figwidth()), fontsize=9)
  figure.savefig(path, dpi=120)


def plot_positions(report: SinkReport, path: str | Path, title: str = '') -> None:
  """Draws Sink_k for each threshold (proxy, and raw if it differs), and alpha averaged over layers and heads."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 5.6), layout='constrained')
  upper, lower = figure.subplots(2, 1, sharex=True)
  S = len(report.positions)
  index_S = [k + 1 - report.first for k in range(S)]  # The slot stands at 0.
  differs = abs(report.sink_proxy - report.sink_raw).max() > 0
  for i, eps in enumerate(report.eps):
    style = dict(color=f'C{i}', marker='o', markersize=3, linewidth=1.2)
    upper.plot(
      index_S, 100 * report.sink_proxy[i], label=rf'$\epsilon$ = {eps:g}' + (', proxy' if differs else ''), **style
    )
    if differs:
      upper.plot(index_S, 100 * report.sink_raw[i], label=rf'$\epsilon$ = {eps:g}, raw', linestyle='--', **style)
  upper.set(ylabel='Sink$_k$, % of heads', ylim=(-4, 104))
  upper.legend()
  lower.semilogy(
    index_S, report.alpha_proxy.mean(axis=(0, 1)), color='#4c72b0', marker='o', markersize=3, linewidth=1.2
  )
  T = S - report.first
  lower.set_ylim(top=1.3)
  lower.set(xlabel='position k' + (' (0: the slot)' if report.slot else ''), ylabel=r'mean $\alpha_k$')
  lower.set_xlim(0 - 0.01 * T - report.first, T + 0.02 * T)
  for axes in (upper, lower):
    axes.grid(alpha=0.3)
  figure.suptitle(wrapped(title, 80), fontsize=10)
  figure.savefig(path, dpi=120)
