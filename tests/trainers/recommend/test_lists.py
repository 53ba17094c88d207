"""Lists for many users: what they draw at random does not depend on how many are searched together."""

import dataclasses

import numpy as np
import pytest

from decoders import atspeed
from jaxlm.data import catalogue
from jaxlm.data.catalogue import Catalogue
from tests.models import TINY, tiny_model
from trainers.recommend import lists

CODES = np.array([[n // 4, n % 4] for n in range(12)])
ITEMS = Catalogue.from_names(
  [f'i{n}' for n in range(12)], [f'Film {n}' for n in range(12)], catalogue.code_names(CODES), np.arange(12), history=3
)


@pytest.fixture
def lm():
  return dataclasses.replace(tiny_model(TINY.replace(num_layers=1)), tokenizer=ITEMS)


def test_the_numbers_of_users_go_on_from_batch_to_batch(lm, monkeypatch):
  seen, recommend = [], atspeed.recommend

  def noted(*args, **options):
    seen.extend(options['numbers'])
    return recommend(*args, **options)

  monkeypatch.setattr(atspeed, 'recommend', noted)
  users = [np.array([1])] * 8
  small, large = (lists.recommend(lm, ITEMS, ITEMS.trie(), users, 2, n, verify='relaxed_exact')[0] for n in (2, 4))
  assert seen == [*range(8)] * 2 and small == large and small[:4] != small[4:]
