"""Two layouts side by side: where the seconds and the bytes went."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType

from autotune.replay.replay import CollectiveTotal
from autotune.report.document import row_to_json
from autotune.report.findings import Row
from autotune.report.report import Report
from autotune.row_status import RowStatus
from autotune.shown import Shown
from autotune.tables import Column, FittedTable, Prose
from autotune.units import bytes_text, seconds_text


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(Shown):
    """Two layouts of one search, side by side. `report`: that search; `first`, `second`: rows of it."""

    report: Report
    first: Row
    second: Row

    def headline(self) -> str:
        """Both layouts with their times, in one line."""
        return f"{self.first.headline()} | {self.second.headline()}"

    def screen(self) -> RenderableType:
        """The screen of `autotune compare`."""
        return render_comparison(self.report, self.first, self.second)

    def to_json(self) -> str:
        """The document of `autotune compare --json`, as text."""
        return json.dumps(comparison_to_json(self.report, self.first, self.second), indent=1)


def source_of(first: Row, second: Row) -> str | None:
    """Where the figures of both are from: "compiled" where both are, "priced" where neither is and both have a price;
    None elsewhere: then they are not compared."""
    if first.analysis is not None and second.analysis is not None:
        return "compiled"
    alone = first.analysis is None and second.analysis is None and first.price is not None and second.price is not None
    return (
        "priced" if alone and all(row.status in (RowStatus.PRICED, RowStatus.OOM) for row in (first, second)) else None
    )


def seconds_by_resource(first: Row, second: Row) -> dict[str, tuple[float, float]]:
    """Critical-path seconds of each resource in both layouts, the largest difference first; by `source_of`."""
    a, b = (_resources(row) for row in (first, second))
    both = {name: (a.get(name, 0.0), b.get(name, 0.0)) for name in {*a, *b}}
    return dict(sorted(both.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])))


def _resources(row: Row) -> Mapping[str, float]:
    if row.analysis is not None:
        return row.analysis.prediction.by_resource()
    assert row.price is not None
    return row.price.resources


def bytes_by_collective(
    first: Row, second: Row
) -> dict[tuple[str, str, str], tuple[CollectiveTotal | None, CollectiveTotal | None]]:
    """The ledger lines of both layouts by (axis, tier, kind), the largest difference in bytes sent first."""
    assert first.analysis is not None and second.analysis is not None
    a, b = (
        {(line.axis, line.tier, line.kind): line for line in row.analysis.prediction.ledger}
        for row in (first, second)
        if row.analysis
    )
    both = {key: (a.get(key), b.get(key)) for key in {*a, *b}}

    def sent(line: CollectiveTotal | None) -> float:
        return line.wire_bytes if line else 0.0

    return dict(sorted(both.items(), key=lambda item: (-abs(sent(item[1][1]) - sent(item[1][0])), item[0])))


def comparison_to_json(report: Report, first: Row, second: Row, other: Report | None = None) -> dict[str, Any]:
    """Both rows, and the differences by resource and by memory category; null where `source` is null.

    `source`: "compiled" or "priced", what both figures are; null where one did not compile. `other`: the report of the
    second row, where it is of another step or machine than the first.
    """
    other = other or report
    source = source_of(first, second)
    return {
        "schema": 1,
        "target": report.target.name,
        "workload": report.workload,
        "targets": [report.target.name, other.target.name],
        "workloads": [report.workload, other.workload],
        "in_place_of_plan": list(report.instead),
        "taken": [report.taken, other.taken],
        "ignored": [list(report.ignored), list(other.ignored)],
        "not_modelled": [list(report.not_modelled), list(other.not_modelled)],
        "source": source,
        "first": row_to_json(report, first),
        "second": row_to_json(other, second),
        "seconds": {name: list(pair) for name, pair in seconds_by_resource(first, second).items()} if source else None,
        "memory_bytes": {name: list(pair) for name, pair in _memory(first, second).items()} if source else None,
    }


def render_comparison(report: Report, first: Row, second: Row, other: Report | None = None) -> RenderableType:
    """The screen of `compare`. `other`: the report of the second row, where it is of another step or machine."""
    other = other or report
    source = source_of(first, second)
    told = [f"{row.layout}: {row.status}" + (f": {row.reason}" if row.reason else "") for row in (first, second)]
    if source is None:
        return Prose("\n".join(told))
    jobs = [f"{one.workload} on {one.target.name}" for one in (report, other)]
    whose = "the plans say" if report.instead_of == "the plan" else f"{report.instead_of} says"
    head = f"in place of what {whose}: {', '.join(report.instead)}\n" if report.instead else ""
    if jobs[0] == jobs[1]:
        head += f"{jobs[0]}, per device and step ({source})"
        head += (f"\ntaken: {report.taken}" if report.taken else "") + f"\nA = {first.layout}\nB = {second.layout}"
        head += "\nA and B are one layout" if first.layout == second.layout else ""
    else:
        head += (
            f"two jobs, per device and step ({source})\nA = {first.layout}: {jobs[0]}\nB = {second.layout}: {jobs[1]}"
        )
    if jobs[0] != jobs[1]:
        head += "".join(f"\n{side} taken: {one.taken}" for side, one in (("A", report), ("B", other)) if one.taken)
    notes = dict.fromkeys(note for one in (report, other) for note in one.notes if note.startswith("the model file"))
    head += "".join(f"\nnote: {note}" for note in notes)
    for name, row, why in zip("AB", (first, second), told, strict=True):
        head += "" if row.status.can_run else f"\n{name} does not fit: {why.partition(': ')[2]}"
    seconds = [_line("step", _step(first), _step(second), seconds_text)]
    seconds += [_line(name, *pair, seconds_text) for name, pair in seconds_by_resource(first, second).items()]
    spare = [
        None if row.peak_bytes is None else max(one.target.hardware.capacity_bytes - row.peak_bytes, 0.0)
        for one, row in ((report, first), (other, second))
    ]
    memory = [
        _line("peak", first.peak_bytes, second.peak_bytes, bytes_text),
        _line("left", spare[0], spare[1], bytes_text),
    ]
    memory += [_line(name, *pair, bytes_text) for name, pair in _memory(first, second).items()]
    return Group(
        Prose(head),
        Prose(""),
        _table("seconds on the critical path", "resource", seconds),
        Prose(""),
        _table("bytes one device sends", "collective" if source == "compiled" else "axis", _traffic(first, second)),
        Prose(""),
        _table("memory at the peak", "category", memory),
    )


def _step(row: Row) -> float | None:
    """Seconds of the figures that are compared, which a measured step is not."""
    return row.analysis.prediction.step_seconds if row.analysis else row.price.step_seconds if row.price else None


def _traffic(first: Row, second: Row) -> list[list[str]]:
    """Lines of what is sent: by collective where both are compiled, by mesh axis where both are priced."""
    if first.analysis is None or second.analysis is None:
        assert first.price is not None and second.price is not None
        a, b = first.price.sent, second.price.sent
        return [_line(name, a.get(name, 0.0), b.get(name, 0.0), bytes_text) for name in dict.fromkeys((*a, *b))]
    found = []
    for (axis, tier, kind), (before, after) in bytes_by_collective(first, second).items():
        count = f"{before.count if before else 0} / {after.count if after else 0}"
        amounts = [line.wire_bytes if line else 0.0 for line in (before, after)]
        found.append(_line(f"{kind} {axis}@{tier} (x {count})", amounts[0], amounts[1], bytes_text))
    return found


def _memory(first: Row, second: Row) -> dict[str, tuple[float, float]]:
    a, b = (_categories(row) for row in (first, second))
    return {name: (a.get(name, 0), b.get(name, 0)) for name in dict.fromkeys((*a, *b))}


def _categories(row: Row) -> Mapping[str, float]:
    if row.analysis is not None:
        return row.analysis.memory.by_category
    assert row.price is not None
    return row.price.memory


def _table(title: str, what: str, rows: list[list[str]]) -> FittedTable:
    columns = [Column(name=what, heads=True), *(Column(name=name, align="right") for name in ("A", "B", "B - A"))]
    return FittedTable(columns, rows, title)


def _line(name: str, a: float | None, b: float | None, text: Callable[[float | None], str]) -> list[str]:
    change = "-" if a is None or b is None else ("+" if b >= a else "-") + text(abs(b - a))
    return [name, text(a), text(b), change]
