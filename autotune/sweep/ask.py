"""`autotune.sweep(...)`: the best layout of a workload at every size of one kind of machine, from Python."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.space import parse_fix
from autotune.sweep.point import Question
from autotune.sweep.sizes import parse_family, parse_sizes
from autotune.sweep.sweep import Sweep
from autotune.sweep.sweep import sweep as sweep_sizes
from autotune.workload.workload import Workload


def sweep(
    workload: Workload,
    target: str,
    chips: str | Sequence[int],
    *,
    axes: Sequence[str] | None = None,
    fix: Sequence[str] = (),
) -> Sweep:
    """The best layout of `workload`, at its own batch, for each cluster size; priced only, nothing is compiled.

    `target`: a kind of machine ("v5p", "h100"), or what larger ones are made of ("v5p:8x8x8", "h100:4").
    `chips`: sizes in chips, "64..8192" (powers of two), "64,96,6144", or numbers.
    `axes`: mesh axes to search (None: all that the workload can use). `fix`: pinned words of a layout ("tensor=8").
    ValueError names what is wrong with the input.
    """
    sizes = parse_sizes(chips if isinstance(chips, str) else ",".join(map(str, chips)))
    wanted = tuple(axes) if axes is not None else workload.axes
    for name in wanted:
        if name not in workload.axes:
            can = ", ".join(workload.axes) or "none"
            raise ValueError(f"axes: {workload.name} makes no use of {name!r}; it can use {can}")
    question = Question(workload=workload, axes=wanted, fixed={**parse_fix(tuple(fix)), **workload.fixed})
    return sweep_sizes(question, parse_family(target), sizes)
