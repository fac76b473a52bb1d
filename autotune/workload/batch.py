"""Which dimension of each array of a batch is the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from autotune.workload.dimensions import Dimensions
from autotune.workload.roles import is_legacy_key


def batch_dimensions(
    leaves: Mapping[str, Any],
    said: Mapping[str, int | None],
    dimensions: tuple[Dimensions, list[tuple[int, ...]]],
    first: int,
) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """(path -> the dimension of that array that is the batch, None for an array that has none; what was decided).

    `leaves`: path -> array; they are the inputs of the jaxpr from number `first` on, whose `dimensions` are
    `dimensions_of` it. `said`: what the user says.
    Random keys and plain numbers are no batch. Of the others the largest is, along its first dimension, and with it
    every array of which the first dimension is the same as its own: by the trace, or by its size.
    ValueError for a path that is none, a dimension that an array does not have, and where no array is left.
    """
    told = {path: _checked(name, axis, path, leaves[path])
            for name, axis in said.items() for path in _paths(name, leaves)}  # fmt: skip
    found: dict[str, int | None] = {}
    for path, array in leaves.items():
        if path in told:
            found[path] = told[path]
        elif _is_key(array) or not array.shape:
            found[path] = None
    free = [path for path in leaves if path not in found]
    notes: list[str] = []
    cut = [path for path, axis in found.items() if axis is not None]
    if free:
        main = max(cut or free, key=lambda path: math.prod(leaves[path].shape))
        at = found.get(main) or 0
        axes, inputs = dimensions
        own = dict(zip(leaves, inputs[first:], strict=False))
        of_main = [axes.axis(dimension) for dimension in own[main]]
        size = leaves[main].shape[at]
        for path in free:
            mine = axes.axis(own[path][0])
            length = leaves[path].shape[0]
            same = mine == of_main[at] or (length % size == 0 and mine not in of_main)
            found[path] = 0 if path == main or same else None
            if found[path] is None:
                name = path or "the array"
                notes.append(
                    f"batch {name} {list(leaves[path].shape)} was taken for a constant: its first dimension is not the "
                    f"{size} of {main or 'the batch'}; pin it with batch_axes={{{path!r}: 0}}"
                )
    if all(axis is None for axis in found.values()):
        raise ValueError(
            "batch: it holds random keys, numbers and constants only; say which dimension is the batch with "
            f"batch_axes={{{next(iter(leaves))!r}: 0}}"
        )
    return found, tuple(notes)


def tokens_of(batch: Sequence[tuple[Any, int | None]]) -> tuple[int, int]:
    """(sequences, tokens of one), of arrays with the dimension that is their batch: of whole numbers in two dimensions
    or more, or of vectors in three, the batch and the dimension after it (before it, where it is the last); of anything
    else as many examples of one token as there are in the batch."""
    cut = [(array, axis) for array, axis in batch if axis is not None]
    for array, axis in sorted(cut, key=lambda one: -math.prod(one[0].shape)):
        rank = len(array.shape)
        whole_numbers = jnp.issubdtype(array.dtype, jnp.integer)
        if rank == 3 or (whole_numbers and rank == 2):
            return array.shape[axis], array.shape[axis + 1 if axis + 1 < rank - (rank == 3) else axis - 1]
    return next((array.shape[axis] for array, axis in cut), 1), 1


def _is_key(array: Any) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key) or is_legacy_key(array)


def _paths(name: str, leaves: Mapping[str, Any]) -> list[str]:
    found = [path for path in leaves if path == name or path.endswith(f"/{name}") or path.startswith(f"{name}/")]
    if not found:
        known = ", ".join(path or "'' (the batch is one array)" for path in list(leaves)[:5])
        raise ValueError(f"batch_axes: {name!r} is no array of the batch; paths are like: {known}")
    return found


def _checked(name: str, axis: int | None, path: str, array: Any) -> int | None:
    rank = len(array.shape)
    if axis is None:
        return None
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise ValueError(
            f"batch_axes: {name!r} is {axis!r}; {path or 'the batch'} has {rank} dimensions: {tuple(array.shape)}"
        )
    return axis % rank
