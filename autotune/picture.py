"""What pictures have in common: colours, and how one is written with its numbers. Needs no matplotlib itself.

A colour has one meaning in all pictures. Those of the mesh axes, of matmuls and of latency are the palette of Okabe and
Ito (2008, "Color Universal Design"), made for every kind of colour vision; what else a chip spends its time on is grey,
told apart by its hatch. The same axis on the outer tier (between slices, NVLink domains or hosts) has the same colour,
hatched. Memory is shades of violet, dark to light in the order of its categories.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.system.whole_file import write_whole, writing_whole

AXIS_COLOURS = {
    "data": "#0072b2",
    "fsdp": "#e69f00",
    "tensor": "#d55e00",
    "context": "#cc79a7",
    "expert": "#56b4e9",
    "stage": "#f0e442",
}
"""Mesh axis -> colour of what its collectives take."""

CHIP_STYLES = {
    "matmul": ("#009e73", ""),
    "latency": ("#000000", ""),
    "hbm": ("#c8c8c8", ""),
    "core": ("#6e6e6e", "xxx"),
    "host": ("#a6a6a6", "..."),
    "bubble": ("#e6e6e6", "\\\\\\"),
    "memory": ("#3b3568", ""),
    "batch": ("#e6e6e6", "++"),
    "divisibility": ("#e6e6e6", "oo"),
    "wait": ("#f5f5f5", "---"),
    "waiting": ("#f5f5f5", "---"),
    "other": ("#f5f5f5", "**"),
}
"""What is no network, and other constraints -> (colour, matplotlib's hatch)."""

MEMORY_COLOURS = {
    "parameters": "#3b3568",
    "optimizer_state": "#58509a",
    "gradients": "#7a73bd",
    "activations": "#a19bd8",
    "logits": "#c5c1eb",
    "workspace": "#e2e0f6",
}
"""Category of memory -> colour, dark to light."""

OUTER_HATCH = "///"


def style_of(resource: str, outer_tier: str | None = None) -> tuple[str, str]:
    """(colour, hatch) of a limit: "matmul", "network:fsdp@ici", "network:fsdp". Axes of one collective: the first's.

    >>> style_of("network:data+fsdp@dcn", outer_tier="dcn"), style_of("matmul")
    (('#0072b2', '///'), ('#009e73', ''))
    """
    if not resource.startswith("network:"):
        return CHIP_STYLES.get(resource, CHIP_STYLES["other"])
    axes, _, tier = resource.removeprefix("network:").partition("@")
    colour = AXIS_COLOURS.get(axes.split("+")[0])
    if colour is None:
        return CHIP_STYLES["other"]
    return colour, OUTER_HATCH if tier and tier == outer_tier else ""


INK, LIGHT_INK = "#1c1c1e", "#8a8a8a"
LINES = ((INK, "-"), (INK, "--"), (INK, "-."), (INK, ":"), (LIGHT_INK, "-"), (LIGHT_INK, "--"))
"""(colour, dashes) of curves that stand for machines: no colours, since a colour is a limit."""


def fill(style: tuple[str, str]) -> dict[str, Any]:
    """What matplotlib's bars and patches take for a style: the hatch is dark on light colours, white on dark ones."""
    colour, hatch = style
    light = sum(int(colour[place : place + 2], 16) for place in (1, 3, 5)) > 300
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "#3c3c3c" if light else "#ffffff", "linewidth": 0.0}


def save_picture(figure: Any, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A matplotlib figure as `path` (the format by its ending), and `rows` as a .csv beside it. OSError when it cannot
    be written."""
    with writing_whole(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix.removeprefix("."))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path.with_suffix(".csv"), text.getvalue())
