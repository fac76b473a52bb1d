"""Parameters: float32 values with their logical axes as Flax metadata."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], logical_axes: tuple[str, ...], *, fan_in: int) -> nnx.Param:
    """A matrix drawn from a normal distribution of variance 1 / fan_in."""
    value = jax.random.normal(rngs.params(), shape, jnp.float32) / math.sqrt(fan_in)
    return nnx.Param(value, out_sharding=logical_axes)


def zeros(shape: tuple[int, ...], logical_axes: tuple[str, ...]) -> nnx.Param:
    """A bias, or whatever else starts at zero."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), out_sharding=logical_axes)


def aligned(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector or matrix in the dtype and rank of an array whose last dimensions it has."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - vector.ndim) + vector.shape)


def biased(y: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """`y` plus a bias of its last dimensions; `y` where there is none."""
    return y if bias is None else y + aligned(bias[...], y)


def root_mean_square_normed(wide: jax.Array, dimensions: int | tuple[int, ...] = -1) -> jax.Array:
    """A float32 array over the root of its mean square along some dimensions (arXiv 1910.07467)."""
    mean_square = jnp.mean(wide * wide, axis=dimensions, keepdims=True)
    return wide * jax.lax.rsqrt(mean_square + 1e-5)


class Norm(nnx.Module):
    """Norm over the last dimension; statistics in float32, the result in x's dtype.

    Root-mean-square norm (arXiv 1910.07467) with a learned scale; with an offset, or without a scale, LayerNorm
    (arXiv 1607.06450)."""

    def __init__(self, width: int, *, scale: bool = True, offset: bool = False):
        self.centred = offset or not scale
        if scale:
            self.scale = nnx.Param(jnp.ones((width,), jnp.float32), out_sharding=("norm",))
        if offset:
            self.offset = zeros((width,), ("norm",))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        if self.centred:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        out = root_mean_square_normed(wide)
        if hasattr(self, "scale"):
            out = out * aligned(self.scale[...], wide)
        return biased(out, getattr(self, "offset", None)).astype(x.dtype)
