"""Hugging Face configs and tensor names of OPT, GPT-2 and GPT-NeoX (Pythia): LayerNorm, biases, a plain MLP."""

from typing import Any

from jaxlm.config import ModelConfig
from jaxlm.io.fields import MOST_LAYERS, Fields, activation_name
from jaxlm.io.rope_fields import read_length, read_rope, write_length, write_rope


def read_opt(f: Fields) -> dict[str, Any]:
  f.only('do_layer_norm_before', True, 'normalising after each block is another model')
  f.only('word_embed_proj_dim', f.whole('hidden_size'), 'embeddings of another width than the model are projected')
  f.only('_remove_final_layer_norm', False, 'the final norm is always there')
  f.only('layer_norm_elementwise_affine', True, 'norms always have a scale and a bias')
  bias = f.flag('enable_bias', True)
  return dict(
    vocab_size=f.whole('vocab_size'),
    num_layers=f.whole('num_hidden_layers', most=MOST_LAYERS),
    model_dim=f.whole('hidden_size'),
    num_heads=f.whole('num_attention_heads'),
    num_kv_heads=f.whole('num_attention_heads'),
    head_dim=f.head_dim('hidden_size', 'num_attention_heads'),
    mlp_dim=f.whole('ffn_dim'),
    max_length=f.whole('max_position_embeddings'),
    norm='layernorm',
    norm_eps=1e-5,
    activation=f.activation('activation_function', 'relu'),
    gated_mlp=False,
    position='learned',
    tied_embeddings=f.flag('tie_word_embeddings', True),
    **dict(qkv_bias=bias, out_bias=bias, mlp_bias=bias),
  )


def write_opt(c: ModelConfig) -> dict[str, Any]:
  return dict(
    vocab_size=c.vocab_size,
    num_hidden_layers=c.num_layers,
    hidden_size=c.model_dim,
    word_embed_proj_dim=c.model_dim,
    num_attention_heads=c.num_heads,
    ffn_dim=c.mlp_dim,
    max_position_embeddings=c.max_length,
    activation_function=activation_name(c),
    enable_bias=c.qkv_bias,
    do_layer_norm_before=True,
    tie_word_embeddings=c.tied_embeddings,
  )


def read_gpt2(f: Fields) -> dict[str, Any]:
  f.only('scale_attn_weights', True, 'attention logits are always divided by sqrt(head_dim)')
  f.only('scale_attn_by_inverse_layer_idx', False, 'all layers have the same scale')
  f.only('add_cross_attention', False, 'a decoder without an encoder has none')
  return dict(
    vocab_size=f.whole('vocab_size'),
    num_layers=f.whole('n_layer', most=MOST_LAYERS),
    model_dim=f.whole('n_embd'),
    num_heads=f.whole('n_head'),
    num_kv_heads=f.whole('n_head'),
    head_dim=f.head_dim('n_embd', 'n_head'),
    mlp_dim=f.whole('n_inner', 4 * f.whole('n_embd')),
    max_length=f.whole('n_positions'),
    norm='layernorm',
    norm_eps=f.number('layer_norm_epsilon', 1e-5),
    activation=f.activation('activation_function', 'gelu_new'),
    gated_mlp=False,
    position='learned',
    tied_embeddings=f.flag('tie_word_embeddings', True),
    **dict(qkv_bias=True, out_bias=True, mlp_bias=True),
  )


def write_gpt2(c: ModelConfig) -> dict[str, Any]:
  return dict(
    vocab_size=c.vocab_size,
    n_layer=c.num_layers,
    n_embd=c.model_dim,
    n_head=c.num_heads,
    n_inner=c.mlp_dim,
    n_positions=c.max_length,
    layer_norm_epsilon=c.norm_eps,
    activation_function=activation_name(c),
    tie_word_embeddings=c.tied_embeddings,
  )


def read_neox(f: Fields) -> dict[str, Any]:
  max_length, bias = f.whole('max_position_embeddings'), f.flag('attention_bias', True)
  rope = read_rope(f, max_length, fraction=0.25)
  return dict(
    vocab_size=f.whole('vocab_size'),
    num_layers=f.whole('num_hidden_layers', most=MOST_LAYERS),
    model_dim=f.whole('hidden_size'),
    num_heads=f.whole('num_attention_heads'),
    num_kv_heads=f.whole('num_attention_heads'),
    head_dim=f.head_dim('hidden_size', 'num_attention_heads'),
    mlp_dim=f.whole('intermediate_size'),
    max_length=read_length(f, rope, max_length),
    norm='layernorm',
    norm_eps=f.number('layer_norm_eps', 1e-5),
    activation=f.activation('hidden_act', 'gelu'),
    gated_mlp=False,
    parallel_residual=f.flag('use_parallel_residual', True),
    rope=rope,
    tied_embeddings=f.flag('tie_word_embeddings', False),
    **dict(qkv_bias=bias, out_bias=bias, mlp_bias=True),
  )


