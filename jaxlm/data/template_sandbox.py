"""Renders untrusted Jinja templates (they come with a model) with limits on time and memory.

Jinja's sandbox prevents access to Python's internals and changes to the arguments. It does not prevent endless loops or
huge values. So every loop and call checks the time, and the size of every value that an operator, filter, method or
literal makes is checked: only these can make a value that is larger than their operands.
"""

from collections.abc import Iterable, Iterator
import datetime
import functools
import json
import re
import threading
import time
from typing import Any

SECONDS = 10.0
"""Time limit of a template in seconds; real templates take milliseconds."""
LARGEST = 10_000_000
"""Size limit of a value in characters and list items; a million tokens are about five million characters."""
_BOUNDED, _TIMED = '_jaxlm_bounded', '_jaxlm_timed'  # filters that compiled templates call
_WIDE = re.compile(r'\d{6}')  # in a format string: a width of a hundred thousand or more
_clock = threading.local()


class LimitError(RuntimeError):
  """A template exceeded the limit on time or memory."""


def _look_at_clock() -> None:
  if time.monotonic() > getattr(_clock, 'deadline', float('inf')):
    raise LimitError(f'it ran longer than {SECONDS:g} seconds')


def _too_large() -> LimitError:
  return LimitError(f'it made a value of more than {LARGEST} characters')


def bounded(value: Any) -> Any:
  """Returns the value. Raises LimitError if writing it out would take more than LARGEST characters."""
  left, stack = LARGEST, [value]
  while stack:
    x = stack.pop()
    left -= 1
    if isinstance(x, str | bytes):
      left -= len(x)
    elif isinstance(x, int) and not isinstance(x, bool):
      left -= x.bit_length() // 3
    elif isinstance(x, dict):
      left -= len(x)
      stack += [*x.keys(), *x.values()] if left > 0 else []
    elif isinstance(x, list | tuple | set | frozenset):
      left -= len(x)
      stack += x if left > 0 else []
    elif type(x).__name__ == 'Namespace':
      stack.append(x._Namespace__attrs)
    if left < 0:
      raise _too_large()
  return value


def _timed(values: Iterable[Any]) -> Iterator[Any]:
  """Yields the values of a loop, and checks the time before each."""
  for value in values:
    _look_at_clock()
    yield value


def _check_growth(name: str, value: Any, arguments: list[Any]) -> None:
  """Raises LimitError for a call of a filter or method whose result would be too large to compute at all."""
  numbers = [abs(x) for x in arguments if isinstance(x, int)]
  texts = [x for x in arguments if isinstance(x, str)]
  if any(n > LARGEST for n in numbers) and name != 'range':
    raise _too_large()
  growth = 0
  if name in ('indent', 'expandtabs', 'tojson', 'wordwrap'):
    growth = max([0, *numbers, *map(len, texts)]) * (1 + (len(value) if isinstance(value, str) else 1000))
  elif name == 'replace' and isinstance(value, str) and len(texts) > 1:
    growth = value.count(texts[0]) * len(texts[1])
  elif name == 'join':
    for sep, items in ((value, arguments[0] if arguments else ()), (texts[0] if texts else '', value)):
      if isinstance(sep, str) and hasattr(items, '__len__'):
        growth = max(growth, len(sep) * len(items))
  elif name in ('format', 'format_map', '%') and isinstance(value, str) and _WIDE.search(value):
    growth = LARGEST + 1
  elif name in ('batch', 'slice'):
    growth = sum(numbers)
  if growth > LARGEST:
    raise _too_large()


@functools.lru_cache(maxsize=1)
def _environment():
  import jinja2
  from jinja2 import nodes
  import jinja2.ext
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """The tag {% generation %} marks assistant text for training masks. Rendering ignores the tag and keeps the text."""

    tags = {'generation'}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(['name:endgeneration'], drop_needle=True)

  class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(['+', '*', '**', '%'])

    def _parse(self, source, name, filename):
      tree = super()._parse(source, name, filename)
      checked = lambda node, kind: nodes.Filter(node, kind, [], [], None, None, lineno=node.lineno)
      for loop in tree.find_all(nodes.For):
        loop.iter = checked(loop.iter, _TIMED)
      return _Measuring().visit(tree)

    def call_binop(self, context, operator, left, right):
      _look_at_clock()
      sizes = [len(x) for x in (left, right) if isinstance(x, str | list | tuple)]
      numbers = [abs(x) for x in (left, right) if isinstance(x, int)]
      if operator == '*' and sizes and numbers and max(sizes) * max(numbers) > LARGEST:
        raise _too_large()
      if operator == '**' and len(numbers) == 2 and int(left).bit_length() * abs(right) > LARGEST:
        raise _too_large()
      if operator == '%' and isinstance(left, str):
        _check_growth('%', left, list(right) if isinstance(right, tuple) else [right])
      return bounded(super().call_binop(context, operator, left, right))

    def call(self, context, function, *args, **kwargs):
      _look_at_clock()
      value = getattr(getattr(function, '__wrapped__', function), '__self__', None)  # str.format comes wrapped
      _check_growth(getattr(function, '__name__', ''), value, [*args, *kwargs.values()])
      return bounded(super().call(context, function, *args, **kwargs))

  class _Measuring(jinja2.visitor.NodeTransformer):
    """Adds size checks to literals and `~`, which can repeat one large value many times."""

    def _measure(self, node):
      self.generic_visit(node)
      if getattr(node, 'ctx', 'load') != 'load':
        return node  # the left side of an assignment
      return nodes.Filter(node, _BOUNDED, [], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = visit_Concat = _measure

    def visit_Const(self, node):
      return node

  def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)

  def strftime_now(form):
    return datetime.datetime.now().strftime(form)

  def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  def measured(name, function):
    at = 1 if hasattr(function, 'jinja_pass_arg') else 0  # a context or the environment comes first

    @functools.wraps(function)
    def filter(*args, **kwargs):
      _look_at_clock()
      if name == 'join' and len(args) > at and not hasattr(args[at], '__len__'):
        # A generator has no length, so it is read into a list.
        args = (*args[:at], list(_timed(args[at])), *args[at + 1 :])
      value = args[at] if len(args) > at else None
      _check_growth(name, value, [*args[at + 1 :], *kwargs.values()])
      return bounded(function(*args, **kwargs))

    return filter

  environment = Environment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols], optimized=False
  )
  environment.filters['tojson'] = tojson
  environment.filters = {name: measured(name, function) for name, function in environment.filters.items()}
  environment.filters |= {_BOUNDED: bounded, _TIMED: _timed}
  environment.globals.pop('lipsum', None)
  environment.globals['raise_exception'] = raise_exception
  environment.globals['strftime_now'] = strftime_now
  return environment


@functools.lru_cache(maxsize=16)
def _compiled(template: str):
  return _environment().from_string(template)


def render(template: str, variables: dict[str, Any]) -> str:
  """Returns the text of a template. Raises whatever the template raises, and LimitError."""
  before, _clock.deadline = getattr(_clock, 'deadline', None), time.monotonic() + SECONDS
  try:
    parts, length = [], 0
    for part in _compiled(template).generate(**variables):
      _look_at_clock()
      parts.append(part)
      if (length := length + len(part)) > LARGEST:
        raise _too_large()
    return ''.join(parts)
  finally:
    _clock.deadline = float('inf') if before is None else before
