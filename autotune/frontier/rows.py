"""A curve as plain data: one row a model size, and the JSON document of `autotune frontier`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from autotune.frontier.assumptions import MONTH_SECONDS
from autotune.frontier.closed_forms import (
    PAPER_ALPHAS,
    latency_wall_flop,
    linear_scaling_end_flop,
    node_balance,
    step_latency_seconds,
)
from autotune.frontier.critical_batch import effort_over_minimum
from autotune.frontier.curve import Curve, Point
from autotune.frontier.limits import Binding, binding
from autotune.frontier.run import TrainingRun
from autotune.frontier.shapes import Shape
from autotune.frontier.what_helps import Reach

Json = dict[str, Any]

PUBLISHED_RULE_NAMES = {"fixed": "none"}
"""What the published rows call a batch rule, where the command line has another word."""

MEASURED_COLUMNS = (
    "n_gpu",
    "months",
    "utilization",
    "tp_model",
    "tp_ff",
    "pp",
    "interleave_v",
    "dp",
    "ep",
    "microbatches",
    "zero_bubble",
    "dp_by_level",
    "tp_model_by_level",
    "tp_ff_by_level",
    "pp_by_level",
    "ep_by_level",
    "tp_comm_months",
    "dp_comm_months",
    "pp_ep_comm_months",
    "latency_months",
    "binding",
    "binding_share",
    "runner_up",
    "memory_gain",
    "shares",
)
"""Null in the row of an infeasible size."""


def bindings(curve: Curve) -> list[Binding]:
    """The limit that binds each point."""
    return [binding(point.run, curve.gpu, point.found, curve.assumptions.overlap) for point in curve.points]


def curve_rows(curve: Curve, limits: Sequence[Binding], critical_batch_tokens: float | None = None) -> list[Json]:
    """One row a size, the infeasible one last; keys as in the published rows, and what binds.

    `shares` are of one batch's time, by resource. With a critical batch also `steps_over_minimum` and
    `tokens_over_minimum`: what this batch costs in steps and in data (McCandlish et al. 2018).
    """
    rows: list[Json] = []
    for point, limit in zip(curve.points, limits, strict=True):
        rows.append({**_run_columns(curve, point.run), "feasible": 1, **_point_columns(point), **_limit_columns(limit)})
    if curve.wall is not None:
        rows.append({**_run_columns(curve, curve.wall), "feasible": 0, **dict.fromkeys(MEASURED_COLUMNS)})
    if critical_batch_tokens is not None:
        for row in rows:
            over = effort_over_minimum(row["batch_tokens"], critical_batch_tokens)
            row |= {"steps_over_minimum": over.steps, "tokens_over_minimum": over.examples}
    return rows


def _run_columns(curve: Curve, run: TrainingRun) -> Json:
    rule = curve.assumptions.batch_rule
    return {
        "setting": curve.gpu.label,
        "device": curve.gpu.label,
        "batch_rule": PUBLISHED_RULE_NAMES.get(rule, rule),
        "d_model": run.d_model,
        "d_ff": run.d_ff,
        "layers": run.layers,
        "experts": run.experts,
        "params_total": run.params,
        "batch_tokens": run.batch_tokens,
        "train_flop": run.flop,
    }


def _point_columns(point: Point) -> Json:
    mix, time = point.found.mix, point.found.time
    months_per_batch_second = point.run.batches / MONTH_SECONDS
    latency = time.tensor_latency + time.data_latency + time.point_to_point_latency
    return {
        "n_gpu": point.found.gpus,
        "months": point.months,
        "utilization": point.utilization,
        "tp_model": math.prod(mix.tensor_model),
        "tp_ff": math.prod(mix.tensor_ff),
        "pp": math.prod(mix.pipeline),
        "interleave_v": mix.interleave,
        "dp": math.prod(mix.data),
        "ep": math.prod(mix.expert),
        "microbatches": mix.microbatches,
        "zero_bubble": int(mix.zero_bubble),
        "dp_by_level": _by_level(mix.data),
        "tp_model_by_level": _by_level(mix.tensor_model),
        "tp_ff_by_level": _by_level(mix.tensor_ff),
        "pp_by_level": _by_level(mix.pipeline),
        "ep_by_level": _by_level(mix.expert),
        "tp_comm_months": float(time.tensor[0]) * months_per_batch_second,
        "dp_comm_months": float(time.data[0]) * months_per_batch_second,
        "pp_ep_comm_months": float(time.point_to_point[0]) * months_per_batch_second,
        "latency_months": float(latency[0]) * months_per_batch_second,
    }


def _by_level(degree: tuple[int, ...]) -> str:
    return "x".join(str(part) for part in degree)


def _limit_columns(limit: Binding) -> Json:
    return {
        "binding": limit.limit,
        "binding_share": limit.memory_gain if limit.limit == "memory" else limit.by_limit[limit.limit],
        "runner_up": limit.runner_up,
        "memory_gain": limit.memory_gain,
        "shares": limit.shares,
    }


def document(
    curve: Curve,
    limits: Sequence[Binding],
    *,
    critical_batch_tokens: float | None = None,
    helps: Sequence[Reach] | None = None,
    shapes: Sequence[Shape] | None = None,
) -> Json:
    """Everything about one curve as JSON. FLOP figures are null where the curve, or the formula, never gets there."""
    assumptions, end, last = curve.assumptions, curve.linear_scaling_end, curve.last_feasible
    result: Json = {
        "schema": 1,
        "hardware": curve.gpu.name,
        "assumptions": asdict(assumptions),
        "rows": curve_rows(curve, limits, critical_batch_tokens),
        "linear_scaling_ends_flop": None if end is None else end.run.flop,
        "latency_wall": {
            "last_feasible_flop": None if last is None else last.run.flop,
            "first_infeasible_flop": None if curve.wall is None else curve.wall.flop,
        },
        "closed_forms": closed_forms(curve),
    }
    if helps is not None:
        result["what_helps"] = [_finite(asdict(row)) for row in helps]
    if shapes is not None:
        result["equal_parameters"] = [shape_row(shape) for shape in shapes]
    return result


def closed_forms(curve: Curve) -> Json:
    """The paper's formulas for this GPU and deadline, at its three exponents of batch over depth."""
    gpu, months, batch_scale = curve.gpu, curve.assumptions.months, curve.assumptions.batch_scale
    node, latency = node_balance(gpu), step_latency_seconds(gpu)
    return {
        "step_latency_seconds": latency,
        "nanobatch_tokens": node.nanobatch_tokens,
        "activation_shard": node.activation_shard,
        "by_alpha": [
            _finite(
                {
                    "alpha": alpha,
                    "linear_scaling_end_flop": linear_scaling_end_flop(
                        gpu, alpha=alpha, months=months, batch_scale=batch_scale
                    ),
                    "latency_wall_flop": latency_wall_flop(
                        latency, alpha=alpha, months=months, batch_scale=batch_scale
                    ),
                }
            )
            for alpha in PAPER_ALPHAS
        ],
    }


def _finite(row: Json) -> Json:
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in row.items()}


def shape_row(shape: Shape) -> Json:
    """One depth and width as plain data; figures are null where no cluster is in time."""
    row: Json = {
        "d_model": shape.run.d_model,
        "layers": shape.run.layers,
        "params_total": shape.run.params,
        "train_flop": shape.run.flop,
        "depth_over_rule": shape.depth_over_rule,
        "n_gpu": None,
        "months": None,
        "utilization": None,
        "binding": None,
        "shares": None,
    }
    if shape.point is not None and shape.binding is not None:
        row |= {
            "n_gpu": shape.point.found.gpus,
            "months": shape.point.months,
            "utilization": shape.point.utilization,
            "binding": shape.binding.limit,
            "shares": shape.binding.shares,
        }
    return row
