"""`autotune explain`: the report for one layout, no search."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from autotune.commands.command import Command
from autotune.commands.job_file import JOB, job_options
from autotune.commands.options import (
    asked_of,
    bad_input,
    compile_option,
    compile_timeout,
    json_option,
    layout_of_model,
    layouts_of,
    measure_option,
    memory_option,
    option_sets_option,
    quiet_option,
    run_of_model,
    settings_given,
    store_option,
    target_of,
    target_options,
    timeline_option,
    workload_of,
    workload_options,
    writable,
)
from autotune.commands.run import need_compile, run_search
from autotune.commands.values import LAYOUT, PATH


@click.command(cls=Command)
@click.argument("plan", required=False, type=PATH)
@click.option("--layout", type=LAYOUT, help="The layout in words, e.g. fsdp=64,tensor=4,remat=full.")
@workload_options
@job_options
@target_options
@memory_option
@compile_option("1: compile it; 0: its price alone.", 1)
@measure_option("1: run it too, 0: do not [1 where devices exist].", old={"--no-measure": "0"}, bare="1")
@option_sets_option("off")
@compile_timeout
@store_option
@click.option("--html", type=PATH, help="Write the report here as one HTML page.")
@timeline_option
@quiet_option
@json_option
def explain(
    plan, layout, model, workload, batch, seq, dtype, target, hardware, memory_fraction, coordinator, processes,
    process_id, join_timeout, compile_count, measure_count, option_sets, timeout, store, html, timeline,
    as_json, quiet,
):  # fmt: skip
    """The same report for one layout, or for a saved plan: what a user runs on the mesh they have.

    A flag beside a plan wins over what the plan says. A plan's own function is imported where --workload repeats it.

    \b
    autotune explain --layout fsdp=64,tensor=4 --model llama3-8b --target v5e:16x16 --batch 256 --seq 4096
    autotune explain plan.json
    autotune explain --model base.yml --set model_name=llama3.1-8b --target v5p:4x4x4
    """
    writable(html, "--html")
    writable(timeline, "--timeline")
    need_compile(timeline, compile_count)
    layout = None if plan and layout and click.get_current_context().meta.get(JOB) else layout
    of_model = bool(model) and not plan and not layout and "ici" in run_of_model(model, settings_given())
    if bool(plan) == bool(layout) and not of_model:
        raise click.UsageError("give one of PLAN and --layout (a MaxText --model over its base.yml says its own)")
    words = {"model": model, "workload": workload, "batch": batch, "seq": seq, "dtype": dtype}
    instead: tuple[str, ...] = ()
    if plan:
        from autotune.plan.read import load_plan

        with bad_input():
            saved = load_plan(plan)
        layouts: Any = (saved.layout,)
        asked = asked_of(saved, plan, target=target, hardware=hardware, memory_fraction=memory_fraction, **words)
        words, target, instead = asked.words, asked.target, asked.instead
        memory_fraction = asked.memory_fraction
    elif of_model:
        layouts = partial(layout_of_model, model)
    else:
        layouts = layouts_of(layout)
        if layouts is None or len(layouts) != 1:
            raise click.UsageError(f"--layout {layout}: must be one layout; `tune --layouts` takes several")
    return run_search(
        workload=lambda on: workload_of(**words, target=on),
        target=lambda: target_of(target, hardware, memory_fraction),
        job=(coordinator, processes, process_id, join_timeout),
        axes=None,
        layouts=layouts,
        fix=(),
        compile_count=compile_count,
        measure_count=measure_count,
        option_sets=option_sets,
        probe=False,
        jobs=1,
        timeout_seconds=timeout,
        retry=True,
        store_path=store,
        out=None,
        html=html,
        timeline=timeline,
        as_json=as_json,
        quiet=quiet,
        instead=instead,
    )
