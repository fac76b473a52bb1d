"""Short and fat against deep and thin: what the shape of a model costs at equal parameters and equal FLOP."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.curve import Point, point
from autotune.frontier.gpu import Gpu
from autotune.frontier.limits import Binding, binding
from autotune.frontier.run import TrainingRun, depth, widths
from autotune.frontier.search import smallest_cluster

DEPTH_FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16)


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
    """Shapes with the parameters of `run`, deepest last: each width of the grid with the depth that keeps 2 d f L.

    Depths are multiples of 8, so that pipelines divide them; the parameters then agree within 10 %, or the width is
    left out. Data and batch follow the parameters, so the FLOP agree as closely as their square.
    """
    rows: list[Shape] = []
    for d_model in reversed(shape_widths(run.d_model)):
        layers = 8 * round(run.active_params / (2 * d_model * 4 * d_model) / 8)
        if layers < 8 or abs(layers * 8 * d_model**2 / run.active_params - 1) > 0.1:
            continue
        rows.append(shape(assumptions.run(d_model, layers), gpu, assumptions))
    return rows


def shape_widths(around: int) -> list[int]:
    """Widths from a quarter to four times a given one: the rounder ones of the grid, {k * 2^i: k in 1, 3, 5, 7}."""
    grid = sorted({k * 2**i for k in (1, 3, 5, 7) for i in range(8, 24)})
    return [d for d in grid if around / 4 <= d <= around * 4]


def shape_map(gpu: Gpu, assumptions: Assumptions) -> list[Shape]:
    """Depth x width over the curve's widths: every fourth width, depths from a sixteenth to sixteen times the rule's."""
    rows: list[Shape] = []
    for d_model in widths()[:48:3]:
        rule = depth(d_model, 4 * d_model)
        for factor in DEPTH_FACTORS:
            layers = 8 * round(rule * factor / 8)
            if layers >= 8:
                rows.append(shape(assumptions.run(d_model, layers), gpu, assumptions))
    return rows
