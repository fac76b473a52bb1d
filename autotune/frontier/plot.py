"""Pictures of the limits model, each with its numbers as CSV beside it. Needs matplotlib (the `plot` extra)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.curve import LINEAR_SHARE, Curve
from autotune.frontier.gpu import Gpu
from autotune.frontier.limits import RESOURCES
from autotune.frontier.rows import Json, bindings, curve_rows, shape_row
from autotune.frontier.run import TrainingRun, depth
from autotune.frontier.shapes import equal_parameters, shape_map
from autotune.picture import INK, LIGHT_INK, LINES, fill, save_picture, style_of

LIMIT_STYLES = {
    "compute": style_of("matmul"),
    "hbm": style_of("hbm"),
    "l2": style_of("core"),
    "shared-memory": style_of("host"),
    "tensor-network": style_of("network:tensor"),
    "data-network": style_of("network:data"),
    "pipeline-expert-network": style_of("network:stage"),
    "bubble": style_of("bubble"),
    "latency": style_of("latency"),
    "matmul-latency": (style_of("latency")[0], "..."),
    "network-latency": (style_of("latency")[0], "///"),
    "memory": style_of("memory"),
}
"""Limit of the model -> (colour, hatch): each axis and resource as in all other pictures."""

DEGREES = (
    ("data", "dp", style_of("network:data")),
    ("tensor, d_ff", "tp_ff", style_of("network:tensor")),
    ("tensor, d_model", "tp_model", (style_of("network:tensor")[0], "///")),
    ("pipeline", "pp", style_of("network:stage")),
    ("expert", "ep", style_of("network:expert")),
)


def utilization_picture(curves: Sequence[Curve], path: Path) -> None:
    """Utilisation against training FLOP, one line per hardware; under it, for each, what binds at which size."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, 5.2 + 0.42 * len(curves)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4.2, 0.42 * len(curves) + 0.25])
    seen: set[str] = set()
    tables = [curve_rows(curve, bindings(curve)) for curve in curves]
    for place, (curve, rows) in enumerate(zip(curves, tables, strict=True)):
        feasible = [row for row in rows if row["feasible"]]
        flop = [row["train_flop"] for row in feasible]
        colour, dashes = LINES[place % len(LINES)]
        above.plot(
            flop, [row["utilization"] for row in feasible], color=colour, ls=dashes, lw=1.8, label=curve.gpu.label
        )
        if feasible:
            at = len(flop) * (1 + place % 5) // 6  # along the curves: at their ends, names would lie on one another
            above.annotate(
                curve.gpu.label, (flop[at], feasible[at]["utilization"]), xytext=(0, 7), textcoords="offset points",
                fontsize=7.5, fontweight="bold", color=colour, ha="center",
            )  # fmt: skip
        end = curve.linear_scaling_end
        if end is not None:
            above.plot(end.run.flop, end.utilization, "o", color=colour, ms=7, mfc="white", mew=1.8)
        if curve.wall is not None and feasible:
            above.plot(flop[-1], feasible[-1]["utilization"], "X", color=colour, ms=9)
        edges = _edges(flop)
        for row, left, right in zip(feasible, edges, edges[1:], strict=False):
            seen.add(row["binding"])
            below.barh(place, right - left, left=left, height=0.8, **fill(LIMIT_STYLES[row["binding"]]))
    above.plot([], [], "o", color="black", mfc="white", label=f"first at most {LINEAR_SHARE:g} of large matmuls' rate")
    above.plot([], [], "X", color="black", label="last size any cluster finishes in time")
    flops = [row["train_flop"] for rows in tables for row in rows if row["feasible"]]
    above.set_xscale("log")
    above.set_xlim(min(flops, default=1e24) / 2, max(flops, default=1e25) * 2)
    above.set_ylim(0, 1)
    above.set_ylabel("utilisation of peak")
    above.grid(alpha=0.25)
    above.legend(fontsize=8, loc="upper right")
    above.set_title(_title(curves[0], ", ".join(curve.gpu.label for curve in curves)), fontsize=10)
    below.set_yticks(range(len(curves)), [curve.gpu.label for curve in curves], fontsize=8)
    below.invert_yaxis()
    below.set_xlabel("training FLOP")
    below.set_title("the limit that binds", fontsize=9, loc="left")
    below.legend(
        handles=[Patch(label=limit, **fill(style)) for limit, style in LIMIT_STYLES.items() if limit in seen],
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.75 / (0.42 * len(curves) + 0.25)),
        ncols=6,
        frameon=False,
    )
    save_picture(figure, [_flat(row) for rows in tables for row in rows], path)


def mix_picture(curve: Curve, path: Path) -> None:
    """How the best mix divides the cluster, against training FLOP: the degrees multiply to the number of GPUs."""
    from matplotlib.figure import Figure

    rows = curve_rows(curve, bindings(curve))
    feasible = [row for row in rows if row["feasible"]]
    if not feasible:
        raise ValueError(f"mix picture: no size is in time within months={curve.assumptions.months}, nothing to draw")
    flop = [row["train_flop"] for row in feasible]
    used = [degree for degree in DEGREES if any(row[degree[1]] > 1 for row in feasible)]
    figure = Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    bands = above.stackplot(
        flop, [[math.log2(row[key]) for row in feasible] for _, key, _ in used], labels=[name for name, _, _ in used]
    )
    for band, (_, _, style) in zip(bands, used, strict=True):
        band.set(**fill(style))
    above.set_xscale("log")
    above.set_ylabel("log2 of the degree, stacked: log2 of GPUs")
    above.legend(fontsize=8, loc="upper left")
    above.set_title(_title(curve), fontsize=10)
    above.grid(alpha=0.25)
    for name, key, (colour, hatch) in used:
        degrees = [row[key] for row in feasible]
        below.plot(flop, degrees, "s--" if hatch else "o-", ms=4, lw=1.4, color=colour, mec=INK, mew=0.4, label=name)
        below.annotate(name, (flop[-1], degrees[-1]), xytext=(7, -2), textcoords="offset points", fontsize=7.5)
    below.legend(fontsize=8, loc="upper left")
    below.set_yscale("log", base=2)
    below.set_ylabel("degree")
    below.set_xlabel("training FLOP")
    below.grid(alpha=0.25)
    save_picture(figure, [_flat(row) for row in rows], path)


