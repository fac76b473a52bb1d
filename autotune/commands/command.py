"""Commands as this tool has them: options under headings, old spellings, one line for a mistyped word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from autotune.commands.values import Suggested
from autotune.meshes.fields import did_you_mean, short

HEADINGS: Mapping[str, tuple[str, ...]] = {
    "Train step": (
        "model", "workload", "batch", "seq", "dtype", "optimizer", "weights_dtype", "moments_dtype", "gradients_dtype",
        "master_dtype", "matmul_dtype", "lora_rank", "lora_targets", "base_dtype", "packing", "scan_layers",
        "settings",
    ),
    "Job file": ("job", "save_job"),
    "Batch": ("batch_tokens", "batch_rule", "batch_scale", "critical_batch_tokens", "critical_batch_norms"),
    "Machine": ("target", "hardware", "memory_fraction", "chips", "scale"),
    "Layouts": ("layout", "layouts", "axes", "fix"),
    "Compile and measure": (
        "compile_count", "measure_count", "option_sets", "probe", "jobs", "timeout", "retry", "store", "tolerance",
    ),
    "Questions": (
        "months", "overlap", "sparse", "depth_scale", "tokens", "price", "min_mfu", "what_helps", "shapes",
    ),
    "What to delete": ("older_than_days", "keep_mib"),
    "Output": ("codebase", "out", "html", "timeline", "plot", "picture", "beside", "quiet", "as_json"),
    "Several processes": ("coordinator", "processes", "process_id", "join_timeout"),
}  # fmt: skip
"""Heading of a help text -> the options below it, by the names of their parameters, in the order of the screen.

One name means one thing in every command."""

OTHERS = "Other options"
"""Heading of what no other heading names."""


class Option(click.Option):
    """An option with spellings that are accepted and not shown.

    `old`: spelling -> the value that it stands for, or None where a value follows it as it follows the option itself.
    `bare`: the value of the option where no number follows it; None: it always takes the next word.
    """

    def __init__(
        self, *arguments: Any, old: Mapping[str, str | None] | None = None, bare: str | None = None, **extra: Any
    ):
        super().__init__(*arguments, **extra)
        self.old = dict(old or {})
        self.bare = bare


class Command(click.Command):
    """A command whose help groups its options under `HEADINGS`."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """As click's, after old spellings are written as they are today."""
        return super().parse_args(context, _as_today(self, arguments))

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, a section for each heading that has some here."""
        for heading, parameters in sections(self, context).items():
            records = [_record(one, context) for one in parameters]
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record is not None])


class Group(click.Group):
    """A group whose subcommands are `Command`s."""

    command_class = Command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a mistyped name is answered with the nearest one."""
        name = str(arguments[0])
        if not name.startswith("-") and not context.resilient_parsing and self.get_command(context, name) is None:
            known = self.list_commands(context)
            close = did_you_mean(name, known) or f"; known: {', '.join(known)}"
            raise click.UsageError(f"No such command {short(name)}{close}")
        return super().resolve_command(context, arguments)


def sections(command: click.Command, context: click.Context) -> dict[str, list[click.Parameter]]:
    """Heading -> the options below it, in the order of the screen; headings without an option are left out."""
    shown = {str(one.name): one for one in command.get_params(context) if isinstance(one, click.Option)}
    found: dict[str, list[click.Parameter]] = {}
    for heading, names in HEADINGS.items():
        found[heading] = [shown.pop(name) for name in names if name in shown]
    found[OTHERS] = list(shown.values())
    return {heading: parameters for heading, parameters in found.items() if parameters}


def _record(parameter: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    """The two columns of one option, with the words that its value is chosen from."""
    record = parameter.get_help_record(context)
    if record is None or not isinstance(parameter.type, Suggested):
        return record
    listed = parameter.type.listed()
    return (record[0], f"{record[1]} {listed}") if listed else record


def _as_today(command: click.Command, arguments: list[str]) -> list[str]:
    """The arguments with every old spelling of an option in its spelling of today. Values of options are let alone."""
    options = [one for one in command.params if isinstance(one, click.Option)]
    if not any(isinstance(one, Option) and (one.old or one.bare) for one in options):
        return arguments
    with_values = {name for one in options if not one.is_flag for name in one.opts}
    old = {name: (one, value) for one in options if isinstance(one, Option) for name, value in one.old.items()}
    bare = {name: one.bare for one in options if isinstance(one, Option) and one.bare for name in one.opts}
    found: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return [*found, word, *waiting]
        name, equals, value = word.partition("=")
        if name in old and not (equals and old[name][1] is not None):
            option, stands_for = old[name]
            name = option.opts[0]
            word = name + equals + value if stands_for is None else f"{name}={stands_for}"
        if word in bare and not (waiting and re.fullmatch("[-+]?[0-9]+", waiting[0])):
            word = f"{word}={bare[word]}"
        found.append(word)
        if word in with_values and waiting:
            found.append(waiting.pop(0))
    return found


def unknown_option(error: click.NoSuchOption) -> str:
    """What is said of an option that there is not: the nearest one of that command, or where all of them stand."""
    name, context = error.option_name, error.ctx
    if context is None:
        return f"No such option {short(name)}"
    known = [
        spelling
        for one in context.command.get_params(context)
        if isinstance(one, click.Option) and not one.hidden
        for spelling in (*one.opts, *one.secondary_opts)
        if spelling.startswith("--")
    ]
    close = did_you_mean(name, known) or f"; `{context.command_path} --help` lists the options"
    return f"No such option {short(name)}{close}"
