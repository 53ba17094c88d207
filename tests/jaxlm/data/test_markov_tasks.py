"""Tasks with a known need of history: the truth, and where the random part of a target can be seen from."""

import collections

import pytest

from jaxlm.data.markov_tasks import Agreement, Clauses, Rotation


@pytest.mark.parametrize('distance', [1, 2, 6])
def test_the_class_is_seen_just_so_far_back(distance):
  """The word that agrees follows from the word `distance` before it, and from nothing that is nearer, nor from the source."""
  language = Agreement(distance=distance)
  classes = collections.Counter()
  for i in range(400):
    source, target = language.pair(i)
    at, words = language.agreeing(source), target.split()
    assert words[at][0] == 'S' and words[at - distance] == 'P' + words[at][1:]
    classes[words[at]] += 1
    # All translations of a source are alike but for these two words, so nothing else in the sentence tells the class.
    others = [text.split() for text in language.targets(source)]
    assert len(others) == 4 and all(len(other) == len(words) for other in others)
    differing = {j for other in others for j, (a, b) in enumerate(zip(words, other)) if a != b}
    assert differing == {at, at - distance}
    broken = [*words[:at], 'S9', *words[at + 1 :]]
    assert not language.is_valid(source, ' '.join(broken))
  assert len(classes) == 4 and min(classes.values()) > 60


def test_clauses_are_independent_or_share_their_class():
  free, shared = Clauses(), Clauses(shared=True)
  source = 'pick w1 same w2 w3 w4 , pick w5 same w6 w7 w8 ,'
  assert len(free.targets(source)) == 16 and len(shared.targets(source)) == 4
  alike, apart = (free.with_classes(source, classes) for classes in ([2, 2], [2, 3]))
  assert free.is_valid(source, alike) and free.is_valid(source, apart)
  assert shared.is_valid(source, alike) and not shared.is_valid(source, apart)
  broken = apart.replace('S3', 'S2')
  assert not free.is_valid(source, broken) and not shared.is_valid(source, broken)
  assert not free.is_valid(source, alike.replace('2', '4')) and not free.is_valid(source, ' '.join(alike.split()[:7]))
  words = alike.split()
  # Within a clause the class is two words back; from clause to clause the nearest one is five back.
  assert [i for i, word in enumerate(words) if word in ('P2', 'S2')] == [0, 2, 7, 9]
  assert {len(language.pair(i)[0].split()) for language in (free, shared) for i in range(60)} == {7, 14, 21, 28, 35, 42}


def test_rotations():
  language = Rotation()
  starts = collections.Counter()
  for i in range(600):
    source, target = language.pair(i)
    words = list(map(language.translate, source.split()))
    found = target.split()
    starts[next(s for s in range(len(words)) if words[s:] + words[:s] == found) / len(words) < 0.5] += 1
    assert not language.is_valid(source, ' '.join(sorted(found))) or sorted(found) in [
      words[s:] + words[:s] for s in range(len(words))
    ]
  assert 250 < starts[True] < 350
  assert language.targets('w1 w1') == {f'{language.translate("w1")} {language.translate("w1")}': 1.0}


def test_other_texts_are_no_sources():
  with pytest.raises(ValueError, match='needs one `pick` and, 4 words later'):
    Agreement().targets('pick w1 same')
  with pytest.raises(ValueError, match='is not made of clauses'):
    Clauses().targets('pick w1 same w2 w3 ,')
  for word in ('w100', 'x1', 'w01', 'w'):
    with pytest.raises(ValueError, match='is no word of this language: expected w0 ... w99'):
      Rotation().targets(word)


def test_bad_settings_are_refused():
  for make in (
    lambda: Agreement(distance=0),
    lambda: Clauses(most=0),
    lambda: Rotation(longest=3),
    lambda: Rotation(words=1),
  ):
    with pytest.raises(ValueError, match='must be at least'):
      make()
