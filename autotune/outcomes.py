"""What compiles and runs taught about layouts, beyond their prices."""

from __future__ import annotations

from dataclasses import dataclass, field

from autotune.analysis.analysis import Analysis
from autotune.compile.compilation import Compilation, CompileFailure
from autotune.measure.measure import Measurement, RunFailure
from autotune.memory_use import Smaller
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A recommended option set under which nothing is compiled here, and why."""

    name: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Outcomes:
    """What was learned beyond prices, by layout.

    `compiled`: the programs of `analysis`.
    `kept_failures`: layouts whose crash or timeout was not seen now but kept from an earlier run. `notes`: doubts about
    what was learned, a line each. `sets_of`: the layout that was compiled again under other option sets, `tried`: as
    which layouts, `refused_sets`: recommended sets that were not.
    """

    analysis: dict[Layout, Analysis]
    failures: dict[Layout, CompileFailure]
    measurements: dict[Layout, Measurement]
    run_failures: dict[Layout, RunFailure]
    smaller: dict[Layout, Smaller]
    neighbours: dict[Layout, Compilation | CompileFailure]
    notes: list[str] = field(default_factory=list)
    kept_failures: set[Layout] = field(default_factory=set)
    compiled: dict[Layout, Compilation] = field(default_factory=dict)
    sets_of: Layout | None = None
    tried: tuple[Layout, ...] = ()
    refused_sets: tuple[Refused, ...] = ()

    def ran(self, layout: Layout, outcome: Measurement | RunFailure) -> None:
        if isinstance(outcome, Measurement):
            self.measurements[layout] = outcome
        else:
            self.run_failures[layout] = outcome


def fits(analysis: Analysis, target: Target) -> bool:
    """A GPU compile never fails for memory: its peak is compared with the capacity here."""
    return analysis.memory.peak_bytes <= target.hardware.capacity_bytes


def fitting(outcomes: Outcomes, target: Target) -> list[Layout]:
    return [layout for layout, analysis in outcomes.analysis.items() if fits(analysis, target)]
