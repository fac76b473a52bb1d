"""One search from the command line: progress on stderr, the report on stdout, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.commands.options import bad_input
from autotune.whole_file import write_whole

if TYPE_CHECKING:
    from autotune.meshes.target import Target


def run_search(
    *,
    workload: Callable,
    target: Callable,
    job: tuple[str | None, int | None, int | None],
    axes,
    layouts,
    fix,
    compile_count: int,
    measure_count: int | None,
    probe: bool,
    jobs: int,
    timeout_seconds: float,
    retry: bool,
    store_path: Path | None,
    out: Path | None,
    html: Path | None,
    as_json: bool,
    instead: tuple[str, ...] = (),
) -> int:
    """Run `search` with these options and show its report; returns 0, or 1 when nothing fits.

    `instead`: flags that were taken in place of what a plan says, for the heading.
    """
    from autotune.search import search

    reports = join_job(*job)
    machine = target()
    if compile_count:
        require_compiler(machine)
    train_step = workload(machine)
    if not reports:
        from autotune.commands.follow import follow

        return follow(train_step, machine)
    store = open_store(store_path)
    with progress() as on_event, bad_input():
        report = search(
            train_step,
            machine,
            axes=axes,
            layouts=layouts,
            fix=fix,
            compile_count=compile_count,
            measure_count=measure_count,
            probe=probe,
            jobs=jobs,
            timeout_seconds=timeout_seconds,
            retry=retry,
            store=store,
            on_event=on_event,
            say=lambda line: click.echo(line, err=True),
        )
    report = replace(report, instead=instead)
    if job != (None, None, None):
        from autotune.system.job import leave

        leave()
    plan = report.plan_or_none
    if out and plan:
        plan.save(out)
    if html:
        from autotune.report.html import render_html

        write_whole(html, render_html(report))
    if as_json:
        import json

        from autotune.report.report import report_to_json

        click.echo(json.dumps(report_to_json(report), indent=1))
    else:
        from rich.console import Console

        from autotune.report.text import lines, render

        if sys.stdout.isatty():
            Console(highlight=False).print(render(report))
        else:
            click.echo("\n".join(lines(render(report))))
        if out and plan:
            click.echo(f"plan written to {out}")
    if report.compilers_word:
        click.echo(f"Error: {report.compilers_word}", err=True)
    return 0 if plan else 1


def open_store(path: Path | None):
    """The store at `path` or the default one; one clear line when it cannot be had."""
    from autotune.store import Store, StoreError

    try:
        return Store(path, warn=lambda line: click.echo(line, err=True))
    except StoreError as error:
        raise click.UsageError(str(error)) from None


def require_compiler(target: Target) -> None:
    """Refuse a target whose compiler is not installed or does not work with this jax, before the step is traced."""
    from autotune.meshes.installed import why_no_compiler

    problem = None if target.attached else why_no_compiler(target.platform, target.name)
    if problem:
        raise click.UsageError(problem)


def join_job(coordinator: str | None, processes: int | None, process_id: int | None) -> bool:
    """Join the multi-process job that the flags name; True in the one process that reports."""
    given = (coordinator, processes, process_id)
    if all(value is None for value in given):
        return True
    if any(value is None for value in given):
        raise click.UsageError("--coordinator, --processes and --process-id belong together")
    from autotune.system.job import join

    with bad_input():
        return join(coordinator, processes, process_id)


@contextmanager
def progress() -> Iterator[Callable]:
    """Yields the listener of search events: a live line on a terminal, silence elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def listen(event) -> None:
            layout = str(event.job.layout)
            count = f"{event.done} of {event.total} compiled, {event.running} running"
            if "all" not in tasks:
                tasks["all"] = bar.add_task(count, total=None)
            bar.update(tasks["all"], description=count)
            if event.kind == "started":
                tasks[layout] = bar.add_task(f"  {layout}", total=None)
            elif layout in tasks:
                bar.remove_task(tasks.pop(layout))

        yield listen
