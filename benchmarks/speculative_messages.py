"""Users' messages to which the target writes answers, the training texts of `benchmarks.speculative_drafts`.

They are of the kinds of `benchmarks.speculative_prompts`, and none is among its prompts. There are thousands, so that a draft cannot
learn the answers by heart.
"""

from collections.abc import Iterator
import hashlib
import importlib
import inspect
import json
from pathlib import Path
import textwrap
import types

from benchmarks import speculative_prompts
from jaxlm.data.corpus import cache_folder

TOPICS = """the moon; bread; photosynthesis; a good night of sleep; the steam engine; chess; volcanoes; the violin; coffee; glaciers;
democracy; bees; the internet; gravity; running; the Roman Empire; rainbows; money; vaccines; trees; the human heart; solar power; poetry;
cats; the printing press; tides; a job interview; tea; electric cars; honesty; dinosaurs; the piano; recycling; maps; lightning; friendship;
the Olympic Games; whales; algebra; gardening; the desert; snow; cheese; the telephone; rivers; painting; the brain; jazz; clouds; the wheel;
spiders; museums; patience; soil; the calendar; bridges; football; dreams; the theatre; salt; black holes; the French Revolution; magnets;
penguins; inflation; the immune system; earthquakes; the guitar; opera; the compass; wolves; glass; the stock market; libraries; courage;
coral reefs; the bicycle; atoms; the Silk Road; yoga; chocolate; satellites; owls; the cello; hurricanes; the microscope; cotton; elections;
the liver; ballet; wind turbines; castles; ants; the periodic table; laughter; batteries; the Renaissance; mushrooms; swimming; the alphabet;
robots; the Sahara; bananas; comets; silk; public speaking; the skeleton; crossword puzzles; dolphins; the Great Wall of China; concrete;
sharks; tennis; the microwave oven; paper; the Pacific Ocean; anger; fossils; the accordion; trains; vitamins; Vikings; insurance; bamboo;
the thermometer; curiosity; submarines; the Amazon rainforest; perfume; sunflowers; the zipper; weather forecasts; karate; genes; pyramids;
loneliness; traffic lights; butter; telescopes; kangaroos; the trumpet; steel; origami; plastic; volleyball; the ear; probability; peace""".split(';')  # fmt: skip
ASKED = (
  'What is {}?', 'Explain {} to a child.', 'Why is {} important?', 'Give me three facts about {}.', 'Write a short story about {}.',
  'What should I know about {}?', 'Tell me about the history of {}.', 'How does {} change our lives?', 'Write a poem about {}.',
  'What do people often get wrong about {}?', 'List five words that have to do with {}, and explain them.', 'What would the world be without {}?',
  'Ask me three questions about {}.', 'Write a letter to a friend about {}.', 'What is the best way to learn about {}?',
)  # fmt: skip
PHRASES = (
  ('How do I learn to {}?', """cook; swim; draw; dance; type faster; speak Spanish; juggle; knit; write better; sing; read music; ride a horse;
    take good photographs; ski; bake bread; save money; remember names; sleep better; program a computer; sail; debate; meditate; play the flute;
    repair a chair; grow tomatoes; solve a Rubik's cube; sew a button; skate; tell jokes; speak in public"""),
  ('What should I see in {}?', """Paris; London in one day; Tokyo; Berlin; New York in a week; Lisbon; Cairo; Istanbul; Vienna in two days; Madrid;
    Sydney; Athens; Prague; Mexico City; Dublin; Kyoto in a day; Venice; Amsterdam; San Francisco; Cape Town; Buenos Aires; Oslo; Bangkok"""),
  ('Give me a recipe for {}.', """tomato soup; an apple pie; fried rice; a green salad; chicken curry; lemonade; garlic bread; an omelette; hummus;
    oat cookies; vegetable lasagne; onion soup; banana bread; guacamole; roast potatoes; a fruit salad; waffles; lentil stew; pizza; pesto"""),
  ('What is the difference between {}?', """a comet and an asteroid; weather and climate; a frog and a toad; speed and velocity; jam and marmalade; an
    alligator and a crocodile; cement and concrete; a novel and a novella; a lake and a pond; debit and credit; a moth and a butterfly; mass and
    weight; a simile and a metaphor; a nurse and a doctor; margarine and butter; a crow and a raven; a proof and an argument; envy and jealousy"""),
  ('Why {}?', """is the sea salty; do leaves fall in autumn; do cats purr; does ice float; is grass green; do we yawn; are there seasons; do stars
    twinkle; do onions make us cry; is blood red; do we dream; does bread rise; do birds migrate; does metal rust; is the night dark; do
    we laugh; does the moon change its shape; do bees dance; do we forget; does popcorn pop; do mirrors reverse left and right"""),
  ('{} What should I do?', """My neighbour plays loud music at night.; I lost my keys.; I cannot fall asleep.; My computer is very slow.; I have
    too much work.; My plant has yellow leaves.; I am nervous before an exam.; A colleague took my idea.; My child does not want to read.; I
    missed my train.; My sister does not answer my messages.; I burnt the dinner.; It rains, and my guests are coming.; I want to change my job."""),
  ('Explain how {}.', """a refrigerator works; a plane flies; a camera takes a picture; a bill becomes a law; a vaccine works; a lock works; soap
    cleans; a tree drinks water; a piano makes sound; a battery stores energy; the heart pumps blood; a search engine finds pages; paper is
    made; glasses help us to see; a compass finds north; a clock keeps time; a microwave heats food; rain forms; a bridge carries weight"""),
)  # fmt: skip
"""Pairs of a question and what may fill it."""
MODULES = """argparse ast base64 bisect calendar codecs configparser contextlib copy csv dataclasses datetime difflib fnmatch fractions
functools getpass gettext glob gzip heapq html inspect json locale logging mimetypes ntpath optparse os pathlib pickletools pkgutil platform
posixpath pprint pstats pyclbr pydoc random shlex shutil socket statistics string subprocess tarfile tempfile textwrap timeit tokenize trace
traceback types typing unittest uuid warnings webbrowser zipfile""".split()
PASSAGES = 700
"""Number of passages of each length that are read from the embedded text; some occur twice."""


