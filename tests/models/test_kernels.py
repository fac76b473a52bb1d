"""The TPU kernel, interpreted, against plain attention: whole sequences, and the share of one device of a cut one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from autotune.models import kernels
from autotune.models.ring import in_order, ring_attention, zigzag

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 512, 2, 1, 128


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [jax.random.normal(key, (1, LENGTH, n, HEAD_DIM)) for key, n in zip(keys, heads, strict=True)]


def plain(q, k, v, causal):
    return kernels.xla_attention(q, k, v, jnp.arange(LENGTH) if causal else None)


def cut(kernel, context, causal):
    """`kernel` on devices that each hold the positions `zigzag` gives them; results in the order of positions."""
    mesh = Mesh(np.array(jax.devices()[:context]), ("context",), axis_types=(AxisType.Auto,))
    order = zigzag(LENGTH, context, causal)
    spec = P(None, "context")
    mapped = jax.shard_map(kernel, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return lambda *qkv: mapped(*(x[:, order] for x in qkv))[:, np.argsort(order)]


def assert_same_with_gradients(function, reference):
    q, k, v, weights = inputs()

    def loss(function):
        return jax.jit(jax.value_and_grad(lambda *qkv: (function(*qkv) * weights).sum(), argnums=(0, 1, 2)))

    found, expected = loss(function)(q, k, v), loss(reference)(q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(b).max())


@pytest.mark.parametrize(("context", "causal"), [(1, True), (2, True), (2, False)])
def test_splash_attention_on_each_share_of_a_sequence(context, causal, monkeypatch):
    interpreted = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", interpreted)

    def kernel(q, k, v):
        k, v = (in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, causal) for x in (k, v))
        return kernels.splash_attention(q, k, v, causal, context)

    assert_same_with_gradients(cut(kernel, context, causal), functools.partial(plain, causal=causal))


@pytest.mark.parametrize(("context", "causal"), [(2, True), (8, True), (4, False)])
def test_ring_attention(context, causal, monkeypatch):
    monkeypatch.setattr("autotune.models.ring.BLOCK", 64)
    kernel = functools.partial(ring_attention, context=context, causal=causal)
    assert_same_with_gradients(
        cut(lambda q, k, v: kernel(q, k, v), context, causal), functools.partial(plain, causal=causal)
    )


def test_blocked_attention(monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 64)
    assert_same_with_gradients(
        lambda q, k, v: kernels.blocked_attention(q, k, v, jnp.arange(LENGTH)), functools.partial(plain, causal=True)
    )


def test_zigzag_gives_every_device_the_same_work():
    """Pairs (query, key it may see) on each of 4 devices; in plain order the last would have 7 times the first's."""
    order = zigzag(64, 4, True).reshape(4, -1)
    assert len({int((device + 1).sum()) for device in order}) == 1
    np.testing.assert_array_equal(np.sort(order.reshape(-1)), np.arange(64))
