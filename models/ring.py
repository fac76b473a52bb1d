"""Attention over a sequence cut over `context`: who holds which positions, and the ring that passes keys and values on.

Causal attention gives late positions more to do than early ones. So a causal sequence is cut into two pieces a device,
and device i holds pieces i and 2c-1-i of 2c (`zigzag`): then all devices have the same work, at every step of the ring.
Called inside shard_map. Letters as in models/kernels.py.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 1024
"""Queries whose scores against one piece of keys are held at a time."""


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def ring_attention(q_BLNH, k_BMKH, v_BMKH, context: int, causal: bool) -> jax.Array:
    """Attention of this device's queries to all keys; keys and values go once round the ring, nothing is gathered.

    Scores are plain XLA matmuls with an online softmax: JAX has no public fused kernel that returns a differentiable
    softmax statistic, which joining the parts needs.
    """
    return _forward(q_BLNH, k_BMKH, v_BMKH, context, causal)[0]


def _forward(q, k, v, context, causal):
    me = jax.lax.axis_index("context")
    sums = []  # per piece of queries: (output, log-sum-exp) over the keys seen so far
    for index, piece in enumerate(_pieces(q, causal)):
        own = [_attend(piece, *kv, False) for kv in zip(_pieces(k, causal)[:index], _pieces(v, causal), strict=False)]
        last = _attend(piece, _pieces(k, causal)[index], _pieces(v, causal)[index], causal)
        sums.append(functools.reduce(_join, [*own, last]))

    def consume(sums, k, v, step):
        if not causal:
            return [_join(sums[0], _attend(q, k, v, False))]
        before = (me - step) % context < me
        queries, keys, values, pick = _paired(q, k, v, before)
        late = _join(sums[1], _attend(_pieces(q, True)[1], _pieces(k, True)[0], _pieces(v, True)[0], False))
        other = _attend(queries, keys, values, False)
        joined = _join([pick(a, b) for a, b in zip(sums[0], late, strict=True)], other)
        return [
            [jnp.where(before, new, old) for new, old in zip(joined, sums[0], strict=True)],
            [jnp.where(before, old, new) for new, old in zip(joined, late, strict=True)],
        ]

    def body(carry, step):
        sums, k, v = carry
        return (consume(sums, k, v, step), *_pass_on((k, v), context)), None

    k_next, v_next = _pass_on((k, v), context)
    sums = [list(pair) for pair in sums]
    (sums, k_last, v_last), _ = jax.lax.scan(body, (sums, k_next, v_next), jnp.arange(1, context - 1))
    sums = consume(sums, k_last, v_last, context - 1)
    out = jnp.concatenate([out for out, _ in sums], axis=1).astype(q.dtype)
    return out, (q, k, v, out, [lse for _, lse in sums])


def _backward(context, causal, saved, gradient):
    q, k, v, out, lse = saved
    me = jax.lax.axis_index("context")
    delta = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    rows = list(zip(*(_pieces(value, causal) for value in (q, gradient, delta)), lse, strict=True))
    kv_pieces = list(zip(_pieces(k, causal), _pieces(v, causal), strict=True))
    dq = [jnp.zeros(row[0].shape, jnp.float32) for row in rows]
    dkv = [[jnp.zeros(part.shape, jnp.float32) for part in pair] for pair in kv_pieces]
    for i, row in enumerate(rows):
        for j in range(i + 1):
            step_dq, step_dkv = _attend_backward(row, kv_pieces[j], causal and i == j)
            dq[i] = dq[i] + step_dq
            dkv[j] = [a + b for a, b in zip(dkv[j], step_dkv, strict=True)]

    def body(carry, step):
        dq, k, v, dkv = carry
        k, v, dkv = _pass_on((k, v, dkv), context)
        kv_pieces = list(zip(_pieces(k, causal), _pieces(v, causal), strict=True))
        if not causal:
            step_dq, step_dkv = _attend_backward(rows[0], kv_pieces[0], False)
            return ([dq[0] + step_dq], k, v, [[a + b for a, b in zip(dkv[0], step_dkv, strict=True)]]), None
        before = (me - step) % context < me
        late_dq, early_dkv = _attend_backward(rows[1], kv_pieces[0], False)
        row = [jnp.where(before, a, b) for a, b in zip(*rows, strict=True)]
        pair = [jnp.where(before, a, b) for a, b in zip(*kv_pieces, strict=True)]
        other_dq, other_dkv = _attend_backward(row, pair, False)
        zero = jnp.zeros((), jnp.float32)
        dq = [dq[0] + jnp.where(before, other_dq, zero), dq[1] + late_dq + jnp.where(before, zero, other_dq)]
        dkv = [
            [a + b + jnp.where(before, c, zero) for a, b, c in zip(dkv[0], early_dkv, other_dkv, strict=True)],
            [a + jnp.where(before, zero, c) for a, c in zip(dkv[1], other_dkv, strict=True)],
        ]
        return (dq, k, v, dkv), None

    (dq, _, _, dkv), _ = jax.lax.scan(body, (dq, k, v, dkv), jnp.arange(1, context))
    dkv = _pass_on(dkv, context)
    dk, dv = (jnp.concatenate(parts, axis=1) for parts in zip(*dkv, strict=True))
    return jnp.concatenate(dq, axis=1).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


ring_attention.defvjp(_forward, _backward)


def _pieces(x: jax.Array, causal: bool) -> list[jax.Array]:
    """The early and the late piece of what a device holds; all of it where there is no order."""
    return jnp.split(x, 2, axis=1) if causal else [x]


def _paired(q, k, v, before):
    """The second of the two products of a step (the first is late queries x early keys): early queries x early keys
    where the keys come from a device before this one, else late x late. No other pair has anything to attend to."""
    pieces = [_pieces(value, True) for value in (q, k, v)]
    queries, keys, values = (jnp.where(before, early, late) for early, late in pieces)
    return queries, keys, values, lambda early, late: jnp.where(before, early, late)


def _pass_on(tree, context: int):
    """Everything to the next device of the ring."""
    ring = [(i, (i + 1) % context) for i in range(context)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, "context", ring), tree)


def _join(first, second):
    """Two parts of one softmax as one: outputs weighted by their shares of the sum of exponentials."""
    (a, a_lse), (b, b_lse) = first, second
    lse = jnp.logaddexp(a_lse, b_lse)
    return [a * jnp.exp(a_lse - lse)[..., None] + b * jnp.exp(b_lse - lse)[..., None], lse]


def _attend(q_BLNH, k_BMKH, v_BMKH, causal: bool):
    """(output, log-sum-exp) of queries against these keys alone, float32; a block of queries at a time."""

    def one(block):
        q, start = block
        scores = _scores(q, k_BMKH, start, causal)
        lse = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - lse[..., None]).astype(v_BMKH.dtype)
        out = jnp.einsum("bkglm,bmkh->blkgh", weights, v_BMKH, preferred_element_type=jnp.float32)
        return out.reshape(q.shape), jnp.moveaxis(lse, 3, 1).reshape(q.shape[:3])

    out, lse = jax.lax.map(one, _blocks(q_BLNH))
    return [_whole(out), _whole(lse)]


def _attend_backward(row, pair, causal: bool):
    """(dq, [dk, dv]) of one product, from the statistics of the whole softmax; float32."""
    q_BLNH, gradient_BLNH, delta_BLN, lse_BLN = row
    k, v = pair
    kv_heads = k.shape[2]

    def grouped(x):
        return x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:])

    def one(dkv, block):
        (q, start), gradient, delta, lse = block
        statistics = [jnp.moveaxis(grouped(value), 1, 3)[..., None] for value in (lse, delta)]
        weights = jnp.exp(_scores(q, k, start, causal) - statistics[0])
        d_weights = jnp.einsum("blkgh,bmkh->bkglm", grouped(gradient), v, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - statistics[1]) / math.sqrt(q.shape[-1])).astype(q.dtype)
        weights = weights.astype(v.dtype)
        dk = jnp.einsum("bkglm,blkgh->bmkh", d_scores, grouped(q), preferred_element_type=jnp.float32)
        dv = jnp.einsum("bkglm,blkgh->bmkh", weights, grouped(gradient), preferred_element_type=jnp.float32)
        dq = jnp.einsum("bkglm,bmkh->blkgh", d_scores, k, preferred_element_type=jnp.float32).reshape(q.shape)
        return [dkv[0] + dk, dkv[1] + dv], dq

    zeros = [jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)]
    rest = tuple(_blocks(value)[0] for value in (gradient_BLNH, delta_BLN, lse_BLN))
    dkv, dq = jax.lax.scan(one, zeros, (_blocks(q_BLNH), *rest))
    return _whole(dq), dkv


def _scores(q_BLNH, k_BMKH, start, causal: bool):
    """Scaled scores BxKxGxLxM in float32; `start`: the position of the first query relative to the first key."""
    batch, length, heads, head_dim = q_BLNH.shape
    kv_heads = k_BMKH.shape[2]
    q = q_BLNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("blkgh,bmkh->bkglm", q, k_BMKH, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    if not causal:
        return scores
    seen = (start + jnp.arange(length))[:, None] >= jnp.arange(k_BMKH.shape[1])[None, :]
    return jnp.where(seen[None, None, None], scores, jnp.finfo(jnp.float32).min)


def _blocks(x_BL: jax.Array):
    """(blocks of up to BLOCK positions on a leading axis, the first position of each)."""
    length = x_BL.shape[1]
    size = math.gcd(length, BLOCK)
    blocks = jnp.moveaxis(x_BL.reshape(x_BL.shape[0], length // size, size, *x_BL.shape[2:]), 1, 0)
    return blocks, jnp.arange(0, length, size)


def _whole(blocks: jax.Array) -> jax.Array:
    """The inverse of `_blocks`."""
    moved = jnp.moveaxis(blocks, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])
