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
    argument: str | None = None,
) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """(path -> the dimension of that array that is the batch, None for an array that has none; what was decided).

    `leaves`: path -> array; they are the inputs of the jaxpr from number `first` on, whose `dimensions` are
    `dimensions_of` it. `said`: what the user says; a path may begin with `argument`, the name of the one that is the
    batch.
    Random keys and plain numbers are no batch. Of the others the largest is, along its first dimension, or along its
    second if the step loops over the first; and with it every array that has this dimension too: by the trace, or in
    the same place and by its size.
    ValueError for a path that is none, a dimension that an array does not have, and where no array is left.
    """
    told = {path: _checked(name, axis, path, leaves[path])
            for name, axis in said.items() for path in _paths(name, leaves, argument)}  # fmt: skip
    free = [path for path, array in leaves.items() if path not in told and array.shape and not _is_key(array)]
    found: dict[str, int | None] = {path: told.get(path) for path in leaves}
    notes: list[str] = []
    if free:
        cut = [path for path, axis in told.items() if axis is not None]
        main = max(cut or free, key=lambda path: math.prod(leaves[path].shape))
        axes, inputs = dimensions
        own = {path: [axes.axis(one) for one in dims]
               for path, dims in zip(leaves, inputs[first:], strict=False)}  # fmt: skip
        looped = axes.looped()
        at = told.get(main) or 0
        shape = tuple(leaves[main].shape)
        if main not in told and len(shape) > 1 and (own[main][0], shape[0]) in looped:
            at = 1
            notes.append(
                f"{_called(main, shape)}: the step loops over its first dimension, so dimension 1 was "
                f"taken for the batch; pin it with batch_axes={{{main!r}: 1}}"
            )
        of_state = {axes.axis(one) for dims in inputs[:first] for one in dims}
        for path in free:
            found[path] = (
                at if path == main else _like(leaves[path].shape, own[path], at, shape[at], own[main], of_state)
            )
            name = _called(path, leaves[path].shape)
            if found[path] is None:
                notes.append(
                    f"{name} was taken for a constant: {_why_none(own[path], own[main], at, shape, main, path)}"
                )
            elif found[path] != at:
                notes.append(
                    f"{name}: dimension {found[path]} was taken for the batch, because it is dimension {at} of {main}; "
                    f"pin it with batch_axes={{{path!r}: {found[path]}}}"
                )
    if all(axis is None for axis in found.values()):
        raise ValueError(
            "batch: it holds random keys, numbers and constants only; say which dimension is the batch with "
            f"batch_axes={{{next(iter(leaves))!r}: 0}}"
        )
    return found, tuple(notes)


def _like(
    shape: Sequence[int], mine: list[int], at: int, size: int, of_main: list[int], of_state: set[int]
) -> int | None:
    """The dimension of an array that is dimension `at` of the main one, of `size`; None where none is. An axis of the
    state (a vocabulary) is none by its size alone."""
    if of_main[at] in mine:
        return mine.index(of_main[at])
    if at < len(shape) and shape[at] % size == 0 and mine[at] not in of_main and mine[at] not in of_state:
        return at
    return None


def _called(path: str, shape: Sequence[int]) -> str:
    return f"{f'batch {path}' if path else 'the batch'} {list(shape)}"


def _why_none(mine: list[int], of_main: list[int], at: int, shape: Sequence[int], main: str, path: str) -> str:
    """Why an array has no batch, and how to say that it has."""
    other = next((index for index, one in enumerate(of_main) if index != at and one == mine[0]), None)
    if other is not None and main:
        return (
            f"its first dimension is dimension {other} of {main}, and dimension {at} was taken for the batch; if "
            f"dimension {other} is the batch, say batch_axes={{{main!r}: {other}, {path!r}: 0}}"
        )
    return (
        f"its first dimension is not the {shape[at]} of {main or 'the batch'}; pin it with batch_axes={{{path!r}: 0}}"
    )


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


def _paths(name: str, leaves: Mapping[str, Any], argument: str | None) -> list[str]:
    found = [path for path in leaves if path == name or path.endswith(f"/{name}") or path.startswith(f"{name}/")]
    if not found and argument is not None and (name == argument or name.startswith(f"{argument}/")):
        inside = name[len(argument) + 1 :]
        return _paths(inside, leaves, None) if inside else list(leaves)
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
