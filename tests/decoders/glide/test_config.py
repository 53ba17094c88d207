"""Settings that cannot be meant are refused, with the number and the fix."""

import pytest

from decoders.glide import GlideDecoding


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'max_draft': 0}, 'max_draft=0 must be at least 1'),
    ({'threshold': 1.5}, r'threshold=1.5 must be in \[0, 1\]'),
    ({'bins': (3, 2)}, r'bins=\(3, 2\) has 2 numbers: expected 11'),
    ({'bins': ()}, 'has 0 numbers'),
    ({'bins': (2,) * 10 + (3,)}, 'must not rise: a surer draft needs fewer'),
    ({'bins': (0,)}, 'must be at least 1'),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    GlideDecoding(**changes)


def test_the_defaults_are_the_papers():
  glide = GlideDecoding()
  assert glide.max_draft == 4 and glide.bins == (8, 8, 8, 6, 6, 6, 4, 4, 2, 2, 2) and glide.threshold == 0
