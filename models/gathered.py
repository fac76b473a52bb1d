"""Causal attention over a sequence cut over `context` whose keys are gathered, as unmasked and square causal products.

Fused kernels for GPUs let queries begin at the first key only. So each of a device's two pieces of queries
(models/ring.py) attends to its own positions, which is square and causal, and to all keys before it, which is whole.
The number of keys before a piece differs from device to device, and the shapes of a program do not: each device takes
its own of `context` branches. Device i has i and 2c-1-i pieces before its two, in all 2c-1: every branch is the same
work, half of the square of scores. Transformer Engine's all-gather context parallelism does the same.

Other ways to write it do more. Keys masked by a number that a device computes are the same work, but a device has none
before its first piece, and a softmax over no key is not defined. A loop over products of equal shape reads and writes
the sum of outputs at every turn. A mask of queries times keys is as large as the scores. Letters as in
models/kernels.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from autotune.models.partial_attention import Kernel, join, rows
from autotune.models.remat import ATTENTION, keep
from autotune.models.ring import in_order


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def gathered_attention(q_BLNH, k_BMKH, v_BMKH, context: int, kernel: Kernel) -> jax.Array:
    """Attention of this device's queries to all keys that none of them precedes.

    Keys and values are gathered here and again for the backward pass: what waits for it is this device's own.
    """
    return _forward(q_BLNH, k_BMKH, v_BMKH, context, kernel)[0]


def _forward(q, k, v, context, kernel):
    # Attention to its own positions waits for no keys: a device gathers beside it.
    out, logarithm = (_whole(x, q) for x in kernel.forward(*(_by_piece(x) for x in (q, k, v)), True))
    own = (q, out.astype(q.dtype), logarithm)
    out, logarithm = _on_own_branch(_attend, own, (k, v), context, kernel)
    out, logarithm = keep(out, ATTENTION), keep(logarithm, ATTENTION)
    return out, (q, k, v, out, logarithm)


def _attend(counts: tuple[int, int], context: int, kernel: Kernel, own: tuple, keys: list[jax.Array]):
    """(output, logarithm of the softmax's sum) of both pieces of queries, each with so many pieces of keys before it;
    `own`: the queries, and both of their own positions alone."""
    parts = []
    for count, q, out, logarithm in zip(counts, *(_halves(x) for x in own), strict=True):
        part = [out.astype(jnp.float32), logarithm]
        if count:
            k, v = _first(keys, count, context)
            part = join(part, kernel.forward(q, k, v, False))
        parts.append((part[0].astype(q.dtype), part[1]))
    return [jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True)]


def _backward(context, kernel, saved, gradient):
    q, k, v, out, logarithm = saved
    [row] = rows(lambda x: [x], q, out, [logarithm], gradient)
    dq, own_dkv = kernel.backward(jax.tree.map(_by_piece, row), [_by_piece(k), _by_piece(v)], True)
    own = (row, _whole(dq, q).astype(q.dtype))
    dq, dkv = _on_own_branch(_attend_backward, own, (k, v), context, kernel)
    # Gradients of keys travel in the compute dtype, as gathered keys do.
    others = [jax.lax.psum_scatter(_as_it_lies(x, context), "context", scatter_dimension=1, tiled=True) for x in dkv]
    dk, dv = (
        (_whole(here, x) + there.astype(jnp.float32)).astype(x.dtype)
        for here, there, x in zip(own_dkv, others, (k, v), strict=True)
    )
    return dq, dk, dv


def _attend_backward(counts: tuple[int, int], context: int, kernel: Kernel, own: tuple, keys: list[jax.Array]):
    """(gradient of the device's queries, [of all keys, of all values]) from the keys before each piece; that of the
    queries with that from its own positions, which `own` has. In the compute dtype."""
    dqs, dkv = [], [jnp.zeros((), jnp.float32)] * 2
    for index, count in enumerate(counts):
        row, dq = jax.tree.map(lambda x, index=index: _halves(x)[index], own)
        if count:
            more, pair = kernel.backward(row, _first(keys, count, context), False)
            dq = (dq.astype(jnp.float32) + more).astype(dq.dtype)
            dkv = [a + _padded(b, whole) for a, b, whole in zip(dkv, pair, keys, strict=True)]
        dqs.append(dq)
    return jnp.concatenate(dqs, axis=1), [a.astype(whole.dtype) for a, whole in zip(dkv, keys, strict=True)]


gathered_attention.defvjp(_forward, _backward)


def _on_own_branch(function, queries, keys: tuple[jax.Array, jax.Array], context: int, kernel: Kernel):
    """`function` of the pieces before each of this device's two, `queries`, and all keys and values in order."""
    gathered = [in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, True) for x in keys]
    counts = [(device, 2 * context - 1 - device) for device in range(context)]
    branches = [functools.partial(function, count, context, kernel) for count in counts]
    return jax.lax.switch(jax.lax.axis_index("context"), branches, queries, gathered)


def _first(keys: list[jax.Array], pieces: int, context: int) -> list[jax.Array]:
    """The first so many of the 2c pieces of a sequence."""
    return [x[:, : pieces * (x.shape[1] // (2 * context))] for x in keys]


def _padded(first: jax.Array, whole: jax.Array) -> jax.Array:
    """`first`, with zeros after it up to the length of `whole`."""
    return jnp.pad(first, ((0, 0), (0, whole.shape[1] - first.shape[1]), (0, 0), (0, 0)))


def _halves(x_BL: jax.Array) -> list[jax.Array]:
    """The early and the late piece."""
    return jnp.split(x_BL, 2, axis=1)


def _by_piece(x_BL: jax.Array) -> jax.Array:
    """The early and the late piece as sequences of their own."""
    return x_BL.reshape(2 * x_BL.shape[0], x_BL.shape[1] // 2, *x_BL.shape[2:])


def _whole(x: jax.Array, like_BL: jax.Array) -> jax.Array:
    """The inverse of `_by_piece`."""
    return x.reshape(*like_BL.shape[:2], *x.shape[2:])


def _as_it_lies(ordered_BMKH: jax.Array, context: int) -> jax.Array:
    """All keys of a sequence as the devices hold them, from rising position: the inverse of `in_order`."""
    pieces = jnp.split(ordered_BMKH, 2 * context, axis=1)
    return jnp.concatenate(
        [piece for device in range(context) for piece in (pieces[device], pieces[2 * context - 1 - device])], axis=1
    )
