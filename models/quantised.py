"""Matmuls of linear layers in 8 bits: both operands quantised, in the forward pass and in both backward products.

Each operand has one scale: the largest magnitude of the whole array, found anew in every step (as Qwix's `absmax`
without channels). The largest of shards is that of the whole, so that a layout that does not slice the batch gives the
numbers of one device. The quantised operands are what the backward pass finds saved: each array is quantised once.
Rounding counts as the identity in the backward pass (straight-through, arXiv 1308.3432).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from autotune.models.execution import Execution

TYPES = {"float8": (jnp.float8_e4m3fn, jnp.float8_e5m2), "int8": (jnp.int8, jnp.int8)}
"""`matmul_dtype` -> type of (activations and weights, gradients): those of fp8 training (arXiv 2209.05433)."""

LEAST = 1e-30
"""Where a whole array is zero, its scale is this over the largest number of the type."""


def linear(run: Execution, formula: str, x: jax.Array, w: jax.Array, logical_axes: tuple[str | None, ...]) -> jax.Array:
    """A linear layer's einsum of activations and a weight, cut as its logical axes say, in the dtype of matmuls that
    the job asks for. Every letter stands in two of the three arrays."""
    if run.matmul_dtype is None:
        return run.sharder.einsum(formula, x, w, logical_axes)
    if run.sharder.explicit:
        specs = (run.sharder.spec(logical_axes), *(jax.typeof(operand).sharding.spec for operand in (x, w)))
        return _quantised(formula, run.matmul_dtype, run.dtype, specs, x, w)
    return run.sharder.constrain(_quantised(formula, run.matmul_dtype, run.dtype, None, x, w), logical_axes)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _quantised(
    formula: str, kind: str, dtype: jnp.dtype, specs: tuple[PartitionSpec, ...] | None, x: jax.Array, w: jax.Array
) -> jax.Array:
    """`specs`: of the result and of the gradients of both operands, on a mesh of explicit axes."""
    return _forward(formula, kind, dtype, specs, x, w)[0]


def _forward(formula, kind, dtype, specs, x, w):
    narrow = TYPES[kind][0]
    saved = quantise(x, narrow), quantise(w, narrow)
    return _product(formula, dtype, specs and specs[0], *saved), saved


def _backward(formula, kind, dtype, specs, saved, gradient):
    x, w = saved
    (of_x, of_w), of_result = formula.split("->")[0].split(","), formula.split("->")[1]
    g = quantise(gradient, TYPES[kind][1])
    return (
        _product(f"{of_result},{of_w}->{of_x}", dtype, specs and specs[1], g, w),
        _product(f"{of_x},{of_result}->{of_w}", dtype, specs and specs[2], x, g),
    )


_quantised.defvjp(_forward, _backward)


def quantise(x: jax.Array, narrow: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """(the array in 8 bits, its scale): their product is the array, rounded."""
    whole = jnp.issubdtype(narrow, jnp.integer)
    top = float(jnp.iinfo(narrow).max if whole else jnp.finfo(narrow).max)
    wide = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(wide)), LEAST) / top
    scaled = jnp.clip(wide / scale, -top, top)
    return (jnp.round(scaled) if whole else scaled).astype(narrow), scale


def _product(formula: str, dtype: jnp.dtype, spec: PartitionSpec | None, left, right) -> jax.Array:
    """The einsum of two quantised arrays in the compute dtype, in which partial sums are reduced over devices."""
    (x, x_scale), (y, y_scale) = left, right
    # Whole numbers overflow float16.
    sums = jnp.dtype("float32") if dtype == jnp.float16 else dtype
    product = jnp.einsum(formula, x, y, preferred_element_type=sums, out_sharding=spec)
    return (product.astype(jnp.float32) * (x_scale * y_scale)).astype(dtype)
