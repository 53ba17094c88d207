"""What sinks are measured on, and what the command prints, draws and refuses; SmolLM2 beside transformers."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

import jaxlm
from jaxlm import analysis
from jaxlm.analysis.sink import command as sink_command
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from tests.models import TINY
from tests.sink_models import model


def test_inputs_are_what_they_are_called():
  lm = LanguageModel(TINY.replace(vocab_size=300), None, ByteTokenizer())
  make = functools.partial(analysis.inputs, lm=lm, batch=4, length=16)
  repeated, random = make('repeated'), make('random')
  assert (repeated == repeated[:, :1]).all() and len(set(repeated[:, 0])) > 1
  assert random.shape == (4, 16) and random.max() < 259 and len(np.unique(random)) > 40
  documents = [f'{i} is a document with a number of its own' for i in range(10)]
  natural = make('natural', text=documents, seed=3)
  assert {bytes(row.tolist()).decode() for row in natural} <= {x[:16] for x in documents}
  assert len(np.unique(natural, axis=0)) == 4
  np.testing.assert_array_equal(natural, make('natural', text=documents, seed=3))
  assert (natural != make('natural', text=documents, seed=4)).any()
  for kind in ('natural', 'random', 'repeated'):
    with_bos = make(kind, text=documents, bos=True)
    assert with_bos.shape == (4, 16) and (with_bos[:, 0] == 256).all()
    np.testing.assert_array_equal(with_bos[:, 1:], make(kind, text=documents, length=15))
  with pytest.raises(ValueError, match='bos=True needs a tokenizer with a BOS .* BOS is None'):
    analysis.inputs('random', lm=model('softmax'), batch=1, length=16, bos=True)
  with pytest.raises(DataError, match='Only 1 of the 2 documents .* 16 tokens'):
    make('natural', text=['short', documents[0]])
  with pytest.raises(ValueError, match="Did you mean 'natural'"):
    make('naturel')
  with pytest.raises(ValueError, match='no tokenizer'):
    analysis.inputs('natural', lm=model('softmax'), batch=1, length=16)


@pytest.mark.parametrize('name', ['softmax', 'sigmoid, key slot'])
def test_report_is_printed_and_drawn(name, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: model(name), raising=False)
  sink_command.main(
    sink_command.SinksConfig('m', input='random', sequences=3, length=20, eps=(0.1, 0.2), output=str(tmp_path / 'out'))
  )
  said = json.loads((tmp_path / 'out' / 'sinks.json').read_text())
  printed = capsys.readouterr().out
  slot = int(name != 'softmax')
  assert f'{100 * said["sink_proxy"][1][slot]:.2f}' in printed and str(tmp_path / 'out') in printed
  assert said['positions'][: slot + 1] == ['*', '1'][1 - slot :]
  for picture in ('heads.png', 'positions.png'):
    assert (tmp_path / 'out' / picture).stat().st_size > 5000


def test_command_says_what_is_wrong_and_shows_help_without_jax(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['sinks', 'no-such-model', '--length', '8'])
  with pytest.raises(SystemExit, match='error: 8 tokens are too few'):
    sink_command.run()
  code = "import jaxlm.analysis.sink.command, sys; sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))"
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


# ---- a real model ----


@pytest.mark.real
def test_sinks_of_smollm2_are_those_that_transformers_shows(tmp_path):
  reason = 'parity with transformers: pip install -e .[parity]'
  torch = pytest.importorskip('torch', reason=reason)
  transformers = pytest.importorskip('transformers', reason=reason)
  from jaxlm.data import fetch

  try:
    path = fetch.locate('smollm2') or fetch.fetch('smollm2')
  except Exception as e:
    pytest.skip(f'SmolLM2 cannot be had here: {e}')
  lm = jaxlm.load(path, 'float32')
  jaxlm.save_huggingface(lm, tmp_path)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation='eager')
  found = {}
  for kind in ('natural', 'random', 'repeated'):
    ids = analysis.inputs(kind, lm=lm, batch=4, length=64)
    with torch.no_grad():
      out = theirs.model(torch.tensor(ids), output_attentions=True)
    alpha_LBN = np.array([maps.double().mean(2)[..., 0].numpy() for maps in out.attentions])
    report = analysis.sinks(lm, ids, batch_size=4)
    np.testing.assert_allclose(report.alpha[:, :, 0], alpha_LBN.mean(1), atol=1e-4, err_msg=kind)
    np.testing.assert_allclose(report.sink_raw[0, 0], (alpha_LBN > 0.3).mean(), atol=1e-4, err_msg=kind)
    np.testing.assert_allclose(report.sink_proxy, report.sink_raw, atol=1e-4, err_msg=kind)
    found[kind] = report.sink_raw[0, 0], report.hidden_norm_ratio.max()
  print(found)
  assert found['natural'][0] > 0.5 and found['natural'][1] > 50
  assert found['repeated'][0] == 0 and abs(found['repeated'][1] - 1) < 1e-3
