"""Chat templates: the messages people have, the errors that templates raise, and the bounds they run in."""

import time

import pytest

from jaxlm.data import chat, template_sandbox
from tests.tokenizers_made import CHATML, byte_level_bpe

CALLS = [{'type': 'function', 'function': {'name': 'f', 'arguments': {'a': 1}}}]
NONE = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': None, 'tool_calls': CALLS}]
PARTS = [{'role': 'user', 'content': [{'type': 'text', 'text': ' Hi'}, {'type': 'text', 'text': ' you '}]}]
TOOLS = [{'type': 'function', 'function': {'name': 'f', 'parameters': {}}}]
QWEN = (
  '{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>{% if m.content %}'
  '{{ m.content }}{% endif %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}'
  '{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and '
  'enable_thinking is false %}<think></think>{% endif %}{% endif %}'
)
LOOPS = (
  '{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}'
  "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def test_a_message_without_content_is_one_for_the_template_to_handle():
  assert chat.render(QWEN, NONE) == '<user>hi<assistant>{"name": "f", "arguments": {"a": 1}}<assistant>'
  assert chat.render('{{ messages[1].content is defined }} {{ messages[1].tool_calls | length }}', NONE) == 'False 1'
  with pytest.raises(ValueError, match="refuses these messages.*no attribute 'content'"):
    chat.render(CHATML, NONE)
  assert NONE[1]['content'] is None


@pytest.mark.parametrize(
  'template, text',
  [
    (CHATML, '<|im_start|>user\n Hi you <|im_end|>\n<|im_start|>assistant\n'),
    ('{{ messages[0].content }}|', ' Hi you |'),
    ('{{ messages[0].content | trim }}|', 'Hi you|'),
    ('{{ messages[0].content.strip() }}|', 'Hi you|'),
    ("{{ messages[0].content ~ '.' }}{{ messages[0].content + '.' }}", ' Hi you . Hi you .'),
    (LOOPS, ' Hi you '),
    ('{{ messages[0].content[1].text }}', ' you '),
  ],
)
def test_content_in_parts_is_read_as_parts_or_as_their_text(template, text):
  assert chat.render(template, PARTS) == text


def test_parts_without_text_reach_templates_that_know_them_and_no_others():
  messages = [{'role': 'user', 'content': [{'type': 'image', 'url': 'x'}, {'type': 'text', 'text': 'Hi'}]}]
  assert chat.render(LOOPS, messages) == '<image>Hi'
  with pytest.raises(ValueError, match="reads text, and a part of the content is .*'image'"):
    chat.render(CHATML, messages)


@pytest.mark.parametrize(
  'messages', [[{'role': 1, 'content': 'x'}], [{'content': 'x'}], [{'role': 'user', 'content': 5}], [5], 5, []]
)
def test_messages_of_the_wrong_kind_are_named(messages):
  with pytest.raises(ValueError, match='Message 0|A chat'):
    chat.render(CHATML, messages)


def test_template_variables_pass_through():
  t = byte_level_bpe()
  t.chat_template = QWEN
  show = lambda **variables: t.decode(t.chat('Hi', **variables), skip_special=False)
  assert show() == '<user>Hi<assistant>'
  assert show(enable_thinking=False) == '<user>Hi<assistant><think></think>'
  assert show(tools=TOOLS, add_generation_prompt=False).startswith('[{"type": "function", "function"')
  t.chat_template = '{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ date }}'
  assert show(date='1 May', bos_token='B') == 'B<|im_end|>False1 May'
  with pytest.raises(ValueError, match=r'tools\[0\] is .*JSON schema'):
    show(tools=[print])


def test_messages_and_variables_give_what_transformers_gives(tmp_path):
  transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  t = byte_level_bpe()
  t.save(tmp_path)
  peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for template, messages, variables in [
    (CHATML, [{'role': 'user', 'content': '<é & "x">'}], {}),
    (QWEN, NONE, {}),
    (QWEN, NONE, {'tools': TOOLS, 'enable_thinking': False}),
    (QWEN, NONE, {'enable_thinking': True}),
    (LOOPS, PARTS, {}),
    ('{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}', PARTS, {}),
    ("{% set ns = namespace(n=0) %}{% for a, b in {'x': 1, 'y': 2}.items() %}{% set ns.n = ns.n + b %}{{ a }}"
     "{{ loop.last }}{{ loop.length }}{% endfor %}{{ ns.n }}{{ [1, 2] + [3] }}{{ '%5d' % 3 }}", PARTS, {}),
    ("{% macro f(x, y=2) %}{{ x * y }}{% endmacro %}{{ f('ab') }}{{ messages | map(attribute='role') | join(',') }}"
     "{% for m in messages if m.role != 'x' recursive %}{{ loop.index0 }}{% else %}none{% endfor %}", PARTS, {}),
    ("{% set (a, b) = (1, 2) %}{{ a ~ b }}{{ messages[-1:] | length }}{{ 'a,b'.split(',') | last }}{{ 7 // 2 }}", PARTS, {}),
    ("{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}", [{'role': 'a', 'content': 'b', 'reasoning': 'c'}], {}),
  ]:  # fmt: skip
    peer.chat_template = t.chat_template = template
    for prompt in (True, False):
      theirs = peer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, **variables)
      ours = t.chat(messages, add_generation_prompt=prompt, **variables)
      assert ours == peer.encode(theirs, add_special_tokens=False), template


