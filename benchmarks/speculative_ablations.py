"""The part ablations of `benchmarks.speculative`: GliDe's choices changed one by one, on the redundant byte model.

Each draft is trained as the GliDe draft of the part glide, on the target's own texts, and decodes the same prompts as chains and with
CaPE's trees. 'blocks of' is the number of positions that share their view of the target in training; 4 tokens are drafted in each case.
"""

import dataclasses
from typing import Any

from benchmarks import report, speculative_drafts, speculative_glide, stochastic_depth
from benchmarks import speculative_streams as ss
import decoders
from decoders.glide import PAPER_BINS, GlideDecoding
import jaxlm


def run(config: Any) -> None:
  """Trains the drafts that are not there, and writes speculative_glide_ablations.json. config: a `benchmarks.speculative.Config`."""
  setting = speculative_drafts.redundant(config.glide_steps, config.glide_texts)
  setting = dataclasses.replace(setting, distill=config.glide_distill)
  lm = jaxlm.load(setting.target, 'float32')
  pieces = stochastic_depth.prompts(config.prompts, config.prompt_bytes)
  prompts, rows = [('held out', ids) for ids in pieces], []
  options = speculative_glide.options_of(prompts, config.new_bytes, config)
  for kind in ('GliDe', 'vanilla', *speculative_drafts.ABLATIONS):
    draft, facts = speculative_drafts.trained(setting, kind, 'own')
    ways = {'plain': lambda: ss.ours(lambda prompts, **o: decoders.generate(lm, prompts, **o), **options)}
    for shape, bins in {'chain': (1,), 'CaPE': PAPER_BINS}.items():
      decoding = GlideDecoding(max_draft=speculative_glide.MAX_DRAFT, bins=bins, guard=False)
      stream = decoders.glide.Stream(lm, draft, decoding)
      ways[shape] = lambda stream=stream: ss.ours(stream.generate, **options)
    found = {
      row['method']: row for row in speculative_glide.rows_of(ss.run_all(prompts, ways), {}) if row['kind'] == 'all'
    }
    chain, tree = found['chain'], found['CaPE']
    rows.append({
      'draft': kind, 'parameters': facts['parameters'], 'held-out loss': facts['held-out loss'], 'agreement': facts['agreement'],
      'chain': chain['M'], 'error': chain['error'], 'by position': chain['by position'], 'CaPE': tree['M'], 'error of CaPE': tree['error'],
      'same': f"{chain['same']}, {tree['same']}", 'minutes': facts['minutes'],
    })  # fmt: skip
    print(report.table(rows[-1:]), flush=True)
  report.write('speculative_glide_ablations', rows, config=dataclasses.asdict(config))
