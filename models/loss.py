"""Cross-entropy of logits cut over the vocabulary, without a float32 copy of them: whole, or in tiles of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from autotune.models.execution import Execution


@jax.custom_vjp
def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """-log softmax(logits)[target] per position, in float32.

    The backward pass starts again from the logits in their own dtype; plain autodiff would keep their float32
    exponentials (for Llama 3 at 4096 tokens a device: 2 GiB).
    """
    return _forward(logits_BLV, targets_BL)[0]


def _forward(logits, targets):
    wide = logits.astype(jnp.float32)
    largest = wide.max(axis=-1, keepdims=True)
    total = jnp.log(jnp.exp(wide - largest).sum(axis=-1)) + largest[..., 0]
    # A masked sum, not an index: each device looks among its own part of the vocabulary.
    picked = jnp.where(_hits(logits, targets), wide, 0.0).sum(axis=-1)
    # The gradient takes the logits' place in memory once nothing reads them any more. Only the reported loss needs
    # `picked`: without the barrier the compiler for GPUs may sum it behind the whole backward pass, beside both arrays
    # (qwen3-4b on h100:1x8, fsdp=8: 15.5 GiB in place of 10.9).
    total, picked = jax.lax.optimization_barrier((total, picked))
    return total - picked, (logits, targets, total)


def _backward(saved, gradient_BL):
    logits, targets, total = saved
    probabilities = jnp.exp(logits.astype(jnp.float32) - total[..., None])
    gradient = (probabilities - _hits(logits, targets)) * gradient_BL[..., None]
    return gradient.astype(logits.dtype), None


def _hits(logits, targets):
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]


cross_entropy.defvjp(_forward, _backward)


def tiled_cross_entropy(
    x_BLD: jax.Array,
    weight: jax.Array,
    axes: tuple[str, str],
    targets_BL: jax.Array,
    cap: Callable[[jax.Array], jax.Array],
    run: Execution,
    *,
    frozen: bool = False,
) -> jax.Array:
    """The cross-entropy of `cap(x @ weight)` per position, float32, in `vocab_tiles` tiles of the vocabulary.

    A loop holds the logits of one tile at a time. The backward pass is a second loop, which computes each tile's logits
    again. Each tile's weights are gathered over `fsdp` in either loop, and its gradient is reduced in the second: what
    moves is what moves without tiles, and one gather more.
    `axes`: the logical axes of `weight`, `vocab` and `embed` in either order. `frozen`: the weight has no gradient.
    ValueError where the vocabulary does not
    divide.
    """
    sharder, tiles = run.sharder, run.layout.vocab_tiles
    rows = sharder.narrow(weight, axes, run.dtype)
    rows = rows if axes[0] == "vocab" else rows.T
    vocab, width = rows.shape
    [cut] = sharder.spec(("vocab",), "storage")
    devices = math.prod(sharder.mesh.shape[axis] for axis in ((cut,) if isinstance(cut, str) else cut or ()))
    if vocab % (devices * tiles):
        raise ValueError(f"layout: vocab_tiles={tiles} x {devices} devices does not divide vocab={vocab}")
    # Each device makes tiles of its own rows: (devices of the vocabulary, tiles, rows of a tile, width).
    shape, names = (devices, tiles, vocab // (devices * tiles), width), ("vocab", None, None, "embed")
    rows = sharder.constrain(rows, ("vocab", "embed"), "storage")
    split = jnp.reshape(rows, shape, out_sharding=sharder.spec(names, "storage") if sharder.explicit else None)
    with jax.named_scope("cross_entropy"):
        return _tiled(cap, run, frozen)(x_BLD, sharder.constrain(split, names, "storage").swapaxes(0, 1), targets_BL)


def _tiled(cap: Callable[[jax.Array], jax.Array], run: Execution, frozen: bool) -> Callable[..., jax.Array]:
    """(x BxLxD, weights NxTxKxD, targets BxL) -> losses BxL. N tiles of TxK entries, T of them cut as the vocabulary.

    Sums over the vocabulary keep their T until the loop has ended, so that no tile has a collective over it.
    """
    sharder = run.sharder
    stream, by_part = ("batch", "length", "features"), ("vocab", "batch", "length")

    def whole(tile_TKD):
        return sharder.constrain(tile_TKD, ("vocab", None, "embed"), "weights")

    def scores(x, tile_TKD):
        return sharder.einsum("bld,tkd->tblk", x, tile_TKD, (*by_part, None))

    def hits(scores_TBLK, targets, tile, tiles):
        parts, _, _, rows = scores_TBLK.shape
        part = jax.lax.broadcasted_iota(targets.dtype, (parts, 1, 1, rows), 0)
        row = jax.lax.broadcasted_iota(targets.dtype, (parts, 1, 1, rows), 3)
        return (part * tiles + tile) * rows + row == targets[None, :, :, None]

    @jax.custom_vjp
    def losses(x, weights, targets):
        return forward(x, weights, targets)[0]

    def forward(x, weights, targets):
        tiles, parts = weights.shape[:2]

        def turn(carry, piece):
            largest, total, picked = carry
            tile, rows = piece
            scored = scores(x, whole(rows))
            wide = cap(scored).astype(jnp.float32)
            now = jnp.maximum(largest, wide.max(axis=-1))
            total = total * jnp.exp(largest - now) + jnp.exp(wide - now[..., None]).sum(axis=-1)
            hit = hits(scored, targets, tile, tiles)
            return (now, total, picked + jnp.where(hit, wide, 0.0).sum(axis=-1)), None

        nothing = sharder.constrain(jnp.zeros((parts, *targets.shape), jnp.float32), by_part)
        start = (nothing - jnp.inf, nothing, nothing)
        (largest, total, picked), _ = jax.lax.scan(turn, start, (jnp.arange(tiles, dtype=targets.dtype), weights))
        most = largest.max(axis=0)
        norm = jnp.log((total * jnp.exp(largest - most[None])).sum(axis=0)) + most
        return norm - picked.sum(axis=0), (x, weights, targets, norm)

    def backward(saved, gradient_BL):
        x, weights, targets, norm = saved
        tiles, parts = weights.shape[:2]

        def turn(gradient_x, piece):
            tile, rows = piece
            rows = whole(rows)
            scored = scores(x, rows)
            capped, uncap = jax.vjp(cap, scored)
            probabilities = jnp.exp(capped.astype(jnp.float32) - norm[None, ..., None])
            gradient = (probabilities - hits(scored, targets, tile, tiles)) * gradient_BL[None, ..., None]
            (gradient,) = uncap(gradient.astype(capped.dtype))
            gradient_x += sharder.einsum("tblk,tkd->tbld", gradient, rows, ("vocab", *stream))
            if frozen:
                return gradient_x, None
            return gradient_x, sharder.einsum("tblk,bld->tkd", gradient, x, ("vocab", None, "embed"), "gradients")

        nothing = sharder.constrain(jnp.zeros((parts, *x.shape), jnp.float32), ("vocab", *stream))
        pieces = (jnp.arange(tiles, dtype=targets.dtype), weights)
        gradient_x, gradients = jax.lax.scan(turn, nothing, pieces)
        # In the compute dtype, as every sum over `tensor`: jnp.sum would widen it.
        gradient_x = jax.lax.reduce(gradient_x.astype(x.dtype), jnp.zeros((), x.dtype), jax.lax.add, (0,))
        return sharder.constrain(gradient_x, stream), gradients, None

    losses.defvjp(forward, backward)
    return losses
