"""A Report for the terminal: rich renderables, no printing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.limits import ARC
from autotune.losses import LOSS_KINDS, Loss
from autotune.program import Buffer
from autotune.report.report import Report, Row, near_capacity
from autotune.row_status import RowStatus

GIB = 2**30
BUFFERS = 5
"""Largest buffers of a layout on the screen."""

LOSSES = 3
"""Losses of one kind on the screen."""

LISTED = 12
"""Runnable rows on the screen; the JSON has the rest."""


def render(report: Report) -> Group:
    """The whole screen, as `tune` and `explain` show it."""
    parts: list[RenderableType | None] = [_heading(report)]
    if report.compilers_word:
        parts.append(Text(report.compilers_word, style="bold"))
    elif report.ranked:
        parts += [_ranking(report), _verdict(report), _why_others_lost(report)]
        if report.ranked[0].evidence:
            parts += [_ledger(report.ranked[0]), _losses(report.ranked[0])]
        parts.append(_memory(report, report.ranked[0]))
    else:
        parts.append(_nothing_fits(report))
    parts += [_does_not_fit(report), _others(report), _notes(report)]
    return Group(*(part for part in parts if part is not None))


def seconds_text(value: float | None) -> str:
    """Four significant digits in s, ms or us; a dash when unknown."""
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.4g} {unit}"
    return f"{value * 1e6:.4g} us"


def bytes_text(value: float | None) -> str:
    """GiB, MiB, KiB or B with three significant digits; a dash when unknown."""
    if value is None:
        return "-"
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 1024)):
        if value >= scale:
            size = value / scale
            return f"{size:.0f} {unit}" if size >= 100 else f"{size:.3g} {unit}"
    return f"{value:.0f} B"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _heading(report: Report) -> Text:
    chip = report.target.hardware
    counts = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count)
    took = ", ".join(f"{name} {value:.1f} s" for name, value in report.seconds.items())
    instead = f"in place of what the plan says: {', '.join(report.instead)}\n" if report.instead else ""
    return Text(
        f"{instead}{report.workload} on {report.target.name} ({report.target.devices} devices, "
        f"{bytes_text(chip.capacity_bytes)} usable each)\n"
        f"{sum(report.counts.values())} layouts: {counts}" + (f"   [{took}]" if took else "")
    )


def _ranking(report: Report) -> Table:
    table = Table(
        title="best layouts, seconds and bytes per device and step (in brackets: priced)", title_justify="left"
    )
    table.add_column("#", justify="right")
    table.add_column("layout", overflow="fold")
    measured = any(row.measurement for row in report.ranked)
    table.add_column("compiled", justify="right")
    table.add_column("overlap: perfect .. none", justify="right")
    table.add_column("priced", justify="right")
    if measured:
        table.add_column("measured", justify="right")
    table.add_column("MFU", justify="right")
    table.add_column("memory, of usable", justify="right")
    table.add_column("binds: elasticity, margin", overflow="fold")
    for number, row in enumerate(report.ranked[:LISTED], 1):
        prediction = row.evidence.prediction if row.evidence else None
        cells = [
            f"{number}=" if str(row.layout) in report.tied else str(number),
            str(row.layout),
            seconds_text(prediction.step_seconds) if prediction else "-",
            f"{seconds_text(prediction.low_seconds)} .. {seconds_text(prediction.high_seconds)}" if prediction else "-",
            seconds_text(row.price.step_seconds) if row.price else "-",
        ]
        if measured:
            cells.append(_measured(row))
        known = [percent(row.mfu), _against_capacity(report, row), _limit(row)]
        table.add_row(*cells, *(known if row.evidence else [f"({cell})" for cell in known]))
    return table


def _measured(row: Row) -> str:
    if row.measurement is None:
        return "-"
    value = row.measurement
    return f"{seconds_text(value.median_seconds)} +- {seconds_text(value.spread_seconds)} (n={value.samples})"


def _against_capacity(report: Report, row: Row) -> str:
    if row.peak_bytes is None:
        return "-"
    share = row.peak_bytes / report.target.hardware.capacity_bytes
    flag = ", near limit" if near_capacity(report, row) else ""
    return f"{bytes_text(row.peak_bytes)}, {100 * share:.0f} %{flag}"


def _limit(row: Row) -> str:
    if row.limit is None:
        return "-"
    margin = "" if row.limit.margin is None else f", +{100 * row.limit.margin:.0f} over {row.limit.runner_up}"
    return f"{row.limit.resource} {100 * row.limit.elasticity:.0f} %{margin}"


def _verdict(report: Report) -> Text:
    best = report.ranked[0]
    word = "measured" if best.measurement else "compiled" if best.evidence else "priced"
    lines = [f"chosen: {best.layout}   {seconds_text(best.step_seconds)} a step ({word})"]
    if best.tokens_per_second_per_device:
        lines[0] += f", {best.tokens_per_second_per_device:,.0f} tokens/s/device"
    if best.peak_bytes is not None:
        lines[0] += f", {bytes_text(report.target.hardware.capacity_bytes - best.peak_bytes)} of memory left"
    if report.tied:
        lines.append(f"tied with it, closer than the noise: {'; '.join(report.tied)}")
    if report.rank_correlation is not None:
        count = sum(1 for row in report.ranked if row.evidence and row.measurement)
        lines.append(
            f"rank correlation of compiled against measured times, {count} layouts: {report.rank_correlation:.2f}"
        )
    if best.limit:
        lines.append(
            f"what binds: {best.limit.resource}; shares of the critical path: "
            + ", ".join(f"{name} {100 * share:.1f} %" for name, share in best.elasticities.items() if share >= 0.001)
        )
    gains = {name: gain for name, gain in report.prices.items() if gain >= 0.001}
    lines.append(
        f"what would help, each {ARC:g} times as good and the layout chosen again: "
        + (", ".join(f"{name} -{100 * gain:.1f} %" for name, gain in sorted(gains.items(), key=lambda i: -i[1])) or "-")
    )
    if report.kept_out:
        lines.append(
            f"what keeps better layouts out: {report.kept_out.constraint}; "
            + (f"with {ARC:g} times the memory " if report.kept_out.constraint == "capacity" else "without it ")
            + f"{report.kept_out.layout} would be {100 * report.kept_out.gain:.1f} % faster (priced)"
        )
    else:
        lines.append("what keeps better layouts out: nothing")
    return Text("\n".join(lines))


def _why_others_lost(report: Report) -> RenderableType | None:
    losers = [row for row in report.ranked[1:LISTED] if row.reason]
    if not losers:
        return None
    return Text("why the others lost:\n" + "\n".join(f"  {row.layout}: {row.reason}" for row in losers))


def _ledger(row: Row) -> RenderableType:
    assert row.evidence is not None
    ledger = row.evidence.prediction.ledger
    if not ledger:
        return Text("collectives of the chosen layout: none")
    table = Table(title="collectives of the chosen layout, per device and step (compiled)", title_justify="left")
    for name in ("axis", "tier", "kind"):
        table.add_column(name)
    for name in ("count", "payload", "sent", "time", "exposed"):
        table.add_column(name, justify="right")
    for line in ledger:
        table.add_row(
            line.axis, line.tier, line.kind, str(line.count), bytes_text(line.payload_bytes),
            bytes_text(line.wire_bytes), seconds_text(line.seconds), seconds_text(line.exposed_seconds),
        )  # fmt: skip
    return table


def _losses(row: Row) -> Text | None:
    assert row.evidence is not None
    known = {name: value for name, value in row.losses_seconds.items() if value}
    listed = row.evidence.losses
    if not known and not listed:
        return None
    lines = ["losses within the step: " + ", ".join(f"{name} {seconds_text(value)}" for name, value in known.items())]
    for kind in LOSS_KINDS:
        named = [loss for loss in listed if loss.kind == kind]
        lines += [
            " ".join(filter(None, (f"  {kind}", _size(loss), f"at {loss.source}" if loss.source else "")))
            + f": {loss.what}"
            for loss in named[:LOSSES]
        ]
        if named[LOSSES:]:
            rest = sum(loss.seconds or loss.bytes or 0 for loss in named[LOSSES:])
            text = seconds_text(rest) if named[0].seconds is not None else bytes_text(rest) if rest else ""
            lines.append(" ".join(filter(None, (f"  {kind}", text, f"in {len(named) - LOSSES} more"))))
    return Text("\n".join(lines))


def _size(loss: Loss) -> str:
    if loss.seconds is not None:
        return seconds_text(loss.seconds)
    return bytes_text(loss.bytes) if loss.bytes is not None else ""


def _memory(report: Report, row: Row) -> Text | None:
    """What one layout holds, how far it is from the limit, and its largest buffers by line."""
    if row.memory is None or row.peak_bytes is None:
        return None
    capacity = report.target.hardware.capacity_bytes
    left = capacity - row.peak_bytes
    distance = f"{bytes_text(left)} left" if left >= 0 else f"{bytes_text(-left)} over"
    listed = ", ".join(f"{name} {bytes_text(size)}" for name, size in row.memory.by_category.items() if size)
    fits = left >= 0
    word = f"memory ({row.memory.source})" if fits else f"{row.layout}"
    lines = [f"{word}: {bytes_text(row.peak_bytes)} of {bytes_text(capacity)}, {distance}: {listed}"]
    if near_capacity(report, row):
        lines.append(
            "  within 5 % of the limit: the compiler may have begun to rematerialise; expect the time to be less sure"
        )
    if not fits:
        lines.append(f"  known from: {row.memory.source}")
    lines += [f"  {text}" for text in buffers_text(row.memory.largest)[:BUFFERS]]
    lines += [f"  would fit: {change}" for change in row.changes]
    return Text("\n".join(lines))


def buffers_text(buffers: Iterable[Buffer]) -> list[str]:
    """Buffers with size, what for, shape, and the line that makes them (the path of an argument); like ones counted."""

    def told(buffer: Buffer) -> str:
        where = f"at {buffer.source}" if buffer.source else buffer.scope or ""
        return f"{bytes_text(buffer.bytes)} {buffer.category} {buffer.shape} {where}".rstrip()

    return [text if count == 1 else f"{count} x {text}" for text, count in Counter(map(told, buffers)).items()]


def _nothing_fits(report: Report) -> Text:
    lines = [f"no layout fits {report.target.name}"]
    if report.closest:
        lines.append(f"closest: {report.closest.layout}, needs {bytes_text(report.closest.peak_bytes)} a device")
    if report.more_devices:
        lines.append(report.more_devices)
    return Text("\n".join(lines))


def too_large(report: Report) -> list[Row]:
    """The layouts whose lack of memory is worth explaining: those with changes that would fit, and the closest."""
    return [row for row in report.rows if row.changes or row == report.closest]


def _does_not_fit(report: Report) -> RenderableType | None:
    told = [part for row in too_large(report) if (part := _memory(report, row))]
    return Group(Text("what does not fit, and the smallest changes that would:"), *told) if told else None


def _others(report: Report) -> RenderableType | None:
    rows = [
        row
        for row in report.rows
        if not row.status.can_run and row.status is not RowStatus.ILLEGAL and (row.evidence or row.log)
    ]
    illegal = [row for row in report.rows if row.status is RowStatus.ILLEGAL]
    if not (rows or illegal or report.omitted):
        return None
    table = Table(title="what is not in the ranking", title_justify="left")
    table.add_column("layouts", overflow="fold")
    table.add_column("status")
    table.add_column("reason", overflow="fold")
    for row in [*rows, *illegal][:LISTED]:
        table.add_row(str(row.layout), row.status, (row.reason or "") + (f"  log: {row.log}" if row.log else ""))
    for item in report.omitted:
        best = f" (best {seconds_text(item.best_step_seconds)} priced)" if item.best_step_seconds else ""
        table.add_row(f"{item.count} more", "", item.reason + best)
    return table


def _notes(report: Report) -> Text | None:
    return Text("\n".join(f"note: {note}" for note in report.notes)) if report.notes else None


def lines(renderable: RenderableType, width: int = 140) -> Iterable[str]:
    """The screen as plain lines of at most `width` columns: what goes to a file, a pipe or a golden test."""
    from rich.console import Console

    console = Console(width=width, no_color=True, highlight=False, record=False, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]