def messages() -> list[str]:
  """Returns users' messages of the kinds of `speculative_prompts`, none of which is among its prompts."""
  return list(dict.fromkeys(_messages()))


def _messages() -> Iterator[str]:
  clean = lambda text: ' '.join(text.split())
  for topic in map(clean, TOPICS):
    yield from (question.format(topic) for question in ASKED)
  for question, fillings in PHRASES:
    yield from (question.format(filling) for filling in map(clean, fillings.split(';')))
  used = {*speculative_prompts.passages(50, 110), *speculative_prompts.passages(12, 25)}
  for least, most, asked in ((30, 110, 'Summarise this in one sentence'), (12, 25, 'Translate into French')):
    yield from (f'{asked}:\n\n{p}' for p in speculative_prompts.passages(least, most, PASSAGES) if p not in used)
  for module in map(importlib.import_module, MODULES):
    for source in _functions(module):
      yield f'Complete this function:\n\n```python\n{source[: len(source) // 2]}'
      yield f'Write this function again, and name it `other`:\n\n```python\n{source}\n```'


def _functions(module: types.ModuleType) -> Iterator[str]:
  """Returns the beginnings of the sources of a module's public functions that are not among the prompts."""
  for name, function in sorted(vars(module).items()):
    public = inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith('_')
    if public and function.__code__.co_filename == module.__file__ and function not in speculative_prompts.FUNCTIONS:
      yield '\n'.join(textwrap.dedent(inspect.getsource(function)).splitlines()[:24])


def write_messages() -> Path:
  """Returns a JSON Lines file of the messages in the cache folder."""
  lines = ''.join(json.dumps({'text': message}) + '\n' for message in messages())
  path = cache_folder() / 'trained' / f'glide-messages-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.jsonl'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
  return path
