"""Causal attention over a sequence cut over `context` whose keys are gathered, as unmasked and square causal products.

Fused kernels for GPUs let queries begin at the first key only. So a device's two pieces of queries (models/ring.py) each
attend to their own positions, which is square and causal, and to all keys before them, which is whole. The number of
keys before a piece differs from device to device, and the shapes of a program do not: each device takes its own of
`context` branches. Device i has i and 2c-1-i pieces before its two, in all 2c-1: every branch is the same work, half of
the square of scores. Transformer Engine's all-gather context parallelism does the same.

Other ways to write it do more. Keys masked by a number that a device computes are the same work, but cuDNN gives no
output where that number is 0. A loop over products of equal shape reads and writes the sum of outputs at every turn.
A mask of queries times keys is as large as the scores. Letters as in models/kernels.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from autotune.models.partial_attention import Kernel, Part, Row, join, rows
from autotune.models.remat import ATTENTION, keep
from autotune.models.ring import in_order


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def gathered_attention(q_BLNH, k_BMKH, v_BMKH, context: int, kernel: Kernel) -> jax.Array:
    """Attention of this device's queries to all keys that none of them precedes.

    Keys and values are gathered here and again for the backward pass: what waits for it is this device's own.
    """
    return _forward(q_BLNH, k_BMKH, v_BMKH, context, kernel)[0]


def _forward(q, k, v, context, kernel):
    own = kernel.forward(*(_by_piece(x) for x in (q, k, v)), True)
    before = _on_own_branch(_attend, q, (k, v), context, kernel)
    out, logarithm = join([_whole(x, q) for x in own], before)
    out, logarithm = keep(out.astype(q.dtype), ATTENTION), keep(logarithm, ATTENTION)
    return out, (q, k, v, out, logarithm)


def _attend(device: int, context: int, kernel: Kernel, q: jax.Array, keys: list[jax.Array]) -> Part:
    """The part of the keys before each of the device's two pieces of queries."""
    early, late = jnp.split(q, 2, axis=1)
    parts = [kernel.forward(late, *_first(keys, 2 * context - 1 - device, context), False)]
    if device:
        parts.insert(0, kernel.forward(early, *_first(keys, device, context), False))
    else:
        nothing = [jnp.zeros(early.shape, jnp.float32), jnp.full(early.shape[:-1], -jnp.inf)]
        parts.insert(0, nothing)
    return [jnp.concatenate(both, axis=1) for both in zip(*parts, strict=True)]


def _backward(context, kernel, saved, gradient):
    q, k, v, out, logarithm = saved
    [row] = rows(lambda x: [x], q, out, [logarithm], gradient)
    dq, (dk, dv) = kernel.backward(jax.tree.map(_by_piece, row), [_by_piece(k), _by_piece(v)], True)
    more_dq, more_dkv = _on_own_branch(_attend_backward, row, (k, v), context, kernel)
    dq = _whole(dq, q) + more_dq
    own = (_whole(dk, k), _whole(dv, v))
    # Gradients of keys travel in the compute dtype, as gathered keys do.
    others = (jax.lax.psum_scatter(_as_it_lies(x, context), "context", scatter_dimension=1, tiled=True) for x in more_dkv)
    dk, dv = (a + b.astype(jnp.float32) for a, b in zip(own, others, strict=True))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _attend_backward(device: int, context: int, kernel: Kernel, row: Row, keys: list[jax.Array]):
    """(gradient of the device's queries, float32; [of all keys, of all values], in the compute dtype)."""
    early, late = (jax.tree.map(lambda x, half=half: jnp.split(x, 2, axis=1)[half], row) for half in (0, 1))
    counts = (device, 2 * context - 1 - device)
    found = [
        kernel.backward(part, _first(keys, count, context), False)
        for part, count in zip((early, late), counts, strict=True)
        if count
    ]
    dq = [dq for dq, _ in found] if device else [jnp.zeros_like(found[0][0]), found[0][0]]
    dkv = []
    for index, whole in enumerate(keys):
        spread = [
            jnp.pad(pair[index], ((0, 0), (0, whole.shape[1] - pair[index].shape[1]), (0, 0), (0, 0)))
            for _, pair in found
        ]
        dkv.append(sum(spread[1:], spread[0]).astype(whole.dtype))
    return jnp.concatenate(dq, axis=1), dkv


gathered_attention.defvjp(_forward, _backward)


def _on_own_branch(function, queries, keys: tuple[jax.Array, jax.Array], context: int, kernel: Kernel):
    """`function` of this device's index, its queries, and all keys and values by rising position."""
    gathered = [in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, True) for x in keys]
    branches = [functools.partial(function, device, context, kernel) for device in range(context)]
    return jax.lax.switch(jax.lax.axis_index("context"), branches, queries, gathered)


def _first(keys: list[jax.Array], pieces: int, context: int) -> list[jax.Array]:
    """The first so many of the 2c pieces of a sequence."""
    return [x[:, : pieces * (x.shape[1] // (2 * context))] for x in keys]


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
