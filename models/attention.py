"""Grouped-query attention with rotary positions. Batch, Length, D model, N query heads, K key heads, H head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.transformer import TransformerShape
from autotune.models import kernels
from autotune.models.execution import Execution
from autotune.models.parameters import weight
from autotune.models.remat import ATTENTION, ATTENTION_OUT, KEY, QUERY, VALUE, keep
from autotune.models.ring import in_order, ring_attention

ROTARY_BASE = 500_000.0
"""Llama 3's base frequency (arXiv 2407.21783, section 3.2)."""


class Attention(nnx.Module):
    """Projections into heads, attention between positions, projection back."""

    def __init__(self, shape: TransformerShape, *, rngs: nnx.Rngs):
        self.causal = shape.kind == "decoder"
        d, n, k, h = shape.d_model, shape.heads, shape.kv_heads, shape.head_dim
        self.query = weight(rngs, (d, n, h), ("embed", "heads", "head_dim"), fan_in=d)
        self.key = weight(rngs, (d, k, h), ("embed", "kv_heads", "head_dim"), fan_in=d)
        self.value = weight(rngs, (d, k, h), ("embed", "kv_heads", "head_dim"), fan_in=d)
        self.output = weight(rngs, (n, h, d), ("heads", "head_dim", "embed"), fan_in=n * h)

    def __call__(self, x_BLD: jax.Array, positions_L: jax.Array, run: Execution) -> jax.Array:
        def project(parameter, heads):
            w = run.sharder.fetch(parameter[...], ("embed", heads, "head_dim"), run.dtype)
            return run.sharder.einsum("bld,dnh->blnh", x_BLD, w, ("batch", "length", heads, "head_dim"))

        q = keep(rotate(project(self.query, "heads"), positions_L), QUERY)
        k = keep(rotate(project(self.key, "kv_heads"), positions_L), KEY)
        v = keep(project(self.value, "kv_heads"), VALUE)
        mixed = attend(q, k, v, positions_L, self.causal, run)
        w = run.sharder.fetch(self.output[...], ("heads", "head_dim", "embed"), run.dtype)
        out = run.sharder.einsum("blnh,nhd->bld", mixed, w, ("batch", "norm_length", "features"))
        return keep(out, ATTENTION_OUT)


def rotate(x_BLNH: jax.Array, positions_L: jax.Array) -> jax.Array:
    """Rotary embedding (arXiv 2104.09864), first half of the head paired with the second, angles in float32."""
    half = x_BLNH.shape[-1] // 2
    frequencies = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_L.astype(jnp.float32)[:, None] * frequencies[None, :]
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x_BLNH.dtype)


def attend(
    q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array, positions_L: jax.Array, causal: bool, run: Execution
) -> jax.Array:
    """Attention between positions, each device on its own heads and queries."""

    context = run.layout.context

    def local(q, k, v, positions):
        if run.layout.context_attention == "ring" and context > 1:
            return keep(ring_attention(q, k, v, context, causal), ATTENTION)
        if context > 1:
            k, v = (in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, causal) for x in (k, v))
        if run.kernel == "splash":
            return kernels.splash_attention(q, k, v, causal, context)
        # Causal queries of a cut sequence are none of cuDNN's: its public call lets them start at the first key only.
        if run.kernel == "cudnn" and kernels.cudnn_takes(q.shape[-1]) and (context == 1 or not causal):
            return kernels.cudnn_attention(q, k, v, causal)
        plain = kernels.xla_attention if context == 1 and run.kernel != "cudnn" else kernels.blocked_attention
        return plain(q, k, v, positions if causal else None)

    queries = run.sharder.spec(("batch", "length", "heads", "head_dim"))
    keys = run.sharder.spec(("batch", "length", "kv_heads", "head_dim"))
    mapped = run.sharder.map(local, in_specs=(queries, keys, keys, run.sharder.spec(("length",))), out_specs=queries)
    return mapped(q_BLNH, k_BLKH, v_BLKH, positions_L)
