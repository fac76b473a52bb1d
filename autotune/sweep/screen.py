"""Sweeps on a terminal: tables, and the sentences that answer the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType

from autotune.meshes.transformer import NOTABLE_MASK
from autotune.sweep.budget import Budget
from autotune.sweep.document import gap_reason
from autotune.sweep.point import Gap, Point
from autotune.sweep.shapes import Shape
from autotune.sweep.sweep_points import SweepPoints, binding_name
from autotune.sweep.what_helps import Help
from autotune.tables import Column, FittedTable, Prose

FULL = 0.9
"""Share of the memory above which a priced layout may turn out too large: the closed form's peak is off by a tenth in
one compiled space of five (README)."""

RESOURCE_NAMES = {"matmul": "compute", "hbm": "memory bandwidth", "memory": "memory capacity"}
"""How limits are named to a reader; the others as they are."""


def render(
    sweeps: Sequence[SweepPoints],
    budgets: Sequence[Budget],
    *,
    min_mfu: float | None,
    helps: Mapping[str, Sequence[Help]],
    shapes: Mapping[str, Sequence[Shape]],
) -> Group:
    """Everything asked, one kind of machine after another, then all side by side."""
    workload = sweeps[0].question.workload
    parts: list[RenderableType] = [Prose(f"{workload.name} = {workload.tokens:,} tokens a step")]
    if workload.taken:
        parts.append(Prose(f"taken: {workload.taken}"))
    effort = budgets[0].effort(workload.tokens)
    if effort:
        parts.append(
            Prose(
                f"with a critical batch of {budgets[0].critical_tokens:,.0f} tokens it reaches a loss in "
                f"{effort.steps:.2f} x the least steps and {effort.examples:.2f} x the least tokens"
            )
        )
    for found, budget in zip(sweeps, budgets, strict=True):
        parts += [Prose(""), _points(found, budget), *_sentences(found, min_mfu)]
        if found.family.name in helps:
            parts += [Prose(""), _helps(helps[found.family.name], min_mfu)]
        if found.family.name in shapes:
            parts += [Prose(""), _shapes(shapes[found.family.name])]
    if len(sweeps) > 1:
        parts += [Prose(""), _side_by_side(sweeps, budgets)]
    if workload.transformer is not None:
        parts.append(
            Prose(
                "searched: remat policies by name, reduce=pass and whole logits; tune also tries sets of arrays, "
                "reduce=step and vocab_tiles"
            )
        )
    if workload.model_note:
        parts += [Prose(""), Prose(f"note: {workload.model_note}")]
    return Group(*parts)


def limit_word(resource: str) -> str:
    """The limit as a reader knows it."""
    return RESOURCE_NAMES.get(resource, resource)


def _points(found: SweepPoints, budget: Budget) -> FittedTable:
    per_chip = found.family.hardware.devices_per_chip
    counted = "chips = JAX devices" if per_chip == 1 else f"{per_chip} JAX devices a chip"
    columns = [
        Column(name="chips", align="right", heads=True),
        Column(name="target", priority=5),
        Column(name="step", align="right"),
        Column(name="MFU", align="right"),
        Column(name="tok/s/device", align="right", priority=2),
        Column(name="limit (elasticity)"),
        Column(name="next", priority=6),
        Column(name="layout", heads=True),
        Column(name="days", align="right", priority=2),
        Column(name="chip-hours", align="right", priority=4),
        Column(name="per M tokens", align="right", priority=3),
        Column(name="cost", align="right", priority=3),
        Column(name="from", priority=7),
    ]
    rows = []
    for point in found.points:
        if isinstance(point, Gap):
            words = gap_reason(point)
            rows.append(
                [str(point.chips), point.target.name, "", "", "", limit_word(point.why.limit), "", words, *[""] * 5]
            )
            continue
        limit = point.limit
        days, hours, price = budget.days(point), budget.chip_hours(point), budget.cost_per_million_tokens(point)
        cost = budget.cost(point)
        then = None if limit.runner_up is None else limit.elasticity - (limit.margin or 0.0)
        rows.append(
            [
                str(point.chips),
                point.target.name,
                seconds_text(point.step_seconds),
                "-" if point.mfu is None else f"{100 * point.mfu:.1f} %",
                f"{point.tokens_per_second_per_device:,.0f}",
                f"{limit_word(limit.resource)} {limit.elasticity:.2f}",
                "" if limit.runner_up is None else f"{limit_word(limit.runner_up)} {then:.2f}",
                str(point.layout),
                "" if days is None else f"{days:,.1f}",
                "" if hours is None else f"{hours:,.0f}",
                "" if price is None else f"{price:.4g}",
                "" if cost is None else f"{cost:,.0f}",
                point.source,
            ]
        )
    return FittedTable(columns, rows, f"{found.family.name}: best layout by size ({counted})")


def _sentences(found: SweepPoints, min_mfu: float | None) -> list[Prose]:
    words = {"binding": "the limit that binds", "loss": "the largest loss beside compute"}
    lines = [
        Prose(
            f"at {change.chips} chips {words[change.of]} changes from {limit_word(change.before)} to "
            f"{limit_word(change.after)}"
        )
        for change in found.limit_changes
    ]
    if not any(change.of == "binding" for change in found.limit_changes):
        lines.insert(0, Prose(f"{limit_word(binding_name(found.points[0]))} binds at every size"))
    if min_mfu is not None:
        largest, asked = found.largest_above(min_mfu), f"{100 * min_mfu:g} % of peak"
        if largest is None:
            lines.append(Prose(f"no size reaches {asked}"))
        else:
            reached = f"{100 * (largest.mfu or 0.0):.1f} %"
            last = ", the largest asked" if largest is found.points[-1] else ""
            lines.append(Prose(f"largest size at {asked} or more: {largest.chips} chips ({reached}{last})"))
    if found.skipped:
        lines.append(Prose(f"not offered in sizes of {', '.join(map(str, found.skipped))} chips"))
    for chips, reason in found.unconfirmed.items():
        lines.append(Prose(f"{chips} chips, compiled to confirm: {reason}"))
    full = [
        str(point.chips)
        for point in found.feasible
        if point.source == "priced" and point.peak_bytes > FULL * point.target.hardware.capacity_bytes
    ]
    if full:
        lines.append(
            Prose(
                f"at {', '.join(full)} chips the layout is priced at over {100 * FULL:g} % of the memory, and priced "
                "bytes are off by a tenth at times: it may not compile"
            )
        )
    masked = [point for point in found.feasible if (point.mfu_causal or 0.0) < (1 - NOTABLE_MASK) * (point.mfu or 0.0)]
    if masked:
        causal = ", ".join(f"{100 * (point.mfu_causal or 0.0):.1f} % at {point.chips}" for point in masked)
        lines.append(Prose(f"MFU counts attention in full; without what a causal mask hides: {causal} chips"))
    ratios = [point.step_seconds / point.priced.step_seconds for point in found.feasible if point.source == "compiled"]
    if ratios:
        lines.append(
            Prose(f"compiled time over priced time, {len(ratios)} sizes: {min(ratios):.2f} to {max(ratios):.2f}")
        )
    else:
        lines.append(Prose("nothing was compiled: these are closed-form prices (--compile N compiles N of them)"))
    return lines


def _helps(rows: Sequence[Help], min_mfu: float | None) -> FittedTable:
    columns = [Column(name="change", heads=True)]
    columns += [Column(name=f"{chips} chips", align="right") for chips in rows[0].speedup]
    if min_mfu is not None:
        columns.append(Column(name=f"largest at {100 * min_mfu:g} %", align="right", priority=2))
    cells = []
    for row in rows:
        line = [row.change.name, *("nothing fits" if gain is None else f"{gain:.2f}" for gain in row.speedup.values())]
        cells.append([*line, *([] if min_mfu is None else [str(row.largest_chips or "none")])])
        if any(gain is not None for gain in row.same_loss.values()):
            line = [
                "  the same, to one loss",
                *("" if gain is None else f"{gain:.2f}" for gain in row.same_loss.values()),
            ]
            cells.append([*line, *([] if min_mfu is None else [""])])
    return FittedTable(columns, cells, "what would help: tokens a second, x what they are")


def _shapes(rows: Sequence[Shape]) -> FittedTable:
    point = rows[0].point
    columns = [
        Column(name="equal", heads=True),
        Column(name="layers x width", align="right", heads=True),
        Column(name="parameters", align="right", priority=3),
        Column(name="FLOPs", align="right", priority=3),
        Column(name="step", align="right"),
        Column(name="MFU", align="right"),
        Column(name="tensor", align="right", priority=2),
        Column(name="bubble", align="right", priority=2),
        Column(name="latency", align="right", priority=2),
        Column(name="layout", heads=True),
    ]
    cells = []
    for row in rows:
        model = row.transformer
        line = [row.equal, f"{model.layers} x {model.d_model}", f"{model.parameters:.3g}", f"{row.flops:.3g}"]
        if isinstance(row.point, Gap):
            cells.append([*line, "", "", "", "", "", gap_reason(row.point)])
            continue
        waits = [seconds_text(value or 0.0) for value in (row.tensor_seconds, row.bubble_seconds, row.latency_seconds)]
        mfu = f"{100 * (row.point.mfu or 0.0):.1f} %"
        cells.append([*line, seconds_text(row.point.step_seconds), mfu, *waits, str(row.point.layout)])
    return FittedTable(columns, cells, f"model shapes on {point.chips} chips")


def _side_by_side(sweeps: Sequence[SweepPoints], budgets: Sequence[Budget]) -> FittedTable:
    priced = any(budget.device_hour_price is not None for budget in budgets)
    title = "side by side: tokens a second of a device" + (" (price of a million tokens)" if priced else "")
    columns = [Column(name="chips", align="right", heads=True)]
    columns += [Column(name=found.family.name, align="right") for found in sweeps]
    rows = []
    for chips in sorted({point.chips for found in sweeps for point in found.points}):
        cells = []
        for found, budget in zip(sweeps, budgets, strict=True):
            point = next((point for point in found.points if point.chips == chips), None)
            cells.append(_cell(point, budget))
        rows.append([str(chips), *cells])
    return FittedTable(columns, rows, title)


def _cell(point: Point | Gap | None, budget: Budget) -> str:
    if point is None:
        return "not offered"
    if isinstance(point, Gap):
        return limit_word(point.why.limit)
    price = budget.cost_per_million_tokens(point)
    return f"{point.tokens_per_second_per_device:,.0f}" + ("" if price is None else f" ({price:.4g})")


def seconds_text(seconds: float) -> str:
    """Three digits with their unit."""
    if seconds == 0:
        return "0"
    size, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * size:.3g} {unit}"
