"""Attention kernels on one device's share of heads and queries. Called inside shard_map, by models/attention.py.

Queries are BxLxNxH, keys and values BxMxKxH with K dividing N (grouped-query attention).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from autotune.models.remat import ATTENTION, keep
from autotune.models.ring import zigzag

SPLASH_BLOCK = 1024
"""Tile of queries and of keys in splash attention; the largest power of two up to this that divides the length."""


QUERY_BLOCK = 1024
"""Queries whose scores plain attention holds at a time, where the sequence is cut over devices because it is long, or
where cuDNN would hold none."""

CUDNN_HEAD_DIM = 128
"""The largest head that JAX's public call to cuDNN takes for a GPU that is not attached: it asks the first local device
for its compute capability, and 9 or more would take 256 (jax 0.10.2). So that the program that is compiled is the one
that runs, larger heads are none of cuDNN's where a GPU is attached either."""


def xla_attention(q_BLNH, k_BMKH, v_BMKH, positions_L: jax.Array | None) -> jax.Array:
    """Softmax attention as plain matmuls, statistics in float32; every score is materialised.

    `positions_L`: the position of each query when it may not look beyond it (keys are in order); None: it may.
    """
    batch, length, heads, head_dim = q_BLNH.shape
    kv_heads = k_BMKH.shape[2]
    q = q_BLNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("blkgh,bmkh->bkglm", q, k_BMKH, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    if positions_L is not None:
        seen = positions_L[:, None] >= jnp.arange(k_BMKH.shape[1])[None, :]
        scores = jnp.where(seen[None, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BMKH.dtype)
    return keep(jnp.einsum("bkglm,bmkh->blkgh", weights, v_BMKH).reshape(q_BLNH.shape), ATTENTION)


def blocked_attention(q_BLNH, k_BMKH, v_BMKH, positions_L: jax.Array | None) -> jax.Array:
    """`xla_attention` on a block of queries at a time, its scores computed again in the backward pass."""
    length = q_BLNH.shape[1]
    size = math.gcd(length, QUERY_BLOCK)

    @jax.checkpoint
    def one(block):
        q, positions = block
        return xla_attention(q, k_BMKH, v_BMKH, None if positions_L is None else positions)

    blocks = jnp.moveaxis(q_BLNH.reshape(q_BLNH.shape[0], length // size, size, *q_BLNH.shape[2:]), 1, 0)
    positions = jnp.zeros(length, jnp.int32) if positions_L is None else positions_L
    out = jax.lax.map(one, (blocks, positions.reshape(-1, size)))
    return keep(jnp.moveaxis(out, 0, 1).reshape(q_BLNH.shape), ATTENTION)


def cudnn_takes(head_dim: int) -> bool:
    """Whether cuDNN's kernel is compiled for heads of that size.

    >>> [cudnn_takes(size) for size in (64, 80, 100, 256)]
    [True, True, False, False]
    """
    return head_dim <= CUDNN_HEAD_DIM and head_dim % 8 == 0


def cudnn_attention(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, causal: bool) -> jax.Array:
    """cuDNN's fused flash attention; nothing of size L x M is stored."""
    out = jax.nn.dot_product_attention(q_BLNH, k_BMKH, v_BMKH, is_causal=causal, implementation="cudnn")
    return keep(out, ATTENTION)


def splash_attention(q_BLNH, k_BMKH, v_BMKH, causal: bool, context: int) -> jax.Array:
    """The Pallas splash attention kernel, which skips masked tiles and stores nothing of size L x M.

    Keys are whole and in order; queries are this device's share where the sequence is cut over `context`.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, head_dim = q_BLNH.shape[1:]
    kv_length = k_BMKH.shape[1]
    shares = context if causal else 1  # without an order every share sees the same
    mask: masks.Mask = masks.FullMask((length, kv_length))
    if causal:
        mask = masks.CausalMask((kv_length, kv_length))
        mask.q_sequence = zigzag(kv_length, context, causal).astype(np.int32)
    kernel = splash.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=shares,
        block_sizes=_splash_blocks(splash, length if shares == 1 else length // 2, kv_length),
        residual_checkpoint_name=ATTENTION,
    )
    scaled = (q_BLNH / math.sqrt(head_dim)).swapaxes(1, 2)
    mapped = jax.vmap(_own_share(kernel, shares))
    return mapped(scaled, k_BMKH.swapaxes(1, 2), v_BMKH.swapaxes(1, 2)).swapaxes(1, 2)


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


def _splash_blocks(splash, length: int, kv_length: int):
    q, kv = math.gcd(length, SPLASH_BLOCK), math.gcd(kv_length, SPLASH_BLOCK)
    return splash.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
        block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
