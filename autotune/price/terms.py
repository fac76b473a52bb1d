"""Time terms of a block of layouts, and what they add up to: the step, its bounds, the seconds of each resource.

All arrays have one entry a row (a row is a layout); seconds and bytes are of one device. A block may also hold every
combination of M layouts and S remat sets: its arrays broadcast to (M, S).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

UNITS = ("layer", "head", "microbatch", "step")
"""How often a term counts in a step: once for each layer of a stage and microbatch ("layer"); once for each microbatch
("microbatch"); for the logits, the loss and the embedding ("head") once for each microbatch, divided by the number of
stages, over which they are spread evenly; or once ("step")."""

COMPUTE = ("matmul", "hbm", "core", "launch")
"""Resources of the core. Every other resource is a link, the host, or latency."""

BUSY, HIDDEN = "busy", "hidden"
"""Names of two sums beside those of the links: seconds of `COMPUTE`, and seconds of links that compute hides."""


@dataclass(frozen=True, slots=True)
class CollectivePart:
    """Which part of a collective's time a term is: its bytes on one tier, or its latency over all tiers."""

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
class TermRows:
    """One term of the price, for all rows of a block."""

    name: str
    """As reports show it: "matmul.mlp", "all_gather[fsdp]@ici"."""
    resource: str
    """What the term occupies: one of `COMPUTE`, "network:fsdp@ici", "host" or "latency"."""
    unit: str
    """One of `UNITS`."""
    seconds: np.ndarray
    """Of one unit, after compute has hidden what it can."""
    full_seconds: np.ndarray
    """Of one unit, with nothing hidden."""
    part: CollectivePart | None = None
    """Of a collective's time: which part of it; None: the core's or the host link's."""

    def with_seconds(self, seconds: np.ndarray, full: np.ndarray) -> TermRows:
        """The same part, of other rows or hidden otherwise."""
        return TermRows(self.name, self.resource, self.unit, seconds, full, self.part)


