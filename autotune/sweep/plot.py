"""The picture of a sweep, its numbers as CSV beside it. Needs matplotlib (the `plot` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.picture import INK, LINES, fill, save_picture, style_of
from autotune.sweep.budget import Budget
from autotune.sweep.document import csv_rows
from autotune.sweep.point import Gap, Point
from autotune.sweep.screen import limit_word
from autotune.sweep.sweep import Sweep


def picture(sweeps: Sequence[Sweep], budgets: Sequence[Budget], path: Path) -> None:
    """Utilisation against chips, points coloured by the limit that binds; below, what each step's time goes to.

    Writes `path` and, beside it, the numbers as CSV.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, 4.6 + 2.9 * len(sweeps)), layout="constrained")
    above, *panels = figure.subplots(1 + len(sweeps), 1, sharex=True, height_ratios=[2.6] + [1.6] * len(sweeps))
    seen: dict[str, tuple[str, str]] = {}
    for place, (found, panel) in enumerate(zip(sweeps, panels, strict=True)):
        points = found.feasible
        colour, dashes = LINES[place % len(LINES)]
        above.plot(
            [point.chips for point in points], [point.mfu for point in points], color=colour, ls=dashes, lw=1.6,
            label=found.family.name,
        )  # fmt: skip
        for point in points:
            style = seen[point.limit.resource] = limit_style(point.limit.resource, found)
            above.plot(
                point.chips,
                point.mfu,
                "s" if point.source == "compiled" else "o",
                ms=11,
                mfc=style[0],
                mec=INK,
                mew=1.2,
            )
            if point.mfu is not None:
                above.annotate(
                    limit_word(point.limit.resource), (point.chips, point.mfu), xytext=(0, 9 if place % 2 == 0 else -9),
                    textcoords="offset points", ha="center", va="bottom" if place % 2 == 0 else "top", fontsize=6.5,
                )  # fmt: skip
        if points:
            above.annotate(
                found.family.name, (points[-1].chips, points[-1].mfu or 0.0), xytext=(10, 0),
                textcoords="offset points", va="center", fontsize=8, fontweight="bold",
            )  # fmt: skip
        for gap in (point for point in found.points if isinstance(point, Gap)):
            style = seen[gap.why.limit] = limit_style(gap.why.limit, found)
            above.plot(gap.chips, 0.0, "X", ms=9, color=style[0], mec=INK, clip_on=False)
        _stack(panel, found, points, seen)
    compiled = any(point.source == "compiled" for found in sweeps for point in found.feasible)
    if compiled:
        above.plot([], [], "s", color=INK, mfc="white", label="compiled")
    above.plot([], [], "o", color=INK, mfc="white", label="priced")
    if any(isinstance(point, Gap) for found in sweeps for point in found.points):
        above.plot([], [], "X", color=INK, ls="none", label="no layout runs")
    above.set_xscale("log", base=2)
    chips = sorted({point.chips for found in sweeps for point in found.points})
    above.set_xticks(chips, [f"{count}" for count in chips])
    above.minorticks_off()
    above.set_xlim(chips[0] / 1.5, chips[-1] * 1.9)
    above.set_ylim(0, max([0.5, *((point.mfu or 0.0) for found in sweeps for point in found.feasible)]) * 1.18)
    above.set_ylabel("utilisation of peak (MFU)")
    above.grid(alpha=0.25)
    above.legend(fontsize=8, loc="lower left")
    how = "squares are compiled, others priced" if compiled else "priced, nothing compiled"
    above.set_title(f"{sweeps[0].question.workload.name}: best layout at each size ({how})", fontsize=10)
    panels[-1].set_xlabel("chips")
    figure.legend(
        handles=[Patch(label=limit_word(name), **fill(style)) for name, style in seen.items()],
        fontsize=8, loc="outside lower center", ncols=4, frameon=False, handlelength=2.2, handleheight=1.2,
        title="colour: the limit that binds, and what the step's time goes to", title_fontsize=8,
    )  # fmt: skip
    save_picture(figure, csv_rows(sweeps, budgets), path)


def limit_style(resource: str, found: Sweep) -> tuple[str, str]:
    """(colour, hatch) of a limit; a network axis on the outer tier is hatched."""
    return style_of(resource, found.family.hardware.outer_tier)


def _stack(panel: Any, found: Sweep, points: Sequence[Point], seen: dict[str, tuple[str, str]]) -> None:
    """Shares of the step, stacked, one bar a size, with its layout in words."""
    from matplotlib.patheffects import withStroke

    bottom = dict.fromkeys((point.chips for point in points), 0.0)
    names = dict.fromkeys(name for point in points for name, share in point.shares.items() if share >= 0.005)
    for name in names:
        style = seen[name] = limit_style(name, found)
        for point in points:
            share = point.shares.get(name, 0.0)
            left, right = point.chips * 2**-0.4, point.chips * 2**0.4
            panel.bar(left, share, bottom=bottom[point.chips], width=right - left, align="edge", **fill(style))
            bottom[point.chips] += share
    for point in points:
        panel.text(
            point.chips, 0.03, layout_lines(str(point.layout)), rotation=90, ha="center", va="bottom", fontsize=6.5,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )  # fmt: skip
    panel.set_ylim(0, 1)
    panel.set_ylabel(f"{found.family.name}\nshare of time", fontsize=8)
    panel.tick_params(labelsize=8)


def layout_lines(words: str, longest: int = 26) -> str:
    """A layout's words in lines of about `longest` characters, broken after commas.

    >>> layout_lines("fsdp=16,dcn.fsdp=2,remat=minimal,accumulate=2").split()
    ['fsdp=16,dcn.fsdp=2,', 'remat=minimal,accumulate=2']
    """
    lines = [""]
    for word in words.split(","):
        if lines[-1] and len(lines[-1]) + len(word) > longest:
            lines.append("")
        lines[-1] += f"{word},"
    return "\n".join(lines)[:-1]
