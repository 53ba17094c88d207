"""Heat maps show every word with its score, and text stays text."""

import pytest

import decoders
from decoders.classification import html, picture
from tests.decoders.classification.models_made import made

TEXTS = ['a < b', 'c $ d']


@pytest.fixture(scope='module')
def out():
  return decoders.classify(made(), TEXTS, top=2, explain=True)


def test_html_has_every_word_and_is_escaped(out):
  page = html(out, TEXTS)
  assert page.count('<span') == 2 * 2 * 2 * 3 and page.count('<table>') == 4
  assert '&lt;</span>' in page and '<r>' not in page and 'a &lt; b' in page
  found = out.contributions[0]
  assert f'title="{found.scores[0, 0]:+.3f}">a</span>' in page


def test_a_picture_is_written(out, tmp_path):
  picture(out, tmp_path / 'a.png')
  assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'


def test_a_result_without_contributions_is_refused():
  plain = decoders.classify(made(), TEXTS)
  with pytest.raises(ValueError, match='call decoders.classify with explain=True'):
    html(plain, TEXTS)
