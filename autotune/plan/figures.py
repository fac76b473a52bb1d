"""The numbers of a plan: what the search knew of the chosen layout, and what its collectives send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autotune.replay.replay import CollectiveTotal


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the search knew of the chosen layout; per device and step, None where that was not done.

    `axis_bytes`: what one device sends along each mesh axis, "fsdp@ici" -> bytes. `collectives`: kind, axis and tier of
    each kind of collective in the compiled program, with how many run.
    """

    priced_seconds: float | None
    compiled_seconds: float | None
    compiled_low_seconds: float | None
    compiled_high_seconds: float | None
    measured_seconds: float | None
    measured_spread_seconds: float | None
    mfu: float | None
    tokens_per_second_per_device: float | None
    model_flops: float | None
    peak_bytes: float | None
    flops: float | None
    axis_bytes: Mapping[str, float] | None
    collectives: Mapping[str, int] | None

    @property
    def step_seconds(self) -> float | None:
        """The best number there is: measured, else compiled, else priced."""
        return next((one for one in (self.measured_seconds, self.compiled_seconds, self.priced_seconds) if one), None)


FIGURES = tuple(Figures.__dataclass_fields__)


def axis_bytes_of(ledger: Iterable[CollectiveTotal]) -> dict[str, float]:
    """What one device sends along each mesh axis and tier in a step: "fsdp@ici" -> bytes."""
    found: dict[str, float] = {}
    for line in ledger:
        place = f"{line.axis}@{line.tier}"
        found[place] = found.get(place, 0.0) + line.wire_bytes
    return found


def collectives_of(ledger: Iterable[CollectiveTotal]) -> dict[str, int]:
    """How many collectives of each kind run in a step: "all_gather fsdp@ici" -> count."""
    found: dict[str, int] = {}
    for line in ledger:
        kind = f"{line.kind} {line.axis}@{line.tier}"
        found[kind] = found.get(kind, 0) + line.count
    return found
