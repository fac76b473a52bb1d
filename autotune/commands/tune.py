"""`autotune tune`: the main job."""

from __future__ import annotations

import click

from autotune.commands.command import Command
from autotune.commands.job_file import job_options
from autotune.commands.options import (
    compile_option,
    compile_timeout,
    fix_option,
    json_option,
    layouts_of,
    measure_option,
    memory_option,
    option_sets_option,
    quiet_option,
    store_option,
    target_of,
    target_options,
    timeline_option,
    workload_of,
    workload_options,
    writable,
)
from autotune.commands.run import need_compile, run_search
from autotune.commands.values import AXES, LAYOUT, PATH, Whole, axes_of


@click.command(cls=Command)
@workload_options
@job_options
@target_options
@memory_option
@click.option("--axes", type=AXES, help="Mesh axes to search, e.g. data,fsdp,tensor [all that the model can use].")
@click.option("--layouts", type=LAYOUT, metavar='"A;B"', help='Only these layouts, e.g. "fsdp=8;data=4,tensor=2".')
@fix_option
@compile_option("How many best-priced layouts to compile; 0: prices alone.", 6)
@measure_option("How many best-compiled layouts to run [3 where devices exist].")
@option_sets_option("auto")
@click.option(
    "--probe/--no-probe",
    default=True,
    show_default=True,
    help="Of a --workload: small compiles first, that tell how its bytes and seconds scale.",
)
@click.option("--jobs", type=Whole(1, 1024), default=2, show_default=True, help="Compiles at the same time.")
@compile_timeout
@click.option("--retry", is_flag=True, help="Try again what crashed or timed out before.")
@store_option
@click.option("--out", type=PATH, help="Write the plan here (JSON).")
@click.option("--html", type=PATH, help="Write the report here as one HTML page.")
@timeline_option
@quiet_option
@json_option
def tune(
    model, workload, batch, seq, dtype, target, hardware, memory_fraction, coordinator, processes, process_id,
    join_timeout, axes, layouts, fix, compile_count, measure_count, option_sets, probe, jobs, timeout, retry, store,
    out, html, timeline, as_json, quiet,
):  # fmt: skip
    """Choose the mesh and layout of a train step on a target, and say which limit binds.

    \b
    autotune tune --model llama3-8b --target v5e:16x16 --batch 256 --seq 4096 --out plan.json
    autotune tune --model tiny --target cpu:8 --batch 16 --seq 64
    """
    writable(out, "--out")
    writable(html, "--html")
    writable(timeline, "--timeline")
    need_compile(timeline, compile_count)
    return run_search(
        workload=lambda on: workload_of(model, workload, batch, seq, dtype, on),
        target=lambda: target_of(target, hardware, memory_fraction),
        job=(coordinator, processes, process_id, join_timeout),
        axes=axes_of(axes),
        layouts=layouts_of(layouts),
        fix=fix,
        compile_count=compile_count,
        measure_count=measure_count,
        option_sets=option_sets,
        probe=probe,
        jobs=jobs,
        timeout_seconds=timeout,
        retry=retry,
        store_path=store,
        out=out,
        html=html,
        timeline=timeline,
        as_json=as_json,
        quiet=quiet,
    )
