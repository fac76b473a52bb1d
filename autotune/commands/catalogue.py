"""`autotune targets`, `autotune models`, `autotune selftest`: what it knows."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group

from autotune.commands.command import Command
from autotune.commands.options import json_option, setting_option
from autotune.commands.run import show
from autotune.commands.values import CHIP, MODEL, PATH
from autotune.tables import Column, FittedTable, Prose

if TYPE_CHECKING:
    from pathlib import Path

    from autotune.meshes.hardware import Hardware


@click.command(cls=Command)
@click.argument("name", required=False, type=CHIP)
@click.option("--hardware", type=PATH, help="A hardware file of your own, in place of NAME.")
@json_option
def targets(name: str | None, hardware: Path | None, as_json: bool) -> None:
    """The hardware it knows; with NAME, every figure of one chip and where it is from.

    A figure that the chip's file leaves out is there too, as inherited or as missing. Files in the folders that the
    environment variable AUTOTUNE_HARDWARE names are known by their names.
    """
    from autotune.commands.options import bad_input
    from autotune.meshes.hardware import hardware_names, left_out, load_hardware, read_hardware
    from autotune.meshes.target import as_written_here, check_chip

    if name is not None and hardware:
        raise click.UsageError("give one of NAME and --hardware")
    with bad_input():
        if hardware:
            chips = [read_hardware(hardware)]
        else:
            if name is not None:
                asked, name = name, as_written_here(name).partition(":")[0]
                check_chip(asked, name)
            chips = [load_hardware(chip) for chip in ([name] if name else hardware_names())]
    if as_json:
        listed = [dataclasses.asdict(chip) | {"missing": left_out(chip)} for chip in chips]
        click.echo(json.dumps(listed, indent=1))
        return
    if name or hardware:
        show(figures_table(chips[0], f"{chips[0].name}: figures per JAX device, SI units"))
        return
    columns = [
        Column(name="name", heads=True),
        Column(name="e.g.", heads=True),
        Column(name="peak TFLOP/s", priority=3, least=20),
        Column(name="HBM usable GiB", align="right"),
        Column(name="HBM GB/s", priority=2, align="right"),
        Column(name="links, one way GB/s", priority=4, least=20),
    ]
    rows = []
    for chip in chips:
        peak = ", ".join(f"{dtype} {value / 1e12:g}" for dtype, value in chip.flops_per_second.items())
        links = ", ".join(f"{tier.name} {tier.bytes_per_second / 1e9:.3g}" for tier in chip.tiers)
        rows.append([chip.name, _example(chip), peak, f"{chip.capacity_bytes / 2**30:.4g}",
                     f"{chip.hbm_bytes_per_second / 1e9:.4g}", links])  # fmt: skip
    title = "hardware, per JAX device (`autotune targets NAME` shows every figure with its source)"
    show(Group(FittedTable(columns, rows, title), Prose("also: local, the devices that are attached")))


def _example(chip: Hardware) -> str:
    """A target of the chip: one slice or two, two NVLink domains, or simulated devices."""
    if chip.platform == "cpu":
        return f"{chip.name}:8"
    if chip.platform != "tpu":
        return f"{chip.name}:2x8"
    return f"{chip.name}:4x4" if chip.torus_dimensions == 2 else f"{chip.name}:4x4x4*2"


@click.command(cls=Command)
@click.argument("model", required=False, metavar="[FILE]", type=MODEL)
@setting_option()
@json_option
def models(model: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """The reference models it knows; with FILE, what was read of a model file, or of one of them.

    FILE is whatever --model takes: a preset, a JSON file with the keys of the list, a Hugging Face config.json or the
    folder that holds one, or a MaxText yml.
    """
    from autotune.models.presets import PRESETS

    if model is not None:
        _read(model, settings, as_json)
        return
    if settings:
        raise click.UsageError("--set needs a FILE")
    if as_json:
        listed = [dataclasses.asdict(shape) | {"parameters": shape.parameters} for shape in PRESETS.values()]
        for one in listed:
            del one["architecture"]  # a preset has none, and a JSON file of ours cannot say it
        click.echo(json.dumps(listed, indent=1))
        return
    fields = {"layers": 1, "d_model": 1, "heads": 2, "kv_heads": 2, "head_dim": 3, "d_ff": 2, "vocab": 3, "mlp": 4,
              "experts": 3, "kind": 5}  # fmt: skip
    columns = [Column(name="name", heads=True), Column(name="parameters", align="right")]
    columns += [Column(name=name, priority=place, align="right") for name, place in fields.items()]
    rows = [
        [shape.name, _millions(shape.parameters), *(str(getattr(shape, name)) for name in fields)]
        for shape in PRESETS.values()
    ]
    show(FittedTable(columns, rows, "reference models (--model NAME)"))


def _millions(parameters: int) -> str:
    """Such as "8,030 M"; "0.10 M" below a million.

    >>> _millions(8_030_261_248), _millions(98_624)
    ('8,030 M', '0.10 M')
    """
    millions = parameters / 1e6
    return f"{millions:,.0f} M" if millions >= 1 else f"{millions:.2f} M"


def _read(model: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Show what was read of one model."""
    from autotune.commands.options import bad_input
    from autotune.model_files.read import read_model
    from autotune.model_files.read_model import describe

    with bad_input():
        found = read_model(model, settings)
    told = describe(found)
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    active = told["active_parameters"]
    columns = [
        Column(name="layers", align="right", heads=True),
        Column(name="attention", least=20),
        Column(name="mlp", least=20),
    ]
    rows = [[str(layer["count"]), str(layer["attention"]), str(layer["mlp"])] for layer in told["layers"]]
    notes = [f"without effect on cost: {', '.join(found.ignored)}"] if found.ignored else []
    notes += [f"not modelled: {note}" for note in found.not_modelled]
    show(
        Group(
            Prose(f"{told['name']}: {found.source}"),
            Prose(f"parameters: {told['parameters']:,}; a token meets {active:,} (of the embedding tables one)"),
            FittedTable(columns, rows),
            *map(Prose, notes),
        )
    )


@click.command(cls=Command)
@json_option
def selftest(as_json: bool) -> None:
    """Which compiler versions the reader of compiled programs has been checked with, and those installed here."""
    from autotune.hlo.versions import CHECKED_VERSIONS, unchecked
    from autotune.system.versions import installed_versions

    here = installed_versions(CHECKED_VERSIONS)
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


def figures_table(chip: Hardware, title: str) -> FittedTable:
    """Every figure of a chip, with its source."""
    columns = [Column(name="figure", heads=True), Column(name="value", least=14), Column(name="source", least=24)]
    return FittedTable(columns, _rows_of(chip), title)


def _rows_of(chip: Hardware) -> list[tuple[str, str, str]]:
    """(figure, value, source) of every figure of a chip; those that its file leaves out say what stands in for them."""
    from autotune.meshes.hardware import WITHOUT_SOURCE, figures, left_out

    missing = left_out(chip)
    rows = []
    for name, value in figures(chip).items():
        no_source = "" if name.rpartition(".")[2] in WITHOUT_SOURCE else "given without a source"
        rows.append((name, _text(value), missing.pop(name, chip.sources.get(name, no_source))))
    return rows + [(name, "-", instead) for name, instead in missing.items()]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return f"{value:g}" if type(value) in (int, float) else str(value)
