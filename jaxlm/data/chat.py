"""Renders a model's Jinja chat template in the same way as transformers."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from jaxlm import errors

Message = Mapping[str, Any]


def as_messages(messages: str | Sequence[Message]) -> list[dict[str, Any]]:
  """Returns a list of {'role', 'content', ...}; a string is one user message. Raises ValueError for other types.

  Keys whose value is None are left out, as in transformers: templates test whether the keys for content and tool calls exist.
  """
  if isinstance(messages, str):
    return [{'role': 'user', 'content': messages}]
  if not isinstance(messages, Sequence):
    raise ValueError(f'A chat is {messages!r}; expected a string or a list of messages.')
  if not messages:
    raise ValueError('A chat needs at least one message.')
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or not isinstance(message.get('role'), str):
      raise ValueError(
        f"Message {i} is {message!r}; expected a dict with a role, such as {{'role': 'user', 'content': 'Hi'}}."
      )
    if not isinstance(message.get('content'), str | list | tuple | None):
      raise ValueError(
        f'Message {i} has the content {message["content"]!r}; expected a string, a list of parts such as '
        "{'type': 'text', 'text': 'Hi'}, or None."
      )
  return [_with_reasoning({key: value for key, value in message.items() if value is not None}) for message in messages]


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
  """Returns a message whose reasoning text, if there is one, is stored under all names that templates use for it."""
  given = [message[name] for name in ('reasoning_content', 'thinking', 'reasoning') if name in message]
  return {'thinking': given[0], **message, 'reasoning_content': given[0]} if given else message


class _Parts(list):
  """A list of content parts. A template can loop over the parts, or use the list as a string of their joined text."""

  def __str__(self) -> str:
    return _joined(self)

  def __add__(self, other):
    return str(self) + other if isinstance(other, str) else list(self) + other

  def __radd__(self, other):
    return other + str(self) if isinstance(other, str) else NotImplemented


def _joined(parts: Sequence[Any]) -> str:
  """Returns the text of content in parts. Raises ValueError for a part that has none."""
  texts = [part.get('text') if isinstance(part, Mapping) else part for part in parts]
  for part, text in zip(parts, texts, strict=True):
    if not isinstance(text, str):
      raise ValueError(f'this template reads text, and a part of the content is {part!r}')
  return ''.join(texts)


def _plain(value: Any) -> Any:
  """Returns a copy of a value as plain data: the sandbox does not block dangerous methods of other objects."""
  if value is None or isinstance(value, bool):
    return value
  for kind in (str, int, float):
    if isinstance(value, kind):
      return value if type(value) is kind else kind.__new__(kind, value)
  if isinstance(value, Mapping):
    return {_plain(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if hasattr(value, 'item') and getattr(value, 'shape', None) == ():
    return _plain(value.item())
  return f'<{type(value).__name__}>'


def variables_of(text: str | None) -> dict[str, Any]:
  """Returns the template's variables that a command's --chat-template-args gives as a JSON object; {} for None.

  Raises:
    ValueError: text that is no JSON object, or one with a variable that the messages themselves set.
  """
  if text is None:
    return {}
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(f'--chat-template-args {errors.shown(text)} is no JSON: {e}.') from e
  if not isinstance(found, dict):
    raise ValueError(
      f'--chat-template-args {errors.shown(text)} is no JSON object: expected one such as {{"enable_thinking": false}}.'
    )
  if taken := [name for name in found if name in ('messages', 'template', 'self')]:
    raise ValueError(f'--chat-template-args cannot set {taken[0]!r}.')
  return found


def render(
  template: str | None, messages: str | Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
) -> str:
  """Returns the text of a conversation.

  Args:
    template: the Jinja source.
    messages: dicts with a role and a content: a string, a list of parts ({'type': 'text', 'text': ...}) or None.
    variables: other variables of the template: bos_token, eos_token, tools, documents, enable_thinking, ...

  Raises:
    ValueError: there is no template, it does not parse, it raises an error for the messages (whose text is in the message),
      or it exceeds the limits on time and memory.
  """
  if template is None:
    raise ValueError('This tokenizer has no chat template: give the prompt as plain text, or set `chat_template`.')
  from jaxlm.data import template_sandbox

  messages = as_messages(messages)
  for name in ('tools', 'documents'):
    for i, value in enumerate(variables.get(name) or ()):
      if not isinstance(value, Mapping):
        raise ValueError(f'{name}[{i}] is {value!r}; expected a dict (for a tool, its JSON schema).')
  given = {'tools': None, 'documents': None, **variables, 'add_generation_prompt': add_generation_prompt}
  given = _plain(given)

  def attempt(of_parts) -> str:
    plain = [_plain(message) for message in messages]
    for message in plain:
      if isinstance(message.get('content'), list):
        message['content'] = of_parts(message['content'])
    return template_sandbox.render(template, {**given, 'messages': plain})

  in_parts = any(isinstance(message.get('content'), list | tuple) for message in messages)
  try:
    try:
      return attempt(_Parts)
    except Exception:  # Errors as below; if the content is in parts, the template is tried again with joined text.
      if not in_parts:
        raise
      return attempt(_joined)  # for templates that call string methods on the content
  except Exception as e:  # a template can raise all that Python can
    kind = '' if type(e).__module__.startswith(('jinja2', 'jaxlm')) else f'{type(e).__name__}: '
    raise ValueError(f'The chat template refuses these messages: {kind}{e}') from e
