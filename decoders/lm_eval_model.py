"""The model type `jaxlm` for EleutherAI's lm-evaluation-harness.

  pip install 'jaxlm[eval]'
  lm_eval --model jaxlm --model_args pretrained=runs/embedded,dtype=float32 --tasks lambada_openai --batch_size 16

Versions of the harness that read entry points find the class through setup.cfg (group lm_eval.models); 0.4.13 does not read
them. This command works with every version:

  python -m decoders.lm_eval_model --model jaxlm --model_args pretrained=runs/embedded --tasks lambada_openai
"""

from collections.abc import Mapping
from typing import Any

try:
  from lm_eval.api.model import LM
  from lm_eval.api.registry import register_model
except ImportError as e:
  raise ImportError(
    f'decoders.lm_eval_model is a part of lm-evaluation-harness, which cannot be imported ({e}): '
    "pip install 'jaxlm[eval]'. Without it: python -m jaxlm.analysis.evaluate."
  ) from e

import tqdm

from decoders import lm_eval_requests
from jaxlm.data import chat
from jaxlm.errors import check_seed
from jaxlm.language_model import LanguageModel, load, named_tokenizer


@register_model('jaxlm')
class JaxLM(LM):
  """A model for the harness.

  Args:
    pretrained: what `jaxlm.load` reads, or a LanguageModel.
    dtype: type of the parameters and of the computation (None: float32 on a CPU, bfloat16 on an accelerator).
    batch_size: number of rows computed at once on all local devices together; 'auto' is 16.
    max_length: largest number of tokens in a row (None: the model's context).
    max_gen_toks: number of tokens to generate for tasks that give no number.
    seed: seed for sampled generation.
    tokenizer: path of another tokenizer than the model's own; see `jaxlm.language_model.named_tokenizer`.
    chat_template_args: variables of the chat template besides the messages: a dict, or a JSON object as text.
    device, max_batch_size: passed by the harness and ignored.

  Raises:
    ValueError: the model has no tokenizer, or reads only in reverse.
  """

  def __init__(
    self,
    pretrained: str | LanguageModel,
    dtype: str | None = None,
    batch_size: int | str = 16,
    max_length: int | None = None,
    max_gen_toks: int = 256,
    seed: int = 0,
    device: str | None = None,
    max_batch_size: int | None = None,
    tokenizer: str | None = None,
    chat_template_args: str | Mapping[str, Any] | None = None,
  ):
    super().__init__()
    check_seed('seed', int(seed))
    if isinstance(pretrained, LanguageModel):
      self.lm = pretrained
    else:
      self.lm = load(str(pretrained), dtype, tokenizer=named_tokenizer(tokenizer))
    given = isinstance(chat_template_args, Mapping)
    self.chat_variables = dict(chat_template_args) if given else chat.variables_of(chat_template_args)
    lm_eval_requests.lead(self.lm)  # Raises now, not at the first request, if the model does not fit.
    self.name = 'jaxlm' if isinstance(pretrained, LanguageModel) else str(pretrained)
    self.batch_size = 16 if str(batch_size).startswith('auto') else int(batch_size)
    self.max_length = int(max_length or self.lm.config.max_length)
    self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)

  def _options(self) -> dict[str, Any]:
    return {'batch_size': self.batch_size, 'max_length': self.max_length}

  def _done(self, kind: str, requests: list):
    """Puts each answer into the harness's own cache, if it keeps one."""
    return lambda number, answer: self.cache_hook.add_partial(kind, requests[number].args, answer)

  def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    pairs, done = [r.args for r in requests], self._done('loglikelihood', requests)
    with tqdm.tqdm(desc='log-likelihoods', total=len(pairs), disable=disable_tqdm or None) as bar:
      found = lm_eval_requests.loglikelihoods(self.lm, pairs, done, progress=bar.update, **self._options())
    return [tuple(x) for x in found]

  def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
    texts, done = [r.args[0] for r in requests], self._done('loglikelihood_rolling', requests)
    with tqdm.tqdm(desc='rolling log-likelihoods', unit=' windows', disable=disable_tqdm or None) as bar:
      return lm_eval_requests.rolling_loglikelihoods(self.lm, texts, done, progress=bar.update, **self._options())

  def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
    kept = self._done('generate_until', requests)
    with tqdm.tqdm(desc='generating', total=len(requests), disable=disable_tqdm or None) as bar:

      def done(number, text):
        kept(number, text)
        bar.update()

      return lm_eval_requests.generate_until(
        self.lm, [r.args for r in requests], done,
        max_new_tokens=self.max_gen_toks, seed=self.seed, **self._options(),
      )  # fmt: skip

  @property
  def tokenizer_name(self) -> str:
    return self.name.replace('/', '__')

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return self.lm.tokenizer.chat_template or ''

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """Returns a conversation as text. Raises ValueError if the model has no template."""
    tokenizer = self.lm.tokenizer
    names = {f'{n}_token': tokenizer.token_text(getattr(tokenizer, f'{n}_id')) for n in ('bos', 'eos', 'pad')}
    names |= self.chat_variables | {'add_generation_prompt': add_generation_prompt}
    text = chat.render(tokenizer.chat_template, chat_history, **names)
    if add_generation_prompt:
      return text
    last = chat_history[-1]['content'].strip()  # The model continues the last message, so the text ends with it.
    return text[: text.rindex(last) + len(last)]

  def get_model_info(self) -> dict[str, Any]:
    from jaxlm.models.transformer import count_params

    return {'model_num_parameters': count_params(self.lm.params), 'model_dtype': self.lm.config.dtype}


if __name__ == '__main__':
  from lm_eval.__main__ import cli_evaluate

  from jaxlm import console

  with console.command():
    cli_evaluate()
