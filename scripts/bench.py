"""Figures of speed, each beside a baseline measured in the same run: `python scripts/bench.py NAME [--json]`.

price: layouts a second, against pricing one at a time. frontier: the limits model, against its plain form.
startup: `autotune --help`, against importing jax. handover: a 4B model's step as a workload, against one trace of it.
tune: the main job cold and again, against its compiles.
"""

from __future__ import annotations

import importlib
import json

import click

NAMES = ("price", "tune", "frontier", "startup", "handover")


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--model", default="llama3-8b", show_default=True, help="tune: the preset.")
@click.option("--target", default="v5e:16x16", show_default=True, help="tune: the target.")
@click.option("--batch", default=256, show_default=True, help="tune: sequences a step.")
@click.option("--seq", default=4096, show_default=True, help="tune: tokens a sequence.")
@click.option("--compile", "compile_count", default=6, show_default=True, help="tune: layouts compiled.")
def main(name: str, as_json: bool, **options) -> None:
    """Run one benchmark and print its figures."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    figures = benchmark.run(**options) if name == "tune" else benchmark.run()
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    for key, value in figures.items():
        click.echo(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")


if __name__ == "__main__":
    main()
