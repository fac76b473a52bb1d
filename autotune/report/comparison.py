"""Two layouts side by side: where the seconds and the bytes went."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.replay.replay import CollectiveTotal
from autotune.report.document import row_to_json
from autotune.report.findings import Row
from autotune.report.report import Report
from autotune.shown import Shown
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


def seconds_by_resource(first: Row, second: Row) -> dict[str, tuple[float, float]]:
    """Critical-path seconds of each resource in both layouts, the largest difference first."""
    assert first.analysis is not None and second.analysis is not None
    a, b = first.analysis.prediction.by_resource(), second.analysis.prediction.by_resource()
    both = {name: (a.get(name, 0.0), b.get(name, 0.0)) for name in {*a, *b}}
    return dict(sorted(both.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])))


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
    """Both rows, and the differences by resource and by memory category; null where one did not compile.

    `other`: the report of the second row, where it is of another step or machine than the first.
    """
    other = other or report
    both = first.analysis is not None and second.analysis is not None
    return {
        "schema": 1,
        "target": report.target.name,
        "workload": report.workload,
        "targets": [report.target.name, other.target.name],
        "workloads": [report.workload, other.workload],
        "in_place_of_plan": list(report.instead),
        "first": row_to_json(report, first),
        "second": row_to_json(other, second),
        "seconds": {name: list(pair) for name, pair in seconds_by_resource(first, second).items()} if both else None,
        "memory_bytes": {name: list(pair) for name, pair in _memory(first, second).items()} if both else None,
    }


def render_comparison(report: Report, first: Row, second: Row, other: Report | None = None) -> RenderableType:
    """The screen of `compare`. `other`: the report of the second row, where it is of another step or machine."""
    other = other or report
    if first.analysis is None or second.analysis is None:
        told = (f"{row.layout}: {row.status}" + (f": {row.reason}" if row.reason else "") for row in (first, second))
        return Text("\n".join(told))
    jobs = [f"{one.workload} on {one.target.name}" for one in (report, other)]
    head = f"in place of what the plans say: {', '.join(report.instead)}\n" if report.instead else ""
    if jobs[0] == jobs[1]:
        head += f"{jobs[0]}, per device and step (compiled)\nA = {first.layout}\nB = {second.layout}"
        head += "\nA and B are one layout" if first.layout == second.layout else ""
    else:
        head += (
            f"two jobs, per device and step (compiled)\nA = {first.layout}: {jobs[0]}\nB = {second.layout}: {jobs[1]}"
        )
    seconds = _table("seconds on the critical path", "resource")
    _line(seconds, "step", first.step_seconds, second.step_seconds, seconds_text)
    for name, pair in seconds_by_resource(first, second).items():
        _line(seconds, name, *pair, seconds_text)
    traffic = _table("bytes one device sends", "collective")
    for (axis, tier, kind), (a, b) in bytes_by_collective(first, second).items():
        count = f"{a.count if a else 0} / {b.count if b else 0}"
        name = f"{kind} {axis}@{tier} (x {count})"
        _line(traffic, name, a.wire_bytes if a else 0.0, b.wire_bytes if b else 0.0, bytes_text)
    memory = _table("memory at the peak", "category")
    _line(memory, "peak", first.peak_bytes, second.peak_bytes, bytes_text)
    spare = [
        None if row.peak_bytes is None else max(one.target.hardware.capacity_bytes - row.peak_bytes, 0.0)
        for one, row in ((report, first), (other, second))
    ]
    _line(memory, "left", spare[0], spare[1], bytes_text)
    for name, pair in _memory(first, second).items():
        _line(memory, name, *pair, bytes_text)
    return Group(Text(head), seconds, traffic, memory)


def _memory(first: Row, second: Row) -> dict[str, tuple[int, int]]:
    assert first.analysis is not None and second.analysis is not None
    a, b = first.analysis.memory.by_category, second.analysis.memory.by_category
    return {name: (a.get(name, 0), b.get(name, 0)) for name in dict.fromkeys((*a, *b))}


def _table(title: str, what: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(what)
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right")
    return table


def _line(table: Table, name: str, a: float | None, b: float | None, text) -> None:
    change = "-" if a is None or b is None else ("+" if b >= a else "-") + text(abs(b - a))
    table.add_row(name, text(a), text(b), change)
