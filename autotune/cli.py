"""The command line: one lazily imported command a file, and what exit codes mean.

0: done. 1: nothing fits, or a check failed. 2: bad input, said in one line. 3: the tool itself broke.
`--help` imports neither jax nor numpy.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import Any

import click

from autotune.commands import ARGUMENTS
from autotune.commands.command import Group, unknown_option
from autotune.commands.values import guarded
from autotune.meshes.fields import one_line
from autotune.system.quiet import quiet_start
from autotune.system.stdout import drop_stdout
from autotune.user_code import UserCodeError

COMMANDS = {
    "tune": ("autotune.commands.tune", "Choose the layout of a train step on a target, and say what binds."),
    "explain": ("autotune.commands.explain", "The same report for one layout or a plan, without a search."),
    "compare": ("autotune.commands.compare", "Two layouts side by side: where the seconds and the bytes went."),
    "sweep": ("autotune.commands.sweep", "The best layout against cluster size, and where the limit changes."),
    "frontier": ("autotune.commands.frontier", "How far training scales: the limits of data movement."),
    "calibrate": ("autotune.commands.calibrate", "Measure this machine's rates into a hardware file."),
    "check": ("autotune.commands.check", "Recompile a plan and fail when it got worse: a CI gate."),
    "emit": ("autotune.commands.emit", "A plan in another codebase's own words."),
    "store": ("autotune.commands.store", "List, export and prune what was compiled and measured."),
    "targets": ("autotune.commands.catalogue", "The hardware it knows, with the source of each figure."),
    "models": ("autotune.commands.catalogue", "The reference models it knows."),
    "words": ("autotune.commands.words", "What the words on the screen mean."),
    "selftest": ("autotune.commands.catalogue", "The compiler versions the reader has been checked with."),
}


COMPLETION = "_AUTOTUNE_COMPLETE"
"""The environment variable by which a shell asks click how a line can go on."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk."""


class LazyGroup(Group):
    """Imports a command's module only when that command is asked for."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's; the arguments are kept for pages that say which command made them."""
        given = tuple(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return guarded(getattr(importlib.import_module(COMMANDS[name][0]), name))

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="autotune-jax")
def autotune() -> None:
    """Which mesh and layout for a JAX train step, and what stops it from being faster."""


def main() -> None:
    """Run the command line; every way out has its exit code."""
    _own_streams()
    quiet_start()
    code = run(sys.argv[1:])
    if "autotune.system.job" in sys.modules:
        from autotune.system.job import end_process

        end_process(code)
    sys.exit(code)


def _own_streams() -> None:
    """stdout and stderr of Python get descriptors of their own; what C++ code writes on stdout goes to stderr.

    stdout is for what the command says, `--json` above all. What the command says on stderr is not held back while
    start-up noise is (`autotune.system.quiet`).
    """
    if sys.stdout is None or sys.stderr is None:
        return  # started with one of them closed
    out, err = os.dup(1), os.dup(2)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(out, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    sys.stderr = os.fdopen(err, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    if COMPLETION in os.environ:
        from autotune.commands.completion import register

        register()
    try:
        result = autotune.main(args=arguments, prog_name="autotune", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        asked = error.ctx
        if asked is not None and asked.parent is not None and isinstance(asked.command, click.Group):
            names = ", ".join(asked.command.list_commands(asked))
            click.echo(f"autotune: {asked.info_name}: a command is missing; one of {names}", err=True)
        else:
            click.echo(asked.get_help() if asked else "", err=True)
        return 2
    except click.Abort:
        click.echo("autotune: interrupted", err=True)
        return 130
    except click.NoSuchOption as error:
        click.echo(f"autotune: {unknown_option(error)}", err=True)
        return 2
    except click.ClickException as error:
        click.echo("autotune: " + one_line(" ".join(error.format_message().split())), err=True)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except UserCodeError as error:
        click.echo(error.traceback, err=True, nl=False)
        click.echo(f"autotune: {' '.join(str(error).split())}", err=True)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            click.echo(f"autotune: {error.filename or 'the output'} cannot be written: {error.strerror}", err=True)
            drop_stdout()
            return 2
        traceback.print_exc()
        click.echo("autotune: the tool itself broke; the lines above say where", err=True)
        return 3
