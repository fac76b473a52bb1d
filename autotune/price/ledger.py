"""Named seconds of a chunk of layouts, and how they add up to a step, an interval and shares of resources."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

UNITS = ("layer", "head", "pass", "step")
"""How often an entry counts: per layer and pass of the busiest stage, per pass where that stage has the head, per pass,
once a step."""

COMPUTE = ("matmul", "hbm", "core", "launch")
"""Resources that the core itself is busy with."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`seconds`: what is exposed; `full`: without anything to hide behind. One per unit, an array over the rows."""

    name: str
    resource: str
    unit: str
    seconds: np.ndarray
    full: np.ndarray


@dataclass(slots=True)
class Ledger:
    """All entries of a chunk, how often each unit counts, the bubble in seconds, and memory by category in bytes.

    `waiting`: what slices that wait for the slowest add to the step, as a fraction of it.
    `counts`: (what, unit, amount) of FLOPs and of bytes sent along each axis; kept only while `counting`. `idle`: of a
    pipeline that computes on while it has nothing to do, such passes over real ones (their time is the bubble's).
    `sources`: entry -> what it is known from, where that is not the closed form of a transformer.
    """

    rows: int
    waiting: float
    entries: list[Entry] = field(default_factory=list)
    times: dict[str, np.ndarray] = field(default_factory=dict)
    bubble: np.ndarray | float = 0.0
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    idle: np.ndarray | float = 0.0
    counting: bool = False
    counts: list[tuple[str, str, np.ndarray]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, resource: str, unit: str, seconds: np.ndarray, full: np.ndarray | None = None) -> None:
        self.entries.append(Entry(name, resource, unit, seconds, seconds if full is None else full))

    def count(self, what: str, unit: str, amount: np.ndarray | float) -> None:
        """Enter an amount that is no time."""
        if self.counting:
            self.counts.append((what, unit, amount * np.ones(self.rows)))

    def counted(self) -> dict[str, np.ndarray]:
        """What was counted, a step."""
        found: dict[str, np.ndarray] = {}
        for what, unit, amount in self.counts:
            again = self.idle if unit in ("layer", "pass") else 0.0
            found[what] = found.get(what, 0.0) + amount * self.times[unit] * (1.0 + again)
        return found

    def unit_seconds(self, unit: str, *, full: bool = False) -> np.ndarray:
        """Sum of all entries of one unit."""
        total = np.zeros(self.rows)
        for entry in self.entries:
            if entry.unit == unit:
                total += entry.full if full else entry.seconds
        return total

    def totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(step seconds, low, high, peak bytes) of every row.

        low: the busier of compute with its bubble and each axis's links, no slice late; high: no collective hidden.
        """
        exposed = {unit: np.zeros(self.rows) for unit in UNITS}
        full = {unit: np.zeros(self.rows) for unit in UNITS}
        compute = {unit: np.zeros(self.rows) for unit in UNITS}
        lanes: dict[str, np.ndarray] = {}
        for entry in self.entries:
            exposed[entry.unit] += entry.seconds
            full[entry.unit] += entry.full
            if entry.resource in COMPUTE:
                compute[entry.unit] += entry.seconds
            elif entry.resource != "latency":
                lane = entry.full * self.times[entry.unit]
                lanes[entry.resource] = lanes[entry.resource] + lane if entry.resource in lanes else lane
        work = self._weigh(exposed)
        step = work + self.bubble
        low = self._weigh(compute)
        low += self.bubble * np.divide(low, work, out=np.zeros(self.rows), where=work > 0)
        for lane in lanes.values():
            np.maximum(low, lane, out=low)
        np.minimum(low, step, out=low)
        peak = np.zeros(self.rows)
        for values in self.memory.values():
            peak += values
        longer = 1.0 + self.waiting
        return step * longer, low, (self._weigh(full) + self.bubble) * longer, peak

    def terms(self) -> list[tuple[str, str | None, np.ndarray]]:
        """(name, resource, seconds a step) of every entry, of the bubble and of waiting; they add up to the step."""
        found: list[tuple[str, str | None, np.ndarray]] = [
            (entry.name, public(entry.resource), entry.seconds * self.times[entry.unit]) for entry in self.entries
        ]
        found.append(("bubble", None, self.bubble * np.ones(self.rows)))
        step = sum((seconds for _, _, seconds in found), np.zeros(self.rows))
        return [*found, ("waiting[slices]", None, self.waiting * step)]

    def resources(self) -> dict[str, np.ndarray]:
        """Seconds of the step by resource.

        The bubble is other stages' passes, so it goes to what a pass is made of; who waits for a slower slice waits for
        all that its step is made of.
        """
        passes = sum(self.unit_seconds(unit) * self.times[unit] for unit in UNITS if unit != "step")
        stretch = 1.0 + np.divide(self.bubble, passes, out=np.zeros(self.rows), where=passes > 0)
        found: dict[str, np.ndarray] = {}
        for entry in self.entries:
            seconds = entry.seconds * self.times[entry.unit] * (1.0 if entry.unit == "step" else stretch)
            name = public(entry.resource)
            found[name] = found.get(name, 0.0) + seconds * (1.0 + self.waiting)
        return found

    def _weigh(self, by_unit: dict[str, np.ndarray]) -> np.ndarray:
        total = by_unit["step"] * self.times["step"]
        for unit in UNITS[:-1]:
            total = total + by_unit[unit] * self.times[unit]
        return total


def public(resource: str) -> str:
    """The resource as reports name it: launches are latency."""
    return "latency" if resource == "launch" else resource
