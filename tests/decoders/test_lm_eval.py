"""The model for lm-evaluation-harness: its numbers are those of whole forward passes; the harness itself is not needed."""

import configparser
import importlib
import importlib.util
from pathlib import Path
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

import decoders
from decoders import lm_eval_requests as requests
from jaxlm.data import tokenizers
from jaxlm.language_model import LanguageModel, forward
from tests.models import TINY, tiny_model

BOS = 256
PAIRS = [('one', ' two'), ('', 'three'), ('a b ', 'c'), ('x' * 80, ' y'), ('<bos>one', ' two')]


def model(seed=0, **changes):
  lm = tiny_model(TINY.replace(vocab_size=261, **changes), seed)
  return LanguageModel(lm.config, lm.params, tokenizers.ByteTokenizer())


def by_hand(lm, context, continuation):
  ids = jnp.asarray([[*context, *continuation]])
  logits = forward(lm, ids[:, :-1])[0, len(context) - 1 :]
  log_p = jax.nn.log_softmax(logits)[jnp.arange(len(continuation)), jnp.asarray(continuation)]
  return float(log_p.sum()), bool((logits.argmax(-1) == jnp.asarray(continuation)).all())


def ids(text):
  return list(text.encode())


def test_loglikelihoods_are_those_by_hand():
  lm, told = model(), {}
  context = ids('one')
  for _ in range(3):  # A continuation that greedy decoding yields.
    context.append(int(forward(lm, [context])[0, -1].argmax()))
  greedy = bytes(context[3:]).decode('latin1') if max(context) < 128 else None
  pairs = PAIRS + ([('one', greedy)] if greedy else [])
  found = requests.loglikelihoods(lm, pairs, told.__setitem__, batch_size=4)
  split = [
    (ids('one'), ids(' two')),
    ([BOS], ids('three')),
    (ids('a b'), ids(' c')),
    (ids('x' * 63), ids(' y')),  # The context loses its beginning: 64 inputs.
    ([BOS, *ids('one')], ids(' two')),
    *([(ids('one'), ids(greedy))] if greedy else []),
  ]
  for x, pair in zip(found, split, strict=True):
    assert x.log_p == pytest.approx(by_hand(lm, *pair)[0], rel=1e-4) and x.greedy == by_hand(lm, *pair)[1]
  assert told == dict(enumerate(found))


def test_rolling_windows_score_each_token_once_with_as_much_context_as_fits():
  windows = lambda n, begin=(-1,), length=4: [(list(a), list(b)) for a, b in requests.rolling_windows(list(range(n)), list(begin), length)]  # fmt: skip
  assert windows(10) == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
  assert windows(0) == [] and windows(4) == [([-1], [0, 1, 2, 3])]
  assert windows(5, (-1, -2)) == [([-1, -2], [0, 1, 2]), ([0, 1, 2], [3, 4])]
  for n in range(1, 30):
    for begin in ((-1,), (-1, -2)):
      assert sum((b for _, b in windows(n, begin)), []) == list(range(n))
      assert all(len(a) + len(b) - 1 <= 4 for a, b in windows(n, begin))
  if importlib.util.find_spec('lm_eval'):
    from lm_eval import utils

    for n in range(0, 30):
      theirs = utils.get_rolling_token_windows(list(range(n)), prefix_token=-1, max_seq_len=4, context_len=1)
      assert windows(n) == list(map(utils.make_disjoint_window, theirs))


def test_rolling_loglikelihoods_are_sums_over_windows():
  lm, told = model(), {}
  texts = ['short', '', 'long ' * 30]
  found = requests.rolling_loglikelihoods(lm, texts, told.__setitem__, batch_size=4, max_length=32)
  assert found[0] == pytest.approx(by_hand(lm, [BOS], ids('short'))[0], rel=1e-4) and found[1] == 0.0
  windows = requests.rolling_windows(ids(texts[2]), [BOS], 32)
  assert found[2] == pytest.approx(sum(by_hand(lm, *w)[0] for w in windows), rel=1e-4)
  assert told == dict(enumerate(found))
  both = model(direction='both', direction_signal='token')
  (signalled,) = requests.rolling_loglikelihoods(both, ['short'])
  assert signalled == pytest.approx(by_hand(both, [BOS, 259], ids('short'))[0], rel=1e-4)


