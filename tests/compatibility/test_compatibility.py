"""What earlier code wrote, today's code reads: a run directory, contexts of every cache class, a file of skip sets."""

import json

import pytest

from tests.compatibility import make


@pytest.fixture(scope='module')
def found():
  return make.read()


EXPECTED = json.loads((make.FOLDER / 'expected.json').read_text())


@pytest.mark.parametrize('name', [name for name in EXPECTED if name not in ('commit', 'jax')])
def test_is_read_as_the_code_that_wrote_it_did(found, name):
  if name == 'logits':
    assert found[name] == pytest.approx(EXPECTED[name], abs=1e-3)
  else:
    assert found[name] == EXPECTED[name]
