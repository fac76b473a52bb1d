"""One search from the command line: progress on stderr, the report on stdout, the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.commands import ARGUMENTS
from autotune.commands.job_file import instead_of_job, of_workload, save_job_of
from autotune.commands.options import bad_input, saved, shown
from autotune.commands.progress import progress
from autotune.system.whole_file import write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autotune.meshes.option_sets import Trying
    from autotune.meshes.target import Target
    from autotune.report.report import Report
    from autotune.workload.workload import Workload


def run_search(
    *,
    workload: Callable,
    target: Callable,
    job: tuple[str | None, int | None, int | None, float],
    axes,
    layouts,
    fix,
    compile_count: int,
    measure_count: int | None,
    option_sets: Trying = "auto",
    probe: bool,
    jobs: int,
    timeout_seconds: float,
    retry: bool,
    store_path: Path | None,
    out: Path | None,
    html: Path | None,
    timeline: Path | None,
    as_json: bool,
    quiet: bool,
    instead: tuple[str, ...] = (),
) -> int:
    """Run `search` with these options, show its report, then save.

    `layouts`: those named, or a function of the target that gives them. `instead`: flags that were taken in place of
    what a plan says, for the heading; those in place of a job file's words are added.

    Returns 0; 1 when nothing fits; 2 when the report or a file of it could not be written; 130 after Ctrl-C: then the
    report says what was known by then.
    """
    with in_job(*job) as reports:
        # Not before: the processes of a job meet first, and this import takes a while.
        from autotune.search import search

        machine = target()
        if compile_count:
            require_compiler(machine)
        train_step = workload(machine)
        if callable(layouts):
            layouts = layouts(machine)
        require_same(machine, train_step)
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
                option_sets=option_sets,
                probe=probe,
                jobs=jobs,
                timeout_seconds=timeout_seconds,
                retry=retry,
                store=store,
                on_event=on_event,
                report_on_interrupt=True,
            )
        of_job = instead_of_job()
        report = replace(report, instead=(*instead, *of_job))
        if of_job and not instead:
            report = replace(report, instead_of="the job file")
        leave_job()
    plan = report.plan_or_none
    # The report first: a disk that is full must not cost a search its answer.
    kept = _show(report, as_json)
    if out and plan and (kept := saved(plan.save, out, "--out") and kept) and not as_json:
        kept = shown(f"plan written to {out}") and kept
    kept = save_job_of(click.get_current_context(), of_workload(train_step, machine)) and kept
    if html:
        from autotune.report.html import render_html

        page = render_html(report, command=command_line(), plan_path=out)
        kept = saved(lambda path: write_whole(path, page), html, "--html") and kept
    if timeline:
        kept = _save_timeline(report, timeline) and kept
    if report.compilers_word:
        click.echo(f"Error: {report.compilers_word}", err=True)
    if report.interrupted:
        click.echo("autotune: interrupted; the same command goes on from here, what was compiled is kept", err=True)
        return 130
    if not kept:
        return 2
    return 0 if plan else 1


def need_compile(timeline: Path | None, compile_count: int) -> None:
    """Refuse a timeline where nothing is compiled."""
    if timeline and not compile_count:
        raise click.UsageError("--timeline: is of a compiled layout, and --compile is 0")


def command_line() -> str:
    """The command as it was given, as a shell reads it."""
    return shlex.join(["autotune", *click.get_current_context().meta.get(ARGUMENTS, ())])


def _save_timeline(report: Report, path: Path) -> bool:
    """Write the chosen layout's step; one line and False where it cannot be written or there is none."""
    from autotune.report.trace_events import write_trace

    found = report.timeline()
    if found is None:
        why = "the chosen layout is not compiled" if report.ranked else "no layout is chosen"
        click.echo(f"autotune: --timeline {path}: is not written: {why}", err=True)
        return False
    return saved(lambda path: write_trace(found, path), path, "--timeline")


def _show(report: Report, as_json: bool) -> bool:
    """Print the report: JSON, or the screen, in colour on a terminal. False where stdout could not take it."""
    if as_json:
        import json

        from autotune.report.document import report_to_json

        return shown(json.dumps(report_to_json(report), indent=1))
    from autotune.report.text import render

    return showed(render(report))