def shape_picture(gpu: Gpu, assumptions: Assumptions, anchor: TrainingRun, path: Path) -> None:
    """Depth x width coloured by utilisation, and what shapes with the anchor's parameters spend their time on."""
    from matplotlib.figure import Figure

    grid = shape_map(gpu, assumptions)
    equal = equal_parameters(anchor, gpu, assumptions)
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    feasible = [shape for shape in grid if shape.point is not None]
    lost = [shape for shape in grid if shape.point is None]
    cells = left.scatter(
        [shape.run.d_model for shape in feasible],
        [shape.run.layers for shape in feasible],
        c=[shape.point.utilization for shape in feasible if shape.point],
        marker="s",
        s=62,
        cmap="viridis",
        vmin=0,
        vmax=gpu.large_matmul_efficiency,
    )
    left.scatter(
        [shape.run.d_model for shape in lost],
        [shape.run.layers for shape in lost],
        marker="x",
        s=22,
        color="#b0b0b0",
        label="no cluster is in time",
    )
    shown = sorted({shape.run.d_model for shape in grid})
    left.plot(shown, [depth(d, 4 * d) for d in shown], color="black", lw=1.4, label="depth rule")
    for params in (1e12, 1e13, 1e14, 1e15):
        left.plot(shown, [params / (8 * d * d) for d in shown], color=LIGHT_INK, lw=0.8, ls=":")
        at = min(math.sqrt(params / (8 * 10)), shown[-1])
        text = f"{params:.0e} parameters ".replace("e+", "e")
        left.annotate(text, (at, params / (8 * at * at)), color=LIGHT_INK, fontsize=7, ha="right", va="top")
    left.plot(
        [shape.run.d_model for shape in equal],
        [shape.run.layers for shape in equal],
        color=LIGHT_INK,
        lw=1.4,
        label=f"{anchor.active_params:.2g} parameters (right)".replace("e+", "e"),
    )
    left.set_xscale("log", base=2)
    left.set_yscale("log", base=2)
    left.set_xlim(shown[0] / 1.2, shown[-1] * 1.2)
    left.set_ylim(8, 2 * max(shape.run.layers for shape in grid))
    left.set_xlabel("width d_model")
    left.set_ylabel("layers")
    left.legend(fontsize=8, loc="upper left")
    left.set_title(_title(Curve(gpu=gpu, assumptions=assumptions, points=(), wall=None)), fontsize=9, loc="left")
    figure.colorbar(cells, ax=left, label="utilisation of peak", shrink=0.85)

    names = [f"{shape.run.layers} x {shape.run.d_model}" for shape in equal]
    bottom = [0.0] * len(equal)
    for resource in RESOURCES:
        shares = [0.0 if shape.binding is None else shape.binding.shares[resource] for shape in equal]
        if max(shares) < 0.005:
            continue
        right.bar(names, shares, bottom=bottom, label=resource, width=0.85, **fill(LIMIT_STYLES[resource]))
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    heights = [0.0 if shape.point is None else shape.point.utilization for shape in equal]
    right.plot(names, heights, "o-", color="black", ms=4, lw=1.2, label="utilisation of peak")
    right.set_ylim(0, 1.28)
    right.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    right.set_ylabel("share of the time")
    right.set_xlabel("layers x width")
    right.tick_params(axis="x", labelsize=7, rotation=90)
    right.legend(fontsize=7, loc="upper center", ncols=3)
    size = f"{anchor.active_params:.3g} parameters, {anchor.flop:.3g} FLOP".replace("e+", "e")
    right.set_title(f"{size}: deep against fat", fontsize=9)
    save_picture(
        figure,
        [{"set": "map", **_flat(shape_row(shape))} for shape in grid]
        + [{"set": "equal parameters", **_flat(shape_row(shape))} for shape in equal],
        path,
    )


def _title(curve: Curve, hardware: str | None = None) -> str:
    a = curve.assumptions
    rule = "the paper's" if a.batch_rule == "default" else a.batch_rule
    batch = f"{rule} batch rule" if a.batch_tokens is None else f"batch of {a.batch_tokens:.3g} tokens"
    kind = "sparse" if a.sparse else "dense"
    assumed = f"{kind}, {batch}, {a.months:g} months; priced, nothing compiled"
    return f"{hardware or curve.gpu.label}: smallest cluster in time ({assumed})"


def _edges(flop: Sequence[float]) -> list[float]:
    """Borders between sizes, half way on a log scale; the first and last as wide as their only neighbour."""
    if not flop:
        return []
    if len(flop) == 1:
        return [flop[0] / 1.5, flop[0] * 1.5]
    middle = [math.sqrt(low * high) for low, high in zip(flop, flop[1:], strict=False)]
    return [flop[0] ** 2 / middle[0], *middle, flop[-1] ** 2 / middle[-1]]


def _flat(row: Json) -> Json:
    """A row for CSV: each share in a column of its own."""
    shares = row.get("shares") or {}
    flat = {key: value for key, value in row.items() if key != "shares"}
    return flat | {f"share_{resource}": shares.get(resource) for resource in RESOURCES}
