"""The proof on two hosts as a table: what is chosen at each rate of the link, what is best, what doubling it does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

TOP = 3
"""Layouts the tuner measures, best predicted first."""
TOLERANCE = 0.05
"""The chosen layout counts as found when it is within this much of the best, or tied with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layout of one workload at one rate. Seconds of one step; `link_share`: of the predicted critical path."""

    workload: str
    rate_megabit: int
    layout: str
    predicted: float | None
    measured: float | None
    standard_error: float | None
    samples: int
    binding: str | None
    link_share: float
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload at one rate: what the tuner chooses (best measured of the TOP best predicted), what is best."""

    workload: str
    rate_megabit: int
    rows: tuple[Row, ...]
    chosen: Row
    best: Row

    @property
    def loss(self) -> float:
        """Measured time of the chosen layout over the best one's, less one."""
        return self.chosen.measured / self.best.measured - 1

    @property
    def found(self) -> bool:
        noise = 2 * math.hypot(self.chosen.standard_error or 0.0, self.best.standard_error or 0.0)
        return self.loss <= TOLERANCE or self.chosen.measured - self.best.measured <= noise


def cases(rows: Sequence[Row]) -> list[Case]:
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row.measured is not None and row.predicted is not None:
            groups.setdefault((row.workload, row.rate_megabit), []).append(row)
    found = []
    for (workload, rate), members in groups.items():
        top = sorted(members, key=lambda row: row.predicted)[:TOP]
        chosen, best = (min(some, key=lambda row: row.measured) for some in (top, members))
        found.append(Case(workload=workload, rate_megabit=rate, rows=tuple(members), chosen=chosen, best=best))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Turns of one layout at a rate and at its double, taken in pairs: a machine that drifts moves both of a pair.

    Mean seconds of a step in each turn; `slow_seconds` at `rate_megabit`, `fast_seconds` at twice that.
    """

    workload: str
    layout: str
    rate_megabit: int
    slow_seconds: tuple[float, ...] = ()
    fast_seconds: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Median over pairs of fast over slow."""
        return statistics.median(self._ratios())

    @property
    def standard_error(self) -> float:
        """Of the median: sqrt(pi / 2) of the mean's, as for normal noise; infinite for a single pair."""
        ratios = self._ratios()
        if len(ratios) < 2:
            return math.inf
        return math.sqrt(math.pi / 2) * statistics.stdev(ratios) / math.sqrt(len(ratios))

    def _ratios(self) -> list[float]:
        return [fast / slow for slow, fast in zip(self.slow_seconds, self.fast_seconds, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubling:
    """One layout before and after the link's rate doubled: change of the step over the step, and its standard error."""

    workload: str
    layout: str
    rate_megabit: int
    measured: float
    predicted: float
    standard_error: float


def doublings(rows: Sequence[Row], pairs: Sequence[Pairs]) -> list[Doubling]:
    """Of every pair of rates: both changes are over the measured step at the lower rate."""
    predicted = {(row.workload, row.rate_megabit, row.layout): row.predicted for row in rows}
    found = []
    for one in pairs:
        slow = predicted[one.workload, one.rate_megabit, one.layout]
        fast = predicted[one.workload, 2 * one.rate_megabit, one.layout]
        assert slow and fast, "only a layout with predictions is chosen"
        found.append(
            Doubling(
                workload=one.workload,
                layout=one.layout,
                rate_megabit=one.rate_megabit,
                measured=1 - one.ratio,
                predicted=(slow - fast) / statistics.median(one.slow_seconds),
                standard_error=one.standard_error,
            )
        )
    return found


def verdicts(rows: Sequence[Row], pairs: Sequence[Pairs]) -> list[tuple[str, bool]]:
    """What is claimed of the table, and whether it holds. The link is slow below 1 Gbit/s here, fast above."""
    found, changes = cases(rows), doublings(rows, pairs)
    share = sum(case.found for case in found) / len(found)
    slow = [case for case in found if case.rate_megabit < 1000]
    fast = [case for case in found if case.rate_megabit >= 1000]
    named = sum(case.chosen.binding.endswith("@network") for case in slow)
    unnamed = sum(not case.chosen.binding.endswith("@network") for case in fast)
    errors = [abs(row.predicted / row.measured - 1) for case in found for row in case.rows]
    lines = [
        (f"chosen within {TOLERANCE:.0%} of the best, or tied: {share:.0%} of {len(found)} (>= 90 %)", share >= 0.9),
        (f"slow link named as the limit: {named} of {len(slow)}", named == len(slow)),
        (f"fast link not named: {unnamed} of {len(fast)}", unnamed == len(fast)),
        (f"median error of {len(errors)} predicted steps: {statistics.median(errors):.1%} (<= 20 %)",
         statistics.median(errors) <= 0.2),
    ]  # fmt: skip
    if changes:
        worst = max(abs(one.measured - one.predicted) for one in changes)
        noise = max(one.standard_error for one in changes)
        lines += [
            (f"rate doubled: predicted and measured change differ by at most {worst:.1%} of the step (<= 10 %)",
             worst <= 0.1),
            (f"standard error of those ratios: at most {noise:.1%} (< 1.5 %)", noise < 0.015),
        ]  # fmt: skip
    return lines


def every_layout(rows: Sequence[Row]) -> list[str]:
    """One line for each layout, the fastest first."""
    head = f"{'workload':10s}{'Mbit/s':>7s}  {'layout':24s}{'predicted':>11s}{'measured':>11s}{'error':>8s}{'+-':>7s}"
    return [f"{head}  binding", *(_line(row) for row in sorted(rows, key=lambda row: row.measured or math.inf))]


def table(rows: Sequence[Row], pairs: Sequence[Pairs]) -> list[str]:
    """The cases, the doublings and the verdicts as lines."""
    lines = [
        f"{'workload':10s}{'Mbit/s':>7s}  {'chosen':24s}{'best':24s}{'loss':>7s}  {'binding':26s}{'median error':>12s}"
    ]
    for case in cases(rows):
        error = statistics.median(abs(row.predicted / row.measured - 1) for row in case.rows)
        lines.append(
            f"{case.workload:10s}{case.rate_megabit:7d}  {case.chosen.layout:24s}{case.best.layout:24s}"
            f"{case.loss:7.1%}  {case.chosen.binding:26s}{error:12.1%}"
        )
    lines += ["", "rate doubled: change of the chosen layout's step"]
    lines += [
        f"{one.workload:10s}{one.rate_megabit:7d}  {one.layout:24s} measured {one.measured:6.1%}"
        f" +- {one.standard_error:.1%}  predicted {one.predicted:6.1%}"
        for one in doublings(rows, pairs)
    ]
    return [*lines, "", *(f"{'holds ' if passed else 'FAILS '} {text}" for text, passed in verdicts(rows, pairs))]


def _line(row: Row) -> str:
    if row.measured is None:
        return f"{row.workload:10s}{row.rate_megabit:7d}  {row.layout:24s}{row.failure}"
    error = f"{row.predicted / row.measured - 1:+8.1%}" if row.predicted else f"{'':8s}"
    noise = (row.standard_error or 0.0) / row.measured
    return (
        f"{row.workload:10s}{row.rate_megabit:7d}  {row.layout:24s}{row.predicted * 1e3:8.1f} ms"
        f"{row.measured * 1e3:8.1f} ms{error}{noise:7.1%}  {row.binding} ({row.link_share:.0%} link)"
    )
