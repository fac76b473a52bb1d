"""Short real runs of a few layouts, side by side, and what they took. JAX-free: a Runner touches the devices.

Candidates take turns in rounds, so that a machine that drifts favours none; the first one, the control, runs at both
ends of every round and shows the drift. A turn is one warm-up step, dropped, and then some steps with fresh data each.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from autotune.meshes.layout import Layout

SIGMAS = 3.0
"""A layout is clearly behind once its time less this many standard errors exceeds the best one's plus as many."""
MINIMUM_ROUNDS = 3
"""Fewer turns say nothing about the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What short real runs of one layout took; wall seconds per step, bytes per device.

    `turn_seconds`: mean step time of each turn, in order. `steps`: timed steps of all turns, warm-up not counted.
    `peak_bytes`: the allocator's high-water mark; None where the device reports none (CPU) or another layout set it.
    `compile_seconds`: tracing, lowering and compiling in the process that ran it; no part of the step time.
    `rounds`: of the whole session that this layout took part in before it was dropped or the budget ended.
    `control_drift`: change of the control layout's median between the first and second half of its turns (0.02 = 2 %
    slower); None with fewer than four.
    """

    turn_seconds: tuple[float, ...]
    steps: int
    rounds: int
    compile_seconds: float
    peak_bytes: int | None
    control_drift: float | None

    def __post_init__(self) -> None:
        if not self.turn_seconds or min(self.turn_seconds) <= 0:
            raise ValueError(f"Measurement: turn_seconds={self.turn_seconds} must hold turns, each above 0")

    @property
    def samples(self) -> int:
        """Turns timed."""
        return len(self.turn_seconds)

    @property
    def median_seconds(self) -> float:
        """Median over turns of the mean step time."""
        return statistics.median(self.turn_seconds)

    @property
    def spread_seconds(self) -> float | None:
        """Distance between the quartiles of the turns; None for a single turn."""
        if self.samples < 2:
            return None
        low, _, high = statistics.quantiles(self.turn_seconds, n=4, method="inclusive")
        return high - low

    @property
    def standard_error(self) -> float | None:
        """Of the median: sqrt(pi / 2) of the mean's, s / sqrt(n), as for normal noise; None for a single turn."""
        if self.samples < 2:
            return None
        return math.sqrt(math.pi / 2) * statistics.stdev(self.turn_seconds) / math.sqrt(self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailure:
    """A layout that could not be run: "oom", "failed" (an error was raised), "crash" (its process died), "timeout".

    `phase`: "build" (the user's own code, tracing), "compile", or "run". `transient`: its process was ended from
    outside, or this machine lacked memory or disk: it says nothing about the layout, and is not kept.
    """

    kind: str
    phase: str
    reason: str
    transient: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("oom", "failed", "crash", "timeout"):
            raise ValueError(f"RunFailure: kind={self.kind!r} must be oom, failed, crash or timeout")
        if self.phase not in ("build", "compile", "run"):
            raise ValueError(f"RunFailure: phase={self.phase!r} must be build, compile or run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A layout compiled and warmed up; `step_seconds` is of its second step, a first idea of its length."""

    compile_seconds: float
    step_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """`steps` timed steps of one layout in a row: mean wall seconds of one, and the device's peak bytes if known."""

    seconds: float
    steps: int
    peak_bytes: int | None


class Runner(Protocol):
    """What runs layouts: worker processes, this process, or all processes of a job together."""

    def prepare(self, layouts: Sequence[Layout]) -> list[Prepared | RunFailure]:
        """Compile each layout and run its first steps; one outcome for each, in order."""

    def turn(self, layout: Layout, steps: int) -> Turn | RunFailure:
        """One untimed step of a prepared layout, then `steps` timed ones."""

    def release(self, layout: Layout) -> None:
        """Give back what a prepared layout holds."""

    def close(self) -> None:
        """Give back everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When to stop: after `rounds`, after `seconds` of wall time in turns (None: no limit; a started round ends), or
    once every layout's standard error is below `precision` of its median. A turn lasts about `turn_seconds`, but one
    step at least and `steps` at most.
    """

    rounds: int = 7
    seconds: float | None = 120.0
    precision: float = 0.005
    turn_seconds: float = 0.5
    steps: int = 50

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"Budget: rounds={self.rounds} and steps={self.steps} must be 1 or more")
        if (self.seconds is not None and self.seconds <= 0) or self.turn_seconds <= 0 or self.precision < 0:
            raise ValueError("Budget: seconds and turn_seconds must be above 0, precision not below it")


Outcome = Measurement | RunFailure


def measure(
    runner: Runner,
    layouts: Sequence[Layout],
    budget: Budget | None = None,
    *,
    earlier: Mapping[Layout, Measurement] | None = None,
    on_outcome: Callable[[Layout, Outcome], None] = lambda layout, outcome: None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> dict[Layout, Outcome]:
    """Run every layout in interleaved rounds; the first one is the control. Each gets a Measurement or a RunFailure.

    `on_outcome` hears what is known of a layout after every turn, each time superseding the last: keep them, and a
    killed session loses only the turn in flight. `earlier` continues such a session: its turns count as done.
    """
    budget = budget or Budget()
    layouts = list(dict.fromkeys(layouts))
    session = _Session(budget, dict(earlier or {}))
    waiting = [layout for layout in layouts if not session.complete(layout)]
    on_progress(f"measure: preparing {len(waiting)} of {len(layouts)} layouts")
    for layout, prepared in zip(waiting, runner.prepare(waiting), strict=True):
        session.prepared[layout] = prepared
        if isinstance(prepared, RunFailure):
            on_outcome(layout, prepared)
    live = [layout for layout in waiting if isinstance(session.prepared[layout], Prepared)]
    begin = time.perf_counter()
    round_number = 0
    while live and not session.finished(live, round_number, time.perf_counter() - begin):
        round_number += 1
        on_progress(f"measure: round {round_number}, {len(live)} layouts")
        begun: set[Layout] = set()
        for layout in _order(live, round_number):
            if layout not in live:
                continue
            turn = runner.turn(layout, session.steps(layout))
            if isinstance(turn, RunFailure):
                live.remove(layout)
                session.failed[layout] = turn
                on_outcome(layout, turn)
                runner.release(layout)
            else:
                session.add(layout, turn)
                if layout not in begun:
                    begun.add(layout)
                    session.rounds[layout] = session.rounds.get(layout, 0) + 1
                on_outcome(layout, session.measurement(layout, layouts[0]))
        for layout in session.behind(live):
            on_progress(f"measure: {layout} is clearly behind, dropped after {session.rounds[layout]} rounds")
            live.remove(layout)
            runner.release(layout)
    outcomes = {layout: session.outcome(layout, layouts[0]) for layout in layouts}
    for layout, outcome in outcomes.items():
        on_outcome(layout, outcome)
    return outcomes


def tied(a: Measurement, b: Measurement) -> bool:
    """Whether noise could have put the one before the other.

    The rule: the medians differ by at most twice the standard error of their difference, or that is not known.
    """
    if a.standard_error is None or b.standard_error is None:
        return True
    return abs(a.median_seconds - b.median_seconds) <= 2 * math.hypot(a.standard_error, b.standard_error)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON-able values; `from_json` reads it back."""
    return asdict(outcome)


def from_json(values: Mapping[str, Any]) -> Outcome:
    """The Measurement or RunFailure that `to_json` wrote."""
    if "kind" in values:
        return RunFailure(**values)
    return Measurement(**{**values, "turn_seconds": tuple(values["turn_seconds"])})


def _order(live: list[Layout], round_number: int) -> list[Layout]:
    """One round: the control first and last, the others between in another order each round, the same every run."""
    others = live[1:]
    random.Random(round_number).shuffle(others)
    return [live[0], *others, live[0]] if others else [live[0]]


class _Session:
    """What has been seen so far, and the rules that decide when to stop."""

    def __init__(self, budget: Budget, earlier: dict[Layout, Measurement]) -> None:
        self.budget = budget
        self.earlier = earlier
        self.prepared: dict[Layout, Prepared | RunFailure] = {}
        self.failed: dict[Layout, RunFailure] = {}
        self.turns: dict[Layout, list[Turn]] = {}
        self.rounds = {layout: one.rounds for layout, one in earlier.items()}

    def complete(self, layout: Layout) -> bool:
        return self.rounds.get(layout, 0) >= self.budget.rounds

    def steps(self, layout: Layout) -> int:
        prepared = self.prepared[layout]
        assert isinstance(prepared, Prepared)
        return max(1, min(self.budget.steps, round(self.budget.turn_seconds / prepared.step_seconds)))

    def add(self, layout: Layout, turn: Turn) -> None:
        self.turns.setdefault(layout, []).append(turn)

    def seconds(self, layout: Layout) -> tuple[float, ...]:
        before = self.earlier[layout].turn_seconds if layout in self.earlier else ()
        return before + tuple(turn.seconds for turn in self.turns.get(layout, ()))

    def finished(self, live: list[Layout], round_number: int, elapsed: float) -> bool:
        if min(self.rounds.get(layout, 0) for layout in live) >= self.budget.rounds:
            return True
        if round_number and self.budget.seconds is not None and elapsed >= self.budget.seconds:
            return True
        return round_number >= MINIMUM_ROUNDS and all(
            one.standard_error is not None and one.standard_error <= self.budget.precision * one.median_seconds
            for one in (self.measurement(layout, live[0]) for layout in live)
        )

    def behind(self, live: list[Layout]) -> list[Layout]:
        """Layouts whose time is above the best one's whatever the noise; never the control."""
        known = {layout: self.measurement(layout, live[0]) for layout in live if self.turns.get(layout)}
        ready = {layout: one for layout, one in known.items() if one.samples >= MINIMUM_ROUNDS and one.standard_error}
        if not ready:
            return []
        best = min(ready.values(), key=lambda one: one.median_seconds)
        ceiling = best.median_seconds + SIGMAS * (best.standard_error or 0.0)
        return [
            layout
            for layout, one in ready.items()
            if layout != live[0] and one.median_seconds - SIGMAS * (one.standard_error or 0.0) > ceiling
        ]

    def measurement(self, layout: Layout, control: Layout) -> Measurement:
        before, prepared = self.earlier.get(layout), self.prepared.get(layout)
        turns = self.turns.get(layout, [])
        if isinstance(prepared, Prepared):
            compile_seconds = prepared.compile_seconds
        else:
            assert before is not None, "a layout with turns was run here or before"
            compile_seconds = before.compile_seconds
        peaks = [turn.peak_bytes for turn in turns if turn.peak_bytes is not None]
        if before is not None and before.peak_bytes is not None:
            peaks.append(before.peak_bytes)
        return Measurement(
            turn_seconds=self.seconds(layout),
            steps=sum(turn.steps for turn in turns) + (before.steps if before else 0),
            rounds=self.rounds.get(layout, 0),
            compile_seconds=compile_seconds,
            peak_bytes=max(peaks, default=None),
            control_drift=self._drift(control),
        )

    def _drift(self, control: Layout) -> float | None:
        seconds = self.seconds(control)
        half = len(seconds) // 2
        if half < 2:
            return None
        return statistics.median(seconds[-half:]) / statistics.median(seconds[:half]) - 1

    def outcome(self, layout: Layout, control: Layout) -> Outcome:
        if layout in self.failed:
            return self.failed[layout]
        prepared = self.prepared.get(layout)
        return prepared if isinstance(prepared, RunFailure) else self.measurement(layout, control)
