"""`autotune explain`: the report for one layout, no search."""

from __future__ import annotations

from pathlib import Path

import click

from autotune.commands.options import (
    bad_input,
    json_option,
    layouts_of,
    machine_of,
    memory_option,
    quiet_option,
    recipe_of,
    store_option,
    target_of,
    target_options,
    workload_of,
    workload_options,
    writable,
)
from autotune.commands.run import run_search


@click.command()
@click.argument("plan", required=False, type=click.Path(path_type=Path))
@click.option("--layout", help="The layout in words, e.g. fsdp=64,tensor=4,remat=full.")
@workload_options
@target_options
@memory_option
@click.option("--measure/--no-measure", default=None, help="Run it too [where devices exist].")
@click.option(
    "--timeout", type=click.FloatRange(1), default=900.0, show_default=True, help="Seconds a compile may take."
)
@store_option
@click.option("--html", type=click.Path(path_type=Path), help="Write the report here as one HTML page.")
@quiet_option
@json_option
def explain(
    plan, layout, model, workload, batch, seq, dtype, target, hardware, memory_fraction, coordinator, processes,
    process_id, join_timeout, measure, timeout, store, html, as_json, quiet,
):  # fmt: skip
    """The same report for one layout, or for a saved plan: what a user runs on the mesh they have.

    \b
    autotune explain --layout fsdp=64,tensor=4 --model llama3-8b --target v5e:16x16 --batch 256 --seq 4096
    autotune explain plan.json
    """
    writable(html, "--html")
    if bool(plan) == bool(layout):
        raise click.UsageError("give one of PLAN and --layout")
    if plan:
        from autotune.plan.read import load_plan

        with bad_input():
            saved = load_plan(plan)
        layouts: tuple | None = (saved.layout,)
        target, memory_fraction = machine_of(saved, target, memory_fraction)
        words = recipe_of(saved, plan, workload)
        model, workload, batch, seq, dtype = (words[name] for name in ("model", "workload", "batch", "seq", "dtype"))
        training = words["training"]
    else:
        layouts, training = layouts_of(layout), None
    return run_search(
        workload=lambda on: workload_of(model, workload, batch, seq, dtype, on, training),
        target=lambda: target_of(target, hardware, memory_fraction),
        job=(coordinator, processes, process_id, join_timeout),
        axes=None,
        layouts=layouts,
        fix=(),
        compile_count=1,
        measure_count=None if measure is None else int(measure),
        probe=False,
        jobs=1,
        timeout_seconds=timeout,
        retry=True,
        store_path=store,
        out=None,
        html=html,
        as_json=as_json,
        quiet=quiet,
    )
