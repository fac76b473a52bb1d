"""Short and fat against deep and thin: what the shape of a model costs at equal parameters and equal FLOP."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.curve import Point, point
from autotune.frontier.gpu import Gpu
from autotune.frontier.limits import Binding, binding
from autotune.frontier.run import TrainingRun, depth, near, widths
from autotune.frontier.search import smallest_cluster

DEPTH_FACTORS = tuple(2 ** (i / 2) for i in range(-8, 9))
"""A sixteenth to sixteen times a depth, in steps of the square root of 2."""
LEAST_LAYERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One depth and width: the point of its smallest cluster in time and what binds there; None if none is in time.

    `depth_over_rule`: layers over what the depth rule gives this width.
    """

    run: TrainingRun
    depth_over_rule: float
    point: Point | None
    binding: Binding | None


def shape(run: TrainingRun, gpu: Gpu, assumptions: Assumptions) -> Shape:
    """One run of any shape on the smallest cluster that is in time."""
    found = smallest_cluster(run, gpu, assumptions.deadline_seconds, assumptions.overlap)
    return Shape(
        run=run,
        depth_over_rule=run.layers / depth(run.d_model, run.d_ff),
        point=None if found is None else point(run, gpu, found),
        binding=None if found is None else binding(run, gpu, found, assumptions.overlap),
    )


def equal_parameters(run: TrainingRun, gpu: Gpu, assumptions: Assumptions) -> list[Shape]:
    """Shapes with the active parameters of `run` within 4 %, deepest last; a sixteenth to sixteen times its depth.

    Depths have few prime factors and widths many factors of two, as in a curve: otherwise what divides them, not
    their shape, would decide. Data and batch follow the parameters, so the FLOP agree within 8 %.
    """
    depths = sorted({near(run.layers * factor) for factor in DEPTH_FACTORS})
    runs = (
        assumptions.run(round_width(math.sqrt(run.active_params / (8 * layers))), layers)
        for layers in depths
        if layers >= LEAST_LAYERS
    )
    return [shape(run, gpu, assumptions) for run in runs]


def round_width(width: float) -> int:
    """The nearest width with at most six significant binary digits, at least 256.

    >>> round_width(53248), round_width(75300), round_width(10)
    (53248, 75776, 256)
    """
    step = max(256, 2 ** (math.floor(math.log2(width)) - 6))
    return max(256, step * round(width / step))


def shape_map(gpu: Gpu, assumptions: Assumptions) -> list[Shape]:
    """Depth x width: widths of the curve up to 720 thousand, at a sixteenth to sixteen times the rule's depth."""
    rows: list[Shape] = []
    for d_model in widths()[:48:3]:
        rule = depth(d_model, 4 * d_model)
        depths = sorted({near(rule * factor) for factor in DEPTH_FACTORS})
        rows += [shape(assumptions.run(d_model, layers), gpu, assumptions) for layers in depths]
    return rows
