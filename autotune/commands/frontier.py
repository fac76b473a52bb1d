"""`autotune frontier`: how far training scales before data movement stops it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.commands.command import Command, Option
from autotune.commands.options import (
    CRITICAL_NORMS_HELP,
    bad_input,
    batch_rule_option,
    critical_tokens,
    json_option,
    saved,
    scales_of,
    writable,
)
from autotune.commands.run import show
from autotune.commands.values import PATH, Number, OneOf, Suggested
from autotune.frontier.gpu import GPUS
from autotune.meshes.fields import did_you_mean

if TYPE_CHECKING:
    from autotune.frontier.batch import Overlap
    from autotune.frontier.gpu import Gpu

PICTURES = ("utilization", "mix", "shape")
SCALES: Mapping[str, tuple[str, ...]] = {
    "matmul": ("arithmetic",),
    "hbm": ("hbm_bandwidth",),
    "capacity": ("memory",),
    "latency": ("network_latency", "matmul_latency"),
    "network": ("network_bandwidth",),
    "l2": ("l2_bandwidth",),
}
"""Resource of --scale -> the figures of the paper's machines that it makes better."""

FIGURES = (
    "network_bandwidth",
    "network_latency",
    "matmul_latency",
    "hbm_bandwidth",
    "l2_bandwidth",
    "arithmetic",
    "memory",
)
"""Figures by name, as --scale also takes them: the factor multiplies the figure, a latency too."""
OVERLAPS = ("tensor", "pipeline", "data")


@click.command(cls=Command)
@click.option(
    "--target",
    cls=Option,
    old={"--hardware": None},
    type=OneOf(GPUS),
    default="h100",
    show_default=True,
    help="One of the paper's machines.",
)
@batch_rule_option(
    ("paper", "fixed", "deepseek"),
    "paper: it grows as C^(1/6); fixed: 4 Mi tokens; deepseek: it grows as C^0.33 [paper].",
)
@click.option("--batch-tokens", help="A fixed batch of your own, instead of the rule's: 4M, 4Mi, 4194304.")
@click.option("--batch-scale", type=Number(1e-6, 1e6), default=1.0, help="Multiplies the rule's batch.")
@click.option("--critical-batch-tokens", help="The critical batch: adds what each batch costs in data and steps.")
@click.option("--critical-batch-norms", metavar="TOKENS=NORM2,TOKENS=NORM2", help=CRITICAL_NORMS_HELP)
@click.option("--sparse", is_flag=True, help="Mixtures of experts, one active; experts grow with width.")
@click.option("--depth-scale", type=Number(1 / 64, 64), default=1.0, help="Multiplies the depth rule; below 1: fatter.")
@click.option(
    "--months", type=Number(0, 1e6, above=True), default=3.0, show_default=True, help="How long a run may take."
)
@click.option(
    "--overlap",
    type=Suggested("overlap", lambda: OVERLAPS, separators=","),
    default="tensor,pipeline",
    show_default=True,
    help="What hides behind computation: of tensor, pipeline, data, or none.",
)
@click.option(
    "--scale",
    multiple=True,
    metavar="RESOURCE=FACTOR",
    type=Suggested("scale", lambda: [f"{name}=" for name in SCALES], separators=","),
    help=f"Makes the machine so many times as good: {', '.join(SCALES)}.",
)
@click.option("--what-helps", is_flag=True, help="Where both ends move when one thing is made twice as good.")
@click.option("--shapes", is_flag=True, help="Deep against fat, at the parameters where linear scaling ends.")
@click.option("--plot", type=PATH, help="Write a picture (.png, .svg) and its numbers (.csv).")
@click.option("--picture", type=OneOf(PICTURES), help="Which --plot [utilization].")
@click.option(
    "--beside",
    type=Suggested("machines", lambda: GPUS, separators=","),
    default="v100,a100,h100",
    show_default=True,
    help="Other machines in that picture, or none.",
)
@json_option
def frontier(
    target: str,
    batch_rule: str | None,
    batch_tokens: str | None,
    batch_scale: float,
    critical_batch_tokens: str | None,
    critical_batch_norms: str | None,
    sparse: bool,
    depth_scale: float,
    months: float,
    overlap: str,
    scale: tuple[str, ...],
    what_helps: bool,
    shapes: bool,
    plot: Path | None,
    picture: str | None,
    beside: str,
    as_json: bool,
) -> int:
    """How far training scales: the limits of data movement (arXiv 2411.01137).

    For one model size after another: the smallest cluster that trains it in time, its best mix of parallelism, its
    utilisation and the limit that binds; where linear scaling ends, and the size no cluster finishes.
    """
    from autotune.frontier import rows as row_maker
    from autotune.frontier.assumptions import Assumptions
    from autotune.frontier.curve import curve
    from autotune.frontier.shapes import equal_parameters
    from autotune.frontier.what_helps import what_helps as changes
    from autotune.sweep.sizes import parse_tokens

    critical = critical_tokens(critical_batch_tokens, critical_batch_norms)
    if picture is not None and plot is None:
        raise click.UsageError(f"--picture={picture!r} needs --plot, the file to write")
    picture = picture or PICTURES[0]
    gpu = _scaled(_gpu("--target", target), scale)
    others = [_gpu("--beside", name) for name in beside.split(",") if name.strip() not in ("", "none")]
    if plot is not None:
        _require_plotting(plot)
        writable(plot, "--plot")
        writable(plot.with_suffix(".csv"), "--plot")
    with bad_input():
        assumptions = Assumptions(
            sparse=sparse,
            batch_rule="default" if batch_rule in (None, "paper") else batch_rule,
            batch_tokens=None if batch_tokens is None else parse_tokens(batch_tokens, "batch_tokens"),
            batch_scale=batch_scale,
            depth_scale=depth_scale,
            months=months,
            overlap=_overlap(overlap),
        )
    computed = curve(gpu, assumptions)
    limits = row_maker.bindings(computed)
    helps = changes(computed) if what_helps else None
    anchor = computed.linear_scaling_end or computed.last_feasible
    shape_table = equal_parameters(anchor.run, gpu, assumptions) if shapes and anchor else None

    if as_json:
        result = row_maker.document(computed, limits, critical_batch_tokens=critical, helps=helps, shapes=shape_table)
        click.echo(json.dumps(result, allow_nan=False))
    else:
        from autotune.frontier.screen import render

        show(render(computed, limits, critical_batch_tokens=critical, helps=helps, shapes=shape_table), piped=160)
    if plot is None:
        return 0
    from autotune.frontier import plot as plots

    def draw(path: Path) -> None:
        if picture == "utilization":
            curves = [computed, *(curve(other, assumptions) for other in others if other.name != gpu.name)]
            plots.utilization_picture(curves, path)
        elif picture == "mix":
            plots.mix_picture(computed, path)
        else:
            plots.shape_picture(gpu, assumptions, anchor.run if anchor else assumptions.run(12288), path)

    with bad_input():
        if not saved(draw, plot, "--plot"):
            return 2
    click.echo(f"wrote {plot} and {plot.with_suffix('.csv')}", err=True)
    return 0


