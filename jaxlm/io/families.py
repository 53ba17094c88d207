"""The model families of Hugging Face checkpoints: their config fields and tensor names.

A family is a table from jaxlm's parameters to its tensors (layouts as in jaxlm.io.weights) and two functions: `read` converts its
config.json to ModelConfig fields, and `write` converts back. A config can be saved as a family if and only if reading the
written fields gives a config that computes the same; there is no other rule.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

from jaxlm import errors
from jaxlm.config import HOW, TRAINING_ONLY, ModelConfig
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
  activation: str  # jaxlm's name of the activation that models of this family usually have
  read: Callable[[Fields], dict[str, Any]]  # -> arguments of ModelConfig
  write: Callable[[ModelConfig], dict[str, Any]]  # -> fields of config.json
  base: str  # prefix of all tensors but the output layer; some checkpoints leave it out
  head: str
  table: dict[str, tuple]  # our path below the root -> (name below the base, axes[, skipped rows]); * is the layer
  buffers: str = r'rotary_emb\.inv_freq$'  # masks and frequencies that old versions stored beside the weights

  def config(self, fields: Fields) -> ModelConfig:
    """Returns the ModelConfig of a config.json. Raises CheckpointError that names a field whose value is not supported."""
    fields.only('quantization_config', None, 'weights quantised by another library are not read; get the plain ones')
    return fields.config(self.read)

  def ignores(self, name: str, based: bool) -> bool:
    """Returns whether the name of a tensor shows that the logits do not depend on it; transformers ignores it too.

    `based`: whether tensors of the checkpoint have the family's prefix. If so, tensors without it belong to other heads, for
    example for classification or for the prediction of later tokens.
    """
    return bool(re.search(self.buffers, name)) or (based and not name.startswith((self.base, self.head)))

  def entries(self, config: ModelConfig) -> list[Entry]:
    """Returns the tensor of every parameter of a config. Raises CheckpointError for a parameter that the family lacks."""
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
  """Returns the paths of all parameters of the transformer, layers in order."""
  import jax

  from jaxlm.models.transformer import abstract_params

  # All layers have the same parameters, so only one layer is traced.
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config.replace(num_layers=1, windows=())))
  paths = ['/'.join(key.key for key in path) for path, _ in leaves]
  layer = [path for path in paths if path.startswith('layer_0/')]
  first = [path for path in paths if path.split('/')[0] in ('embed', 'position_embed')]
  last = [path for path in paths if path not in layer and path not in first]
  return [*first, *(p.replace('layer_0/', f'layer_{i}/') for i in range(config.num_layers) for p in layer), *last]


def meaning(config: ModelConfig) -> dict[str, Any]:
  """Returns a normal form of a config's fields: two configs with equal normal forms compute the same logits."""
  silent = ('dtype', 'remat', 'direction', 'direction_signal', *TRAINING_ONLY, *HOW)
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
  """Returns the fields of `config`, with their values, that would be lost by saving it as `family`."""
  try:
    back = family.config(Fields(family.write(config), family.model_type))
  except errors.CheckpointError as e:
    return {'': str(e)}
  wanted, got = meaning(config), meaning(back)
  return {name: value for name, value in wanted.items() if got.get(name) != value}


def choose(config: ModelConfig) -> Family:
  """Returns a family that can represent a config, preferably one whose models usually have its activation.

  Raises ValueError that names the fields that no family can represent.
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
FAMILIES: dict[str, Family] = {  # `choose` tries them in this order, but families with the config's activation first
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
  """Returns the family of a config.json. Raises CheckpointError if its model_type is not in FAMILIES."""
  model_type = fields['model_type']
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise errors.unknown(f'model family in {fields.source}:', model_type, FAMILIES, errors.CheckpointError)
  return FAMILIES[model_type]
