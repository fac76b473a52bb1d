"""A curve: the smallest cluster in time for one model size after another, until none is."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.frontier.assumptions import MONTH_SECONDS, Assumptions
from autotune.frontier.gpu import Gpu
from autotune.frontier.run import TrainingRun, widths
from autotune.frontier.search import FastestMix, smallest_cluster

LINEAR_SHARE = 0.8
"""Linear scaling has ended once utilisation is at most this share of what large matmuls reach."""
LEAST_UTILIZATION = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run that is in time, on the smallest cluster for it."""

    run: TrainingRun
    found: FastestMix
    months: float
    utilization: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points by rising model size. `wall`: the first run that no cluster finishes in time; None if none was met.

    `wall` is None where the widths ran out or utilisation fell below 0.001 before any run was too large.
    """

    gpu: Gpu
    assumptions: Assumptions
    points: tuple[Point, ...]
    wall: TrainingRun | None

    @property
    def linear_scaling_end(self) -> Point | None:
        """The first point with at most 0.8 of the utilisation large matmuls reach. Later ones may lie above again."""
        threshold = LINEAR_SHARE * self.gpu.large_matmul_efficiency
        return next((point for point in self.points if point.utilization <= threshold), None)

    @property
    def last_feasible(self) -> Point | None:
        return self.points[-1] if self.points else None


def point(run: TrainingRun, gpu: Gpu, found: FastestMix) -> Point:
    """Run time in months and utilisation (of the peak at the highest clock) of one way to do a run."""
    seconds = found.batch_seconds
    return Point(
        run=run,
        found=found,
        months=run.batches * seconds / MONTH_SECONDS,
        utilization=run.batch_flop / (found.gpus * gpu.peak_flop_per_second) / seconds,
    )


def curve(gpu: Gpu, assumptions: Assumptions) -> Curve:
    """Every width in turn until one is infeasible or utilisation is lost."""
    points: list[Point] = []
    for d_model in widths():
        run = assumptions.run(d_model)
        found = smallest_cluster(run, gpu, assumptions.deadline_seconds, assumptions.overlap)
        if found is None:
            return Curve(gpu=gpu, assumptions=assumptions, points=tuple(points), wall=run)
        points.append(point(run, gpu, found))
        if points[-1].utilization < LEAST_UTILIZATION:
            break
    return Curve(gpu=gpu, assumptions=assumptions, points=tuple(points), wall=None)
