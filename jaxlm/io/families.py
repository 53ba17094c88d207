"""The model families of Hugging Face checkpoints: how each writes its config and names its tensors.

A family is a table from our parameters to its tensors (layouts as in jaxlm.io.weights) and two functions, `read` from
its config.json to ours and `write` back. A family can express a config of ours if and only if reading what it wrote
gives the same meaning back, so nothing else decides what it can be saved as.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

from jaxlm import errors
from jaxlm.config import TRAINING_ONLY, ModelConfig
from jaxlm.io import gemma_families as gemma
from jaxlm.io import layernorm_families as layernorm
from jaxlm.io import rms_families as rms
from jaxlm.io.fields import Fields
from jaxlm.io.rope_fields import rope_meaning
from jaxlm.io.weights import Entry


@dataclasses.dataclass(frozen=True)
class Family:
  """One `model_type`."""

  model_type: str
  architecture: str
  activation: str  # ours, that its models usually have
  read: Callable[[Fields], dict[str, Any]]  # -> arguments of ModelConfig
  write: Callable[[ModelConfig], dict[str, Any]]  # -> fields of config.json
  base: str  # prefix of all tensors but the output layer; some checkpoints leave it out
  head: str
  table: dict[str, tuple]  # our path below the root -> (name below the base, axes[, skipped rows]); * is the layer
  buffers: str = r'rotary_emb\.inv_freq$'  # masks and frequencies that old versions stored beside the weights

  def config(self, fields: Fields) -> ModelConfig:
    """Returns the ModelConfig of a config.json. Raises CheckpointError naming a field that we do not compute."""
    fields.only('quantization_config', None, 'weights quantised by another library are not read; get the plain ones')
    return fields.config(self.read)

  def ignores(self, name: str, based: bool) -> bool:
    """Returns whether a tensor takes no part in the logits, as far as its name says; transformers leaves it out too.

    `based`: the checkpoint has the family's prefix. Then what lies outside of it belongs to other heads of the model
    (of values, of classes, of tokens further ahead).
    """
    return bool(re.search(self.buffers, name)) or (based and not name.startswith((self.base, self.head)))

  def entries(self, config: ModelConfig) -> list[Entry]:
    """Returns where every parameter of a config lies. Raises CheckpointError for one that the family has not."""
    entries = []
    for path in parameter_paths(config):
      layer = path.split('/')[0].removeprefix('layer_')
      key = path.replace(f'layer_{layer}/', 'layer_*/')
      if path == 'head':
        entries.append(Entry(path, self.head, 'V,D'))
      elif key in self.table:
        name, axes, *skip = self.table[key]
        entries.append(Entry(path, self.base + name.replace('*', layer), axes, *skip))
      else:
        raise errors.CheckpointError(f'{self.model_type} models have no parameter {path}.')
    return entries


def parameter_paths(config: ModelConfig) -> list[str]:
  """Returns the paths of all parameters, layers in order, as the transformer itself makes them."""
  import jax

  from jaxlm.models.transformer import abstract_params

  # Layers have the same parameters, so one is traced however many there are.
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config.replace(num_layers=1, windows=())))
  paths = ['/'.join(key.key for key in path) for path, _ in leaves]
  layer = [path for path in paths if path.startswith('layer_0/')]
  first = [path for path in paths if path.split('/')[0] in ('embed', 'position_embed')]
  last = [path for path in paths if path not in layer and path not in first]
  return [*first, *(p.replace('layer_0/', f'layer_{i}/') for i in range(config.num_layers) for p in layer), *last]


def meaning(config: ModelConfig) -> dict[str, Any]:
  """Returns a config's fields with everything that changes no logit in one normal form."""
  silent = ('dtype', 'remat', 'direction', 'direction_signal', *TRAINING_ONLY)
  fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in silent}
  fields['windows'] = tuple(config.window(i) or 0 for i in range(config.num_layers))
  fields['query_scale_dim'] = config.query_scale_dim or config.head_dim
  del fields['rope']
  if config.position == 'rope':
    if not any(config.windows):
      fields['local_rope_theta'] = None
    elif config.local_rope_theta is None and config.rope.scaling == 'none':
      fields['local_rope_theta'] = config.rope.theta
    fields |= {f'rope.{name}': value for name, value in dataclasses.asdict(rope_meaning(config)).items()}
  return fields


