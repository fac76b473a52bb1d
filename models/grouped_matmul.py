"""A matmul of sorted rows with one matrix for each group of them, and its gradients: on each device for its own rows.

Letters: R rows, sorted by group, D features, F features, E groups of this device. Rows behind the last group belong to
none: what stands there in a result is not defined, and no gradient of a matrix reads it.

On TPUs the kernels are megablox' (`jax.experimental.pallas.ops.tpu.megablox`): XLA's own kernel for `ragged_dot` has no
gradient of the matrices, which XLA computes as a product of all rows for each group (libtpu 0.0.42). On CPU and GPUs
`ragged_dot` is a product of all rows with every matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from autotune.meshes.architecture import GROUPED_ROWS
from autotune.meshes.sharding import partition_spec
from autotune.models.execution import Execution

TILE = {2: 1024, 4: 512}
"""Bytes of a number -> largest tile of the other two sides: more does not fit in 16 MiB of vector memory."""

BALANCED_ROWS = "balanced_rows_{}_of_{}"
"""The scope of a kernel whose buffer also has room for the rows that other devices get when tokens are balanced. The
reader of compiled programs takes it for the share of the rows that are in a group (`autotune.hlo.kernels`)."""

RAGGED = (((0,), (0,)), ((), ()))


def padded_rows(rows: int, run: Execution) -> int:
    """Rows of a buffer that has room for `rows`."""
    if not run.on_tpu:
        return rows
    tile = GROUPED_ROWS if rows > GROUPED_ROWS else 128
    return rows + -rows % tile


def grouped_matmul(
    rows_GRD: jax.Array, sizes_GE: jax.Array, w_EDF: jax.Array, names: tuple[str, ...], run: Execution, scope: str
) -> jax.Array:
    """Each row times the matrix of its group, GxRxF. G counts devices: one block of rows and sizes each (`own`).

    `names`: the logical axes of the matrices; F is cut where they cut it, and where they cut D the results are partial
    sums. No part of it is differentiated by JAX: the gradient of the matrices is a sum over the devices that share
    them, which is left to the partitioner, as that of any weight is.
    """
    own = run.sharder.spec(("own", None, None))
    of_sizes, of_weight = run.sharder.spec(("own", None)), run.sharder.spec(names)
    # No kernel has a rule for vmap. That of `reduce=step` leaves one replica on each device, so a loop has one turn.
    product, product_with_transposed, product_of_rows = map(jax.custom_batching.sequential_vmap, kernels(run))
    ahead, back, of_w = (
        run.sharder.map(_scoped(function, scope), in_specs=in_specs, out_specs=out_spec)
        for function, in_specs, out_spec in (
            (lambda x, n, w: product(x[0], w, n[0]), (own, of_sizes, of_weight), own),
            (lambda g, n, w: product_with_transposed(g[0], w, n[0]), (own, of_sizes, of_weight), own),
            (lambda x, g, n: product_of_rows(x[0], g[0], n[0]), (own, own, of_sizes), _spec_of_copies(names, run)),
        )
    )

    @jax.custom_vjp
    def multiply(rows, sizes, w):
        return ahead(rows, sizes, w)

    def backward(saved, gradient):
        rows, sizes, w = saved
        return back(gradient, sizes, w), None, _sum_of_copies(of_w(rows, gradient, sizes))

    multiply.defvjp(lambda rows, sizes, w: (ahead(rows, sizes, w), (rows, sizes, w)), backward)
    return multiply(rows_GRD, sizes_GE, w_EDF)


def grouped_bias(
    y_GRF: jax.Array, sizes_GE: jax.Array, bias_EF: jax.Array, names: tuple[str, ...], run: Execution
) -> jax.Array:
    """Each row plus the bias of its group. Where results are partial sums over `tensor`, so is the bias."""
    own, of_sizes, of_bias = (run.sharder.spec(part) for part in (("own", None, None), ("own", None), names))
    parts = 1 if "tensor" in _axes(names, run) else run.layout.tensor

    def chosen(sizes, rows: int, dtype):
        ends = jnp.cumsum(sizes)
        place = jnp.arange(rows)[:, None]
        return ((place < ends[None, :]) & (place >= (ends - sizes)[None, :])).astype(dtype)

    def add(y, n, bias):
        return (y[0] + chosen(n[0], y.shape[1], y.dtype) @ (bias / parts).astype(y.dtype))[None]

    def sums(g, n):
        groups = chosen(n[0], g.shape[1], g.dtype)
        defined = jnp.where(jnp.arange(g.shape[1])[:, None] < n[0].sum(), g[0], jnp.zeros((), g.dtype))
        return (groups.T @ defined / parts)[None]

    ahead = run.sharder.map(add, in_specs=(own, of_sizes, of_bias), out_specs=own)
    back = run.sharder.map(sums, in_specs=(own, of_sizes), out_specs=_spec_of_copies(names, run))

    @jax.custom_vjp
    def added(y, sizes, bias):
        return ahead(y, sizes, bias)

    def backward(sizes, gradient):
        return gradient, None, _sum_of_copies(back(gradient, sizes)).astype(bias_EF.dtype)

    added.defvjp(lambda y, sizes, bias: (ahead(y, sizes, bias), sizes), backward)
    return added(y_GRF, sizes_GE, bias_EF)


def _scoped(function: Callable, scope: str) -> Callable:
    def named(*arrays):
        with jax.named_scope(scope):
            return function(*arrays)[None]

    return named


def _sum_of_copies(copies: jax.Array) -> jax.Array:
    # jnp.sum would widen what is reduced over devices.
    return jax.lax.reduce(copies, jnp.zeros((), copies.dtype), jax.lax.add, (0,))


def _axes(names: tuple[str, ...], run: Execution) -> set[str]:
    """The mesh axes that cut a matrix in its matmul."""
    return {axis for name in names for axis in run.sharder.rules.activations[name]}


def _spec_of_copies(names: tuple[str, ...], run: Execution) -> PartitionSpec:
    """The cut of an array that holds, on a leading axis, each device's own gradient of a matrix."""
    table = run.sharder.rules.activations
    used = _axes(names, run)
    alone = {**table, "copies": tuple(axis for axis in table["own"] if axis not in used)}
    by_hand = jax.sharding.get_abstract_mesh().manual_axes
    sizes = {axis: size for axis, size in run.sharder.mesh.shape.items() if axis not in by_hand}
    return partition_spec(alone, ("copies", *names), sizes)


