"""What the pictures of the HTML page show: bars as shares of the page's width, points as per cent, no pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.analysis.timeline import lane_title
from autotune.hlo.memory_by_category import MEMORY_CATEGORIES
from autotune.picture import MEMORY_COLOURS, style_of
from autotune.replay.timeline import Span, merged
from autotune.report.findings import Findings, Row
from autotune.units import bytes_text, percent, seconds_text

NEXT = 5
"""Layouts beside the chosen one in pictures of several."""

SPANS = 8000
"""Spans of a timeline on the page, about: some 70 bytes each."""

ALWAYS = {"latency": ("var(--latency)", "var(--page)"), "wait": ("var(--wait)", "var(--ink)")}
"""Resources whose colour follows the page's, light or dark: (colour, ink)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A CSS colour, whether it is hatched, and the colour of words upon it."""

    colour: str
    hatched: bool
    ink: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a stacked bar: its share of the bar, 0 to 1."""

    name: str
    words: str
    share: float
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A stacked bar: `width` in per cent of the longest."""

    name: str
    words: str
    width: float
    parts: tuple[Part, ...]
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Stacked bars with their legend. `capacity_share`: where the capacity lies, in per cent; None where it is no part
    of the picture, or so far away that the bars would not be seen (`far`)."""

    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, Style], ...]
    capacity_share: float | None = None
    far: bool = False


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour "#rrggbb"."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return "#000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#fff"


def page_style(resource: str, outer_tier: str | None) -> Style:
    """How the page shows what a limit's time is spent on; as in the plots."""
    if resource in ALWAYS:
        colour, ink = ALWAYS[resource]
        return Style(colour=colour, hatched=False, ink=ink)
    colour, hatch = style_of(resource, outer_tier)
    return Style(colour=colour, hatched=bool(hatch), ink=ink_on(colour))


def some_rows(report: Findings) -> list[Row]:
    """The chosen row and the next ones."""
    return list(report.ranked[: 1 + NEXT])


def limits(report: Findings) -> Bars:
    """Seconds on the critical path by resource, of the chosen layout and the next."""
    outer = report.target.hardware.outer_tier
    rows = [(row, seconds) for row in some_rows(report) if (seconds := _predicted(row))]
    longest = max((seconds for _, seconds in rows), default=1.0)
    names: dict[str, None] = {}
    bars = []
    for row, seconds in rows:
        names |= dict.fromkeys(name for name, share in row.elasticities.items() if share > 0.001)
        parts = [
            Part(name=name, words=seconds_text(share * seconds), share=share, style=page_style(name, outer))
            for name, share in row.elasticities.items()
            if share > 0.001
        ]
        source = "compiled" if row.analysis else "priced"
        words = f"{seconds_text(seconds)} {source}"
        if row.measurement:
            words += f", {seconds_text(row.measurement.median_seconds)} measured"
        if row.limit:
            words += f"; binds: {row.limit.resource}, {percent(row.limit.elasticity)}"
        bars.append(_bar(row, report, words, seconds / longest, parts))
    return Bars(bars=tuple(bars), legend=_by_style((name, page_style(name, outer)) for name in names))


def helps(report: Findings) -> Bars:
    """The fraction of the step saved by each better resource."""
    outer = report.target.hardware.outer_tier
    gains = sorted(((gain, name) for name, gain in report.prices.items() if gain >= 0.001), reverse=True)
    bars = [
        Bar(
            name=name, words=f"-{percent(gain)}", width=_percent(gain / gains[0][0]), best=False,
            parts=(Part(name="", words=f"{name} -{percent(gain)}", share=1.0, style=page_style(name, outer)),),
        )
        for gain, name in gains
    ]  # fmt: skip
    return Bars(bars=tuple(bars), legend=())


def collectives(report: Findings) -> Bars:
    """Seconds of each kind of collective, exposed and hidden."""
    best = report.ranked[0]
    if best.analysis is None:
        return Bars(bars=(), legend=())
    outer = report.target.hardware.outer_tier
    ledger = best.analysis.prediction.ledger
    longest = max((line.seconds for line in ledger), default=0.0) or 1.0
    hidden = Style(colour="var(--wait)", hatched=False, ink="var(--ink)")
    bars, axes = [], {}
    for line in ledger:
        style = page_style(f"network:{line.axis}@{line.tier}", outer)
        axes[f"exposed, {line.axis}@{line.tier}"] = style
        total = max(line.seconds, line.exposed_seconds) or 1.0
        parts = [
            Part(name="exposed", words=seconds_text(line.exposed_seconds), share=line.exposed_seconds / total,
                 style=style),
            Part(name="hidden", words=seconds_text(max(line.seconds - line.exposed_seconds, 0.0)),
                 share=max(1 - line.exposed_seconds / total, 0.0), style=hidden),
        ]  # fmt: skip
        times = "once" if line.count == 1 else f"{line.count} times"
        words = (
            f"{times}, {bytes_text(line.payload_bytes)} moved, {bytes_text(line.wire_bytes)} sent; "
            f"{seconds_text(line.seconds)}, {percent(line.exposed_seconds / total)} exposed"
        )
        name = f"{line.kind} {line.axis}@{line.tier}"
        bars.append(
            Bar(name=name, words=words, width=_percent(line.seconds / longest), best=False,
                parts=tuple(part for part in parts if part.share > 0))
        )  # fmt: skip
    return Bars(bars=tuple(bars), legend=(*axes.items(), ("hidden", hidden)))


