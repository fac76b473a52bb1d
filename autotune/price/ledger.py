"""Named seconds of a chunk of layouts, and how they add up to a step, an interval and shares of resources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

UNITS = ("layer", "head", "pass", "step")
"""How often an entry counts: per layer and pass of the busiest stage, per pass where that stage has the head, per pass,
once a step."""

COMPUTE = ("matmul", "hbm", "core", "launch")
"""Resources that the core itself is busy with."""

BUSY, HIDDEN = "busy", "hidden"
"""What sums are kept of beside the links: seconds of `COMPUTE`, and of links those that hide behind it."""


@dataclass(frozen=True, slots=True)
class Link:
    """What part of a collective an entry is: its bytes on one tier, or its latency on all of them."""

    axis: str
    """The mesh axis that the collective runs along."""
    tier: str | None
    """None: its latency."""
    kind: str | None
    """Of collective; None: a latency, which those of all kinds make up together."""

    @property
    def name(self) -> str:
        """As a price itemises it: "all_gather[fsdp]@ici", "latency[fsdp]"."""
        return f"latency[{self.axis}]" if self.tier is None else f"{self.kind}[{self.axis}]@{self.tier}"

    @property
    def resource(self) -> str:
        """What it is spent on: "network:fsdp@ici", "latency"."""
        return "latency" if self.tier is None else f"network:{self.axis}@{self.tier}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One named part of the time of a chunk's rows, per unit."""

    name: str
    resource: str
    unit: str
    """Of `UNITS`."""
    seconds: np.ndarray
    """(rows) What is exposed."""
    full: np.ndarray
    """(rows) Without anything to hide behind."""
    link: Link | None = None
    """Of a collective's time: which part of it; None: the core's or the host link's."""

    def lasting(self, seconds: np.ndarray, full: np.ndarray) -> Entry:
        """The same part, of other rows or hidden otherwise."""
        return Entry(self.name, self.resource, self.unit, seconds, full, self.link)


