"""The outcome of a search as one value, and as the JSON that others read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.analysis.analysis import Analysis
from autotune.analysis.limits import KeptOut, Limit
from autotune.measure.measure import Measurement
from autotune.memory_use import MemoryUse
from autotune.meshes.layout import Layout, layout_to_json
from autotune.meshes.target import Target
from autotune.plan.plan import Plan
from autotune.price.changes_that_fit import Change
from autotune.price.price import Estimate
from autotune.row_status import RowStatus
from autotune.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autotune.analysis.timeline import Timeline
    from autotune.compile.compilation import Compilation


class NoPlanFits(Exception):
    """Nothing in the space can run, or no compile ended; carries the Report that says why."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.compilers_word or f"no layout of {report.workload} fits {report.target.name}")
        self.report = report


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
        from autotune.units import seconds_text

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
class Report(Shown):
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
    not_modelled: tuple[str, ...] = ()
    """Of a model file: keys without effect on cost, and "key: what it may cost" of what no price or program has."""

    @property
    def ranked(self) -> tuple[Row, ...]:
        """Rows that can run, best first."""
        return tuple(row for row in self.rows if row.status.can_run)

    def best(self) -> Row:
        """The chosen row. Raises NoPlanFits carrying this report when nothing can run."""
        if not self.ranked or self.compilers_word:
            raise NoPlanFits(self)
        return self.ranked[0]

    @property
    def plan(self) -> Plan:
        """What a codebase applies. Raises NoPlanFits when nothing can run, or no compile ended."""
        if self.plan_or_none is None:
            raise NoPlanFits(self)
        return self.plan_or_none

    def headline(self) -> str:
        """The answer in one line: what was asked, the chosen layout, its time with the source, and what binds."""
        asked = f"{self.workload} on {self.target.name}"
        if self.compilers_word:
            answer = "no plan: every compile failed"
        elif not self.ranked:
            answer = "nothing fits"
        else:
            answer = self.ranked[0].headline()
        return f"{asked}: {answer}; {sum(self.counts.values()):,} layouts"

    def screen(self) -> RenderableType:
        """The whole screen of `autotune tune`."""
        from autotune.report.text import render

        return render(self)

    def to_html(self) -> str:
        """The page of `autotune tune --html`."""
        from autotune.report.html import render_html

        return render_html(self)

    def to_json(self) -> str:
        """The document of `autotune tune --json`, as text."""
        return json.dumps(report_to_json(self), indent=1)

    def timeline(self) -> Timeline | None:
        """When each instruction of the chosen layout's step begins and ends; None where it was not compiled.

        `autotune.report.trace_events.write_trace(report.timeline(), "step.json")` writes it for Perfetto.
        """
        from autotune.analysis.timeline import timeline_of

        if self.compiled is None or not self.ranked or self.ranked[0].analysis is None:
            return None
        return timeline_of(self.compiled, self.ranked[0].layout, self.target)


NEAR_CAPACITY = 0.95
"""From this share of the capacity on the compiler starts to rematerialise on its own, and times are less sure."""

SPARE = 0.1
"""Share of the capacity that a layout keeps free to be safe from what is not counted: fragments, other programs."""


def near_capacity(report: Report, row: Row) -> bool | None:
    """Whether a layout that fits is within a few per cent of the limit; None where its memory is not known."""
    return None if row.peak_bytes is None else near(row.peak_bytes, report.target.hardware.capacity_bytes)


def near(peak_bytes: float, capacity_bytes: float) -> bool:
    """Whether a peak is `NEAR_CAPACITY` of the capacity or more, and fits."""
    return NEAR_CAPACITY * capacity_bytes <= peak_bytes <= capacity_bytes


