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


class Norm(nnx.Module):
    """Root-mean-square norm (arXiv 1910.07467) with a learned scale; statistics in float32, result in x's dtype."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), out_sharding=("norm",))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * jax.lax.rsqrt(mean_square + 1e-5) * scale).astype(x.dtype)
