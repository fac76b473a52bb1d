"""`autotune compare A B`: two layouts side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.commands.command import Command
from autotune.commands.job_file import instead_of_job, job_options, of_workload, save_job_of
from autotune.commands.options import (
    Asked,
    asked_of,
    bad_input,
    compile_option,
    compile_timeout,
    json_option,
    layouts_of,
    memory_option,
    quiet_option,
    store_option,
    target_of,
    target_options,
    workload_of,
    workload_options,
)
from autotune.commands.progress import progress
from autotune.commands.run import open_store, show
from autotune.commands.values import LAYOUT_OR_PLAN

if TYPE_CHECKING:
    from autotune.meshes.layout import Layout


@click.command(cls=Command)
@click.argument("first", type=LAYOUT_OR_PLAN)
@click.argument("second", type=LAYOUT_OR_PLAN)
@workload_options
@job_options
@target_options
@memory_option
@compile_option("2: compile both; 0: their prices alone.", 2)
@compile_timeout
@store_option
@quiet_option
@json_option
def compare(
    first, second, model, workload, batch, seq, dtype, target, hardware, memory_fraction, coordinator, processes,
    process_id, join_timeout, compile_count, timeout, store, as_json, quiet,
):  # fmt: skip
    """Two layouts side by side: where the seconds and the bytes went. FIRST and SECOND are layouts in words, or plans.

    Each plan is compiled as what it was made for; a flag wins over what both say.

    \b
    autotune compare fsdp=64,tensor=4 fsdp=256 --model llama3-8b --target v5e:16x16 --batch 256 --seq 4096
    autotune compare before.json after.json
    """
    if any(value is not None for value in (coordinator, processes, process_id)):
        raise click.UsageError("compare runs in one process; leave --coordinator, --processes and --process-id out")
    if compile_count == 1:
        raise click.UsageError("--compile=1: compare compiles both layouts, or with --compile 0 none")
    flags = {"model": model, "workload": workload, "batch": batch, "seq": seq, "dtype": dtype}
    sides = [_side(text, flags, target, hardware, memory_fraction) for text in (first, second)]
    plans = [asked for _, asked in sides if asked is not None]
    others = plans[0] if plans else Asked(words=flags, target=target or "", memory_fraction=memory_fraction, instead=())
    from autotune.meshes.placement import default_dcn
    from autotune.report.comparison import comparison_to_json, render_comparison
    from autotune.search import search

    asked = [one or others for _, one in sides]
    machines = [target_of(one.target, hardware, one.memory_fraction) for one in asked]
    steps = [workload_of(**one.words, target=machine) for one, machine in zip(asked, machines, strict=True)]
    one_job = asked[0].words == asked[1].words and machines[0] == machines[1]
    instead = tuple(dict.fromkeys([*(phrase for one in plans for phrase in one.instead), *instead_of_job()]))
    reports, rows = [], []
    with progress(quiet) as on_event, bad_input():
        layouts = [default_dcn(layout, machine) for (layout, _), machine in zip(sides, machines, strict=True)]
        kept = open_store(store)
        for together in ((0, 1),) if one_job else ((0,), (1,)):
            named = tuple(dict.fromkeys(layouts[side] for side in together))
            report = search(
                steps[together[0]], machines[together[0]], axes=None, layouts=named, fix=(),
                compile_count=len(named) if compile_count else 0,
                measure_count=0, jobs=2, probe=False, timeout_seconds=timeout, retry=True, store=kept,
                on_event=on_event,
            )  # fmt: skip
            report = replace(report, instead=instead, instead_of="the plan" if plans else "the job file")
            for side in together:
                reports.append(report)
                rows.append(next(row for row in report.rows if row.layout == layouts[side]))
    a, b = rows
    if as_json:
        click.echo(json.dumps(comparison_to_json(reports[0], a, b, reports[1]), indent=1))
    else:
        show(render_comparison(reports[0], a, b, reports[1]))
    if not save_job_of(click.get_current_context(), of_workload(steps[0], machines[0])):
        return 2
    return 0 if all(row.analysis if compile_count else row.status.can_run for row in rows) else 1


def _side(
    text: str, flags: dict, target: str | None, hardware: Path | None, memory_fraction: float | None
) -> tuple[Layout, Asked | None]:
    """One of the two: its layout, and what its plan and the flags ask for where it is a plan."""
    if not text.endswith(".json"):
        layouts = layouts_of(text) or ()
        if len(layouts) != 1:
            raise click.UsageError("compare: FIRST and SECOND must each be one layout, or a plan, NAME.json")
        return layouts[0], None
    from autotune.plan.read import load_plan

    with bad_input():
        saved = load_plan(Path(text))
    return saved.layout, asked_of(
        saved, Path(text), target=target, hardware=hardware, memory_fraction=memory_fraction, **flags
    )
