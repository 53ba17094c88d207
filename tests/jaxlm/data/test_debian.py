"""Text out of Debian's packages; apt is replaced by files made here."""

import gzip
import json
import shutil
import subprocess

import pytest

from jaxlm import errors
from jaxlm.data import debian, fetch

INDEX = """Package: one
Description-md5: 1
Description-en: tool that does one thing
 It does one thing, and
 does it well.
 .
 Things it does not do:
  * two things
  * a third

Package: bare
Description-md5: 2
Description-en: has no more to say

Package: one-data
Description-md5: 3
Description-en: the same again
 It does one thing, and
 does it well.
 .
 Things it does not do:
  * two things
  * a third
"""
ONE = 'It does one thing, and does it well.\n\nThings it does not do:\n  * two things\n  * a third'


@pytest.fixture
def apt(monkeypatch, tmp_path):
  """A cache folder, and an apt that has a package and an index; returns what it was asked for."""
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  asked = []

  def run(work, program, *arguments):
    asked.append(arguments[-1])
    (work / 'lists').mkdir(exist_ok=True)
    (work / 'lists' / 'main_i18n_Translation-en').write_text(INDEX)
    if 'download' in arguments:
      shutil.copy(tmp_path / 'made.deb', work / f'{arguments[-1]}_all.deb')
    return 'linux-doc-6.9\nlinux-doc-6.12\nlinux-docs-7\nlinux-doc\n'

  monkeypatch.setattr(debian, 'run_apt', run)
  return asked


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_descriptions_are_paragraphs_and_none_twice(apt):
  path = fetch.fetch('debian-descriptions')
  assert read(path) == [{'text': ONE, 'source': 'one'}]
  assert fetch.locate('debian-descriptions') == path
  assert fetch.fetch('debian-descriptions') == path and apt == ['update']
  fetch.fetch('debian-descriptions', force=True)
  assert apt == ['update'] * 2


@pytest.mark.skipif(shutil.which('dpkg-deb') is None, reason='no dpkg-deb on this system')
def test_pages_of_the_newest_package(apt, tmp_path):
  folder = tmp_path / 'deb/usr/share/doc/linux-doc'
  folder.mkdir(parents=True)
  (tmp_path / 'deb/DEBIAN').mkdir()
  (tmp_path / 'deb/DEBIAN/control').write_text(
    'Package: linux-doc\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n'
  )
  (folder / 'a.rst.gz').write_bytes(gzip.compress(b'Title\n=====\n'))
  (folder / 'b.rst').write_text('Other\n')
  (folder / 'copy.rst').write_text('Other')
  (folder / 'page.html').write_text('<p>')
  subprocess.run(['dpkg-deb', '--build', tmp_path / 'deb', tmp_path / 'made.deb'], check=True, capture_output=True)
  assert read(fetch.fetch('linux-doc')) == [
    {'text': 'Title\n=====', 'source': 'linux-doc-6.12_all: linux-doc/a.rst.gz'},
    {'text': 'Other', 'source': 'linux-doc-6.12_all: linux-doc/b.rst'},
  ]


def test_what_is_wrong_is_said_and_nothing_is_left(apt, monkeypatch, tmp_path):
  monkeypatch.setitem(globals(), 'INDEX', 'Package: bare\nDescription-en: has no more to say\n')
  with pytest.raises(errors.DataError, match='no text for debian-descriptions.jsonl'):
    fetch.fetch('debian-descriptions')
  monkeypatch.setattr(debian, 'run_apt', lambda *_: 'python3\n')
  with pytest.raises(errors.DataError, match='knows no package linux-doc'):
    fetch.fetch('linux-doc')
  assert fetch.locate('linux-doc') is None and not [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]


@pytest.mark.skipif(shutil.which('dpkg-deb') is None, reason='no dpkg-deb on this system')
def test_a_damaged_package_is_named(apt, tmp_path):
  (tmp_path / 'made.deb').write_bytes(b'no package')
  with pytest.raises(errors.DataError, match='linux-doc-6.12_all.deb cannot be unpacked'):
    fetch.fetch('linux-doc')
  assert fetch.locate('linux-doc') is None


def test_without_apt_the_program_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(shutil, 'which', lambda _: None)
  with pytest.raises(errors.DataError, match='needs apt-get and dpkg-deb'):
    debian.run_apt(tmp_path, 'apt-get', 'update')


def test_what_apt_says_is_shown(monkeypatch, tmp_path):
  script = tmp_path / 'apt-get'
  script.write_text('#!/bin/sh\necho "E: no network" >&2\nexit 100\n')
  script.chmod(0o755)
  monkeypatch.setattr(shutil, 'which', lambda _: str(script))
  with pytest.raises(errors.DataError, match='apt failed: .* update\n  E: no network'):
    debian.run_apt(tmp_path, str(script), 'update')