@pytest.mark.parametrize(
  'template, words',
  [
    ('{{ messages[5].content }}', 'no element 5'),
    ('{{ 1 / 0 }}', 'ZeroDivisionError'),
    ("{{ messages[0]['content'] + 1 }}", 'TypeError.*concatenate'),
    ('{{ strftime_now() }}', 'TypeError.*strftime_now'),
    ('{{ messages[0].content.foo() }}', "no attribute 'foo'"),
    ("{% include 'x' %}", 'TypeError.*no loader'),
    ("{{ 'x'.encode('no-such-codec') }}", 'LookupError'),
    ('{{ {}.pop() }}', ''),
    ("{{ '%d' % 'x' }}", 'TypeError'),
    ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
    ('{{ ' + '(' * 5000 + ')' * 5000 + ' }}', ''),
    ('{% for %}', ''),
    ("{{ raise_exception('roles must alternate') }}", 'roles must alternate'),
  ],
)  # fmt: skip
def test_every_error_in_a_template_is_one_clear_error(template, words):
  with pytest.raises(ValueError, match=f'The chat template refuses these messages: .*{words}'):
    chat.render(template, 'hi')


FOREVER = [
  '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}',
  '{% set x = range(99999) | list %}{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}',
  '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
  '{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}',
  '{% for a in [range(9999)] recursive %}{% for b in range(9999) %}{{ loop.index0 }}{% endfor %}{{ loop([a]) }}{% endfor %}',
]


@pytest.mark.parametrize('template', FOREVER)
def test_templates_that_run_for_ever_are_stopped(template, monkeypatch):
  monkeypatch.setattr(template_sandbox, 'SECONDS', 0.05)
  started = time.monotonic()
  with pytest.raises(ValueError, match='ran longer than 0.05 seconds|RecursionError'):
    chat.render(template, 'hi')
  assert time.monotonic() - started < 2
  assert chat.render('{{ messages[0].content }}', 'hi') == 'hi'


GROW = '{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}'


@pytest.mark.parametrize(
  'template',
  [
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * ['x'] }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'.zfill(width=1000000000) }}",
    "{{ '%01000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ messages | tojson(indent=1000000) }}",
    "{{ ('a\\n' * 10000) | indent(10000) }}",
    "{{ ('\\t' * 10000).expandtabs(10000) }}",
    "{{ ('a' * 10000).replace('a', 'a' * 10000) }}",
    "{{ ('a' * 10000) | replace('a', 'a' * 10000) }}",
    "{{ ('a' * 10000).join('a' * 10000) }}",
    "{{ range(90000) | join('a' * 10000) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    '{{ 10 ** 1000000000 }}',
    '{{ range(1000000000) | list | length }}',
    GROW % ("'x'", 'ns.x ~ ns.x'),
    GROW % ("'x'", 'ns.x + ns.x'),
    GROW % ("'x'", "'%s%s' % (ns.x, ns.x)"),
    GROW % ("'x'", "'{0}{0}'.format(ns.x)"),
    GROW % ("'x'", 'ns.x * 2'),
    GROW % ('[1]', 'ns.x + ns.x'),
    GROW % ('[1]', '[ns.x, ns.x]'),
    GROW % ('[1]', '(ns.x, ns.x)'),
    GROW % ('[1]', "{'a': ns.x, 'b': ns.x}"),
    GROW % ('[1]', 'dict(a=ns.x, b=ns.x)'),
    GROW % ('[1]', 'namespace(a=ns.x, b=ns.x)'),
    GROW % ('3', 'ns.x * ns.x'),
    GROW % ("'x'", "[ns.x, ns.x] | join"),
    '{% for i in range(99999) %}{{ messages[0].content * 200 }}{% endfor %}',
  ],
)  # fmt: skip
def test_templates_cannot_fill_the_memory(template, monkeypatch):
  monkeypatch.setattr(template_sandbox, 'LARGEST', 200_000)
  started = time.monotonic()
  with pytest.raises(ValueError, match=r'refuses.*(more than 200000 characters|Range too big)'):
    chat.render(template, 'hi')
  assert time.monotonic() - started < 2


def test_long_conversations_are_within_the_bounds():
  messages = [{'role': 'user', 'content': 'word ' * 1000}] * 500
  assert len(chat.render(CHATML, messages)) > 2_500_000
