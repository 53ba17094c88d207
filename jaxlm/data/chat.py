"""Chat templates: a model's own Jinja template, rendered as transformers renders it."""

from collections.abc import Mapping, Sequence
import datetime
import functools
import json
from typing import Any

Message = Mapping[str, Any]


def as_messages(messages: str | Sequence[Message]) -> list[dict[str, Any]]:
  """Returns a list of {'role', 'content'}; a string is one user message. Raises ValueError for anything else."""
  if isinstance(messages, str):
    return [{'role': 'user', 'content': messages}]
  if not messages:
    raise ValueError('A chat needs at least one message.')
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or 'role' not in message:
      raise ValueError(f"Message {i} is {message!r}; expected a dict such as {{'role': 'user', 'content': 'Hi'}}.")
  return [dict(message) for message in messages]


@functools.lru_cache(maxsize=16)
def _compile(template: str):
  import jinja2
  import jinja2.ext
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """{% generation %} marks what an assistant said, for training masks; for rendering it is transparent."""

    tags = {'generation'}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(['name:endgeneration'], drop_needle=True)

  def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)

  def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes HTML, which would change what the model reads.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

  # A template comes with the weights, from anywhere: it runs in the sandbox and cannot change what it is given.
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  environment.filters['tojson'] = tojson
  environment.globals['raise_exception'] = raise_exception
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment.from_string(template)


def render(
  template: str | None, messages: str | Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
) -> str:
  """Returns the text of a conversation.

  Args:
    template: the Jinja source.
    variables: what the template may name, such as bos_token and eos_token.

  Raises:
    ValueError: there is no template, it does not parse, or it refuses the messages (with its own words).
  """
  if template is None:
    raise ValueError('This tokenizer has no chat template: give the prompt as plain text, or set `chat_template`.')
  import jinja2

  messages = as_messages(messages)
  variables = {'tools': None, 'documents': None, **variables}
  try:
    return _compile(template).render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
  except jinja2.exceptions.TemplateError as e:
    raise ValueError(f'The chat template refuses these messages: {e}') from e
