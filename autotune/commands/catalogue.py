"""`autotune targets`, `autotune models`, `autotune selftest`: what it knows."""

from __future__ import annotations

import dataclasses
import json

import click

from autotune.commands.options import json_option


@click.command()
@click.argument("name", required=False)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """The hardware it knows; with NAME, every figure of one chip and where it is from."""
    from autotune.commands.options import bad_input
    from autotune.meshes.hardware import hardware_names, load_hardware
    from autotune.meshes.target import as_written_here, check_chip

    with bad_input():
        if name is not None:
            asked, name = name, as_written_here(name).partition(":")[0]
            check_chip(asked, name)
        chips = [load_hardware(chip) for chip in ([name] if name else hardware_names())]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(chip) for chip in chips], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if name:
        table = Table(title=f"{name}: figures per JAX device, SI units")
        for column in ("figure", "value", "source"):
            table.add_column(column, overflow="fold")
        for figure, value in _figures(chips[0]).items():
            table.add_row(figure, f"{value:g}" if type(value) in (int, float) else str(value),
                          chips[0].sources.get(figure, ""))  # fmt: skip
        console.print(table)
        return
    example = {"tpu": ":4x4 or :4x4x4*2 (slices)", "cuda": ":DOMAINSxGPUS", "cpu": ":8"}
    table = Table(title="hardware, per JAX device (autotune targets NAME shows every figure with its source)")
    for column in ("name", "write", "peak TFLOP/s", "HBM usable GiB", "HBM GB/s", "links, one way GB/s"):
        table.add_column(column)
    for chip in chips:
        peak = ", ".join(f"{dtype} {value / 1e12:g}" for dtype, value in chip.flops_per_second.items())
        links = ", ".join(f"{tier.name} {tier.bytes_per_second / 1e9:.3g}" for tier in chip.tiers)
        table.add_row(chip.name, chip.name + example[chip.platform], peak, f"{chip.capacity_bytes / 2**30:.4g}",
                      f"{chip.hbm_bytes_per_second / 1e9:.4g}", links)  # fmt: skip
    console.print(table)


@click.command()
@json_option
def models(as_json: bool) -> None:
    """The reference models it knows (--model also takes a JSON file with these keys)."""
    from autotune.models.presets import PRESETS

    if as_json:
        listed = [dataclasses.asdict(shape) | {"parameters": shape.parameters} for shape in PRESETS.values()]
        click.echo(json.dumps(listed, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="reference models")
    names = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab", "mlp", "experts", "kind")
    for column in ("name", "parameters", *names):
        table.add_column(column)
    for shape in PRESETS.values():
        table.add_row(shape.name, f"{shape.parameters / 1e6:,.0f} M", *(str(getattr(shape, name)) for name in names))
    Console(highlight=False).print(table)


@click.command()
@json_option
def selftest(as_json: bool) -> None:
    """Which compiler versions the reader of compiled programs has been checked with, and those installed here."""
    from autotune.hlo.versions import CHECKED_VERSIONS, unchecked
    from autotune.plan.plan import installed_versions

    here = installed_versions(tuple(CHECKED_VERSIONS))
    if as_json:
        found = {
            name: {"installed": here.get(name), "checked": list(checked)} for name, checked in CHECKED_VERSIONS.items()
        }
        click.echo(json.dumps(found, indent=1))
        return
    for name, checked in CHECKED_VERSIONS.items():
        click.echo(f"{name}: installed {here.get(name, 'none')}, programs checked of {', '.join(checked)}")
    for line in unchecked(here):
        click.echo(f"warning: {line}")


def _figures(chip) -> dict[str, object]:
    """Every figure under the dotted name its source is kept under."""
    figures: dict[str, object] = {}
    for spec in dataclasses.fields(chip):
        value = getattr(chip, spec.name)
        if spec.name == "tiers":
            for tier in value:
                for part in ("bytes_per_second", "latency_seconds", "launch_seconds", "wait_per_doubling"):
                    figures[f"tiers.{tier.name}.{part}"] = getattr(tier, part)
        elif spec.name in ("flops_per_second", "compile_fields", "compiler_options"):
            figures |= {f"{spec.name}.{key}": item for key, item in value.items()}
        elif spec.name != "sources":
            figures[spec.name] = value
    return figures
