"""One search from the command line: progress on stderr, the report on stdout, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.commands.options import bad_input, saved, shown
from autotune.commands.progress import progress
from autotune.system.whole_file import write_whole

if TYPE_CHECKING:
    from autotune.meshes.target import Target
    from autotune.report.report import Report


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
    quiet: bool,
) -> int:
    """Run `search` with these options, show its report, then save.

    Returns 0; 1 when nothing fits; 2 when the report or a file of it could not be written; 130 after Ctrl-C: then the
    report says what was known by then.
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
    with progress(quiet) as on_event, bad_input():
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
            report_on_interrupt=True,
        )
    if job != (None, None, None):
        from autotune.system.job import leave

        leave()
    plan = report.plan_or_none
    # The report first: a disk that is full must not cost a search its answer.
    kept = _show(report, as_json)
    if out and plan and (kept := saved(plan.save, out, "--out") and kept) and not as_json:
        kept = shown(f"plan written to {out}") and kept
    if html:
        from autotune.report.html import render_html

        kept = saved(lambda path: write_whole(path, render_html(report)), html, "--html") and kept
    if report.compilers_word:
        click.echo(f"Error: {report.compilers_word}", err=True)
    if report.interrupted:
        click.echo("autotune: interrupted; the same command goes on from here, what was compiled is kept", err=True)
        return 130
    if not kept:
        return 2
    return 0 if plan else 1


def _show(report: Report, as_json: bool) -> bool:
    """Print the report: JSON, or the screen, in colour on a terminal. False where stdout could not take it."""
    if as_json:
        import json

        from autotune.report.report import report_to_json

        return shown(json.dumps(report_to_json(report), indent=1))
    from rich.console import Console

    from autotune.report.text import lines, render

    if sys.stdout.isatty():
        Console(highlight=False).print(render(report))
        return True
    return shown("\n".join(lines(render(report))))


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
