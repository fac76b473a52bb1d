"""What a search found, as one value: every layout, listed or counted, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.analysis.analysis import Analysis
from autotune.analysis.limits import KeptOut, Limit
from autotune.analysis.timeline import Timeline, timeline_of
from autotune.measure.measure import Measurement
from autotune.memory_use import MemoryUse
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.plan.plan import Plan
from autotune.price.changes_that_fit import Change
from autotune.price.price import Estimate
from autotune.price.priced_space import NEAR_CAPACITY
from autotune.row_status import RowStatus
from autotune.units import seconds_text

if TYPE_CHECKING:
    from autotune.compile.compilation import Compilation


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Row:
    """One layout and all that is known of it; what was not done is None.

    `reason` says why an illegal, oom, failed or timeout row is one, and why a runner-up lost.
    `peak_bytes`: of one device, the compiler's own number where it gave one. `memory`: the same by category, with the
    largest buffers. `changes`: of a layout that does not fit, single changes after which it would (not looked up for
    all). `mfu` and `tokens_per_second_per_device` follow from the best number there is: measured, else compiled, else
    priced. `mfu_causal`: as `mfu`, without the FLOPs that a causal mask hides; None where the shape is not known.
    """

    layout: Layout
    status: RowStatus
    reason: str | None
    price: Estimate | None
    analysis: Analysis | None
    measurement: Measurement | None
    peak_bytes: float | None
    memory: MemoryUse | None
    changes: tuple[Change, ...]
    mfu: float | None
    tokens_per_second_per_device: float | None
    limit: Limit | None
    elasticities: Mapping[str, float]
    losses_seconds: Mapping[str, float | None]
    log: str | None
    mfu_causal: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """The best number there is: measured, else compiled, else priced."""
        if self.measurement is not None:
            return self.measurement.median_seconds
        if self.analysis is not None:
            return self.analysis.prediction.step_seconds
        return self.price.step_seconds if self.price else None

    def headline(self) -> str:
        """The layout, its time with the source, and what binds; why not, where it cannot run."""
        if not self.status.can_run:
            return f"{self.layout}, {self.status}: {' '.join(str(self.reason).split())[:200]}"
        binds = f", binds: {self.limit.resource}" if self.limit else ""
        return f"{self.layout}, {seconds_text(self.step_seconds)} a step ({self.status}){binds}"

    def __repr__(self) -> str:
        return f"<Row {self.headline()}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Omitted:
    """Layouts that are not listed, counted by their status and the reason."""

    reason: str
    count: int
    best_step_seconds: float | None
    status: RowStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedSet:
    """One set of XLA options that the chip's hardware file recommends, and what the best layout costs under it.

    `step_seconds`, `peak_bytes`: compiled, and measured where that was done, per device; None where it was not compiled
    or does not run, which `reason` says. `chosen`: whether the chosen layout has it.
    """

    name: str
    layout: Layout | None
    chosen: bool
    step_seconds: float | None
    peak_bytes: float | None
    reason: str | None


NOT_LISTED = {
    RowStatus.MEASURED: "measured, slower than those listed",
    RowStatus.COMPILED: "compiled, slower than those listed",
    RowStatus.PRICED: "priced, slower than those listed",
    RowStatus.OOM: "does not fit: priced peak over the capacity",
    RowStatus.TIMEOUT: "compile or run stopped at the time limit",
    RowStatus.FAILED: "compile or run failed",
    RowStatus.ILLEGAL: "illegal",
}
"""Why layouts of a status are counted and not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roomier:
    """The best layout that keeps `SPARE` of the memory of a device free.

    `step_seconds` and `cost_seconds` (the time beyond that of the chosen layout) are of one step; `source`: "measured",
    "compiled", or "priced" where they are the closed form's, scaled by what is known of the chosen layout.
    """

    layout: Layout
    peak_bytes: float
    step_seconds: float
    cost_seconds: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Findings:
    """Every layout of the space, listed or counted: `counts` by final status adds up to the space.

    `compilers_word`: where every compile failed, for another reason than memory, that in one line: then there is no
    plan, since a price that no compile confirms is a guess about a program that may not exist. None otherwise.
    `named`: the layouts that the user named, completed; () after a search of the whole space. `rows`: ranked, those
    that can run first. `closest`: where nothing fits, the layout of the space that misses by least, one of `rows`;
    `more_devices`: how many devices the least state of any layout asks for, if more. `roomier`: where the chosen
    layout is near the capacity, the best one that is not; None elsewhere, and where the space has none. `prices`:
    fraction of the step time saved when a resource is `limits.ARC` times as good and the layout is chosen again.
    `notes`: doubts that concern the whole report. `compiled`: the program of the chosen layout; None where it was not
    compiled. `date`: when the search ended (minutes, UTC). `instead`: flags that were taken in place of what a plan
    says.
    """

    workload: str
    target: Target
    tokens: int
    named: tuple[Layout, ...]
    rows: tuple[Row, ...]
    omitted: tuple[Omitted, ...]
    counts: Mapping[str, int]
    prices: Mapping[str, float]
    kept_out: KeptOut | None
    closest: Row | None
    more_devices: str | None
    tied: tuple[str, ...]
    rank_correlation: float | None
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    plan_or_none: Plan | None
    compilers_word: str | None
    roomier: Roomier | None = None
    compiled: Compilation | None = None
    date: str | None = None
    interrupted: bool = False
    """Whether Ctrl-C ended the search before every layout was compiled or measured."""
    instead: tuple[str, ...] = ()
    instead_of: str = "the plan"
    """What `instead` differs from: "the plan" or "the job file"."""
    taken: str | None = None
    """How a reference model is trained, in words; None of a step of your own."""
    ignored: tuple[str, ...] = ()
    option_sets: tuple[TriedSet, ...] = ()
    """The sets of XLA options that the best layout was compiled under, its first one foremost; () where no other was
    tried."""
    not_modelled: tuple[str, ...] = ()
    """Of a model file: keys without effect on cost, and "key: what it may cost" of what no price or program has."""

    @property
    def ranked(self) -> tuple[Row, ...]:
        """Rows that can run, best first."""
        return tuple(row for row in self.rows if row.status.can_run)

    def timeline(self) -> Timeline | None:
        """When each instruction of the chosen layout's step begins and ends; None where it was not compiled.

        `autotune.report.trace_events.write_trace(report.timeline(), "step.json")` writes it for Perfetto.
        """
        if self.compiled is None or not self.ranked or self.ranked[0].analysis is None:
            return None
        return timeline_of(self.compiled, self.ranked[0].layout, self.target)


SPARE = 0.1
"""Share of the capacity that a layout keeps free to be safe from what is not counted: fragments, other programs."""


def near_capacity(findings: Findings, row: Row) -> bool | None:
    """Whether a layout that fits is within a few per cent of the limit; None where its memory is not known."""
    return None if row.peak_bytes is None else near(row.peak_bytes, findings.target.hardware.capacity_bytes)


def near(peak_bytes: float, capacity_bytes: float) -> bool:
    """Whether a peak is `NEAR_CAPACITY` of the capacity or more, and fits."""
    return NEAR_CAPACITY * capacity_bytes <= peak_bytes <= capacity_bytes
