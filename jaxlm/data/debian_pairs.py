"""Sentence pairs out of a Debian distribution's packages. apt downloads them and checks them against the signed index.

libreoffice  paragraphs of LibreOffice's help in English, German and French, which have the same file and id in every language
ddtp         sentences of what packages say of themselves, translated by volunteers (Debian Description Translation Project)

Held out are whole files of the help, and whole source packages: binary packages of one source repeat each other's paragraphs.
"""

from collections.abc import Callable, Iterator
import dataclasses
import html
import json
from pathlib import Path
import re

from jaxlm import errors
from jaxlm.data import debian, pair_splits

Groups = dict[str, list[tuple[str, str]]]
"""Name of a group that is held out as a whole -> its (English, other language) pairs."""


@dataclasses.dataclass(frozen=True)
class PairText:
  """Sentence pairs of English and other languages that apt can bring; see `jaxlm.data.fetch.Dataset`.

  Attributes:
    languages: the other languages.
    held_out: fraction of the groups in `valid`, and in `test`.
    gather: brings the packages into a folder and returns the groups of each language.
    download: megabytes, about, as is `size` in bytes.
  """

  description: str
  languages: tuple[str, ...]
  licence: str
  download: float
  size: float
  held_out: float
  gather: Callable[[Path], dict[str, Groups]]

  @property
  def files(self) -> dict[str, None]:
    names = [f'en-{language}.{split}.jsonl' for language in self.languages for split in pair_splits.SPLITS]
    return dict.fromkeys([*names, 'counts.json'])

  def file_of(self, languages: tuple[str, str], split: str) -> str:
    """Returns the name of the file with these languages, in whichever direction. Raises DataError naming those that there are."""
    other = languages[1] if languages[0] == 'en' else languages[0]
    if 'en' not in languages or other not in self.languages:
      known = [f'en-{language}' for language in self.languages]
      raise errors.unknown('language pair', '-'.join(languages), known, errors.DataError)
    return f'en-{other}.{split}.jsonl'

  def bring(self, folder: Path) -> None:
    """Writes the pairs and their counts into a folder. Raises DataError: no apt here, or it brought nothing."""
    counts = {}
    for language, groups in self.gather(folder).items():
      found, left_out = pair_splits.apart(groups.items(), self.held_out)
      for split, pairs in found.items():
        if not pairs:
          raise errors.DataError(f'apt brought no pairs of en-{language} for {split}: is this system not a Debian one?')
        with open(folder / self.file_of(('en', language), split), 'w', encoding='utf-8') as file:
          for english, other in pairs:
            file.write(json.dumps({'en': english, language: other}, ensure_ascii=False) + '\n')
      counts[f'en-{language}'] = {split: len(pairs) for split, pairs in found.items()} | {'left out': left_out}
    (folder / 'counts.json').write_text(json.dumps(counts, indent=1) + '\n', encoding='utf-8')


def report(folder: Path) -> str:
  """Returns the counts of fetched pairs, a line for each language pair."""
  counts = json.loads((folder / 'counts.json').read_text(encoding='utf-8'))
  lines = []
  for languages, found in counts.items():
    sizes = ', '.join(f'{found[split]} {split}' for split in pair_splits.SPLITS)
    left_out = ', '.join(f'{number} {why}' for why, number in found['left out'].items())
    lines.append(f'{languages}: {sizes} (left out: {left_out})')
  return '\n'.join(lines)


# ---- LibreOffice's help ----