def memories(report: Findings) -> Bars:
    """Memory by category, of the chosen layout and the next, with the capacity."""
    rows = [row for row in some_rows(report) if row.memory and row.peak_bytes]
    capacity = report.target.hardware.capacity_bytes
    largest = max((row.peak_bytes or 0.0 for row in rows), default=capacity) or capacity
    far = capacity > 8 * largest
    widest = largest if far else 1.02 * max(largest, capacity)
    names: dict[str, None] = {}
    bars = []
    for row in rows:
        assert row.memory is not None and row.peak_bytes is not None
        sizes = {name: row.memory.by_category.get(name, 0.0) for name in _categories(row.memory.by_category)}
        total = sum(sizes.values()) or 1.0
        names |= dict.fromkeys(name for name, size in sizes.items() if size)
        parts = [
            Part(name=name, words=bytes_text(size), share=size / total, style=_memory_style(name))
            for name, size in sizes.items()
            if size
        ]
        words = f"{bytes_text(row.peak_bytes)}, {percent(row.peak_bytes / capacity)} ({row.memory.source})"
        bars.append(_bar(row, report, words, row.peak_bytes / widest, parts))
    legend = tuple((name, _memory_style(name)) for name in _categories(names))
    return Bars(bars=tuple(bars), legend=legend, capacity_share=None if far else _percent(capacity / widest), far=far)


def plane(report: Findings) -> dict[str, Any] | None:
    """Time against memory of the listed layouts; None where fewer than two have both."""
    known = [(row, row.step_seconds, row.peak_bytes) for row in report.rows]
    points = [(row, seconds, size) for row, seconds, size in known if seconds and size and seconds < float("inf")]
    if len(points) < 2:
        return None
    runs = [point for point in points if point[0].status.can_run]
    capacity = report.target.hardware.capacity_bytes
    fastest = min(seconds for _, seconds, _ in runs or points)
    # Layouts that do not fit may be far slower than all that do: they would press those into one line.
    slowest = min(max(seconds for _, seconds, _ in points), 1.25 * max(seconds for _, seconds, _ in runs or points),
                  4 * fastest)  # fmt: skip
    fitting = [size for _, _, size in runs] or [min(size for _, _, size in points)]
    largest = min(max(size for _, _, size in points), 2 * max(capacity, *fitting))
    near = capacity <= 8 * largest
    right = 1.05 * (max(largest, capacity) if near else largest)
    smallest = min(seconds for _, seconds, _ in points)
    bottom, top = max(smallest - 0.08 * (slowest - smallest), 0.0) if slowest > smallest else 0.9 * smallest, slowest
    top += 0.06 * (top - bottom)
    inside = [point for point in points if point[1] <= top and point[2] <= right]

    def across(size: float) -> float:
        return _percent(size / right)

    def down(seconds: float) -> float:
        return _percent((top - seconds) / (top - bottom))

    front: list[tuple[float, float]] = []
    for _, seconds, size in sorted(runs, key=lambda point: (point[2], point[1])):
        if not front or seconds < front[-1][1]:
            front.append((size, seconds))
    front = [point for point in front if point[1] <= top]
    lines = []
    for (size, seconds), (larger, faster) in zip(front, front[1:], strict=False):
        lines.append((across(size), down(seconds), across(larger), down(seconds)))
        lines.append((across(larger), down(seconds), across(larger), down(faster)))
    if front:
        lines.insert(0, (across(front[0][0]), 0.0, across(front[0][0]), down(front[0][1])))
        end = across(capacity) if near else 100.0
        lines.append((across(front[-1][0]), down(front[-1][1]), end, down(front[-1][1])))
    best = report.ranked[0] if report.ranked and not report.compilers_word else None
    drawn = [
        {
            "x": across(size), "y": down(seconds), "chosen": " chosen" if row is best else "",
            "kind": "oom" if not row.status.can_run else _source(row),
            "words": f"{row.layout}: {seconds_text(seconds)}, {bytes_text(size)} ({row.status})",
        }
        for row, seconds, size in sorted(inside, key=lambda point: point[0] is best)
    ]  # fmt: skip
    return {
        "points": drawn, "frontier": lines, "capacity_at": across(capacity) if near else None,
        "hidden": len(points) - len(inside),
        "x_ticks": [(across(at), bytes_text(at)) for at in _binary_ticks(right)],
        "y_ticks": [(down(at), seconds_text(at)) for at in _ticks(bottom, top)],
    }  # fmt: skip


