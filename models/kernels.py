"""Attention kernels on one device's share of heads and queries. Called inside shard_map, by models/attention.py.

Queries are BxLxNxH, keys BxMxKxH with K dividing N (grouped-query attention), values BxMxKxV. `sinks` are N logits that
a softmax has beside those of the keys; `soft_cap` is the height of a tanh that scores pass through; `packed` is None
where a sequence is one document.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from autotune.meshes.architecture import cudnn_lacks
from autotune.models.remat import ATTENTION, keep
from autotune.models.ring import zigzag

QUERY_BLOCK = 1024
"""Queries whose scores plain attention holds at a time, where the sequence is cut over devices because it is long, or
where cuDNN would hold none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """Which keys a query sees: with `causal` none after it; with a `window` the last so many, its own included, or, if
    `chunked`, those of its own chunk of so many."""

    causal: bool
    window: int | None = None
    chunked: bool = False

    def of(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Whether the query at each position sees the key at each position, LxM."""
        seen = queries[:, None] >= keys[None, :]
        if self.window is None:
            return seen
        if self.chunked:
            return seen & (queries[:, None] // self.window == keys[None, :] // self.window)
        return seen & (queries[:, None] - keys[None, :] < self.window)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The documents that queries and keys belong to, by number: a query sees keys of its own document only."""

    queries_BL: jax.Array
    keys_BM: jax.Array

    @property
    def seen(self) -> jax.Array:
        """Whether query and key are of one document, BxLxM."""
        return self.queries_BL[:, :, None] == self.keys_BM[:, None, :]


def xla_attention(
    q_BLNH, k_BMKH, v_BMKV, positions_L: jax.Array | None, visible: Visible, *, sinks=None, soft_cap=None,
    packed: Packed | None = None,
) -> jax.Array:  # fmt: skip
    """Softmax attention as plain matmuls, statistics in float32; every score is materialised.

    `positions_L`: the position of each query when it may not look beyond it (keys are in order); None: it may.
    """
    batch, length, heads, head_dim = q_BLNH.shape
    kv_heads = k_BMKH.shape[2]
    q = q_BLNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("blkgh,bmkh->bkglm", q, k_BMKH, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if positions_L is not None:
        seen = visible.of(positions_L, jnp.arange(k_BMKH.shape[1]))
        scores = jnp.where(seen[None, None, None], scores, jnp.finfo(jnp.float32).min)
    if packed is not None:
        scores = jnp.where(packed.seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    if sinks is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        sink = sinks.reshape(1, kv_heads, -1, 1, 1)
        largest = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1, keepdims=True), sink))
        exponentials = jnp.exp(scores - largest)
        weights = exponentials / (exponentials.sum(axis=-1, keepdims=True) + jnp.exp(sink - largest))
    out = jnp.einsum("bkglm,bmkh->blkgh", weights.astype(v_BMKV.dtype), v_BMKV)
    return keep(out.reshape(*q_BLNH.shape[:-1], v_BMKV.shape[-1]), ATTENTION)


