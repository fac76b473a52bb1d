"""`autotune check`: a CI gate over a plan."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autotune.commands.command import Command
from autotune.commands.options import (
    asked_of,
    bad_input,
    compile_timeout,
    json_option,
    machine_of,
    memory_option,
    store_option,
    target_of,
    workload_of,
)
from autotune.commands.run import open_store
from autotune.commands.values import PATH, Number


@click.command(cls=Command)
@click.argument("plan", type=PATH)
@click.option("--workload", metavar="PACKAGE.MODULE:FUNCTION", help="Your own step, of a plan that is not of --model.")
@click.option("--tolerance", type=Number(0, 1e6), default=0.02, show_default=True, help="Growth that passes.")
@click.option("--hardware", type=PATH, help="A hardware file of your own (TOML).")
@memory_option
@compile_timeout
@store_option
@json_option
def check(
    plan: Path,
    workload: str | None,
    tolerance: float,
    hardware: Path | None,
    memory_fraction: float | None,
    timeout: float,
    store: Path | None,
    as_json: bool,
) -> int:
    """Recompile a plan; exit 1 when FLOPs, bytes on an axis, peak memory or collectives grew.

    A plan is data: the function that it names is imported where --workload repeats it.
    """
    from autotune.plan.check import CheckFailed, check_plan
    from autotune.plan.read import load_plan

    with bad_input():
        saved = load_plan(plan)
        if saved.target == "local" and not hardware and memory_fraction is None:
            target = saved.machine()
        else:
            name, fraction = machine_of(saved, None, memory_fraction)
            target = target_of(name, hardware, fraction)
    asked = asked_of(saved, plan, workload=workload, hardware=hardware)
    step = workload_of(**asked.words, target=target)
    try:
        with bad_input():
            grown = check_plan(
                saved, step, target=target, tolerance=tolerance, store=open_store(store), timeout_seconds=timeout
            )
        lines = [str(growth) for growth in grown]
    except CheckFailed as error:
        grown, lines = None, [str(error)]
    if as_json:
        listed = [
            {"figure": one.figure, "before": one.before, "now": one.now, "sources": list(one.sources)}
            for one in grown or ()
        ]
        click.echo(
            json.dumps(
                {
                    "schema": 1,
                    "in_place_of_plan": list(asked.instead),
                    "holds": not lines,
                    "grown": listed,
                    "failure": None if grown is not None else lines[0],
                },
                indent=1,
            )
        )  # noqa: E501
    else:
        if asked.instead:
            click.echo(f"in place of what the plan says: {', '.join(asked.instead)}")
        click.echo("\n".join(lines) if lines else f"{plan}: {saved.layout} on {saved.target} holds")
    return 1 if lines else 0
