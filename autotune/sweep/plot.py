"""The picture of a sweep, its numbers as CSV beside it. Needs matplotlib (the `plot` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.picture import save_picture
from autotune.sweep.budget import Budget
from autotune.sweep.document import csv_rows
from autotune.sweep.point import Gap, Point
from autotune.sweep.screen import limit_word
from autotune.sweep.sweep import Sweep

COLOURS = {
    "matmul": "#4daf7c",
    "hbm": "#8c6bb1",
    "core": "#b39ddb",
    "host": "#d7c4ee",
    "latency": "#3b6fb6",
    "bubble": "#9aa0a6",
    "memory": "#d16ba5",
    "batch": "#5c5c5c",
    "divisibility": "#c9c9c9",
}
INNER = {
    "tensor": "#e6842a",
    "fsdp": "#f2c14e",
    "data": "#d9a441",
    "context": "#f4b27a",
    "expert": "#b8743a",
    "stage": "#8a5a2b",
}
OUTER = {
    "tensor": "#c8353d",
    "fsdp": "#e0666d",
    "data": "#a52a4a",
    "context": "#ef9a9a",
    "expert": "#7f1d3a",
    "stage": "#5a1020",
}  # noqa: E501
"""Network axes: warm colours inside a slice or NVLink domain, reds across."""
LINES = ("#1b3a5c", "#c2452d", "#2e7d5b", "#7a5195", "#b8860b", "#5c5c5c")


def picture(sweeps: Sequence[Sweep], budgets: Sequence[Budget], path: Path) -> None:
    """Utilisation against chips, points coloured by the limit that binds; below, what each step's time goes to.

    Writes `path` and, beside it, the numbers as CSV.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, 4.4 + 1.9 * len(sweeps)), layout="constrained")
    above, *panels = figure.subplots(1 + len(sweeps), 1, sharex=True, height_ratios=[2.4] + [1.0] * len(sweeps))
    seen: dict[str, str] = {}
    for place, (found, panel) in enumerate(zip(sweeps, panels, strict=True)):
        points = found.feasible
        line = LINES[place % len(LINES)]
        above.plot(
            [point.chips for point in points],
            [point.mfu for point in points],
            color=line,
            lw=1.8,
            label=found.family.name,
        )
        for point in points:
            colour = colour_of(point.limit.resource, found)
            seen[point.limit.resource] = colour
            above.plot(
                point.chips, point.mfu, "s" if point.source == "compiled" else "o", ms=10, mfc=colour, mec=line, mew=1.6
            )
        for gap in (point for point in found.points if isinstance(point, Gap)):
            seen[gap.why.limit] = colour_of(gap.why.limit, found)
            above.plot(gap.chips, 0.0, "X", ms=9, color=seen[gap.why.limit], mec=line, clip_on=False)
        _stack(panel, found, points, seen)
    above.plot([], [], "s", color="black", mfc="white", label="compiled (others: priced)")
    if any(isinstance(point, Gap) for found in sweeps for point in found.points):
        above.plot([], [], "X", color="black", ls="none", label="no layout runs")
    above.set_xscale("log", base=2)
    chips = sorted({point.chips for found in sweeps for point in found.points})
    above.set_xticks(chips, [f"{count}" for count in chips])
    above.minorticks_off()
    above.set_ylim(0, max([0.5, *((point.mfu or 0.0) for found in sweeps for point in found.feasible)]) * 1.12)
    above.set_ylabel("utilisation of peak (MFU)")
    above.grid(alpha=0.25)
    above.legend(fontsize=8, loc="best")
    above.set_title(f"{sweeps[0].question.workload.name}: best layout at each size", fontsize=10)
    panels[-1].set_xlabel("chips")
    figure.legend(
        handles=[Patch(color=colour, label=limit_word(name)) for name, colour in seen.items()],
        fontsize=8, loc="outside lower center", ncols=5, frameon=False, title="limits", title_fontsize=8,
    )  # fmt: skip
    save_picture(figure, csv_rows(sweeps, budgets), path)


def colour_of(resource: str, found: Sweep) -> str:
    """One colour a limit; network axes differ by tier."""
    if not resource.startswith("network:"):
        return COLOURS.get(resource, "#222222")
    axis, _, tier = resource.removeprefix("network:").partition("@")
    palette = OUTER if tier == found.family.hardware.tiers[-1].name else INNER
    return palette.get(axis, "#222222")


def _stack(panel: Any, found: Sweep, points: Sequence[Point], seen: dict[str, str]) -> None:
    """Shares of the step, stacked, one bar a size."""
    bottom = dict.fromkeys((point.chips for point in points), 0.0)
    names = dict.fromkeys(name for point in points for name, share in point.shares.items() if share >= 0.005)
    for name in names:
        colour = seen[name] = colour_of(name, found)
        for point in points:
            share = point.shares.get(name, 0.0)
            left, right = point.chips * 2**-0.35, point.chips * 2**0.35
            panel.bar(left, share, bottom=bottom[point.chips], width=right - left, align="edge", color=colour)
            bottom[point.chips] += share
    panel.set_ylim(0, 1)
    panel.set_ylabel(f"{found.family.name}\nshare of time", fontsize=8)
    panel.tick_params(labelsize=8)
