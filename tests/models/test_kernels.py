"""The TPU kernel, interpreted, against plain attention: whole sequences, and the share of one device of a cut one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import slow
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from autotune.models import kernels
from autotune.models.gathered import gathered_attention
from autotune.models.partial_attention import PLAIN
from autotune.models.ring import in_order, ring_attention, zigzag

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 512, 2, 1, 128


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [jax.random.normal(key, (1, LENGTH, n, HEAD_DIM)) for key, n in zip(keys, heads, strict=True)]


def plain(q, k, v, visible, **parts):
    return kernels.xla_attention(q, k, v, jnp.arange(LENGTH) if visible.causal else None, visible, **parts)


CAUSAL, BOTH_WAYS = kernels.Visible(causal=True), kernels.Visible(causal=False)
WINDOW = kernels.Visible(causal=True, window=100)
CHUNKS = kernels.Visible(causal=True, window=96, chunked=True)


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


@pytest.mark.parametrize(
    ("context", "visible", "soft_cap", "sinks"),
    [
        (1, CAUSAL, None, None),
        (2, CAUSAL, None, None),
        pytest.param(2, BOTH_WAYS, None, None, marks=pytest.mark.slow),
        pytest.param(1, WINDOW, None, (0.5, 3.0), marks=pytest.mark.slow),
        (2, WINDOW, 2.0, None),
        pytest.param(1, CHUNKS, 2.0, None, marks=pytest.mark.slow),
        (2, CHUNKS, None, (0.5, 3.0)),
    ],
)
def test_splash_attention_on_each_share_of_a_sequence(context, visible, soft_cap, sinks, monkeypatch):
    causal, parts = visible.causal, {"soft_cap": soft_cap, "sinks": None if sinks is None else jnp.array(sinks)}
    interpreted = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", interpreted)

    def kernel(q, k, v):
        k, v = (in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, causal) for x in (k, v))
        return kernels.splash_attention(q, k, v, visible, context, **parts)

    assert_same_with_gradients(cut(kernel, context, causal), functools.partial(plain, visible=visible, **parts))


# Documents that end inside and at the border of a tile, one of a single token among them.
DOCUMENTS = jnp.array(np.repeat([1, 2, 3, 4, 5], [100, 1, 155, 128, 128])[None])


@pytest.mark.parametrize(("context", "visible"), [(1, CAUSAL), *slow([(2, CAUSAL), (1, WINDOW), (1, BOTH_WAYS)])])
def test_splash_attention_keeps_documents_apart(context, visible, monkeypatch):
    interpreted = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", interpreted)
    order = zigzag(LENGTH, context, visible.causal).reshape(context, -1)

    def kernel(q, k, v):
        k, v = (in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, visible.causal) for x in (k, v))
        own = DOCUMENTS[:, jnp.asarray(order)[jax.lax.axis_index("context")]]
        packed = kernels.Packed(queries_BL=own, keys_BM=DOCUMENTS)
        return kernels.splash_attention(q, k, v, visible, context, packed=packed)

    packed = kernels.Packed(queries_BL=DOCUMENTS, keys_BM=DOCUMENTS)
    assert_same_with_gradients(
        cut(kernel, context, visible.causal), functools.partial(plain, visible=visible, packed=packed)
    )


@pytest.mark.parametrize("visible", [CAUSAL, BOTH_WAYS])
def test_attention_inside_documents_is_that_of_each_document_alone(visible, monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 64)
    q, k, v, _ = inputs()
    packed = kernels.Packed(queries_BL=DOCUMENTS, keys_BM=DOCUMENTS)
    places = jnp.arange(LENGTH) if visible.causal else None
    whole = plain(q, k, v, visible, packed=packed)
    blocked = kernels.blocked_attention(q, k, v, places, visible, packed=packed)
    np.testing.assert_allclose(blocked, whole, rtol=0, atol=1e-5)
    for document in range(1, 6):
        own = np.flatnonzero(np.asarray(DOCUMENTS[0]) == document)
        alone = kernels.xla_attention(
            *(x[:, own] for x in (q, k, v)), jnp.arange(len(own)) if visible.causal else None, visible
        )
        np.testing.assert_allclose(whole[:, own], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("context", "causal"), [(2, True), pytest.param(8, True, marks=pytest.mark.slow), (4, False)])
def test_ring_attention(context, causal, monkeypatch):
    monkeypatch.setattr("autotune.models.partial_attention.BLOCK", 64)
    kernel = functools.partial(ring_attention, context=context, causal=causal, kernel=PLAIN)
    assert_same_with_gradients(
        cut(lambda q, k, v: kernel(q, k, v, None), context, causal),
        functools.partial(plain, visible=CAUSAL if causal else BOTH_WAYS),
    )


@pytest.mark.parametrize(("context", "causal"), [(4, True), *slow([(2, True), (4, False)])])
def test_ring_attention_keeps_documents_apart(context, causal, monkeypatch):
    """Some pairs of a device's queries and the keys that come by have no document in common."""
    monkeypatch.setattr("autotune.models.partial_attention.BLOCK", 64)
    order = zigzag(LENGTH, context, causal).reshape(context, -1)

    def kernel(q, k, v):
        own = DOCUMENTS[:, jnp.asarray(order)[jax.lax.axis_index("context")]]
        return ring_attention(q, k, v, own, context, causal, PLAIN)

    packed = kernels.Packed(queries_BL=DOCUMENTS, keys_BM=DOCUMENTS)
    visible = CAUSAL if causal else BOTH_WAYS
    assert_same_with_gradients(cut(kernel, context, causal), functools.partial(plain, visible=visible, packed=packed))