@pytest.mark.slow
def test_generation_stops_at_strings_and_equals_generating_alone():
  lm, told = model(seed=1), {}
  contexts = ['one', 'a longer context', '', 'x' * 90]
  free = [decoders.generate(lm, [c], max_new_tokens=12).text[0] for c in contexts[:2]]
  until = free[0][4:6]
  asked = [(c, {'until': [until, 'never'], 'max_gen_toks': 12}) for c in contexts]
  asked.insert(
    1, ('one', {'until': 'never', 'max_new_tokens': 5, 'do_sample': False, 'temperature': 0.0, 'num_beams': 1})
  )
  found = requests.generate_until(lm, asked, told.__setitem__, batch_size=2)
  assert told == dict(enumerate(found))
  cut = lambda text: text.split(until)[0]
  assert found[0] == cut(free[0]) and found[2] == cut(free[1]) and until not in ''.join(found[:1] + found[2:])
  assert found[1] == decoders.generate(lm, ['one'], max_new_tokens=5).text[0]
  assert found[3] == cut(decoders.generate(lm, [[BOS]], max_new_tokens=12).text[0])
  assert found[4] == cut(decoders.generate(lm, ['x' * 52], max_new_tokens=12).text[0])
  sampled = [('one', {'do_sample': True, 'temperature': 0.9, 'top_k': 5, 'max_gen_toks': 12})]
  assert requests.generate_until(lm, sampled, seed=3) == requests.generate_until(lm, sampled, seed=3)
  with pytest.raises(ValueError, match='num_beams=4 is not known'):
    requests.generation({'num_beams': 4})
  with pytest.raises(ValueError, match='64 new tokens leave no room for a context: the model reads 64'):
    requests.generate_until(lm, [('a', {'max_gen_toks': 64})])


@pytest.fixture
def harness(monkeypatch):
  """The part of lm_eval that the plug-in uses, the real one where it is installed."""
  absent = importlib.util.find_spec('lm_eval') is None
  if absent:
    registry = {}

    class LM:
      def __init__(self):
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: None)

    register = lambda name: lambda cls: registry.setdefault(name, cls)
    fakes = {
      'lm_eval': types.ModuleType('lm_eval'),
      'lm_eval.api': types.ModuleType('lm_eval.api'),
      'lm_eval.api.model': types.SimpleNamespace(LM=LM),
      'lm_eval.api.registry': types.SimpleNamespace(register_model=register),
    }
    for name, fake in fakes.items():
      monkeypatch.setitem(sys.modules, name, fake)
  module = importlib.import_module('decoders.lm_eval_model')
  yield module
  if absent:
    sys.modules.pop('decoders.lm_eval_model')


def test_the_plug_in_answers_requests_in_their_order(harness):
  lm = model()
  lm.tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip
  plug, kept = harness.JaxLM(lm, batch_size='auto', max_gen_toks='8', device='cuda'), []
  plug.cache_hook = types.SimpleNamespace(add_partial=lambda *args: kept.append(args))
  ask = lambda *args: types.SimpleNamespace(args=args)
  scored = plug.loglikelihood([ask(*pair) for pair in PAIRS[:2]], disable_tqdm=True)
  assert scored == [tuple(x) for x in requests.loglikelihoods(lm, PAIRS[:2])] and type(scored[0]) is tuple
  (rolled,) = plug.loglikelihood_rolling([ask('short')], disable_tqdm=True)
  assert rolled == pytest.approx(requests.rolling_loglikelihoods(lm, ['short'])[0])
  (text,) = plug.generate_until([ask('one', {'until': ['\n']})], disable_tqdm=True)
  assert text == decoders.generate(lm, ['one'], max_new_tokens=8, stop=['\n']).text[0]
  assert [(kind, args) for kind, args, _ in kept] == [
    ('loglikelihood', PAIRS[0]), ('loglikelihood', PAIRS[1]), ('loglikelihood_rolling', ('short',)), ('generate_until', ('one', {'until': ['\n']})),
  ]  # fmt: skip
  history = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Well, '}]
  assert plug.apply_chat_template(history[:1]) == '<user>Hi</><assistant>'
  assert plug.apply_chat_template(history, add_generation_prompt=False) == '<user>Hi</><assistant>Well,'
  assert plug.chat_template() == lm.tokenizer.chat_template and plug.get_model_info()['model_dtype'] == 'float32'
  lm.tokenizer.chat_template = "{{ messages[0]['content'] }}{{ thinking }}"
  for given in ('{"thinking": false}', {'thinking': False}):
    assert harness.JaxLM(lm, chat_template_args=given).apply_chat_template(history[:1]) == 'HiFalse'
  with pytest.raises(ValueError, match='no JSON object'):
    harness.JaxLM(lm, chat_template_args='3')
  with pytest.raises(ValueError, match='seed=-1 must'):
    harness.JaxLM(lm, seed=-1)
  with pytest.raises(ValueError, match="direction='reverse'"):
    harness.JaxLM(model(direction='reverse'))


def test_the_entry_point_names_the_class_and_importing_without_the_harness_says_what_to_install():
  setup = configparser.ConfigParser()
  setup.read(Path(__file__).parents[2] / 'setup.cfg')
  assert setup['options.entry_points']['lm_eval.models'].split() == ['jaxlm', '=', 'decoders.lm_eval_model:JaxLM']
  assert 'lm_eval' in setup['options.extras_require']['eval']
  code = "import sys; sys.modules['lm_eval'] = None; import jaxlm, decoders; import decoders.lm_eval_model"
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode and "pip install 'jaxlm[eval]'" in done.stderr.splitlines()[-1], done.stderr
