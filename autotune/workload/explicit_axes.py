"""Along which mesh axes a step with Explicit axes can be cut: each is tried alone and with each other one, in traces
without devices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, get_abstract_mesh

from autotune.meshes.layout import Layout
from autotune.partition import Leaf, Partition
from autotune.user_code import UserCodeError
from autotune.workload.adapt import Adapted, partition_spec
from autotune.workload.leaves import map_leaves
from autotune.workload.tracing import tracing

SIZE = 2
"""Of the axis that is tried; the smallest that cuts anything."""


def axes_that_fail(adapted: Adapted, partition: Partition, names: Sequence[str]) -> dict[str, str]:
    """Our mesh axis -> why the step does not trace with that axis of size `SIZE` and all others of size 1.

    With Explicit axes the cut of an array is part of its type, so a step that names only some of the axes refuses
    arrays that are cut along another one. Axes that do not divide some array by `SIZE` are not tried.
    `names`: the user's own mesh axes.
    """
    failed = {}
    for axis in partition.axes():
        error = _error(adapted, partition, names, (axis,))
        if error is not None:
            failed[axis] = f"the step does not trace with {_words(partition, (axis,))}: {error}"
    return failed


def pairs_that_fail(adapted: Adapted, partition: Partition, names: Sequence[str]) -> dict[str, str]:
    """Two of our mesh axes ("data,tensor") -> why the step does not trace with both of size `SIZE`.

    Two axes that cut one dimension of two arrays, each of its own, are refused only together. Pairs are tried where a
    trace with all axes at once fails. `partition`: without the axes that fail alone. `names`: the user's own mesh axes.
    """
    axes = partition.axes()
    everything = dataclasses.replace(Layout(), **dict.fromkeys(axes, SIZE))  # type: ignore[arg-type]
    if partition.problem(everything) is None and _error(adapted, partition, names, axes) is None:
        return {}
    failed = {}
    for pair in itertools.combinations(axes, 2):
        error = _error(adapted, partition, names, pair)
        if error is not None:
            failed[",".join(pair)] = f"the step does not trace with {_words(partition, pair)}: {error}"
    return failed


def _words(partition: Partition, axes: Sequence[str]) -> str:
    sizes = partition.own_shape(dict.fromkeys(axes, SIZE))
    return " and ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)


def _error(adapted: Adapted, partition: Partition, names: Sequence[str], axes: Sequence[str]) -> str | None:
    """What the step raises with these axes of size `SIZE`; None where it traces, or where they do not divide."""
    return error_with(adapted, partition, names, dict.fromkeys(axes, SIZE))


def error_with(adapted: Adapted, partition: Partition, names: Sequence[str], axes: Mapping[str, int]) -> str | None:
    """What the step raises when our mesh axes have these sizes; None where it traces, or where a size does not divide.

    `names`: the user's own mesh axes.
    """
    layout = dataclasses.replace(Layout(), **axes)  # type: ignore[arg-type]
    if partition.problem(layout) is not None:
        return None
    sizes = partition.own_shape(axes)
    with tracing(True, names, sizes, partition.mesh_context, only=partition.only_axes):
        state = _cut(adapted.state, partition.state, partition, layout)
        batch = _cut(adapted.batch, partition.batch, partition, layout)
        try:
            jax.eval_shape(adapted.function, state, batch)
        except UserCodeError as error:
            return error.summary
    return None


def _cut(tree: Any, leaves: Any, partition: Partition, layout: Layout) -> Any:
    """The shapes with the cut that the layout gives them, on the mesh that is set."""
    mesh = get_abstract_mesh()

    def place(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        named: Leaf = leaves[path]
        sharding = NamedSharding(mesh, partition_spec(partition, named, layout))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type)

    return map_leaves(place, tree)
