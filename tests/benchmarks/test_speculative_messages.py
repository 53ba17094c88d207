"""Messages that drafts learn from are none of those that they are measured on."""

import pytest

from benchmarks import speculative_messages, speculative_prompts
import jaxlm
from jaxlm.data.tokenizers import ByteTokenizer
from tests.models import TINY


@pytest.mark.slow
def test_training_messages_are_none_of_the_prompts():
  class Chatting(ByteTokenizer):
    def chat(self, messages, **_):
      return self.encode(messages)

  messages = speculative_messages.messages()
  lm = jaxlm.LanguageModel(TINY, None, Chatting())
  asked = {bytes(ids).decode() for _, ids in speculative_prompts.prompts(lm, 8)}
  assert len(messages) > 4000 and len(set(messages)) == len(messages) and not asked & set(messages)
