"""Attention with rotary positions: grouped-query, or latent (DeepSeek-V2, arXiv 2405.04434).

Batch, Length, D model, N query heads, K key heads, H head, R rank of a latent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.architecture import AttentionKind
from autotune.models import kernels
from autotune.models.adapters import Frozen, Twice, fetched
from autotune.models.execution import Execution
from autotune.models.gathered import gathered_attention
from autotune.models.kernels import Packed, Visible
from autotune.models.packing import Places
from autotune.models.parameters import Norm, aligned, biased, root_mean_square_normed, weight, zeros
from autotune.models.partial_attention import CUDNN, PLAIN
from autotune.models.remat import ATTENTION, ATTENTION_OUT, KEY, QUERY, VALUE, keep
from autotune.models.ring import in_order, ring_attention

ROTARY_BASE = 500_000.0
"""Llama 3's base frequency (arXiv 2407.21783, section 3.2)."""

SOFT_CAP = 50.0
"""Gemma 2's cap of attention scores (arXiv 2408.00118, section 2)."""


class Attention(nnx.Module):
    """Projections into heads, attention between positions, projection back."""

    def __init__(self, kind: AttentionKind, d_model: int, causal: bool, *, rngs: nnx.Rngs):
        self.kind = kind
        self.visible = Visible(causal=causal, window=kind.window, chunked=kind.chunked)
        d, n, k, h, v = d_model, kind.heads, kind.kv_heads, kind.head_dim, kind.value_width
        if kind.latent:
            self._latent_projections(d_model, rngs)
        else:
            self.query = weight(rngs, (d, n, h), ("embed", "heads", "head_dim"), fan_in=d)
            self.key = weight(rngs, (d, k, h), ("embed", "kv_heads", "head_dim"), fan_in=d)
            self.value = weight(rngs, (d, k, v), ("embed", "kv_heads", "head_dim"), fan_in=d)
        self.output = weight(rngs, (n, v, d), ("heads", "head_dim", "embed"), fan_in=n * v)
        if kind.bias in ("qkv", "all"):
            self.query_bias = zeros((n, h), ("heads", "head_dim"))
            self.key_bias = zeros((k, h), ("kv_heads", "head_dim"))
            self.value_bias = zeros((k, v), ("kv_heads", "head_dim"))
        if kind.bias in ("out", "all"):
            self.output_bias = zeros((d,), ("norm",))
        if kind.qk_norm == "head":
            self.query_norm: Norm | HeadsNorm = Norm(h)
            self.key_norm: Norm | HeadsNorm = Norm(h)
        if kind.qk_norm == "whole":
            self.query_norm, self.key_norm = HeadsNorm(n, h, "heads"), HeadsNorm(k, h, "kv_heads")
        if kind.sinks:
            self.sinks = zeros((n,), ("heads",))

    def _latent_projections(self, d: int, rngs: nnx.Rngs) -> None:
        """Down to the latents, which every member of `tensor` computes whole, and from them up to its own heads."""
        kind = self.kind
        into = kind.query_rank or d
        if kind.query_rank:
            self.query_down = weight(rngs, (d, into), ("embed", "latent"), fan_in=d)
            self.query_latent_norm = Norm(into)
        self.query = weight(rngs, (into, kind.heads, kind.head_dim), ("embed", "heads", "head_dim"), fan_in=into)
        rank, fresh = kind.kv_rank, kind.head_dim - kind.rope_dim
        self.key_value_down = weight(rngs, (d, rank + kind.rope_dim), ("embed", "latent"), fan_in=d)
        self.key_value_norm = Norm(rank)
        up = (rank, kind.heads, fresh + kind.value_width)
        self.key_value = weight(rngs, up, ("embed", "kv_heads", "head_dim"), fan_in=rank)

    def __call__(self, x_BLD: jax.Array | Twice, places: Places, run: Execution) -> jax.Array:
        q, k, v = (self._latent if self.kind.latent else self._grouped)(x_BLD, places.positions, run)
        q, k, v = keep(q, QUERY), keep(k, KEY), keep(v, VALUE)
        sinks = self.sinks[...].astype(jnp.float32) if self.kind.sinks else None
        cap = SOFT_CAP if self.kind.soft_cap else None
        mixed = attend(q, k, v, places, self.visible, run, sinks=sinks, soft_cap=cap, tile=self.kind.splash_tile)
        names, out_names = ("heads", "head_dim", "embed"), ("batch", "norm_length", "features")
        out = fetched(self.output, names, run)("blnh,nhd->bld", mixed, out_names)
        return keep(biased(out, getattr(self, "output_bias", None)), ATTENTION_OUT)

    def _grouped(self, x_BLD: jax.Array | Twice, positions: jax.Array, run: Execution):
        """(queries, keys, values) straight from the residual stream."""

        def project(name, heads):
            y = project_to_heads(x_BLD, getattr(self, name), heads, run)
            return biased(y, getattr(self, f"{name}_bias", None))

        def normed(name, heads):
            y = project(name, heads)
            if self.kind.qk_norm == "unscaled":
                return unscaled(y)
            return getattr(self, f"{name}_norm")(y) if self.kind.qk_norm != "none" else y

        q, k = (rotate(normed(name, heads), positions) for name, heads in (("query", "heads"), ("key", "kv_heads")))
        return q, k, project("value", "kv_heads")

    def _latent(self, x_BLD: jax.Array | Twice, positions: jax.Array, run: Execution):
        """(queries, keys, values) from latents; the last `rope_dim` of a key are one for all heads."""
        kind = self.kind

        def down(parameter):
            return fetched(parameter, ("embed", "latent"), run)("bld,dr->blr", x_BLD, ("batch", "length", "latent"))

        latent = self.query_latent_norm(down(self.query_down)) if kind.query_rank else x_BLD
        q = project_to_heads(latent, self.query, "heads", run)
        latent, turned = jnp.split(down(self.key_value_down), (kind.kv_rank,), axis=-1)
        fresh, v = jnp.split(
            project_to_heads(self.key_value_norm(latent), self.key_value, "kv_heads", run),
            (kind.head_dim - kind.rope_dim,),
            axis=-1,
        )
        turned = jnp.broadcast_to(rotate(turned[:, :, None, :], positions), (*fresh.shape[:-1], kind.rope_dim))
        turned = run.sharder.constrain(turned, ("batch", "length", "kv_heads", "head_dim"))
        k = jnp.concatenate((fresh, turned), axis=-1)
        q_fresh, q_turned = jnp.split(q, (kind.head_dim - kind.rope_dim,), axis=-1)
        return jnp.concatenate((q_fresh, rotate(q_turned, positions)), axis=-1), k, v


