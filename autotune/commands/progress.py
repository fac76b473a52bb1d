"""What a search is doing, on stderr: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable]:
    """Yields the listener of search events; with `quiet` one that shows nothing.

    Both views print the text of every event (`autotune.search_events`): the early answer, each compiled layout, each
    measured one. A terminal also shows which compiles run and for how long.
    """
    from autotune.compile.compile import CompileEvent

    if quiet:
        yield lambda event: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:

        def plain(event) -> None:
            if not isinstance(event, CompileEvent):
                click.echo(str(event), err=True)

        yield plain
        return
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.table import Column

    whole = Column(overflow="fold")  # a layout that is wider than the terminal goes on in the next line
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False, table_column=whole), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as running:
        tasks: dict[str, TaskID] = {}

        def live(event) -> None:
            if not isinstance(event, CompileEvent):
                running.console.print(str(event), markup=False, soft_wrap=True)
                return
            layout = str(event.job.layout)
            if event.kind == "started":
                tasks[layout] = running.add_task(f"compiling {layout}", total=None)
            elif layout in tasks:
                running.remove_task(tasks.pop(layout))

        yield live