def row_to_json(report: Report, row: Row) -> dict[str, Any]:
    """One row; unknown is null, never 0. Seconds and bytes are per device and step."""
    analysis, price, measured = row.analysis, row.price, row.measurement
    prediction = analysis.prediction if analysis else None
    chosen = report.ranked[:1] == (row,)
    kept_out = report.kept_out if chosen else None
    return {
        "layout": layout_to_json(row.layout),
        "text": str(row.layout),
        "status": row.status.value,
        "reason": row.reason,
        "step_seconds": {
            "priced": price.step_seconds if price else None,
            "priced_low": price.low_seconds if price else None,
            "priced_high": price.high_seconds if price else None,
            "compiled": prediction.step_seconds if prediction else None,
            "compiled_low": prediction.low_seconds if prediction else None,
            "compiled_high": prediction.high_seconds if prediction else None,
            "measured": measured.median_seconds if measured else None,
            "measured_spread": measured.spread_seconds if measured else None,
            "measured_samples": measured.samples if measured else None,
        },
        "mfu": row.mfu,
        "mfu_causal": row.mfu_causal,
        "tokens_per_second_per_device": row.tokens_per_second_per_device,
        "peak_bytes": row.peak_bytes,
        "peak_bytes_priced": price.peak_bytes if price else None,
        "capacity_bytes": report.target.hardware.capacity_bytes,
        "near_capacity": near_capacity(report, row),
        "memory": dict(row.memory.by_category) if row.memory else None,
        "memory_source": row.memory.source if row.memory else None,
        "largest_buffers": [dataclasses.asdict(buffer) for buffer in row.memory.largest] if row.memory else [],
        "changes_that_fit": [
            {
                "what": change.what,
                "layout": str(change.layout),
                "same_job": change.same_job,
                "peak_bytes": change.peak_bytes,
                "time_change": change.time_change,
                "source": change.source,
            }
            for change in row.changes
        ],
        "binding": {
            "resource": row.limit.resource,
            "elasticity": row.limit.elasticity,
            "runner_up": row.limit.runner_up,
            "margin": row.limit.margin,
            "certain": row.limit.certain,
        }
        if row.limit
        else None,
        "kept_out_by": {
            "constraint": kept_out.constraint if kept_out else None,
            "gain": kept_out.gain if kept_out else None,
            "layout": kept_out.layout if kept_out else None,
        },
        "elasticities": dict(row.elasticities),
        "prices": dict(report.prices) if chosen else None,
        "losses_seconds": dict(row.losses_seconds),
        "losses": [dataclasses.asdict(loss) for loss in analysis.losses] if analysis else None,
        "collectives": [
            {
                "axis": line.axis,
                "tier": line.tier,
                "kind": line.kind,
                "count": line.count,
                "payload_bytes": line.payload_bytes,
                "wire_bytes": line.wire_bytes,
                "seconds": line.seconds,
                "exposed_seconds": line.exposed_seconds,
                "hidden_seconds": line.hidden_seconds,
            }
            for line in prediction.ledger
        ]
        if prediction
        else None,
        "terms_priced": {
            name: {"seconds": term.seconds, "resource": term.resource, "source": term.source}
            for name, term in price.terms.items()
        }
        if price
        else None,
        "compile_seconds": analysis.compile_seconds if analysis else None,
        "warnings": list(analysis.warnings) if analysis else [],
        "not_understood": dict(analysis.not_understood) if analysis else {},
        "log": row.log,
    }


def report_to_json(report: Report) -> dict[str, Any]:
    """The one JSON document of `tune --json`."""
    ranked = report.ranked
    return {
        "schema": 1,
        "target": report.target.name,
        "devices": report.target.devices,
        "memory_fraction": report.target.memory_fraction,
        "workload": report.workload,
        "in_place_of_plan": list(report.instead),
        "taken": report.taken,
        "ignored": list(report.ignored),
        "not_modelled": list(report.not_modelled),
        "best": row_to_json(report, ranked[0]) if ranked and not report.compilers_word else None,
        "compilers_word": report.compilers_word,
        "interrupted": report.interrupted,
        "rows": [row_to_json(report, row) for row in report.rows],
        "omitted": [
            {
                "reason": item.reason,
                "status": item.status.value if item.status else None,
                "count": item.count,
                "best_step_seconds": item.best_step_seconds,
            }
            for item in report.omitted
        ],
        "counts": dict(report.counts),
        "closest": row_to_json(report, report.closest) if report.closest else None,
        "more_devices": report.more_devices,
        "roomier": {
            "layout": layout_to_json(report.roomier.layout),
            "text": str(report.roomier.layout),
            "peak_bytes": report.roomier.peak_bytes,
            "step_seconds": report.roomier.step_seconds,
            "cost_seconds": report.roomier.cost_seconds,
            "source": report.roomier.source,
        }
        if report.roomier
        else None,
        "tied": list(report.tied),
        "rank_correlation": report.rank_correlation,
        "notes": list(report.notes),
        "seconds": dict(report.seconds),
    }
