"""A curve for the terminal: rich renderables, no printing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType

from autotune.frontier.closed_forms import DENSE_ALPHA, latency_wall_flop, linear_scaling_end_flop, step_latency_seconds
from autotune.frontier.critical_batch import effort_over_minimum
from autotune.frontier.curve import LEAST_UTILIZATION, LINEAR_SHARE, Curve, Point
from autotune.frontier.limits import RESOURCES, Binding
from autotune.frontier.run import TrainingRun
from autotune.frontier.shapes import Shape
from autotune.frontier.what_helps import Reach
from autotune.tables import Column, FittedTable, Prose

PRIORITIES = {"width": 4, "layers": 4, "batch": 4, "tokens": 2, "tensor": 2, "pipe": 2, "data": 2, "expert": 2,
              "schedule": 5, "then": 6}  # fmt: skip
"""Columns of the curve that a narrow terminal does without, the largest number first."""


def render(
    curve: Curve,
    limits: Sequence[Binding],
    *,
    critical_batch_tokens: float | None = None,
    helps: Sequence[Reach] | None = None,
    shapes: Sequence[Shape] | None = None,
) -> Group:
    """The whole screen: what was assumed, the curve, its ends, and on demand what would help and which shape."""
    table = _table(curve, limits, critical_batch_tokens)
    parts: list[RenderableType] = [_heading(curve), table, _ends(curve, limits)]
    if helps is not None:
        parts += [Prose(""), _helps(helps)]
    if shapes is not None:
        parts += [Prose(""), _shapes(shapes)]
    return Group(*parts)


def flop_text(flop: float | None) -> str:
    """Three significant digits; a dash where there is no such figure.

    >>> flop_text(2.0484e28), flop_text(None), flop_text(float("inf"))
    ('2.05e28', '-', 'never')
    """
    if flop is None:
        return "-"
    return "never" if math.isinf(flop) else f"{flop:.2e}".replace("e+", "e")


def count_text(count: float) -> str:
    """Whole numbers up to 9999, then thousands, millions, ... with three significant digits.

    >>> count_text(2048), count_text(8388608), count_text(1.3e13)
    ('2048', '8.39 M', '13 T')
    """
    if count < 1e4:
        return f"{count:.0f}"
    for unit, scale in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15), ("E", 1e18)):
        if count < 1000 * scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.2e}"


def _heading(curve: Curve) -> Prose:
    a = curve.assumptions
    own = a.batch_tokens
    rule = "the paper's" if a.batch_rule == "default" else a.batch_rule
    batch = f"{rule} batch rule" if own is None else f"batch of {count_text(own)} tokens"
    hidden = [name for name in ("tensor", "pipeline", "data") if getattr(a.overlap, name)]
    factors = (("batch", a.batch_scale), ("depth", a.depth_scale))
    scales = [f"{name} x{value:g}" for name, value in factors if value != 1]
    return Prose(
        f"{curve.gpu.label}: {'sparse' if a.sparse else 'dense'} models, {', '.join([batch, *scales])}, the smallest "
        f"cluster that trains in {a.months:g} months\n"
        f"hidden behind computation: {', '.join(hidden) or 'nothing'}; peak {curve.gpu.peak_flop_per_second:.3g} "
        f"FLOP/s, large matmuls reach {curve.gpu.large_matmul_efficiency:.0%} of it"
    )


def _table(curve: Curve, limits: Sequence[Binding], critical_batch_tokens: float | None) -> FittedTable:
    rows = [_cells(point, limit) for point, limit in zip(curve.points, limits, strict=True)]
    wall = curve.wall
    if wall is not None:
        rows.append({**_size_cells(wall), "GPUs": "none", "months": f">{curve.assumptions.months:g}"})
    if critical_batch_tokens is not None:
        runs = [point.run for point in curve.points] + ([] if wall is None else [wall])
        for row, run in zip(rows, runs, strict=True):
            row["tokens"] = f"x{effort_over_minimum(run.batch_tokens, critical_batch_tokens).examples:.2f}"
    shown = [name for name in max(rows, key=len) if name != "expert" or curve.assumptions.sparse]
    columns = [
        Column(
            name=name, priority=PRIORITIES.get(name, 1), heads=name == "FLOP",
            align="left" if name in ("schedule", "binds", "then") else "right",
        )
        for name in shown
    ]  # fmt: skip
    end = curve.linear_scaling_end
    styles = ["yellow" if point is end else None for point in curve.points] + ["red"] * (wall is not None)
    return FittedTable(columns, [[row.get(name, "") for name in shown] for row in rows], styles=styles)


def _size_cells(run: TrainingRun) -> dict[str, str]:
    return {
        "FLOP": flop_text(run.flop),
        "params": count_text(run.params),
        "width": str(run.d_model),
        "layers": str(run.layers),
        "batch": count_text(run.batch_tokens),
    }


def _cells(point: Point, limit: Binding) -> dict[str, str]:
    mix = point.found.mix
    schedule = "zero-bubble" if mix.zero_bubble else (f"1f1b v={mix.interleave}" if math.prod(mix.pipeline) > 1 else "")
    share = limit.memory_gain if limit.limit == "memory" else limit.by_limit[limit.limit]
    return {
        **_size_cells(point.run),
        "GPUs": count_text(point.found.gpus),
        "months": f"{point.months:.2f}",
        "util": f"{point.utilization:.1%}",
        "tensor": f"{math.prod(mix.tensor_model)}x{math.prod(mix.tensor_ff)}",
        "pipe": str(math.prod(mix.pipeline)),
        "data": str(math.prod(mix.data)),
        "expert": str(math.prod(mix.expert)),
        "schedule": f"{schedule} m={mix.microbatches}".strip(),
        "binds": f"{limit.limit} {share:.0%}",
        "then": f"{limit.runner_up} {limit.by_limit[limit.runner_up]:.0%}",
    }


def _ends(curve: Curve, limits: Sequence[Binding]) -> Prose:
    a, end, last = curve.assumptions, curve.linear_scaling_end, curve.last_feasible
    lines = []
    if end is None:
        lines.append("linear scaling does not end on this curve")
    else:
        limit = limits[curve.points.index(end)].limit
        lines.append(
            f"linear scaling ends at {flop_text(end.run.flop)} FLOP ({count_text(end.found.gpus)} GPUs, utilisation "
            f"{end.utilization:.1%} <= {LINEAR_SHARE:g} x {curve.gpu.large_matmul_efficiency:.0%}): {limit} binds"
        )
    if curve.wall is None:
        lost = last is not None and last.utilization < LEAST_UTILIZATION
        lines.append(
            f"the curve stops where utilisation falls below {LEAST_UTILIZATION:.1%}"
            if lost
            else "no size on this curve is out of reach"
        )
    elif last is None:
        lines.append(f"no size is in time: the first, {flop_text(curve.wall.flop)} FLOP, is already too large")
    else:
        lines.append(
            f"the wall lies between {flop_text(last.run.flop)} and {flop_text(curve.wall.flop)} FLOP: above it no "
            f"cluster is in time; {limits[-1].limit} binds below it"
        )
    common = {"months": a.months, "batch_scale": a.batch_scale}
    linear = linear_scaling_end_flop(curve.gpu, **common)
    wall = latency_wall_flop(step_latency_seconds(curve.gpu), **common)
    lines.append(
        f"closed forms (dense, the paper's batch rule, alpha {DENSE_ALPHA:.3f}): linear to {flop_text(linear)}, "
        f"latency wall {flop_text(wall)} FLOP"
    )
    return Prose("\n" + "\n".join(lines))


def _helps(rows: Sequence[Reach]) -> FittedTable:
    names = {"linear to": 1, "feasible to": 1, "closed form: linear": 2, "closed form: latency wall": 3}
    columns = [Column(name="change", heads=True)]
    columns += [Column(name=name, priority=place, align="right") for name, place in names.items()]

    def reached(row: Reach) -> list[float | None]:
        return [row.linear_scaling_ends_flop, row.last_feasible_flop, row.closed_form_linear_end_flop,
                row.closed_form_wall_flop]  # fmt: skip

    cells = [
        [row.change, *(f"{flop_text(flop)} {_gain(flop, base):>7}"
                       for flop, base in zip(reached(row), reached(rows[0]), strict=True))]
        for row in rows
    ]  # fmt: skip
    title = "what would help (training FLOP and the gain; the simulation moves in steps of the size grid)"
    return FittedTable(columns, cells, title)


def _gain(flop: float | None, base: float | None) -> str:
    if flop is None or base is None or math.isinf(flop) or math.isinf(base):
        return "-"
    return f"x{flop / base:.3g}"


def _shapes(shapes: Sequence[Shape]) -> FittedTable:
    used = [
        name
        for name in RESOURCES
        if any(shape.binding is not None and shape.binding.shares[name] >= 0.005 for shape in shapes)
    ]
    columns = [Column(name=name, align="right", heads=True) for name in ("width", "layers")]
    columns += [Column(name=name, align="right") for name in ("params", "GPUs", "months", "util")]
    columns += [Column(name=name, align="right", priority=2) for name in used]
    cells = []
    for shape in shapes:
        line = [str(shape.run.d_model), str(shape.run.layers), count_text(shape.run.params)]
        if shape.point is None or shape.binding is None:
            cells.append([*line, "none", "", "", *[""] * len(used)])
            continue
        found, shares = shape.point, shape.binding.shares
        line += [count_text(found.found.gpus), f"{found.months:.2f}", f"{found.utilization:.1%}"]
        cells.append([*line, *(f"{shares[name]:.0%}" for name in used)])
    styles = ["red" if shape.point is None or shape.binding is None else None for shape in shapes]
    title = "shapes of about equal parameters and FLOP, deepest last (shares of the time)"
    return FittedTable(columns, cells, title, styles)