def _gpu(option: str, name: str) -> Gpu:
    if name.strip() not in GPUS:
        raise click.UsageError(f"{option}={name!r} must be one of {', '.join(GPUS)}{did_you_mean(name, GPUS)}")
    return GPUS[name.strip()]


def _scaled(gpu: Gpu, scale: tuple[str, ...]) -> Gpu:
    """The GPU with `--scale name=factor` applied; its label says so."""
    from dataclasses import replace

    for name, factor in scales_of(scale):
        if name not in SCALES and name not in FIGURES:
            close = did_you_mean(name, (*SCALES, *FIGURES))
            raise click.UsageError(f"--scale {name}={factor:g}: {name!r} must be one of {', '.join(SCALES)}{close}")
        if not 1e-6 <= factor <= 1e6 and not (factor == 0 and name in FIGURES and name.endswith("latency")):
            raise click.UsageError(
                f"--scale {name}={factor:g}: the factor must be from 1e-6 to 1e6 (network_latency and matmul_latency, "
                "which it multiplies, may also be 0)"
            )
        changed = {
            figure: factor if figure == name or not figure.endswith("latency") else 1 / factor
            for figure in SCALES.get(name, (name,))
        }
        gpu = replace(gpu.scaled(**changed), label=f"{gpu.label}, {name} x{factor:g}")
    return gpu


def _overlap(text: str) -> Overlap:
    from autotune.frontier.batch import Overlap

    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in OVERLAPS:
            close = did_you_mean(name, OVERLAPS)
            raise click.UsageError(
                f"--overlap={text!r}: {name!r} must be one of {', '.join(OVERLAPS)}, or none alone{close}"
            )
    return Overlap(tensor="tensor" in names, pipeline="pipeline" in names, data="data" in names)


def _require_plotting(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--plot {path}: the name must end in .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.UsageError("--plot needs matplotlib; in the clone: pip install -e '.[plot]'") from None
