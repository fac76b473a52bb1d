"""The sweep of one kind of machine: a point at every size, some of them compiled, and the ways to look at them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autotune.analysis.analysis import Analysis
from autotune.analysis.limits import elasticities
from autotune.shown import Shown
from autotune.sweep.budget import Budget
from autotune.sweep.document import document
from autotune.sweep.point import Point, Question, limit_of, point_at, rates
from autotune.sweep.sizes import Family
from autotune.sweep.sweep_points import SweepPoints

if TYPE_CHECKING:
    from rich.console import RenderableType

SWEEP_WIDTH = 200
"""Columns of a sweep's text, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sweep(SweepPoints, Shown):
    """Points and gaps of one kind of machine, with the ways to look at them."""

    def headline(self) -> str:
        """Workload, machine, sizes, and the layout at the largest of them that some layout fits."""
        asked = f"{self.question.workload.name} on {self.family.name}, {len(self.points)} sizes"
        if not self.feasible:
            return f"{asked}: nothing fits"
        last = self.feasible[-1]
        return f"{asked}: at {last.chips:,} chips {last.layout}, {last.step_seconds:.4g} s a step ({last.source})"

    def screen(self) -> RenderableType:
        """The screen of `autotune sweep`."""
        from autotune.sweep.screen import render

        return render([self], [Budget()], min_mfu=None, helps={}, shapes={})

    def text(self, width: int = SWEEP_WIDTH) -> str:
        """As of `Shown`; its table has ten columns."""
        return Shown.text(self, width)

    def to_json(self) -> str:
        """The document of `autotune sweep --json`, as text."""
        return json.dumps(document([self], [Budget()], min_mfu=None, helps={}, shapes={}), allow_nan=False)


def sweep(question: Question, family: Family, sizes: Sequence[int], arcs: bool = True) -> Sweep:
    """A point at every one of those sizes that the machine comes in; the others are `skipped`."""
    targets = {chips: family.target(chips) for chips in sizes}
    points = tuple(point_at(question, target, arcs) for target in targets.values() if target is not None)
    skipped = tuple(chips for chips, target in targets.items() if target is None)
    return Sweep(family=family, question=question, points=points, skipped=skipped, unconfirmed={})


def to_confirm(points: Sequence[Point], count: int) -> tuple[Point, ...]:
    """`count` points spread evenly over the sizes, the smallest and the largest among them (one: the largest)."""
    if count >= len(points):
        return tuple(points)
    if count <= 1:
        return tuple(points[-1:]) if count else ()
    return tuple(points[round(index * (len(points) - 1) / (count - 1))] for index in range(count))


def confirmed(found: Sweep, count: int, compiled: Callable[[Point], Analysis | str]) -> Sweep:
    """The sweep with some of its points compiled. `compiled(point)`: the analysis, or why there is none.

    A compiled point has the compiler's time, shares and peak; its layout is the one that prices chose.
    """
    words: dict[int, str] = dict(found.unconfirmed)
    changed: dict[int, Point] = {}
    for point in to_confirm(found.feasible, count):
        outcome = compiled(point)
        if isinstance(outcome, str):
            words[point.chips] = outcome
        else:
            changed[point.chips] = _compiled(found.question, point, outcome)
            if outcome.memory.peak_bytes > point.target.hardware.capacity_bytes:
                words[point.chips] = "compiled, and its peak is over the capacity"
    points = tuple(changed.get(point.chips, point) for point in found.points)
    return replace(found, points=points, unconfirmed=words)


def _compiled(question: Question, point: Point, analysis: Analysis) -> Point:
    prediction = analysis.prediction
    shares = elasticities(prediction.by_resource())
    return replace(
        point,
        **rates(question.workload, point.target, prediction.step_seconds),
        shares=shares,
        limit=limit_of(shares, point.arcs),
        peak_bytes=analysis.memory.peak_bytes,
        source="compiled",
    )
