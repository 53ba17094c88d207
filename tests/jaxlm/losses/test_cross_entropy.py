"""The chunked loss equals the plain one in value and gradients, and needs far less memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import losses
from jaxlm.losses import chunked_cross_entropy
from jaxlm.models import sharding

B, T, D, V = 4, 7, 6, 23
# Each in one program: run eagerly, each operation would be compiled apart.
cross_entropy = jax.jit(losses.cross_entropy, static_argnames='label_smoothing')
token_nll = jax.jit(losses.token_nll, static_argnames=('chunk', 'softcap'))


def inputs(dtype=jnp.float32, B=B):
  rng = np.random.default_rng(2)  # Targets that are likely enough for label smoothing to raise the loss.
  hidden, matrix = rng.normal(size=(B, T, D)).astype(dtype), rng.normal(size=(D, V)).astype(np.float32)
  return hidden, matrix, rng.integers(0, V, (B, T), np.int32), (rng.random((B, T)) < 0.7).astype(np.float32)


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@functools.partial(jax.jit, static_argnames=('softcap', 'smoothing'))
def plain(hidden, matrix, targets, mask, softcap=None, smoothing=0.0):
  logits = jnp.matmul(hidden, matrix.astype(hidden.dtype), preferred_element_type=jnp.float32)
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  return cross_entropy(logits, targets, mask, label_smoothing=smoothing)


def test_plain_loss_is_the_definition():
  logits = np.log([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]])
  loss, weight = cross_entropy(logits, np.array([[0, 2]]), np.array([[1.0, 2.0]]))
  np.testing.assert_allclose(loss, -np.log(0.5) - 2 * np.log(0.7), rtol=1e-6)
  assert weight == 3.0


def test_label_smoothing_is_the_cross_entropy_with_a_softened_target():
  hidden, matrix, targets, mask = inputs()
  logits, smoothing = hidden @ matrix, 0.3
  target_BTV = (1 - smoothing) * np.eye(V)[targets] + smoothing / V
  expected = -np.sum(np.sum(target_BTV * log_softmax(logits), axis=-1) * mask)
  loss, weight = cross_entropy(logits, targets, mask, label_smoothing=smoothing)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert loss > cross_entropy(logits, targets, mask)[0] and weight == mask.sum()
  with pytest.raises(ValueError, match='label_smoothing=1.0 must be'):
    cross_entropy(logits, targets, mask, label_smoothing=1.0)


def test_masked_targets_do_not_matter():
  hidden, matrix, targets, mask = inputs()
  logits = hidden @ matrix
  junk = np.where(mask > 0, targets, -1)
  chex.assert_trees_all_equal(cross_entropy(logits, targets, mask), cross_entropy(logits, junk, mask))


@functools.partial(jax.jit, static_argnums=(4, 5))
def plain_with_gradients(hidden, matrix, targets, mask, softcap, smoothing):
  loss = lambda h, w: 0.7 * plain(h, w, targets, mask, softcap, smoothing)[0]
  return jax.value_and_grad(loss, argnums=(0, 1))(hidden, matrix)


@pytest.mark.parametrize('softcap, smoothing', [(None, 0.0), (3.0, 0.0), (3.0, 0.1)])
@pytest.mark.parametrize('chunk', [1, 5, 8, 27, 0, None])
@pytest.mark.parametrize('dtype, tol', [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_chunked_equals_plain_in_value_and_gradients(chunk, softcap, smoothing, dtype, tol):
  hidden, matrix, targets, mask = inputs(dtype)
  options = dict(chunk=chunk, softcap=softcap, label_smoothing=smoothing)
  chunked = lambda h, w: 0.7 * chunked_cross_entropy(h, w, targets, mask, **options)[0]
  expected_loss, expected = plain_with_gradients(hidden, matrix, targets, mask, softcap, smoothing)
  both = jax.jit(lambda h, w: (jax.value_and_grad(chunked, argnums=(0, 1))(h, w), chunked(h, w)))
  (loss, grads), without_gradients = both(hidden, matrix)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  np.testing.assert_allclose(without_gradients, loss, rtol=1e-6)
  for actual, wanted in zip(grads, expected):
    assert actual.dtype == wanted.dtype
    actual, wanted = np.asarray(actual, np.float32), np.asarray(wanted, np.float32)
    np.testing.assert_allclose(actual, wanted, rtol=tol, atol=tol * np.abs(wanted).max())


def test_without_a_mask_every_target_counts():
  hidden, matrix, targets, _ = inputs()
  loss, weight = jax.jit(functools.partial(chunked_cross_entropy, chunk=8))(hidden, matrix, targets)
  np.testing.assert_allclose(loss, cross_entropy(hidden @ matrix, targets)[0], rtol=1e-6)
  assert weight == B * T


@pytest.mark.parametrize('softcap', [None, 3.0])
@pytest.mark.parametrize('chunk', [1, 8, 27, 0, None])
def test_losses_of_tokens_are_those_of_the_plain_computation(chunk, softcap):
  hidden, matrix, targets, mask = inputs()
  logits = hidden @ matrix
  logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
  nll = token_nll(hidden, matrix, targets, chunk=chunk, softcap=softcap)
  np.testing.assert_allclose(nll, -np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0], rtol=1e-5)
  np.testing.assert_allclose(
    np.sum(np.asarray(nll) * mask), plain(hidden, matrix, targets, mask, softcap)[0], rtol=1e-5
  )
  half = token_nll(hidden.astype(jnp.bfloat16), matrix, targets, chunk=chunk, softcap=softcap)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, nll, atol=0.1)
  with pytest.raises(ValueError, match='fits neither'):
    token_nll(hidden, matrix, targets[:, 1:])


def test_gradients_under_pmap_and_under_sharding_equal_one_device():
  args = inputs()
  loss = lambda h, w, t, m: chunked_cross_entropy(h, w, t, m, chunk=8)[0]
  grad = jax.grad(loss, argnums=(0, 1))
  dh, dw = jax.jit(grad)(*args)

  @functools.partial(jax.pmap, axis_name='data', in_axes=(0, None, 0, 0), out_axes=(0, None))
  def mapped(h, w, t, m):
    dh, dw = grad(h, w, t, m)
    return dh, jax.lax.psum(dw, 'data')

  rows = lambda x: x.reshape(4, B // 4, *x.shape[1:])
  dh_mapped, dw_mapped = mapped(rows(args[0]), args[1], rows(args[2]), rows(args[3]))
  chex.assert_trees_all_close((dh_mapped.reshape(dh.shape), dw_mapped), (dh, dw), rtol=1e-5, atol=1e-5)

  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
  h, w, t, m = args
  sharded = put(h, 'fsdp'), put(w, 'fsdp', None), put(t, 'fsdp'), put(m, 'fsdp')
  chex.assert_trees_all_close(jax.jit(grad)(*sharded), (dh, dw), rtol=1e-5, atol=1e-5)


def test_peak_memory_is_far_below_the_logits():
  B, T, D, V = 4, 256, 16, 8192
  shapes = (
    jax.ShapeDtypeStruct((B, T, D), jnp.float32),
    jax.ShapeDtypeStruct((D, V), jnp.float32),
    jax.ShapeDtypeStruct((B, T), jnp.int32),
    jax.ShapeDtypeStruct((B, T), jnp.float32),
  )

  def peak(chunk):
    loss = lambda *args: chunked_cross_entropy(*args, chunk=chunk)[0]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = B * T * V * 4
  assert peak(0) >= logits
  assert peak(64) < logits / 4


def test_shapes_that_do_not_fit_are_named():
  hidden, matrix, targets, mask = inputs()
  with pytest.raises(ValueError, match=r'\(4, 7, 6\).*\(23, 6\)'):
    chunked_cross_entropy(hidden, matrix.T, targets, mask)
  with pytest.raises(ValueError, match='chunk=-1'):
    chunked_cross_entropy(hidden, matrix, targets, mask, chunk=-1)
