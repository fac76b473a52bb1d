"""A gather of rows whose backward pass is a gather too."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def take_rows(x_BND: jax.Array, index_BM: jax.Array, inverse_BNR: jax.Array) -> jax.Array:
    """x[b, index[b, m]], or zeros where the index is -1. `inverse`: the results that each row of x went to, or -1.

    With the inverse at hand the backward pass is a gather too; autodiff would make it a scatter-add.
    """
    return rows_at(x_BND, index_BM)


def rows_at(x_BND: jax.Array, index_BM: jax.Array) -> jax.Array:
    """x[b, index[b, m]], or zeros where the index is -1."""
    rows = jnp.take_along_axis(x_BND, jnp.maximum(index_BM, 0)[..., None], axis=1)
    return jnp.where(index_BM[..., None] >= 0, rows, jnp.zeros((), x_BND.dtype))


def _take_rows_forward(x, index, inverse):
    return take_rows(x, index, inverse), (index, inverse)


def _take_rows_backward(saved, gradient):
    index, inverse = saved
    batch, rows, copies = inverse.shape
    back = take_rows(gradient, inverse.reshape(batch, -1), index[..., None])
    return back.reshape(batch, rows, copies, -1).sum(axis=2), None, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)
