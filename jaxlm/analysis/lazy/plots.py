"""Plot of a LazinessReport: lazy ratios by layer and position, and each layer's mean ratios and sink."""

from pathlib import Path

from jaxlm.analysis.lazy.report import LazinessReport
from jaxlm.analysis.plots import wrapped


def plot_laziness(report: LazinessReport, path: str | Path, title: str = '') -> None:
  """Draws heat maps of the lazy ratios along the prompt and over the new tokens, and their means by layer."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.
  from matplotlib.ticker import MaxNLocator

  L, G = report.new.shape
  figure = Figure(figsize=(11, min(max(0.17 * L, 2.4), 12) + 1.5), layout='constrained')
  prompt, new, profile = figure.subplots(1, 3, sharey=True, width_ratios=(1.2, 1.2, 1.5))
  style = dict(vmin=0, vmax=1, cmap='magma', aspect='auto', interpolation='nearest')
  start, end = report.starts[0], report.length
  prompt.imshow(report.prompt, extent=(start, end, L - 0.5, -0.5), **style)
  prompt.set(xlabel='position in the prompt', ylabel='layer', title=f'prompt, {report.queries} queries a column')
  image = new.imshow(report.new, extent=(0.5, G + 0.5, L - 0.5, -0.5), **style)
  new.set(xlabel='new token', title='each new token')
  for axes in (prompt, new):
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
  new.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
  bar = figure.colorbar(image, ax=[prompt, new], label='lazy ratio', pad=0.01, fraction=0.05)
  bar.ax.axhline(report.threshold, color='#c44e52', linewidth=2)

  layer_L = range(L)
  least, most = report.new.min(axis=1), report.new.max(axis=1)
  profile.fill_betweenx(layer_L, least, most, color='#4c72b0', alpha=0.2, linewidth=0, label='new tokens, range')
  line = dict(markersize=3.5, linewidth=1.2)
  profile.plot(report.new.mean(axis=1), layer_L, marker='o', color='#4c72b0', label='new tokens, mean', **line)
  profile.plot(
    report.prompt[:, -1], layer_L, marker='s', color='#dd8452', label=f'last {report.queries} of prompt', **line
  )
  profile.plot(
    report.sink, layer_L, marker='^', color='#55a868', label=r'sink: $\alpha$ of token 1', linestyle='--', **line
  )
  profile.axvline(report.threshold, color='#c44e52', linewidth=1, label=f'threshold {report.threshold:g}')
  profile.axvline(report.uniform, color='gray', linewidth=1, linestyle=':', label='all tokens alike')
  profile.tick_params(labelleft=True)
  profile.set(xlabel='share of attention', ylabel='layer', xlim=(-0.02, 1.02), title='by layer')
  profile.grid(alpha=0.3)
  figure.get_layout_engine().set(wspace=0.05)
  figure.legend(loc='outside lower right', ncols=6, fontsize=8, frameon=False)
  figure.suptitle(wrapped(title, 110), fontsize=10)
  figure.savefig(path, dpi=120)
