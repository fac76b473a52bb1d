"""Which line of source asks for how many FLOPs, before anything is cut over devices."""

from __future__ import annotations

import math
from typing import Any

from autotune.system.code_owner import owner_of, short_name
from autotune.workload.trace import dots, inner_jaxprs

MATMULS = ("dot_general", "conv_general_dilated")


def flops_by_source(jaxpr: Any, times: int = 1) -> dict[str, float]:
    """FLOPs of the matmuls and convolutions of one step by "file.py:line", whole mesh, loop trips and recomputation
    counted.

    Inside a `shard_map` shapes are of one shard of the axes it names, so they count once for every shard. The line is
    the innermost one outside libraries, as `hlo.text` names the lines of compiled instructions.
    """
    found: dict[str, float] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name in MATMULS:
            source = _source(equation)
            if source is not None:
                flops = sum(dot.flops for dot in dots(_Alone(equation), times))
                found[source] = found.get(source, 0.0) + flops
            continue
        if equation.primitive.name == "pallas_call":  # a compiled kernel is no plain matmul either
            continue
        shards = _shards(equation)
        for inner, trips in inner_jaxprs(equation):
            for source, flops in flops_by_source(inner, times * trips * shards).items():
                found[source] = found.get(source, 0.0) + flops
    return found


class _Alone:
    """One equation where a jaxpr is asked for."""

    def __init__(self, equation: Any) -> None:
        self.eqns = (equation,)


def _shards(equation: Any) -> int:
    if equation.primitive.name != "shard_map":
        return 1
    return math.prod(equation.params["mesh"].shape[axis] for axis in equation.params["newly_manual_axes"])


def _source(equation: Any) -> str | None:
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if owner_of(frame.file_name) in ("user", "reference model"):
            return f"{short_name(frame.file_name)}:{frame.line_num}"
    return None