_PARAGRAPH = re.compile(r'<(p|h\d)\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.S)
_TAG = re.compile(r'<[^>]*>')
_DOUBLED = re.compile(r'\b([^\W\d_][\w ]{2,60}[^\W\d_]) ?\1\b')
"""Words and the same again, as where the name of a link's target is joined to its text: not a sentence to learn from."""


def help_pages(deb: Path) -> Iterator[tuple[str, str]]:
  """Yields (path below text/, HTML) of each page in a package of LibreOffice's help. Raises DataError: it is damaged."""
  for name, raw in debian.package_files(deb, ('.html',)):
    if '/text/' in name:
      yield name.split('/text/', 1)[1], raw.decode('utf-8', errors='replace')


def paragraphs(page: str) -> dict[str, str]:
  """Returns id -> text of the paragraphs and headings of a page that have an id and some text."""
  found = ((match[2], ' '.join(html.unescape(_TAG.sub('', match[3])).split())) for match in _PARAGRAPH.finditer(page))
  return {id: text for id, text in found if text and not _DOUBLED.search(text)}


def _libreoffice(work: Path) -> dict[str, Groups]:
  languages = {'en': 'en-us', 'de': 'de', 'fr': 'fr'}
  debian.run_apt(work, 'apt-get', 'update')
  debian.run_apt(work, 'apt-get', 'download', *(f'libreoffice-help-{name}' for name in languages.values()))
  pages = {}
  for language, name in languages.items():
    deb = next(work.glob(f'libreoffice-help-{name}_*.deb'))
    pages[language] = {path: paragraphs(page) for path, page in help_pages(deb)}
  english = pages.pop('en')
  return {
    language: {
      path: [(text, there[path][id]) for id, text in texts.items() if id in there[path]]
      for path, texts in english.items()
      if path in there
    }
    for language, there in pages.items()
  }


# ---- translated package descriptions ----

_SENTENCE = re.compile(r'(?<=[.!?])\s+(?=[^\W\d_a-z]|["(])')
_BULLET = re.compile(r'^\s*[-*+o·•]\s')
FEWEST_WORDS = 4
"""Shorter English sentences of package descriptions are items of lists: names and versions."""


def described_packages(index: Path, language: str) -> Iterator[tuple[str, str, str]]:
  """Yields (package, MD5 sum of the English description, description) of each stanza of a translation index."""
  pattern = re.compile(
    rf'^Package: (\S+)$.*?^Description-md5: (\S+)$.*?^Description-{language}: [^\n]*\n((?: [^\n]*\n?)+)', re.M | re.S
  )
  for stanza in re.split(r'\n\n+', index.read_text(encoding='utf-8')):
    if (found := pattern.search(stanza)) is not None:
      yield found[1], found[2], debian.described(found[3])


def sentence_pairs(english: str, other: str) -> Iterator[tuple[str, str]]:
  """Yields the sentences of two descriptions, of those paragraphs and lines that have equally many on both sides."""
  for pair in _side_by_side(english.split('\n\n'), other.split('\n\n')):
    for lines in _side_by_side(*(side.split('\n') for side in pair)):
      for sentences in _side_by_side(*(_SENTENCE.split(_BULLET.sub('', side).strip()) for side in lines)):
        if len(sentences[0].split()) >= FEWEST_WORDS and sentences[1]:
          yield sentences


def _side_by_side(one: list[str], other: list[str]) -> Iterator[tuple[str, str]]:
  return zip(one, other) if len(one) == len(other) else iter(())


def source_packages(index: Path) -> dict[str, str]:
  """Returns binary package -> source package of a Packages index."""
  found = {}
  for stanza in re.split(r'\n\n+', index.read_text(encoding='utf-8')):
    if (package := re.search(r'^Package: (\S+)', stanza, re.M)) is not None:
      source = re.search(r'^Source: (\S+)', stanza, re.M)
      found[package[1]] = source[1] if source is not None else package[1]
  return found


DDTP_LANGUAGES = ('da', 'it', 'fr', 'de')


def _ddtp(work: Path) -> dict[str, Groups]:
  # Commas, for apt takes no second language from a list in braces.
  languages = ','.join(('en', *DDTP_LANGUAGES))
  debian.run_apt(work, 'apt-get', '-o', f'Acquire::Languages={languages}', '-o', 'Acquire::GzipIndexes=false', 'update')
  lists = work / 'lists'
  indices = lambda ending: sorted(lists.glob(f'*_{ending}'))
  sources = {package: source for index in indices('Packages') for package, source in source_packages(index).items()}
  english = {}
  for index in indices('Translation-en'):
    for package, digest, text in described_packages(index, 'en'):
      english.setdefault(digest, (package, text))
  found: dict[str, Groups] = {}
  for language in DDTP_LANGUAGES:
    groups = found.setdefault(language, {})
    for index in indices(f'Translation-{language}'):
      for _, digest, text in described_packages(index, language):
        if digest in english:
          package, original = english[digest]
          groups.setdefault(sources.get(package, package), []).extend(sentence_pairs(original, text))
  return found


DATASETS = {
  'libreoffice': PairText(
    "paragraphs of LibreOffice's help, en-de and en-fr, from a Debian system's apt",
    ('de', 'fr'),
    'MPL-2.0',
    8.3,
    13.8e6,
    0.03,
    _libreoffice,
  ),
  'ddtp': PairText(
    "sentences of Debian's package descriptions, en-da, en-it, en-fr and en-de, from a Debian system's apt",
    DDTP_LANGUAGES,
    'none stated for the whole: use it, do not pass it on',
    31.0,
    57e6,
    0.03,
    _ddtp,
  ),
}
