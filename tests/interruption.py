"""Ctrl-C in the middle of work that is to be continued."""

import contextlib

import pytest


@contextlib.contextmanager
def interrupted_at(monkeypatch, owner, name, call):
  """Within it, Ctrl-C comes instead of the `call`-th call (from 1) of `owner.name`; the block must pass it on."""
  function, calls = getattr(owner, name), []

  def interrupted(*args, **options):
    calls.append(1)
    if len(calls) == call:
      raise KeyboardInterrupt
    return function(*args, **options)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(owner, name, interrupted, raising=False)
    yield
