"""What a search found, for the terminal: rich renderables, no printing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType

from autotune.analysis.limits import ARC
from autotune.analysis.overheads import OVERHEAD_KINDS, Overhead
from autotune.meshes.target import Target
from autotune.program import Buffer
from autotune.report.findings import NOT_LISTED, SPARE, Findings, Omitted, Row, near_capacity
from autotune.tables import Column, FittedTable, Prose, share_bar
from autotune.units import bytes_text, percent, percent_change, seconds_text

BUFFERS = 5
"""Largest buffers of a layout on the screen."""

LOSSES = 3
"""Losses of one kind on the screen."""

SPACE = Prose("")
"""The empty line between two parts of the screen."""

LISTED = 12
"""Runnable rows on the screen; the JSON has the rest."""


def render(report: Findings) -> Group:
    """The whole screen, as `tune` and `explain` show it: the answer in five lines, the table, then the details."""
    parts: list[RenderableType | None] = [_heading(report)]
    ranking: tuple[Row, ...] = ()
    if report.compilers_word:
        parts.append(Prose(report.compilers_word, style="bold"))
    elif report.ranked:
        ranking = report.ranked[: _most_listed(report)]
        parts += [_answer(report), _near_limit(report), _counts(report), SPACE, _ranking(report, ranking)]
        parts += [_doubts(report), SPACE, _option_sets(report), SPACE, _why_others_lost(ranking)]
        if report.ranked[0].analysis:
            parts += [SPACE, _ledger(report.ranked[0]), _losses(report.ranked[0])]
        parts += [SPACE, _memory(report, report.ranked[0])]
    else:
        parts += [_nothing_fits(report), _counts(report)]
    parts += [SPACE, _does_not_fit(report), SPACE, _others(report, ranking), SPACE, _notes(report)]
    return Group(*_without_double_spaces([part for part in parts if part is not None]))


def _without_double_spaces(parts: list[RenderableType]) -> list[RenderableType]:
    """The parts without an empty line at the end or after another one: a part that is not there leaves no gap."""
    following = [*parts[1:], SPACE]
    return [part for part, after in zip(parts, following, strict=True) if part is not SPACE or after is not SPACE]


def _share(target: Target) -> str:
    return "" if target.memory_fraction is None else f", {100 * target.memory_fraction:g} % of its memory"


def mfu_text(row: Row) -> str:
    """MFU, and beside it MFU without what a causal mask hides, where that is another number."""
    if row.mfu is None or row.mfu_causal is None:
        return percent(row.mfu)
    return f"{100 * row.mfu:.1f}, {100 * row.mfu_causal:.1f} %"


def _heading(report: Findings) -> Prose:
    return Prose(heading_text(report), style="bold")


def heading_text(report: Findings) -> str:
    """What was asked: the step, the machine and its memory, and how a reference model is trained."""
    capacity = bytes_text(report.target.hardware.capacity_bytes)
    machine = f"{report.target.devices} devices, {capacity} usable each{_share(report.target)}"
    instead = f"in place of what {report.instead_of} says: {', '.join(report.instead)}\n" if report.instead else ""
    taken = f"\ntaken: {report.taken}" if report.taken else ""
    return f"{instead}{report.workload} on {report.target.name} ({machine}){taken}"


def _counts(report: Findings) -> Prose:
    return Prose(counts_text(report), style="dim")


def counts_text(report: Findings) -> str:
    """How many layouts there are, by status, and how long each part of the search took."""
    counts = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count)
    took = ", ".join(f"{name} {value:.1f} s" for name, value in report.seconds.items())
    return f"{sum(report.counts.values())} layouts: {counts}" + (f"   [{took}]" if took else "")


def _answer(report: Findings) -> Prose:
    """Five lines: the layout; its time, from where, and how sure; what binds; memory; what would help."""
    best = report.ranked[0]
    told = answer_lines(report)
    if best.peak_bytes is not None:
        bar = share_bar(best.peak_bytes / report.target.hardware.capacity_bytes)
        told = [(name, f": {bar} {words[2:]}" if name == "memory" else words) for name, words in told]
    return Prose("\n".join(name + words for name, words in told), first_style="bold green")


def answer_lines(report: Findings) -> list[tuple[str, str]]:
    """The five lines of the answer, (what, ": " and the words), without the bar of the memory."""
    best = report.ranked[0]
    source = "measured" if best.measurement else "compiled" if best.analysis else "priced"
    step = f"{seconds_text(best.step_seconds)} ({source}"
    if best.measurement:
        step += f", +- {seconds_text(best.measurement.spread_seconds)}, {best.measurement.samples} turns"
    interval = best.analysis.prediction if best.analysis else best.price
    if interval is not None:
        low, high = seconds_text(interval.low_seconds), seconds_text(interval.high_seconds)
        step += f"; {low} with perfect overlap, {high} with none"
    step += ")"
    if best.mfu is not None:
        step += f", MFU {percent(best.mfu)}"
        if best.mfu_causal is not None and best.mfu_causal < best.mfu:
            step += f" ({percent(best.mfu_causal)} causal)"
    if best.tokens_per_second_per_device:
        step += f", {best.tokens_per_second_per_device:,.0f} tokens/s/device"
    return [
        ("chosen", f": {best.layout}"),
        ("step", f": {step}"),
        ("what binds", _binding(best)),
        ("memory", f": {_memory_left(report, best)}"),
        ("what would help", f": {_helps(report)}"),
    ]


def _binding(best: Row) -> str:
    if best.limit is None:
        return ": nothing that is known"
    if not best.limit.certain and best.analysis:
        found = ", ".join(f"{count} x {name}" for name, count in best.analysis.not_understood.items())
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in best.elasticities.items() if share >= 0.005)
        return (
            f" is not certain, since the program holds what was not understood ({found}); shares of the critical path "
            f"of what was understood: {shares}"
        )
    others = [(name, share) for name, share in best.elasticities.items() if name != best.limit.resource]
    rest = ", ".join(f"{name} {100 * share:.0f} %" for name, share in others if share >= 0.005)
    margin = "" if best.limit.margin is None else f", {100 * best.limit.margin:.0f} points more than the next"
    return f": {best.limit.resource}, {100 * best.limit.elasticity:.0f} % of the critical path{margin}" + (
        f" ({rest})" if rest else ""
    )


def _memory_left(report: Findings, best: Row) -> str:
    capacity = report.target.hardware.capacity_bytes
    if best.peak_bytes is None:
        return "not known"
    share = best.peak_bytes / capacity
    left = f"{bytes_text(capacity - best.peak_bytes)} left"
    return f"{bytes_text(best.peak_bytes)} of {bytes_text(capacity)}, {100 * share:.0f} %, {left}"


def _helps(report: Findings) -> str:
    """What better resources are worth, and what excludes better layouts."""
    gains = sorted(((gain, name) for name, gain in report.prices.items() if gain >= 0.001), reverse=True)
    listed = ", ".join(f"{name} -{100 * gain:.1f} %" for gain, name in gains)
    better = "no better resource"
    if gains:
        better = f"if one resource were {100 * (ARC - 1):.0f} % better and the layout chosen again: {listed}"
    if report.kept_out is None:
        return f"{better}. What keeps better layouts out: nothing"
    more = f"with {ARC:g} times the memory" if report.kept_out.constraint == "capacity" else "without that limit"
    faster = f"{report.kept_out.layout} would be {100 * report.kept_out.gain:.1f} % faster (priced)"
    return f"{better}. What keeps better layouts out: {report.kept_out.constraint}; {more} {faster}"


def _doubts(report: Findings) -> Prose | None:
    """Ties, and how the compiled order agrees with the measured one."""
    lines = []
    if report.tied:
        lines.append(f"tied with the chosen one, closer than the noise: {'; '.join(report.tied)}")
    if report.rank_correlation is not None:
        count = sum(1 for row in report.ranked if row.analysis and row.measurement)
        lines.append(
            f"rank correlation of compiled against measured times, {count} layouts: {report.rank_correlation:.2f}"
        )
    return Prose("\n".join(lines)) if lines else None


def _option_sets(report: Findings) -> RenderableType | None:
    """What the best layout costs under each set of XLA options that was tried."""
    if not report.option_sets:
        return None
    columns = [
        Column(name="XLA options", heads=True),
        Column(name="step", align="right"),
        Column(name="memory", align="right"),
        Column(name="against the first", align="right"),
        Column(name="", least=30),
    ]
    return FittedTable(columns, option_set_cells(report), option_sets_title(report))


def option_sets_title(report: Findings) -> str:
    """What the table of option sets is of."""
    first = report.option_sets[0].layout
    return f"the best layout under other sets of XLA options (compiled): {first}"


def option_set_cells(report: Findings) -> list[list[str]]:
    """A row a set of XLA options: its name, seconds, bytes, the change against the first, and what there is to say."""
    first = report.option_sets[0].step_seconds
    cells = []
    for one in report.option_sets:
        change = percent_change(one.step_seconds, first) if one.step_seconds and first and one.layout else "-"
        said = "; ".join(filter(None, ["chosen" if one.chosen else "", one.reason]))
        cells.append([one.name, seconds_text(one.step_seconds) if one.step_seconds else "-",
                      bytes_text(one.peak_bytes) if one.peak_bytes is not None else "-",
                      change if one is not report.option_sets[0] else "", said])  # fmt: skip
    return cells


def _most_listed(report: Findings) -> int:
    """Rows of one table: all that the user named, `LISTED` of a search."""
    return len(report.rows) if report.named else LISTED


def _near_limit(report: Findings) -> Prose | None:
    """Where the chosen layout fills the memory: what it costs to keep a tenth free."""
    best = report.ranked[0]
    if not near_capacity(report, best) or best.peak_bytes is None:
        return None
    share = 100 * best.peak_bytes / report.target.hardware.capacity_bytes
    return Prose(
        f"the chosen layout takes {share:.0f} % of the memory and may not fit in a real run; {roomier_text(report)}",
        style="yellow",
    )


def roomier_text(report: Findings) -> str:
    """The best layout that keeps a tenth of the memory free, and what it costs."""
    other = report.roomier
    if other is None:
        return f"no layout {'named' if report.named else 'of the space'} keeps {100 * SPARE:.0f} % of it free"
    return (
        f"the best that keeps {100 * SPARE:.0f} % free: {other.layout}, {bytes_text(other.peak_bytes)}, "
        f"{seconds_text(other.cost_seconds)} a step slower ({other.source})"
    )


def _ranking(report: Findings, rows: Sequence[Row]) -> FittedTable:
    columns = [
        Column(name="#", align="right", heads=True),
        Column(name="layout", heads=True),
        Column(name="measured", align="right"),
        Column(name="compiled", align="right"),
        Column(name="priced", align="right"),
        Column(name="overlap: perfect .. none", align="right", priority=5),
        Column(name="MFU, causal", align="right", priority=3),
        Column(name="memory, of usable", align="right", priority=2),
        Column(name="binds: elasticity, margin", priority=4),
    ]
    cells, styles = [], []
    for number, row in enumerate(rows, 1):
        prediction = row.analysis.prediction if row.analysis else None
        bounds = "-"
        if prediction:
            bounds = f"{seconds_text(prediction.low_seconds)} .. {seconds_text(prediction.high_seconds)}"
        known = [bounds, mfu_text(row), _against_capacity(report, row), _limit(row)]
        cells.append(
            [
                f"{number}=" if str(row.layout) in report.tied else str(number),
                str(row.layout),
                _measured(row) if any(one.measurement for one in rows) else "",
                seconds_text(prediction.step_seconds) if prediction else "-",
                seconds_text(row.price.step_seconds) if row.price else "-",
                *(known if row.analysis else [cell if cell == "-" else f"({cell})" for cell in known]),
            ]
        )
        near = near_capacity(report, row)
        styles.append("green" if number == 1 else "yellow" if near else None if row.analysis else "dim")
    return FittedTable(
        columns, cells, "best layouts, seconds and bytes per device and step (in brackets: priced)", styles
    )


def _measured(row: Row) -> str:
    if row.measurement is None:
        return "-"
    value = row.measurement
    return f"{seconds_text(value.median_seconds)} +- {seconds_text(value.spread_seconds)} (n={value.samples})"


def _against_capacity(report: Findings, row: Row) -> str:
    if row.peak_bytes is None:
        return "-"
    share = row.peak_bytes / report.target.hardware.capacity_bytes
    flag = ", near limit" if near_capacity(report, row) else ""
    return f"{bytes_text(row.peak_bytes)}, {100 * share:.0f} %{flag}"


def _limit(row: Row) -> str:
    if row.limit is None:
        return "-"
    margin = "" if row.limit.margin is None else f", +{100 * row.limit.margin:.0f} over {row.limit.runner_up}"
    doubt = "" if row.limit.certain else "not certain: "
    return f"{doubt}{row.limit.resource} {100 * row.limit.elasticity:.0f} %{margin}"


def _why_others_lost(ranking: Sequence[Row]) -> RenderableType | None:
    """Each loser with its reason; losers with one reason in common are counted after the first."""
    by_reason: dict[str, list[Row]] = {}
    for row in ranking[1:]:
        if row.reason:
            by_reason.setdefault(row.reason, []).append(row)
    if not by_reason:
        return None
    lines = [
        f"  {rows[0].layout}" + (f" and {len(rows) - 1} more" if len(rows) > 1 else "") + f": {reason}"
        for reason, rows in by_reason.items()
    ]
    return Prose("why the others lost:\n" + "\n".join(lines))


def _ledger(row: Row) -> RenderableType:
    assert row.analysis is not None
    ledger = row.analysis.prediction.ledger
    if not ledger:
        return Prose("collectives of the chosen layout: none")
    columns = [Column(name=name, heads=True) for name in ("axis", "tier", "kind")]
    columns += [Column(name="count", align="right", priority=3), Column(name="payload", align="right", priority=3)]
    columns += [Column(name="sent", align="right", priority=2), Column(name="time", align="right")]
    columns += [Column(name="exposed", align="right"), Column(name="share exposed", priority=4)]
    cells = [
        [
            line.axis, line.tier, line.kind, str(line.count), bytes_text(line.payload_bytes),
            bytes_text(line.wire_bytes), seconds_text(line.seconds), seconds_text(line.exposed_seconds),
            share_bar(line.exposed_seconds / line.seconds if line.seconds else 0.0),
        ]
        for line in ledger
    ]  # fmt: skip
    return FittedTable(columns, cells, "collectives of the chosen layout, per device and step (compiled)")


def _losses(row: Row) -> Prose | None:
    assert row.analysis is not None
    known = {name: value for name, value in row.losses_seconds.items() if value}
    listed = row.analysis.losses
    if not known and not listed:
        return None
    lines = ["losses within the step: " + ", ".join(f"{name} {seconds_text(value)}" for name, value in known.items())]
    for kind in OVERHEAD_KINDS:
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
    return Prose("\n".join(lines))


def _size(loss: Overhead) -> str:
    if loss.seconds is not None:
        return seconds_text(loss.seconds)
    return bytes_text(loss.bytes) if loss.bytes is not None else ""


def _memory(report: Findings, row: Row) -> Prose | None:
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
    return Prose("\n".join(lines))


def buffers_text(buffers: Iterable[Buffer]) -> list[str]:
    """Buffers with size, what for, shape, and the line that makes them (the path of an argument); like ones counted."""

    def told(buffer: Buffer) -> str:
        where = f"at {buffer.source}" if buffer.source else buffer.scope or ""
        return f"{bytes_text(buffer.bytes)} {buffer.category} {buffer.shape} {where}".rstrip()

    return [text if count == 1 else f"{count} x {text}" for text, count in Counter(map(told, buffers)).items()]


def _nothing_fits(report: Findings) -> Prose:
    lines = [f"no layout fits {report.target.name}"]
    if report.closest:
        lines.append(f"closest: {report.closest.layout}, needs {bytes_text(report.closest.peak_bytes)} a device")
    if report.more_devices:
        lines.append(report.more_devices)
    return Prose("\n".join(lines))


def too_large(report: Findings) -> list[Row]:
    """The layouts whose lack of memory is worth explaining: those with changes that would fit, and the closest."""
    return [row for row in report.rows if row.changes or row == report.closest]


def _does_not_fit(report: Findings) -> RenderableType | None:
    told = [part for row in too_large(report) if (part := _memory(report, row))]
    return Group(Prose("what does not fit, and the smallest changes that would:"), *told) if told else None


def _others(report: Findings, ranking: Sequence[Row]) -> RenderableType | None:
    """Every layout that the ranking does not show: in a row of its own where there is more to say of it than its price,
    else counted by status and reason. With the ranking, rows and counts add up to the heading."""
    shown = {row.layout for row in ranking}
    left = [row for row in report.rows if row.layout not in shown]
    told = [row for row in left if report.named or row.analysis or row.log or row == report.closest]
    told = sorted(told, key=lambda row: row.status.rank)[: _most_listed(report)]
    shown |= {row.layout for row in told}
    counted = _counted([row for row in left if row.layout not in shown], report.omitted)
    if not (told or counted):
        return None
    columns = [
        Column(name="layouts", heads=True),
        Column(name="status", heads=True),
        Column(name="reason", least=30),
    ]
    cells = [
        [str(row.layout), str(row.status), (row.reason or "") + (f"  log: {row.log}" if row.log else "")]
        for row in told
    ]
    for item in counted:
        best = f" (best {seconds_text(item.best_step_seconds)} priced)" if item.best_step_seconds else ""
        cells.append([f"{item.count} more", str(item.status), item.reason + best])
    return FittedTable(columns, cells, "what is not in the ranking")


def _counted(rows: Sequence[Row], omitted: Sequence[Omitted]) -> list[Omitted]:
    """Rows that are not shown and those that the report counts, together by status and reason."""
    found = {(item.status, item.reason): item for item in omitted}
    for row in rows:
        reason = NOT_LISTED[row.status]
        before = found.get((row.status, reason))
        count, seconds = 1, row.price.step_seconds if row.price else None
        if before is not None:
            count += before.count
            seconds = min((one for one in (seconds, before.best_step_seconds) if one), default=None)
        found[row.status, reason] = Omitted(reason=reason, count=count, best_step_seconds=seconds, status=row.status)
    return sorted(found.values(), key=lambda item: item.status.rank)


def _notes(report: Findings) -> Prose | None:
    return Prose("\n".join(f"note: {note}" for note in report.notes)) if report.notes else None