def blocked_attention(
    q_BLNH, k_BMKH, v_BMKV, positions_L: jax.Array | None, visible: Visible, *, sinks=None, soft_cap=None,
    packed: Packed | None = None,
) -> jax.Array:  # fmt: skip
    """`xla_attention` on a block of queries at a time, its scores computed again in the backward pass."""
    length = q_BLNH.shape[1]
    size = math.gcd(length, QUERY_BLOCK)

    @jax.checkpoint
    def one(block):
        q, positions, *segments = block
        seen_from = None if positions_L is None else positions
        own = Packed(queries_BL=segments[0], keys_BM=packed.keys_BM) if packed is not None else None
        return xla_attention(q, k_BMKH, v_BMKV, seen_from, visible, sinks=sinks, soft_cap=soft_cap, packed=own)

    blocks = jnp.moveaxis(q_BLNH.reshape(q_BLNH.shape[0], length // size, size, *q_BLNH.shape[2:]), 1, 0)
    positions = jnp.zeros(length, jnp.int32) if positions_L is None else positions_L
    beside: tuple[jax.Array, ...] = ()
    if packed is not None:
        beside = (jnp.moveaxis(packed.queries_BL.reshape(-1, length // size, size), 1, 0),)
    out = jax.lax.map(one, (blocks, positions.reshape(-1, size), *beside))
    return keep(jnp.moveaxis(out, 0, 1).reshape(*q_BLNH.shape[:-1], v_BMKV.shape[-1]), ATTENTION)


def cudnn_takes(
    queries: tuple[int, ...], value_dim: int, visible: Visible = Visible(causal=True), soft_cap: float | None = None
) -> bool:
    """Whether cuDNN's kernel is compiled for queries BxLxNxH of that shape: not for what `cudnn_lacks` says, nor for a
    last chunk that is not full.

    >>> [cudnn_takes((1, 4096, 8, size), size) for size in (64, 80, 100, 256)]
    [True, True, False, False]
    """
    length, head_dim = queries[1], queries[3]
    whole = not visible.chunked or length % (visible.window or length) == 0
    return whole and not cudnn_lacks(head_dim, value_dim, soft_cap is not None)


def cudnn_attention(
    q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, visible: Visible, sinks: jax.Array | None = None,
    packed: Packed | None = None,
) -> jax.Array:  # fmt: skip
    """cuDNN's fused flash attention; nothing of size L x M is stored but the mask of packed documents. Chunks of a
    sequence are sequences of their own there.

    Why documents are a mask: the call's packed layout, by offsets of documents, is not public, and in jax 0.10.2 it
    reads the wrong keys where queries have more heads than keys (jax-ml/jax pull request 39521).
    """
    if visible.chunked:
        assert packed is None, "chunks of packed documents"
        q, k, v = (x.reshape(-1, visible.window, *x.shape[2:]) for x in (q_BLNH, k_BMKH, v_BMKH))
        return cudnn_attention(q, k, v, Visible(causal=visible.causal), sinks).reshape(q_BLNH.shape)
    window = None if visible.window is None else (visible.window - 1, 0)
    fused = functools.partial(
        jax.nn.dot_product_attention, is_causal=visible.causal, local_window_size=window, implementation="cudnn"
    )
    mask = None if packed is None else packed.seen[:, None]
    if sinks is None:
        return keep(fused(q_BLNH, k_BMKH, v_BMKH, mask=mask), ATTENTION)
    return keep(with_sinks(fused, q_BLNH, k_BMKH, v_BMKH, sinks, mask), ATTENTION)


def cudnn_masked_attention(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, seen_BLM: jax.Array) -> jax.Array:
    """cuDNN's fused attention where any query may see any key: it computes all scores and reads a mask of L x M."""
    fused = functools.partial(jax.nn.dot_product_attention, mask=seen_BLM[:, None], implementation="cudnn")
    return keep(fused(q_BLNH, k_BMKH, v_BMKH), ATTENTION)


def with_sinks(
    fused, q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, sinks_N: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Fused attention whose softmaxes have a sink: its output, times the share of each softmax that the keys have.

    `fused(q, k, v, mask=mask)` is a differentiable attention whose scores are scaled by the root of H; with
    `return_residual=True` it also gives the logarithm of each softmax's sum, BxLxN. The share of the keys depends on
    the scores through that sum, and no public call gives the sum a gradient: the gradient is a mean of the keys, so one
    more attention with the keys for values, and its backward pass, compute it.
    """
    scale = 1.0 / math.sqrt(q_BLNH.shape[-1])

    @jax.custom_vjp
    def scaled(q, k, v, sinks, mask):
        return forward(q, k, v, sinks, mask)[0]

    def forward(q, k, v, sinks, mask):
        (out, total), pull = jax.vjp(functools.partial(fused, mask=mask, return_residual=True), q, k, v)
        share = jax.nn.sigmoid(total.astype(jnp.float32) - sinks[None, None, :])[..., None]
        return (out * share).astype(out.dtype), (q, k, mask, out, share, pull, total)

    def backward(saved, gradient):
        q, k, mask, out, share, pull, total = saved
        dq, dk, dv = pull(((gradient * share).astype(out.dtype), jnp.zeros_like(total)))
        along = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)
        d_total = along * share * (1.0 - share)
        keys, pull_keys = jax.vjp(lambda values: fused(q, k, values, mask=mask), k)
        dq = dq + (scale * d_total * keys).astype(dq.dtype)
        (more,) = pull_keys((scale * d_total * q).astype(keys.dtype))
        return dq, dk + more, dv, -d_total[..., 0].sum(axis=(0, 1)), None

    scaled.defvjp(forward, backward)
    return scaled(q_BLNH, k_BMKH, v_BMKH, sinks_N, mask)


def splash_attention(
    q_BLNH, k_BMKH, v_BMKV, visible: Visible, context: int, *, sinks: jax.Array | None = None,
    soft_cap: float | None = None, tile: int = 1024, packed: Packed | None = None,
) -> jax.Array:  # fmt: skip
    """The Pallas splash attention kernel, which skips masked tiles and stores nothing of size L x M.

    It skips tiles by the mask that is known when it is compiled. Which document a token is of is known later: tiles
    between documents are computed, and masked.
    Keys are whole and in order; queries are this device's share where the sequence is cut over `context`. Tiles are of
    the largest power of two up to `tile` that divides the length.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, head_dim = q_BLNH.shape[1:]
    kv_length, causal = k_BMKH.shape[1], visible.causal
    shares = context if causal else 1  # without an order every share sees the same
    mask: masks.Mask = masks.FullMask((length, kv_length))
    if causal:
        mask = _causal_mask(masks, kv_length, visible, zigzag(kv_length, context, causal))
    kernel = splash.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=shares,
        block_sizes=_splash_blocks(splash, length if shares == 1 else length // 2, kv_length, tile),
        residual_checkpoint_name=ATTENTION,
        attn_logits_soft_cap=soft_cap,
    )
    scaled = (q_BLNH / math.sqrt(head_dim)).swapaxes(1, 2)
    own = _own_share(kernel, shares)
    mapped = jax.vmap(own if sinks is None else functools.partial(own, sinks=sinks))
    beside = () if packed is None else (splash.SegmentIds(q=packed.queries_BL, kv=packed.keys_BM),)
    return mapped(scaled, k_BMKH.swapaxes(1, 2), v_BMKV.swapaxes(1, 2), *beside).swapaxes(1, 2)


def _causal_mask(masks, length: int, visible: Visible, order: np.ndarray):
    """The kernel's mask of a whole sequence in which a query sees no later key; `order`: position of each query."""
    if visible.window is None:
        mask = masks.CausalMask((length, length))
    elif visible.chunked:
        mask = masks.ChunkedCausalMask((length, length), visible.window)
    else:
        mask = masks.LocalMask((length, length), (visible.window - 1, 0), 0)
    mask.q_sequence = order.astype(np.int32)
    return mask


def _own_share(kernel, shares: int):
    """The kernel with this device's part of its tables of tiles (`manual_sharding_spec` for code already inside
    shard_map, where no axis is left to name)."""
    if shares == 1:
        return kernel

    def part(table, axis):
        if table is None:
            return None
        size = table.shape[axis] // shares
        return jax.lax.dynamic_slice_in_dim(table, jax.lax.axis_index("context") * size, size, axis)

    def share(info):
        return info._replace(
            data_next=part(info.data_next, 1),
            mask_next=part(info.mask_next, 1),
            block_mask=part(info.block_mask, 1),
            q_sequence=part(info.q_sequence, 0),
        )

    tables, options = kernel.tree_flatten()
    return type(kernel)(*(share(info) for info in tables), **options)


def _splash_blocks(splash, length: int, kv_length: int, tile: int):
    q, kv = math.gcd(length, tile), math.gcd(kv_length, tile)
    return splash.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
        block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