@dataclass(slots=True)
class Ledger:
    """All entries of a chunk, how often each unit counts, the bubble in seconds, and memory by category in bytes.

    `parts`: ledgers that several rows share, with the place of each row in them: their entries, counts and memory count
    as this one's.
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
    parts: tuple[tuple[Ledger, np.ndarray], ...] = ()

    def add(self, name: str, resource: str, unit: str, seconds: np.ndarray, full: np.ndarray | None = None) -> None:
        """Enter a part of the time that is no collective's."""
        self.entries.append(Entry(name, resource, unit, seconds, seconds if full is None else full))

    def add_link(self, link: Link, unit: str, seconds: np.ndarray, full: np.ndarray) -> None:
        """Enter a part of a collective's time."""
        self.entries.append(Entry(link.name, link.resource, unit, seconds, full, link))

    def count(self, what: str, unit: str, amount: np.ndarray | float) -> None:
        """Enter an amount that is no time."""
        if self.counting:
            self.counts.append((what, unit, amount * np.ones(self.rows)))

    def counted(self) -> dict[str, np.ndarray]:
        """What was counted, a step."""
        found: dict[str, np.ndarray] = {}
        for what, unit, amount in self._all_counts():
            again = self.idle if unit in ("layer", "pass") else 0.0
            found[what] = found.get(what, 0.0) + amount * self.times[unit] * (1.0 + again)
        return found

    def _all_counts(self) -> Iterator[tuple[str, str, np.ndarray]]:
        for part, of in self.parts:
            for what, unit, amount in part._all_counts():
                yield what, unit, amount[of]
        yield from self.counts

    def all_entries(self) -> Iterator[Entry]:
        """Every entry with one value a row, those of `parts` too."""
        for part, of in self.parts:
            for entry in part.all_entries():
                yield entry.lasting(entry.seconds[of], entry.full[of])
        yield from self.entries

    def all_memory(self) -> dict[str, np.ndarray]:
        """Category -> bytes of each row, those of `parts` too."""
        found: dict[str, np.ndarray] = {}
        for part, of in self.parts:
            for name, amount in part.all_memory().items():
                found[name] = found.get(name, 0.0) + amount[of]
        for name, amount in self.memory.items():
            found[name] = found.get(name, 0.0) + amount
        return found

    def unit_seconds(self, unit: str) -> np.ndarray:
        """Sum of all entries of one unit."""
        total = np.zeros(self.rows)
        for entry in self.entries:
            if entry.unit == unit:
                total += entry.seconds
        for part, of in self.parts:
            if any(entry.unit == unit for entry in part.entries):
                total += part.unit_seconds(unit)[of]
        return total

    def totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(step seconds, low, high, peak bytes) of every row.

        low: the busier of compute with its bubble and each axis's links, no slice late; high: no collective hidden.
        """
        sums, lanes = self._sums(), dict[str, np.ndarray]()
        for unit, what in sorted(sums):  # so that a row adds up the same in any chunk
            seconds = sums[unit, what]
            if unit != "step":
                seconds *= self.times[unit]
            _enter(lanes, what, seconds)
        hidden = lanes.pop(HIDDEN, 0.0)
        full = sum((lanes[what] for what in sorted(lanes)), np.zeros(self.rows))
        lanes.pop("latency", None)
        work, low = full - hidden, lanes.pop(BUSY, np.zeros(self.rows))
        step = work + self.bubble
        low = low + self.bubble * np.divide(low, work, out=np.zeros(self.rows), where=work > 0)
        for lane in lanes.values():
            np.maximum(low, lane, out=low)
        np.minimum(low, step, out=low)
        longer = 1.0 + self.waiting
        return step * longer, low, (full + self.bubble) * longer, self._peak()

    def _sums(self) -> dict[tuple[str, str], np.ndarray]:
        """(unit, what) -> seconds of all entries without anything to hide behind: `BUSY` on the core, of latency and of
        each link; and `HIDDEN`, what of them is not exposed. The arrays are the caller's own."""
        sums: dict[tuple[str, str], np.ndarray] = {}
        for part, of in self.parts:
            for key, seconds in part._sums().items():
                _enter(sums, key, seconds[of])
        for entry in self.entries:
            key = (entry.unit, BUSY if entry.resource in COMPUTE else entry.resource)
            _enter(sums, key, entry.full if key in sums else entry.full.copy())
            if entry.full is not entry.seconds:
                _enter(sums, (entry.unit, HIDDEN), entry.full - entry.seconds)
        return sums

    def _peak(self) -> np.ndarray:
        """Memory of all categories, bytes of each row; those of `parts` too."""
        total = np.zeros(self.rows)
        for part, of in self.parts:
            if part.memory:
                total += part._peak()[of]
        for amount in self.memory.values():
            total += amount
        return total

    def terms(self) -> list[tuple[str, str | None, Link | None, np.ndarray]]:
        """(name, resource, part of a collective, seconds a step) of every entry, of the bubble and of waiting; they add
        up to the step."""
        found: list[tuple[str, str | None, Link | None, np.ndarray]] = [
            (entry.name, public(entry.resource), entry.link, entry.seconds * self.times[entry.unit])
            for entry in self.all_entries()
        ]
        found.append(("bubble", None, None, self.bubble * np.ones(self.rows)))
        step = sum((seconds for *_, seconds in found), np.zeros(self.rows))
        return [*found, ("waiting[slices]", None, None, self.waiting * step)]

    def resources(self) -> dict[str, np.ndarray]:
        """Seconds of the step by resource.

        The bubble is other stages' passes, so it goes to what a pass is made of; who waits for a slower slice waits for
        all that its step is made of.
        """
        passes = sum(self.unit_seconds(unit) * self.times[unit] for unit in UNITS if unit != "step")
        stretch = 1.0 + np.divide(self.bubble, passes, out=np.zeros(self.rows), where=passes > 0)
        found: dict[str, np.ndarray] = {}
        for entry in self.all_entries():
            seconds = entry.seconds * self.times[entry.unit] * (1.0 if entry.unit == "step" else stretch)
            name = public(entry.resource)
            found[name] = found.get(name, 0.0) + seconds * (1.0 + self.waiting)
        return found


def public(resource: str) -> str:
    """The resource as reports name it: launches are latency."""
    return "latency" if resource == "launch" else resource


Key = TypeVar("Key")


def _enter(sums: dict[Key, np.ndarray], key: Key, amount: np.ndarray) -> None:
    """Add to a sum, in place; the first amount becomes the sum and is changed by those that follow."""
    if key in sums:
        sums[key] += amount
    else:
        sums[key] = amount