def write_neox(c: ModelConfig) -> dict[str, Any]:
  return dict(
    vocab_size=c.vocab_size,
    num_hidden_layers=c.num_layers,
    hidden_size=c.model_dim,
    num_attention_heads=c.num_heads,
    intermediate_size=c.mlp_dim,
    **write_length(c),
    layer_norm_eps=c.norm_eps,
    hidden_act=activation_name(c),
    use_parallel_residual=c.parallel_residual,
    attention_bias=c.qkv_bias,
    tie_word_embeddings=c.tied_embeddings,
    **write_rope(c, partial=True),
  )


_HEADS = (('q', 'N'), ('k', 'K'), ('v', 'K'))  # N = K in these families


def _layer_norms(table: dict[str, str]) -> dict[str, tuple]:
  """Returns the table entries of the scale and the bias of each norm."""
  parts = {'scale': 'weight', 'bias': 'bias'}
  return {f'{ours}/{part}': (f'{name}.{theirs}', 'D') for ours, name in table.items() for part, theirs in parts.items()}


def opt_table() -> dict[str, tuple]:
  table = {
    'embed/embedding': ('decoder.embed_tokens.weight', 'V,D'),
    'position_embed/embedding': ('decoder.embed_positions.weight', 'P,D', 2),  # positions count from 2
    'layer_*/attention/o/kernel': ('decoder.layers.*.self_attn.out_proj.weight', 'D,NH'),
    'layer_*/attention/o/bias': ('decoder.layers.*.self_attn.out_proj.bias', 'D'),
    'layer_*/mlp/up/kernel': ('decoder.layers.*.fc1.weight', 'F,D'),
    'layer_*/mlp/up/bias': ('decoder.layers.*.fc1.bias', 'F'),
    'layer_*/mlp/down/kernel': ('decoder.layers.*.fc2.weight', 'D,F'),
    'layer_*/mlp/down/bias': ('decoder.layers.*.fc2.bias', 'D'),
  }
  for x, heads in _HEADS:
    table[f'layer_*/attention/{x}/kernel'] = (f'decoder.layers.*.self_attn.{x}_proj.weight', f'{heads}H,D')
    table[f'layer_*/attention/{x}/bias'] = (f'decoder.layers.*.self_attn.{x}_proj.bias', f'{heads}H')
  norms = {
    'layer_*/attention_norm': 'decoder.layers.*.self_attn_layer_norm',
    'layer_*/mlp_norm': 'decoder.layers.*.final_layer_norm',
    'final_norm': 'decoder.final_layer_norm',
  }
  return table | _layer_norms(norms)


def gpt2_table() -> dict[str, tuple]:
  table = {  # Conv1D: matrices are [in, out], and q, k, v are concatenated
    'embed/embedding': ('wte.weight', 'V,D'),
    'position_embed/embedding': ('wpe.weight', 'P,D'),
    'layer_*/attention/o/kernel': ('h.*.attn.c_proj.weight', 'NH,D'),
    'layer_*/attention/o/bias': ('h.*.attn.c_proj.bias', 'D'),
    'layer_*/mlp/up/kernel': ('h.*.mlp.c_fc.weight', 'D,F'),
    'layer_*/mlp/up/bias': ('h.*.mlp.c_fc.bias', 'F'),
    'layer_*/mlp/down/kernel': ('h.*.mlp.c_proj.weight', 'F,D'),
    'layer_*/mlp/down/bias': ('h.*.mlp.c_proj.bias', 'D'),
  }
  for i, (x, heads) in enumerate(_HEADS):
    table[f'layer_*/attention/{x}/kernel'] = ('h.*.attn.c_attn.weight', f'D,{i}{heads}H')
    table[f'layer_*/attention/{x}/bias'] = ('h.*.attn.c_attn.bias', f'{i}{heads}H')
  norms = {'layer_*/attention_norm': 'h.*.ln_1', 'layer_*/mlp_norm': 'h.*.ln_2', 'final_norm': 'ln_f'}
  return table | _layer_norms(norms)


def neox_table() -> dict[str, tuple]:
  table = {
    'embed/embedding': ('embed_in.weight', 'V,D'),
    'layer_*/attention/o/kernel': ('layers.*.attention.dense.weight', 'D,NH'),
    'layer_*/attention/o/bias': ('layers.*.attention.dense.bias', 'D'),
    'layer_*/mlp/up/kernel': ('layers.*.mlp.dense_h_to_4h.weight', 'F,D'),
    'layer_*/mlp/up/bias': ('layers.*.mlp.dense_h_to_4h.bias', 'F'),
    'layer_*/mlp/down/kernel': ('layers.*.mlp.dense_4h_to_h.weight', 'D,F'),
    'layer_*/mlp/down/bias': ('layers.*.mlp.dense_4h_to_h.bias', 'D'),
  }
  for i, (x, heads) in enumerate(_HEADS):  # q, k, v are concatenated within each head
    table[f'layer_*/attention/{x}/kernel'] = ('layers.*.attention.query_key_value.weight', f'{heads}{i}H,D')
    table[f'layer_*/attention/{x}/bias'] = ('layers.*.attention.query_key_value.bias', f'{heads}{i}H')
  norms = {
    'layer_*/attention_norm': 'layers.*.input_layernorm',
    'layer_*/mlp_norm': 'layers.*.post_attention_layernorm',
    'final_norm': 'final_layer_norm',
  }
  return table | _layer_norms(norms)
