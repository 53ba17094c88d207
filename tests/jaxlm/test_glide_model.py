"""`jaxlm.load` opens a run of trainers.glide as a draft."""

import json

import jax
import numpy as np

import jaxlm
from jaxlm.config import to_dict
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.io import checkpoint
from tests.glide_drafts import tiny_draft


def test_a_run_of_the_glide_trainer_loads_as_a_draft(tmp_path):
  draft = tiny_draft(num_layers=2)
  saver = checkpoint.Checkpointer(tmp_path / 'checkpoints')
  saver.save(3, {'params': draft.params}, {})
  saver.wait()
  saver.close()
  (tmp_path / 'config.json').write_text(json.dumps({'trainer': 'glide', 'model': to_dict(draft.config)}))
  ByteTokenizer().save(tmp_path / 'tokenizer')
  loaded = jaxlm.load(tmp_path)
  assert isinstance(loaded, jaxlm.GlideDraft) and loaded.config == draft.config
  assert isinstance(loaded.tokenizer, ByteTokenizer)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, draft.params)
  assert 'reads layers 1, 2 of tiny (3 layers x 24' in repr(loaded)
