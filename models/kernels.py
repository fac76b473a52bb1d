"""Attention kernels on one device's share of heads and queries. Called inside shard_map, by models/attention.py.

Queries are BxLxNxH, keys and values BxMxKxH with K dividing N (grouped-query attention).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from autotune.models.remat import ATTENTION, keep

SPLASH_BLOCK = 1024
"""Tile of queries and of keys in splash attention; the largest power of two up to this that divides the length."""


def xla_attention(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, mask_LM: jax.Array | None) -> jax.Array:
    """Softmax attention as plain matmuls, statistics in float32; every score is materialised."""
    batch, length, heads, head_dim = q_BLNH.shape
    kv_heads = k_BMKH.shape[2]
    q = q_BLNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("blkgh,bmkh->bkglm", q, k_BMKH, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    if mask_LM is not None:
        scores = jnp.where(mask_LM[None, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BMKH.dtype)
    return keep(jnp.einsum("bkglm,bmkh->blkgh", weights, v_BMKH).reshape(q_BLNH.shape), ATTENTION)


def cudnn_attention(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, causal: bool) -> jax.Array:
    """cuDNN's fused flash attention; nothing of size L x M is stored."""
    out = jax.nn.dot_product_attention(q_BLNH, k_BMKH, v_BMKH, is_causal=causal, implementation="cudnn")
    return keep(out, ATTENTION)


def splash_attention(q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, causal: bool) -> jax.Array:
    """The Pallas splash attention kernel, which skips masked tiles and stores nothing of size L x M."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, head_dim = q_BLNH.shape[1:]
    kv_length = k_BMKH.shape[1]
    one = masks.CausalMask((length, kv_length)) if causal else masks.FullMask((length, kv_length))
    kernel = splash.make_splash_mha(
        mask=masks.MultiHeadMask([one] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=_splash_blocks(splash, length, kv_length),
        residual_checkpoint_name=ATTENTION,
    )
    scaled = (q_BLNH / math.sqrt(head_dim)).swapaxes(1, 2)
    return jax.vmap(kernel)(scaled, k_BMKH.swapaxes(1, 2), v_BMKH.swapaxes(1, 2)).swapaxes(1, 2)


def _splash_blocks(splash, length: int, kv_length: int):
    q, kv = math.gcd(length, SPLASH_BLOCK), math.gcd(kv_length, SPLASH_BLOCK)
    return splash.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=kv,
        block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip
