"""`autotune compare A B`: two layouts side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from autotune.commands.options import (
    bad_input,
    json_option,
    layouts_of,
    machine_of,
    memory_option,
    quiet_option,
    store_option,
    target_of,
    target_options,
    training_words,
    workload_of,
    workload_options,
)
from autotune.commands.progress import progress
from autotune.commands.run import open_store


@click.command()
@click.argument("first")
@click.argument("second")
@workload_options
@target_options
@memory_option
@click.option(
    "--timeout", type=click.FloatRange(1), default=900.0, show_default=True, help="Seconds a compile may take."
)
@store_option
@quiet_option
@json_option
def compare(
    first, second, model, workload, batch, seq, dtype, target, hardware, memory_fraction, coordinator, processes,
    process_id, join_timeout, timeout, store, as_json, quiet,
):  # fmt: skip
    """Two layouts side by side: where the seconds and the bytes went. FIRST and SECOND are layouts in words, or plans.

    \b
    autotune compare fsdp=64,tensor=4 fsdp=256 --model llama3-8b --target v5e:16x16 --batch 256 --seq 4096
    autotune compare before.json after.json
    """
    if any(value is not None for value in (coordinator, processes, process_id)):
        raise click.UsageError("compare runs in one process; leave --coordinator, --processes and --process-id out")
    layouts: list = []
    training = None
    for text in (first, second):
        if not text.endswith(".json"):
            layouts += layouts_of(text) or ()
            continue
        from autotune.plan.read import load_plan

        with bad_input():
            saved = load_plan(Path(text))
        layouts.append(saved.layout)
        if not (model or workload):
            model, workload = saved.recipe.get("model"), saved.recipe.get("workload")
            batch, seq, dtype = saved.recipe.get("batch"), saved.recipe.get("seq"), saved.recipe.get("dtype")
            training = training_words(saved)
        target, memory_fraction = machine_of(saved, target, memory_fraction)
    if len(layouts) != 2:
        raise click.UsageError("compare: FIRST and SECOND must each be one layout")
    from autotune.report.comparison import comparison_to_json, render_comparison
    from autotune.search import search

    machine = target_of(target, hardware, memory_fraction)
    train_step = workload_of(model, workload, batch, seq, dtype, machine, training)
    with progress(quiet) as on_event, bad_input():
        report = search(
            train_step, machine, axes=None, layouts=tuple(layouts), fix=(), compile_count=2, measure_count=0, jobs=2,
            probe=False, timeout_seconds=timeout, retry=True, store=open_store(store), on_event=on_event,
        )  # fmt: skip
        rows = [next(row for row in report.rows if row.layout == one) for one in report.named]
    if as_json:
        click.echo(json.dumps(comparison_to_json(report, *rows), indent=1))
    else:
        from autotune.tables import lines

        click.echo("\n".join(lines(render_comparison(report, *rows))))
    return 0 if all(row.analysis for row in rows) else 1