def differences(family: Family, config: ModelConfig) -> dict[str, Any]:
  """Returns the fields of `config`, with their values, that would not survive being saved as `family`."""
  try:
    back = family.config(Fields(family.write(config), family.model_type))
  except errors.CheckpointError as e:
    return {'': str(e)}
  wanted, got = meaning(config), meaning(back)
  return {name: value for name, value in wanted.items() if got.get(name) != value}


def choose(config: ModelConfig) -> Family:
  """Returns a family that can express a config, if possible one whose models have its activation.

  Raises ValueError naming what stands in the way of all families.
  """
  lost = {}
  for family in sorted(FAMILIES.values(), key=lambda family: family.activation != config.activation):
    lost[family.model_type] = differences(family, config)
    if not lost[family.model_type]:
      return family
  fields = set.intersection(*(set(d) for d in lost.values() if '' not in d) or [set()])
  nearest = min((name for name in lost if '' not in lost[name]), key=lambda name: len(lost[name]), default='')
  show = lambda names, of: ', '.join(f'{name}={of[name]!r}' for name in sorted(names))
  if fields:
    reason = f'no family expresses {show(fields, lost[nearest])}'
  else:
    reason = (
      f'no family expresses all fields at once; nearest is {nearest}, without {show(lost[nearest], lost[nearest])}'
    )
  raise ValueError(f'This model has no Hugging Face form: {reason}. Families: {", ".join(FAMILIES)}.')


_RMS = dict(base='model.', head='lm_head.weight', table=rms.llama_table())
_GEMMA = _RMS | dict(table=gemma.gemma_table())
FAMILIES: dict[str, Family] = {  # `choose` tries them in this order, the usual activation first
  family.model_type: family
  for family in (
    Family('llama', 'LlamaForCausalLM', 'silu', rms.read_llama, rms.write_llama, **_RMS),
    Family('mistral', 'MistralForCausalLM', 'silu', rms.read_mistral, rms.write_mistral, **_RMS),
    Family('qwen2', 'Qwen2ForCausalLM', 'silu', rms.read_qwen2, rms.write_qwen2, **_RMS),
    Family('qwen3', 'Qwen3ForCausalLM', 'silu', rms.read_qwen3, rms.write_qwen3, **_RMS),
    Family('gemma2', 'Gemma2ForCausalLM', 'gelu_tanh', gemma.read_gemma2, gemma.write_gemma2, **_GEMMA),
    Family('gemma3_text', 'Gemma3ForCausalLM', 'gelu_tanh', gemma.read_gemma3, gemma.write_gemma3, **_GEMMA),
    Family(
      'opt',
      'OPTForCausalLM',
      'relu',
      layernorm.read_opt,
      layernorm.write_opt,
      'model.',
      'lm_head.weight',
      layernorm.opt_table(),
      r'decoder\.version$',
    ),
    Family(
      'gpt2',
      'GPT2LMHeadModel',
      'gelu_tanh',
      layernorm.read_gpt2,
      layernorm.write_gpt2,
      'transformer.',
      'lm_head.weight',
      layernorm.gpt2_table(),
      r'\.attn\.(masked_)?bias$',
    ),
    Family(
      'gpt_neox',
      'GPTNeoXForCausalLM',
      'gelu',
      layernorm.read_neox,
      layernorm.write_neox,
      'gpt_neox.',
      'embed_out.weight',
      layernorm.neox_table(),
      r'\.attention\.(masked_)?bias$|rotary_emb\.inv_freq$',
    ),
  )
}


def family_of(fields: Fields) -> Family:
  """Returns the family of a config.json. Raises CheckpointError for one that is not in the table."""
  model_type = fields['model_type']
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise errors.unknown(f'model family in {fields.source}:', model_type, FAMILIES, errors.CheckpointError)
  return FAMILIES[model_type]
