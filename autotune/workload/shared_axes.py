"""How the step's own mesh axes that are one of ours share its size: ("y", "z") that are both `tensor`.

The first has as much as divides every dimension that is named by it alone, as heads of keys and values that only "y"
cuts, and the next has what is left. The user's word (`mesh_axes={"z": "tensor=4"}`) goes before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotune.meshes.layout import Layout
from autotune.partition import Partition
from autotune.workload.adapt import Adapted
from autotune.workload.explicit_axes import error_with
from autotune.workload.same_program import source
from autotune.workload.trace import equations, names_of, specs_of

SIZE = 2
"""Of each axis when it is tried whether a step with Explicit axes takes them together."""


def with_sizes(
    partition: Partition, jaxpr: Any, adapted: Adapted, pinned: Mapping[str, int], names: Sequence[str]
) -> tuple[Partition, list[str]]:
    """(the partition with the limits of axes that share one of ours, what is to be said of them).

    `pinned`: the step's own axis -> the size that the user gives it. `names`: all of the step's own axes.
    """
    said = []
    for axis in dict.fromkeys(partition.extra_axes.values()):
        own = partition.own_axes(axis)
        limits = {name: pinned[name] for name in own if name in pinned}
        why: dict[str, str] = {}
        if not limits:
            alone, named = _alone(partition, jaxpr, axis)
            limits = {name: math.gcd(*alone[name].values()) for name in own if alone[name]}
            why = {name: min(alone[name], key=alone[name].__getitem__) for name in limits}
            useless = dict.fromkeys((name for name in own[1:] if name not in named), 1)
            # Where the step names none of the others, what they had of the size would cut nothing.
            limits = useless if len(useless) == len(own) - 1 else limits | useless
        tried = dataclasses.replace(partition, limits=dict.fromkeys(own, SIZE))
        error = error_with(adapted, tried, names, {axis: SIZE ** len(own)}) if partition.explicit else None
        if error is not None:
            limits = dict.fromkeys(own[1:], 1)
        partition = dataclasses.replace(partition, limits={**partition.limits, **limits})
        said.append(_told(own, axis, limits, why, error, bool(pinned)))
    return partition, said


def _told(
    own: Sequence[str], axis: str, limits: Mapping[str, int], why: Mapping[str, str], error: str | None, pinned: bool
) -> str:
    first, *more = own
    line = f"mesh axes {first!r} and {', '.join(map(repr, more))} are each {axis}: "
    others = f"the other{'s have' if len(more) > 1 else ' has'}"
    pin = f"no other split is searched: pin the size of one with mesh_axes={{{more[0]!r}: '{axis}=2'}}"
    if error is not None:
        words = " and ".join(f"{name}={SIZE}" for name in own)
        return (
            f"{line}{first!r} has the whole size of {axis}, {others} size 1, and no other split is searched, because "
            f"the step does not trace with {words}: {error}"
        )
    if pinned:
        listed = ", ".join(f"{name!r} has {size}" for name, size in limits.items())
        return f"{line}{listed} of a size of {axis} that it divides, as mesh_axes says, {others} what is left"
    if first in limits:
        return (
            f"{line}{first!r} has at most {limits[first]} of its size, because it alone cuts {why[first]}, {others} "
            f"what is left; {pin}"
        )
    return f"{line}{first!r} has the whole size of {axis}, {others} size 1; {pin}"


def _alone(partition: Partition, jaxpr: Any, axis: str) -> tuple[dict[str, dict[str, int]], set[str]]:
    """(for each of the step's own axes of a kind the dimensions that it cuts without the others, with their extents,
    those of the axes that any dimension names)."""
    found: dict[str, dict[str, int]] = {name: {} for name in partition.own_axes(axis)}
    seen: set[str] = set()

    def note(names: Sequence[str], extent: int, where: str) -> None:
        mine = [name for name in names if name in found]
        seen.update(mine)
        if len(mine) == 1 and extent > 1:
            found[mine[0]].setdefault(where, extent)

    layout = Layout()
    for kind, leaves in (("batch", partition.batch), ("state", partition.state)):
        for path, leaf in leaves.items():
            for index, name in enumerate(leaf.names):
                own = [partition.own_name(one) for one in partition.meant(name, layout)]
                note(own, leaf.shape[index], f"dimension {index} of {kind} {path}, {leaf.shape}")
    for parts, shape, at in _constrained(jaxpr):
        for index, part in enumerate(parts):
            note(names_of(part), shape[index], f"dimension {index} of {list(shape)} ({at})")
    return found, seen


def _constrained(jaxpr: Any) -> Iterator[tuple[tuple[Any, ...], tuple[int, ...], str]]:
    """(what each dimension is cut over, shape, place) of every array for which the step itself says it."""
    for equation in equations(jaxpr):
        shape = tuple(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else ()
        for spec in specs_of(equation):
            if len(spec) <= len(shape) and any(names_of(part) for part in spec):
                yield tuple(spec), shape, source(equation) or "a library"