@pytest.mark.parametrize("context", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gathered_attention(context, monkeypatch):
    """Every device has a branch of its own: the first, which has no keys before its early piece, and the others."""
    monkeypatch.setattr("autotune.models.partial_attention.BLOCK", 64)
    assert_same_with_gradients(
        cut(lambda q, k, v: gathered_attention(q, k, v, context, PLAIN), context, True),
        functools.partial(plain, visible=CAUSAL),
    )


@pytest.mark.parametrize(
    ("visible", "parts"), [(CAUSAL, {}), (WINDOW, {"sinks": jnp.array([0.5, 3.0])}), (CHUNKS, {"soft_cap": 2.0})]
)
def test_blocked_attention(visible, parts, monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 64)
    assert_same_with_gradients(
        lambda q, k, v: kernels.blocked_attention(q, k, v, jnp.arange(LENGTH), visible, **parts),
        functools.partial(plain, visible=visible, **parts),
    )


@pytest.mark.parametrize(
    ("visible", "one"),
    [
        (CAUSAL, lambda i, j: j <= i),
        (WINDOW, lambda i, j: i - 100 < j <= i),
        (CHUNKS, lambda i, j: j <= i and i // 96 == j // 96),
    ],
)
def test_who_sees_whom_pair_by_pair(visible, one):
    places = range(0, LENGTH, 7)
    seen = np.asarray(visible.of(jnp.array(places), jnp.array(places)))
    assert seen.tolist() == [[one(i, j) for j in places] for i in places]


def test_a_sink_takes_its_share_of_every_softmax():
    """One query at a time in NumPy: softmax over the keys and the sink, and the sink has no value."""
    q, k, v, _ = inputs()
    sinks = jnp.array([0.5, 3.0])
    out = np.asarray(plain(q, k, v, WINDOW, sinks=sinks))
    for place, head in ((0, 0), (99, 1), (300, 0), (511, 1)):
        keys = slice(max(0, place - 99), place + 1)
        scores = np.asarray(k[0, keys, 0]) @ np.asarray(q[0, place, head]) / np.sqrt(HEAD_DIM)
        weights = np.exp(np.append(scores, sinks[head]))
        expected = (weights[:-1] / weights.sum()) @ np.asarray(v[0, keys, 0])
        np.testing.assert_allclose(out[0, place, head], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("visible", [CAUSAL, WINDOW])
def test_sinks_around_a_fused_kernel_that_has_none(visible):
    """The kernel stands for cuDNN's: it gives the logarithm of each softmax's sum, without a gradient."""

    def fused(q, k, v, mask, return_residual=False):
        assert mask is None
        scores = jnp.einsum("blkgh,bmkh->bkglm", q.reshape(1, LENGTH, KV_HEADS, -1, HEAD_DIM), k) / np.sqrt(HEAD_DIM)
        seen = visible.of(jnp.arange(LENGTH), jnp.arange(LENGTH))
        total = jax.nn.logsumexp(jnp.where(seen[None, None, None], scores, -1e30), axis=-1)
        out = plain(q, k, v, visible)
        total = jax.lax.stop_gradient(jnp.moveaxis(total, 3, 1).reshape(1, LENGTH, HEADS))
        return (out, total) if return_residual else out

    sinks, (q, k, v, weights) = jnp.array([0.5, 3.0]), inputs()

    def gradients(function):
        return jax.jit(jax.grad(lambda *args: (function(*args) * weights).sum(), argnums=(0, 1, 2, 3)))(q, k, v, sinks)

    found = gradients(functools.partial(kernels.with_sinks, fused))
    expected = gradients(lambda q, k, v, sinks: plain(q, k, v, visible, sinks=sinks))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * np.abs(b).max())


def test_zigzag_gives_every_device_the_same_work():
    """Pairs (query, key it may see) on each of 4 devices; in plain order the last would have 7 times the first's."""
    order = zigzag(64, 4, True).reshape(4, -1)
    assert len({int((device + 1).sum()) for device in order}) == 1
    np.testing.assert_array_equal(np.sort(order.reshape(-1)), np.arange(64))