class HeadsNorm(nnx.Module):
    """Root-mean-square norm over all heads together, with a scale of their width (OLMo 2, arXiv 2501.00656)."""

    def __init__(self, heads: int, head_dim: int, axis: str):
        self.scale = nnx.Param(jnp.ones((heads, head_dim), jnp.float32), out_sharding=(axis, "head_dim"))

    def __call__(self, x_BLNH: jax.Array) -> jax.Array:
        wide = x_BLNH.astype(jnp.float32)
        normed = root_mean_square_normed(wide, (-2, -1))
        return (normed * aligned(self.scale[...], wide)).astype(x_BLNH.dtype)


def unscaled(x: jax.Array) -> jax.Array:
    """Root-mean-square norm over the last dimension without a scale (Llama 4)."""
    return root_mean_square_normed(x.astype(jnp.float32)).astype(x.dtype)


def project_to_heads(x: jax.Array | Twice, parameter: nnx.Param | Frozen, heads: str, run: Execution) -> jax.Array:
    """BxLxNxH from BxLxD or BxLxR."""
    names, out_names = ("embed", heads, "head_dim"), ("batch", "length", heads, "head_dim")
    return fetched(parameter, names, run)("bld,dnh->blnh", x, out_names)


def rotate(x_BLNH: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding (arXiv 2104.09864), first half of the head paired with the second, angles in float32.

    `positions`: L, or BxL where sequences have positions of their own.
    """
    half = x_BLNH.shape[-1] // 2
    frequencies = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if positions.ndim == 2:
        angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
        cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    else:
        angles = positions.astype(jnp.float32)[:, None] * frequencies[None, :]
        cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x_BLNH.dtype)


def attend(
    q_BLNH: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array, places: Places, visible: Visible, run: Execution,
    *, sinks: jax.Array | None = None, soft_cap: float | None = None, tile: int = 1024,
) -> jax.Array:  # fmt: skip
    """Attention between positions, each device on its own heads and queries.

    `sinks`: one logit a query head, float32, that every softmax has beside those of the keys. `soft_cap`: scores pass
    through a tanh of that height. `tile`: of splash attention. Where documents are packed, a query sees keys of its own
    document only.
    """
    context, causal = run.layout.context, visible.causal

    def local(q, k, v, positions, *shares):
        of_device = dict(zip(beside, shares, strict=True))
        own, segments = of_device.get("sinks"), of_device.get("segments")
        takes = run.kernel == "cudnn" and kernels.cudnn_takes(q.shape, v.shape[-1], visible, soft_cap)
        part = CUDNN if takes else PLAIN
        if run.layout.context_attention == "ring" and context > 1:
            return keep(ring_attention(q, k, v, segments, context, causal, part), ATTENTION)
        whole = visible.window is None and own is None
        if context > 1 and causal and takes and whole and segments is None:
            return keep(gathered_attention(q, k, v, context, part), ATTENTION)
        packed = None if segments is None else Packed(queries_BL=segments, keys_BM=segments)
        if context > 1:
            k, v = (in_order(jax.lax.all_gather(x, "context", axis=1, tiled=True), context, causal) for x in (k, v))
            if segments is not None:
                gathered = jax.lax.all_gather(segments, "context", axis=1, tiled=True)
                packed = Packed(queries_BL=segments, keys_BM=in_order(gathered, context, causal))
        if run.kernel == "splash":
            return kernels.splash_attention(
                q, k, v, visible, context, sinks=own, soft_cap=soft_cap, tile=tile, packed=packed
            )
        # Windows and sinks of a cut sequence are none of cuDNN's: its queries start at the first key.
        if takes and (context == 1 or not causal):
            return kernels.cudnn_attention(q, k, v, visible, own, packed)
        if takes and whole and packed is not None:
            causal_LM = visible.of(positions, jnp.arange(k.shape[1]))
            return kernels.cudnn_masked_attention(q, k, v, packed.seen & causal_LM[None])
        plain = kernels.xla_attention if context == 1 and run.kernel != "cudnn" else kernels.blocked_attention
        return plain(q, k, v, positions if causal else None, visible, sinks=own, soft_cap=soft_cap, packed=packed)

    spec = run.sharder.spec
    queries = spec(("batch", "length", "heads", "head_dim"))
    keys = spec(("batch", "length", "kv_heads", "head_dim"))
    arrays = {"sinks": (sinks, ("heads",)), "segments": (places.segments_BL, ("batch", "length"))}
    beside = {name: (array, spec(axes)) for name, (array, axes) in arrays.items() if array is not None}
    specs = (queries, keys, keys, spec(("length",)), *(cut for _, cut in beside.values()))
    mapped = run.sharder.map(local, in_specs=specs, out_specs=queries)
    return mapped(q_BLNH, k_BLKH, v_BLKH, places.order_L, *(array for array, _ in beside.values()))