def show(screen: RenderableType, piped: int = 140) -> None:
    """Print a screen: in the width and the colours of a terminal, as plain lines of at most `piped` columns elsewhere.

    OSError where stdout cannot take it; the command line says that in one line.
    """
    from rich.console import Console

    from autotune.tables import lines

    if sys.stdout.isatty():
        Console(highlight=False).print(screen, crop=False)
    else:
        click.echo("\n".join(lines(screen, piped)))


def showed(screen: RenderableType) -> bool:
    """As `show`; where stdout cannot take it, one line and False: files are still to be written."""
    from autotune.tables import lines

    if not sys.stdout.isatty():
        return shown("\n".join(lines(screen)))
    show(screen)
    return True


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


def require_same(target: Target, workload: Workload | None) -> None:
    """In a job: refuse processes whose machine or train step is another, in one line and in all of them."""
    from autotune.system.job import current

    job = current()
    if job is None:
        return
    chip = target.hardware.name
    values = {"target": f"{target.name} ({target.groups} x {'x'.join(map(str, target.shape))} of {chip})"}
    if workload is not None:
        values |= {"workload": workload.name, "workload fingerprint": workload.fingerprint}
    with bad_input():
        job.require_same(values)


def leave_job() -> None:
    """End the job, if there is one; its other processes then leave it too."""
    from autotune.system.job import leave

    leave()


PROCESS_0_ONLY = ("out", "html", "timeline", "as_json", "store", "quiet", "save_job", "job")
"""Options that may differ between the processes of a job: only process 0 reports and keeps."""
OF_THE_PROCESS = ("coordinator", "processes", "process_id", "join_timeout")
INPUT_FILES = ("plan", "hardware")
"""Options that name a file to read: its text must be the same in all processes, not its path."""
COMPARED_PACKAGES = ("autotune-jax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax", "numpy")


@contextmanager
def in_job(
    coordinator: str | None, processes: int | None, process_id: int | None, join_timeout: float
) -> Iterator[bool]:
    """The multi-process job that the flags name, joined; yields True in the one process that reports.

    Without the flags there is no job, and this process reports. An error inside is told to the other processes, which
    end as well. The report, after `leave_job`, is no longer the job's.
    """
    given = (coordinator, processes, process_id)
    if all(value is None for value in given):
        yield True
        return
    if any(value is None for value in given):
        raise click.UsageError("--coordinator, --processes and --process-id belong together")
    from autotune.system.job import current, join

    try:
        with bad_input():
            reports = join(coordinator, processes, process_id, runs=what_runs(), seconds=join_timeout)
        yield reports
    except BaseException as error:
        job = current()
        if job is not None:
            job.fail(*_last_words(error))
        raise


def what_runs() -> dict[str, str]:
    """What must be the same in all processes of a job: the command, its options, and the versions of its packages."""
    import hashlib
    import platform

    from autotune.system.versions import installed_versions

    context = click.get_current_context()
    runs = {"command": str(context.info_name)}
    for option in context.command.params:
        name = str(option.name)
        value = context.params.get(name)
        if name in (*PROCESS_0_ONLY, *OF_THE_PROCESS):
            continue
        label = str(option.opts[0]) if isinstance(option, click.Option) else name.upper()
        if name in INPUT_FILES and value is not None and Path(value).is_file():
            value = "a file of sha256 " + hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
        given = value if isinstance(value, tuple) else () if value is None else (value,)
        runs[label] = " ".join(map(str, given)) or "not given"
    return runs | {"python": platform.python_version()} | installed_versions(COMPARED_PACKAGES)


def _last_words(error: BaseException) -> tuple[str, int]:
    """What the other processes of a job say when this one ends with that error, and their exit code."""
    from autotune.user_code import UserCodeError

    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split()), 2
    if isinstance(error, UserCodeError):
        return " ".join(str(error).split()), 2
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "it was interrupted", 130
    return " ".join(f"{type(error).__name__}: {error}".split()), 3