@dataclass(slots=True)
class CostTerms:
    """All terms of a block of rows, and the block's memory."""

    rows: int | tuple[int, int]
    """Layouts in the block, or its (meshes, sets)."""
    straggler_share: float
    """Fraction of the step that slices add by waiting for the slowest slice."""
    entries: list[TermRows] = field(default_factory=list)
    times: dict[str, np.ndarray] = field(default_factory=dict)
    """Unit -> how often it counts in a step."""
    bubble: np.ndarray | float = 0.0
    """Seconds of a step that the busiest pipeline stage waits for the others."""
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    """Category -> bytes at the worst moment of a step."""
    idle: np.ndarray | float = 0.0
    """Microbatches that the pipeline computes without need while it fills and drains, for each real one. The bubble has
    their time; only `counts` grow by them."""
    counting: bool = False
    """Whether `counts` are kept."""
    counts: list[tuple[str, str, np.ndarray]] = field(default_factory=list)
    """(what, unit, amount): "flops", or a mesh axis and the bytes that one device sends along it."""
    sources: dict[str, str] = field(default_factory=dict)
    """Name of a term -> its source, where that is not the closed form of a transformer."""
    shared: tuple[tuple[CostTerms, np.ndarray], ...] = ()
    """(terms that several rows share, place of each row in them): they count as terms of this block."""

    def add(self, name: str, resource: str, unit: str, seconds: np.ndarray, full: np.ndarray | None = None) -> None:
        """Enter a part of the time that is no collective's."""
        self.entries.append(TermRows(name, resource, unit, seconds, seconds if full is None else full))

    def add_collective_part(self, part: CollectivePart, unit: str, seconds: np.ndarray, full: np.ndarray) -> None:
        """Enter a part of a collective's time."""
        self.entries.append(TermRows(part.name, part.resource, unit, seconds, full, part))

    def count(self, what: str, unit: str, amount: np.ndarray | float) -> None:
        """Add an amount that is not a time; nothing unless `counting`."""
        if self.counting:
            self.counts.append((what, unit, amount * np.ones(self.rows)))

    def counted(self) -> dict[str, np.ndarray]:
        """What was counted -> its amount in a step."""
        found: dict[str, np.ndarray] = {}
        for what, unit, amount in self._all_counts():
            again = self.idle if unit in ("layer", "microbatch") else 0.0
            found[what] = found.get(what, 0.0) + amount * self.times[unit] * (1.0 + again)
        return found

    def _all_counts(self) -> Iterator[tuple[str, str, np.ndarray]]:
        for terms, of in self.shared:
            for what, unit, amount in terms._all_counts():
                yield what, unit, amount[of]
        yield from self.counts

    def all_entries(self) -> Iterator[TermRows]:
        """Every term of this block and of `shared`."""
        for terms, of in self.shared:
            for entry in terms.all_entries():
                yield entry.with_seconds(entry.seconds[of], entry.full_seconds[of])
        yield from self.entries

    def all_memory(self) -> dict[str, np.ndarray]:
        """Category -> bytes, with those of `shared`."""
        found: dict[str, np.ndarray] = {}
        for terms, of in self.shared:
            for name, amount in terms.all_memory().items():
                found[name] = found.get(name, 0.0) + amount[of]
        for name, amount in self.memory.items():
            found[name] = found.get(name, 0.0) + amount
        return found

    def unit_seconds(self, unit: str) -> np.ndarray:
        """Seconds of one layer, head, pass or step: the sum of all terms of that unit."""
        total = np.zeros(self.rows)
        for entry in self.entries:
            if entry.unit == unit:
                total += entry.seconds
        for terms, of in self.shared:
            if any(entry.unit == unit for entry in terms.entries):
                total += terms.unit_seconds(unit)[of]
        return total

    def totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(step seconds, lower bound, upper bound, peak bytes) of every row, of one device.

        Step: the terms' seconds, less what compute hides, plus the bubble, times (1 + `straggler_share`).
        Lower bound: all communication overlaps perfectly, so the busiest of compute (with its bubble) and each link
        sets the time, and no slice is late. Upper bound: nothing overlaps.
        """
        sums, lanes = self._sums(), dict[str, np.ndarray]()
        for unit, what in sorted(sums):  # so that a row adds up the same in any chunk
            seconds = sums[unit, what]
            if unit != "step":
                seconds *= self.times[unit]
            _add_to(lanes, what, seconds)
        hidden = lanes.pop(HIDDEN, 0.0)
        full = sum((lanes[what] for what in sorted(lanes)), np.zeros(self.rows))
        lanes.pop("latency", None)
        work, low = full - hidden, lanes.pop(BUSY, np.zeros(self.rows))
        step = work + self.bubble
        low = low + self.bubble * np.divide(low, work, out=np.zeros(self.rows), where=work > 0)
        for lane in lanes.values():
            np.maximum(low, lane, out=low)
        np.minimum(low, step, out=low)
        longer = 1.0 + self.straggler_share
        return step * longer, low, (full + self.bubble) * longer, self._peak()

    def _sums(self) -> dict[tuple[str, str], np.ndarray]:
        """(unit, what) -> seconds with nothing hidden, where what is `BUSY` (the core), "latency" or a link; and
        (unit, `HIDDEN`) -> the seconds of them that compute hides. The caller may change the arrays."""
        sums: dict[tuple[str, str], np.ndarray] = {}
        for terms, of in self.shared:
            for key, seconds in terms._sums().items():
                _add_to(sums, key, seconds[of])
        for entry in self.entries:
            key = (entry.unit, BUSY if entry.resource in COMPUTE else entry.resource)
            _add_to(sums, key, entry.full_seconds if key in sums else entry.full_seconds.copy())
            if entry.full_seconds is not entry.seconds:
                _add_to(sums, (entry.unit, HIDDEN), entry.full_seconds - entry.seconds)
        return sums

    def _peak(self) -> np.ndarray:
        """Bytes of all categories, with those of `shared`."""
        total = np.zeros(self.rows)
        for terms, of in self.shared:
            if terms.memory:
                total += terms._peak()[of]
        for amount in self.memory.values():
            total += amount
        return total

    def itemised(self) -> list[tuple[str, str | None, CollectivePart | None, np.ndarray]]:
        """(name, resource, part of a collective, seconds in a step) of every term, of the bubble and of waiting. They
        add up to the step."""
        found: list[tuple[str, str | None, CollectivePart | None, np.ndarray]] = [
            (entry.name, reported(entry.resource), entry.part, entry.seconds * self.times[entry.unit])
            for entry in self.all_entries()
        ]
        found.append(("bubble", None, None, self.bubble * np.ones(self.rows)))
        step = sum((seconds for *_, seconds in found), np.zeros(self.rows))
        return [*found, ("waiting[slices]", None, None, self.straggler_share * step)]

    def resources(self) -> dict[str, np.ndarray]:
        """Resource -> seconds of the step; they add up to the step.

        In the bubble a stage waits for the microbatches of other stages, so the bubble is shared out over the resources
        of a microbatch. A slice that waits for a slower one waits for every resource of the step alike.
        """
        passes = sum(self.unit_seconds(unit) * self.times[unit] for unit in UNITS if unit != "step")
        stretch = 1.0 + np.divide(self.bubble, passes, out=np.zeros(self.rows), where=passes > 0)
        found: dict[str, np.ndarray] = {}
        for entry in self.all_entries():
            seconds = entry.seconds * self.times[entry.unit] * (1.0 if entry.unit == "step" else stretch)
            name = reported(entry.resource)
            found[name] = found.get(name, 0.0) + seconds * (1.0 + self.straggler_share)
        return found


def reported(resource: str) -> str:
    """The resource as reports name it: kernel launches count as latency."""
    return "latency" if resource == "launch" else resource


Key = TypeVar("Key")


def _add_to(sums: dict[Key, np.ndarray], key: Key, amount: np.ndarray) -> None:
    """Add `amount` to `sums[key]`, in place where the shape stays. The first amount becomes the sum itself, so later
    calls change it."""
    if key not in sums:
        sums[key] = amount
    elif sums[key].shape == amount.shape:
        sums[key] += amount
    else:
        sums[key] = sums[key] + amount
