"""Sweeps as the one JSON document of `sweep --json`, and as rows of a CSV file. Unknown is null, never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.meshes.layout import layout_to_json
from autotune.sweep.budget import Budget
from autotune.sweep.point import Gap, Point
from autotune.sweep.shapes import Shape
from autotune.sweep.sweep_points import SweepPoints
from autotune.sweep.what_helps import Help

Json = dict[str, Any]


def document(
    sweeps: Sequence[SweepPoints],
    budgets: Sequence[Budget],
    *,
    min_mfu: float | None,
    helps: Mapping[str, Sequence[Help]],
    shapes: Mapping[str, Sequence[Shape]],
) -> Json:
    """All sweeps of one workload; `helps` and `shapes` by family name, empty where not asked."""
    workload = sweeps[0].question.workload
    effort = budgets[0].effort(workload.tokens)
    return {
        "schema": 1,
        "workload": workload.name,
        "sequences": workload.sequences,
        "seq": workload.seq,
        "batch_tokens": workload.tokens,
        "dtype": workload.dtype,
        "tokens": budgets[0].tokens,
        "steps_over_minimum": effort.steps if effort else None,
        "tokens_over_minimum": effort.examples if effort else None,
        "min_mfu": min_mfu,
        "targets": [
            sweep_to_json(one, budget, min_mfu, helps.get(one.family.name), shapes.get(one.family.name))
            for one, budget in zip(sweeps, budgets, strict=True)
        ],
    }


def sweep_to_json(
    found: SweepPoints,
    budget: Budget,
    min_mfu: float | None,
    helps: Sequence[Help] | None,
    shapes: Sequence[Shape] | None,
) -> Json:
    """One kind of machine."""
    largest = None if min_mfu is None else found.largest_above(min_mfu)
    return {
        "target": found.family.name,
        "dtype": found.question.workload.dtype,
        "devices_per_chip": found.family.hardware.devices_per_chip,
        "device_hour_price": budget.device_hour_price,
        "points": [point_to_json(point, budget, found.unconfirmed.get(point.chips)) for point in found.points],
        "limit_changes": [
            {
                "of": change.of,
                "chips": change.chips,
                "below_chips": change.below_chips,
                "from": change.before,
                "to": change.after,
            }
            for change in found.limit_changes
        ],
        "largest_chips_above_min_mfu": largest.chips if largest else None,
        "skipped_chips": list(found.skipped),
        "what_helps": None if helps is None else [help_to_json(row) for row in helps],
        "shapes": None if shapes is None else [shape_to_json(shape, budget) for shape in shapes],
    }


def point_to_json(point: Point | Gap, budget: Budget, unconfirmed: str | None) -> Json:
    """One size; seconds and bytes are per device and step."""
    common = {"chips": point.chips, "devices": point.target.devices, "target": point.target.name}
    if isinstance(point, Gap):
        return common | {
            "layout": None, "text": None, "step_seconds": None, "mfu": None, "mfu_causal": None,
            "tokens_per_second_per_device": None, "tokens_per_second": None,
            "binding": {"resource": point.why.limit, "elasticity": None, "runner_up": None, "margin": None},
            "elasticities": {}, "arcs": {}, "peak_bytes": point.why.least_bytes,
            "capacity_bytes": point.target.hardware.capacity_bytes, "source": "priced", "fits": False,
            "reason": gap_reason(point), "closest": str(point.why.closest) if point.why.closest else None,
            "days": None, "chip_hours": None, "cost_per_million_tokens": None, "cost": None,
        }  # fmt: skip
    return common | {
        "layout": layout_to_json(point.layout),
        "text": str(point.layout),
        "step_seconds": point.step_seconds,
        "mfu": point.mfu,
        "mfu_causal": point.mfu_causal,
        "tokens_per_second_per_device": point.tokens_per_second_per_device,
        "tokens_per_second": point.tokens_per_second_per_device * point.target.devices,
        "binding": {
            "resource": point.limit.resource,
            "elasticity": point.limit.elasticity,
            "runner_up": point.limit.runner_up,
            "margin": point.limit.margin,
        },
        "elasticities": dict(point.shares),
        "arcs": dict(point.arcs),
        "peak_bytes": point.peak_bytes,
        "capacity_bytes": point.target.hardware.capacity_bytes,
        "source": point.source,
        "fits": point.peak_bytes <= point.target.hardware.capacity_bytes,
        "reason": unconfirmed,
        "step_seconds_priced": point.priced.step_seconds,
        "step_seconds_priced_low": point.priced.low_seconds,
        "step_seconds_priced_high": point.priced.high_seconds,
        "peak_bytes_priced": point.priced.peak_bytes,
        "days": budget.days(point),
        "chip_hours": budget.chip_hours(point),
        "cost_per_million_tokens": budget.cost_per_million_tokens(point),
        "cost": budget.cost(point),
    }


def gap_reason(gap: Gap) -> str:
    """Why nothing runs at that size, with the numbers."""
    why, capacity = gap.why, gap.target.hardware.capacity_bytes
    if why.limit == "memory" and why.least_bytes is not None:
        return (
            f"nothing fits: {why.closest} needs least, {why.least_bytes / 2**30:.2f} GiB a device of "
            f"{capacity / 2**30:.2f}"
        )
    return f"no layout is legal: most break {why.rule}" if why.rule else "no layout is legal"


def help_to_json(row: Help) -> Json:
    """One change; the keys of `speedup` and the others are chip counts."""
    return {
        "change": row.change.name,
        "resource": row.change.resource,
        "factor": row.change.factor,
        "speedup": {str(chips): gain for chips, gain in row.speedup.items()},
        "speedup_to_same_loss": {str(chips): gain for chips, gain in row.same_loss.items()},
        "mfu": {str(chips): value for chips, value in row.mfu.items()},
        "largest_chips_above_min_mfu": row.largest_chips,
    }


def shape_to_json(shape: Shape, budget: Budget) -> Json:
    """One depth and width."""
    model = shape.transformer
    return {
        "equal": shape.equal,
        "layers": model.layers,
        "d_model": model.d_model,
        "heads": model.heads,
        "d_ff": model.d_ff,
        "parameters": model.parameters,
        "flops": shape.flops,
        "tensor_seconds": shape.tensor_seconds,
        "bubble_seconds": shape.bubble_seconds,
        "latency_seconds": shape.latency_seconds,
        "point": point_to_json(shape.point, budget, None),
    }


def csv_rows(sweeps: Sequence[SweepPoints], budgets: Sequence[Budget]) -> list[Json]:
    """One flat row a point, each share in a column of its own."""
    rows = []
    names: dict[str, None] = {}
    for found, budget in zip(sweeps, budgets, strict=True):
        for point in found.points:
            row = point_to_json(point, budget, found.unconfirmed.get(point.chips))
            shares = {f"share_{name}": share for name, share in row.pop("elasticities").items()}
            shares |= {f"arc_{name}": arc for name, arc in row.pop("arcs").items()}
            names |= dict.fromkeys(shares)
            binding = row.pop("binding")
            row.pop("layout")
            rows.append({"family": found.family.name, **row, "binding": binding["resource"], **shares})
    plain = dict.fromkeys(key for row in rows for key in row if key not in names)
    return [{key: row.get(key) for key in (*plain, *names)} for row in rows]