def timeline(report: Findings) -> dict[str, Any] | None:
    """The spans of the chosen layout's step for the page's script; None where it is not compiled."""
    found = report.timeline()
    if found is None:
        return None
    outer = report.target.hardware.outer_tier
    names: dict[str, int] = {}
    styles: dict[tuple[str, bool], int] = {}
    told: list[list[Any]] = []

    def number(text: str | None) -> int:
        return -1 if text is None else names.setdefault(text, len(names))

    lanes = {lane: place for place, lane in enumerate(found.lanes())}
    spans = merged(found.spans, SPANS)
    listed: dict[str, Style] = {}
    rows: list[list[Any]] = []
    for span in spans:
        resource = _resource_on_lane(span)
        style = page_style(resource, outer)
        key = (resource, style.hatched)
        if key not in styles:
            styles[key] = len(styles)
            word = {"wait": "the core waits", "turns": "more turns of a loop"}.get(resource, resource)
            listed[word] = style if resource != "turns" else Style(colour="var(--line)", hatched=True, ink="var(--ink)")
            told.append([resource, style.colour, style.hatched, style.ink])
        rows.append([
            lanes[span.lane], _short(span.start_seconds), _short(span.seconds), number(span.name), styles[key],
            number(span.source), span.bytes and round(span.bytes), _short(span.busy_seconds),
            number(", ".join(span.turn) or None), number(span.axis),
        ])  # fmt: skip
    return {
        "words": f"{seconds_text(found.prediction.step_seconds)} compiled",
        "lanes": len(lanes),
        "legend": _by_style(listed.items()),
        "data": {
            "step": found.prediction.step_seconds,
            "lanes": [lane_title(lane) for lane in lanes],
            "names": list(names),
            "styles": told,
            "spans": rows,
            "turns": _turns(found.spans),
        },
    }


def _turns(spans: Iterable[Span]) -> list[list[Any]]:
    """[name, first second, last second] of each drawn turn of a loop, by where it begins, outer ones first."""
    ranges: dict[tuple[str, ...], list[float]] = {}
    for span in spans:
        for depth in range(1, len(span.turn) + 1):
            found = ranges.setdefault(span.turn[:depth], [span.start_seconds, span.end_seconds])
            found[0], found[1] = min(found[0], span.start_seconds), max(found[1], span.end_seconds)
    ordered = sorted(ranges.items(), key=lambda item: (item[1][0], len(item[0])))
    return [[", ".join(turn), _short(start), _short(end)] for turn, (start, end) in ordered]


def _resource_on_lane(span: Span) -> str:
    """A transfer's resource with the tier of its lane, as limits name it."""
    if span.resource.startswith("network:") and ":" in span.lane:
        return f"{span.resource}@{span.lane.partition(':')[0]}"
    return span.resource


def _predicted(row: Row) -> float | None:
    if row.analysis is not None:
        return row.analysis.prediction.step_seconds
    return row.price.step_seconds if row.price else None


def _source(row: Row) -> str:
    return "measured" if row.measurement else "compiled" if row.analysis else "priced"


def _bar(row: Row, report: Findings, words: str, share: float, parts: Sequence[Part]) -> Bar:
    return Bar(
        name=str(row.layout), words=words, width=_percent(share), parts=tuple(parts), best=row is report.ranked[0]
    )


def _categories(names: Mapping[str, Any]) -> list[str]:
    """The names in the order of memory's categories, unknown ones last."""
    return [name for name in MEMORY_CATEGORIES if name in names] + [n for n in names if n not in MEMORY_CATEGORIES]


def _memory_style(name: str) -> Style:
    colour = MEMORY_COLOURS.get(name, "#f5f5f5")
    return Style(colour=colour, hatched=False, ink=ink_on(colour))


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two."""
    rough = (high - low) / about
    if rough <= 0:
        return [low]
    power = 10.0 ** (len(f"{int(1 / rough)}") * -1) if rough < 1 else 10.0 ** (len(f"{int(rough)}") - 1)
    while power > rough:
        power /= 10
    step = next(times * power for times in (1, 2, 5, 10, 20, 50, 100) if times * power >= rough)
    first = int(low / step) + 1
    return [place * step for place in range(first, int(high / step) + 1)]


def _binary_ticks(high: float, about: int = 6) -> list[float]:
    """Round numbers of bytes in steps of a power of two."""
    step = 1.0
    while high / step > about:
        step *= 2
    return [place * step for place in range(0, int(high / step) + 1)]


def _by_style(named: Iterable[tuple[str, Style]]) -> tuple[tuple[str, Style], ...]:
    """(names, style) of a legend: names that look the same, such as those of one axis and of it with another, stand
    together."""
    names: dict[Style, list[str]] = {}
    for name, style in named:
        names.setdefault(style, []).append(name)
    return tuple((", ".join(of), style) for style, of in names.items())


def _percent(share: float) -> float:
    return round(100 * share, 3)


def _short(seconds: float) -> float:
    """Nine significant digits."""
    return float(f"{seconds:.9g}")