def kernels(run: Execution) -> tuple[Callable, Callable, Callable]:
    """(rows RxD, matrices ExDxF, sizes E) -> RxF; (RxF, ExDxF, E) -> RxD; (RxD, RxF, E) -> ExDxF, of one device."""
    if not run.on_tpu:
        return _ragged, lambda g, w, sizes: _ragged(g, w.swapaxes(1, 2), sizes), _ragged_of_rows
    return _megablox, _megablox_transposed, _megablox_of_rows


def _ragged(x, w, sizes):
    return jax.lax.ragged_dot(x, w, sizes)


def _ragged_of_rows(x, g, sizes):
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=RAGGED, lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
    )
    return jax.lax.ragged_dot_general(x, g, sizes, numbers)


def _megablox(x, w, sizes):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    return gmm(x, w, sizes, x.dtype, _tiles(x, w.shape[1], w.shape[2]))


def _megablox_transposed(g, w, sizes):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    return gmm(g, w, sizes, g.dtype, _tiles(g, w.shape[2], w.shape[1]), transpose_rhs=True)


def _megablox_of_rows(x, g, sizes):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    return tgmm(x.swapaxes(0, 1), g, sizes, x.dtype, _tiles(x, x.shape[1], g.shape[1]))


def _tiles(x: jax.Array, contracted: int, made: int) -> tuple[int, int, int]:
    largest = TILE[x.dtype.itemsize]
    return math.gcd(x.shape[0], GROUPED_ROWS), min(contracted, largest), min(made, largest)
