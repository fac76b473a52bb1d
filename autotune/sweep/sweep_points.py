"""The points of one kind of machine at rising sizes: where the limit changes, how far a utilisation holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autotune.sweep.point import Gap, Point, Question, limit_of
from autotune.sweep.sizes import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChange:
    """Between two neighbouring sizes the limit changes; `before` may be "memory": nothing fitted.

    `of`: "binding", the limit that binds; "loss", the largest of the limits other than compute: what the utilisation
    is lost to.
    """

    of: str
    chips: int
    below_chips: int
    before: str
    after: str


def binding_name(point: Point | Gap) -> str:
    """The limit that binds; of a gap what keeps everything out."""
    return point.limit.resource if isinstance(point, Point) else point.why.limit


def loss_name(point: Point | Gap) -> str:
    """The largest limit other than compute."""
    if isinstance(point, Gap):
        return point.why.limit
    return limit_of({**point.shares, "matmul": 0.0}, point.arcs).resource


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SweepPoints:
    """Points and gaps of one kind of machine, sizes rising. `skipped`: chip counts the machine does not come in.

    `unconfirmed`: chips -> why the compiler would not take the layout of that point.
    """

    family: Family
    question: Question
    points: tuple[Point | Gap, ...]
    skipped: tuple[int, ...]
    unconfirmed: dict[int, str]

    @property
    def feasible(self) -> tuple[Point, ...]:
        """Sizes at which some layout runs."""
        return tuple(point for point in self.points if isinstance(point, Point))

    @property
    def limit_changes(self) -> tuple[LimitChange, ...]:
        """Each size at which another limit binds than at the size before it."""
        return (*self._changes("binding", binding_name), *self._changes("loss", loss_name))

    def _changes(self, of: str, name: Callable[[Point | Gap], str]) -> Iterator[LimitChange]:
        for below, point in zip(self.points, self.points[1:], strict=False):
            if name(below) != name(point):
                yield LimitChange(
                    of=of, chips=point.chips, below_chips=below.chips, before=name(below), after=name(point)
                )

    def largest_above(self, mfu: float) -> Point | None:
        """The largest size whose utilisation is at least `mfu`; None when none is."""
        above = [point for point in self.feasible if point.mfu is not None and point.mfu >= mfu]
        return above[-1] if above else None
