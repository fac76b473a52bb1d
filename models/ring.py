"""Attention over a sequence cut over `context`: who holds which positions, and the ring that passes keys and values on.

Causal attention gives late positions more to do than early ones. So a causal sequence is cut into two pieces a device,
and device i holds pieces i and 2c-1-i of 2c (`zigzag`): then all devices have the same work, at every step of the ring.
Called inside shard_map. Letters as in models/kernels.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from autotune.models.partial_attention import Kernel, join, rows
from autotune.models.remat import ATTENTION, keep


def zigzag(length: int, context: int, causal: bool) -> np.ndarray:
    """Position of each row of the sequence as it lies over the devices.

    >>> zigzag(8, 2, True).tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    """
    if not causal or context == 1:
        return np.arange(length)
    pieces = np.arange(length).reshape(2 * context, -1)
    order = [piece for device in range(context) for piece in (device, 2 * context - 1 - device)]
    return pieces[order].reshape(-1)


def in_order(gathered_BMKH: jax.Array, context: int, causal: bool) -> jax.Array:
    """All keys of a sequence by rising position, after an all-gather over `context`."""
    if not causal:
        return gathered_BMKH
    pieces = jnp.split(gathered_BMKH, 2 * context, axis=1)
    early, late = pieces[0::2], pieces[1::2]
    return jnp.concatenate((*early, *reversed(late)), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def ring_attention(
    q_BLNH, k_BMKH, v_BMKH, segments_BL: jax.Array | None, context: int, causal: bool, kernel: Kernel
) -> jax.Array:
    """Attention of this device's queries to all keys; keys and values go once round the ring, nothing is gathered.
    `segments_BL`: the documents of this device's tokens, which go round beside the keys; None: nothing is packed.

    A causal step is two products of half a device's queries with half of the keys that came by, none masked: the same
    shapes on every device. The parts of a softmax are joined in float32 as they come.
    """
    return _forward(q_BLNH, k_BMKH, v_BMKH, segments_BL, context, causal, kernel)[0]


def _forward(q, k, v, segments, context, causal, kernel):
    beside = [] if segments is None else [segments]

    def attend(queries, keys, masked):
        """`queries`: [queries, their documents where they are packed]; `keys`: [keys, values, their documents]."""
        return kernel.forward(queries[0], *keys[:2], masked, *queries[1:], *keys[2:])

    me = jax.lax.axis_index("context")
    sums = []  # per piece of queries: (output, log-sum-exp) over the keys seen so far
    for index, piece in enumerate(_cut([q, *beside], causal)):
        own = [attend(piece, keys, False) for keys in _cut([k, v, *beside], causal)[:index]]
        last = attend(piece, _cut([k, v, *beside], causal)[index], causal)
        sums.append(functools.reduce(join, [*own, last]))

    def consume(sums, keys, step):
        if not causal:
            return [join(sums[0], attend([q, *beside], keys, False))]
        before = (me - step) % context < me
        one_queries, one_keys, pick = _paired([q, *beside], keys, before)
        late = join(sums[1], attend(_cut([q, *beside], True)[1], _cut(keys, True)[0], False))
        other = attend(one_queries, one_keys, False)
        joined = join([pick(a, b) for a, b in zip(sums[0], late, strict=True)], other)
        return [
            [jnp.where(before, new, old) for new, old in zip(joined, sums[0], strict=True)],
            [jnp.where(before, old, new) for new, old in zip(joined, late, strict=True)],
        ]

    def body(carry, step):
        sums, keys = carry
        return (consume(sums, keys, step), _pass_on(keys, context)), None

    following = _pass_on([k, v, *beside], context)
    sums = [list(pair) for pair in sums]
    (sums, last_keys), _ = jax.lax.scan(body, (sums, following), jnp.arange(1, context - 1))
    sums = consume(sums, last_keys, context - 1)
    out = jnp.concatenate([out for out, _ in sums], axis=1).astype(q.dtype)
    out, *logarithms = (keep(x, ATTENTION) for x in (out, *(lse for _, lse in sums)))
    return out, (q, k, v, segments, out, logarithms)


def _backward(context, causal, kernel, saved, gradient):
    q, k, v, segments, out, logarithms = saved
    beside = [] if segments is None else [segments]
    me = jax.lax.axis_index("context")
    own = rows(functools.partial(_pieces, causal=causal), q, out, logarithms, gradient, segments)
    kv_pieces = _cut([k, v, *beside], causal)
    dq = [jnp.zeros(row.query.shape, jnp.float32) for row in own]
    dkv = [[jnp.zeros(part.shape, jnp.float32) for part in keys[:2]] for keys in kv_pieces]
    for i, row in enumerate(own):
        for j in range(i + 1):
            step_dq, step_dkv = kernel.backward(row, kv_pieces[j], causal and i == j)
            dq[i] = dq[i] + step_dq
            dkv[j] = [a + b for a, b in zip(dkv[j], step_dkv, strict=True)]

    def consume(dq, keys, dkv, step):
        """(dq, dkv) with this step's products added. The keys and values are those that are on this device now; `dkv`
        is their gradient as far as other devices have added to it."""
        kv_pieces = _cut(keys, causal)
        if not causal:
            step_dq, step_dkv = kernel.backward(own[0], kv_pieces[0], False)
            return [dq[0] + step_dq], [[a + b for a, b in zip(dkv[0], step_dkv, strict=True)]]
        before = (me - step) % context < me
        late_dq, early_dkv = kernel.backward(own[1], kv_pieces[0], False)
        row = jax.tree.map(lambda early, late: jnp.where(before, early, late), *own)
        pair = [jnp.where(before, a, b) for a, b in zip(*kv_pieces, strict=True)]
        other_dq, other_dkv = kernel.backward(row, pair, False)
        zero = jnp.zeros((), jnp.float32)
        dq = [dq[0] + jnp.where(before, other_dq, zero), dq[1] + late_dq + jnp.where(before, zero, other_dq)]
        dkv = [
            [a + b + jnp.where(before, c, zero) for a, b, c in zip(dkv[0], early_dkv, other_dkv, strict=True)],
            [a + jnp.where(before, zero, c) for a, c in zip(dkv[1], other_dkv, strict=True)],
        ]
        return dq, dkv

    def body(carry, step):
        # What the next step reads is on its way beside this step's products, and so are the gradients of others.
        dq, keys, dkv = carry
        following, dkv = _pass_on((keys, dkv), context)
        dq, dkv = consume(dq, keys, dkv, step)
        return (dq, following, dkv), None

    following = _pass_on([k, v, *beside], context)
    (dq, last_keys, dkv), _ = jax.lax.scan(body, (dq, following, dkv), jnp.arange(1, context - 1))
    dq, dkv = consume(dq, last_keys, _pass_on(dkv, context), context - 1)
    dkv = _pass_on(dkv, context)
    dk, dv = (jnp.concatenate(parts, axis=1) for parts in zip(*dkv, strict=True))
    return jnp.concatenate(dq, axis=1).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


ring_attention.defvjp(_forward, _backward)


def _pieces(x: jax.Array, causal: bool) -> list[jax.Array]:
    """The early and the late piece of what a device holds; all of it where there is no order."""
    return jnp.split(x, 2, axis=1) if causal else [x]


def _cut(arrays: list[jax.Array], causal: bool) -> list[list[jax.Array]]:
    """For each piece, its part of each array."""
    return [list(parts) for parts in zip(*(_pieces(x, causal) for x in arrays), strict=True)]


def _paired(queries: list[jax.Array], keys: list[jax.Array], before):
    """The second of the two products of a step (the first is late queries x early keys): early queries x early keys
    where the keys come from a device before this one, else late x late. No other pair has anything to attend to."""

    def pick(early, late):
        return jnp.where(before, early, late)

    pieces = [_pieces(x, True) for x in (*queries, *keys)]
    picked = [pick(early, late) for early, late in pieces]
    return picked[: len(queries)], picked[len(queries) :], pick


def _pass_on(tree, context: int):
    """Everything to the next device of the ring."""
    ring = [(i, (i + 1) % context) for i in range(context)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, "context", ring), tree)
