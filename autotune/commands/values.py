"""What an option's text must be: finite numbers in a range, whole numbers, paths, axes. Bad values become one line."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import click

from autotune.meshes.fields import one_line, short
from autotune.meshes.layout_words import LARGEST_COUNT
from autotune.meshes.transformer import LARGEST_STEP

LONGEST_TEXT = 4096
"""Characters of one option; `--layouts` of a hundred layouts takes as many."""

LONGEST_TIMEOUT = 1e7
"""Seconds, four months: what the operating system's own timers can hold."""


def _name(parameter: click.Parameter | None) -> str:
    if parameter is None:
        return "value"
    return parameter.opts[0] if parameter.opts and parameter.opts[0].startswith("-") else (parameter.name or "").upper()


class Number(click.ParamType):
    """A finite number from `low` to `high`, both included; `above`: `low` is not."""

    name = "number"

    def __init__(self, low: float, high: float, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        where = f"{_name(parameter)}={one_line(value)[:60]}"
        if not re.fullmatch(r"[-+]?(?:[0-9]{1,60}\.?[0-9]{0,60}|\.[0-9]{1,60})(?:[eE][-+]?[0-9]{1,3})?", value.strip()):
            raise click.UsageError(f"{where} must be a finite number")
        number = float(value)
        if number < self.low or (self.above and number == self.low):
            more = (
                f"must be above {self.low:g} and at most {self.high:g}"
                if self.above
                else f"must be {self.low:g} or more"
            )
            raise click.UsageError(f"{where} {more}")
        if number > self.high:
            raise click.UsageError(f"{where} must be at most {self.high:g}")
        return number


class Whole(click.ParamType):
    """A whole number from `low` to `high`, both included, in decimal digits."""

    name = "integer"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        where = f"{_name(parameter)}={one_line(value)[:60]}"
        if not re.fullmatch(r"[-+]?[0-9]{1,4000}", value.strip()):
            raise click.UsageError(f"{where} must be a whole number")
        number = int(value)
        if number < self.low:
            raise click.UsageError(f"{where} must be {self.low} or more")
        if number > self.high:
            raise click.UsageError(f"{where} must be at most {self.high:,}")
        return number


class Word(click.ParamType):
    """A text of 1 to `LONGEST_TEXT` characters, not all blank."""

    name = "text"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        if not value.strip():
            raise click.UsageError(f"{_name(parameter)} is empty")
        if len(value) > LONGEST_TEXT:
            raise click.UsageError(f"{_name(parameter)} has {len(value):,} characters; at most {LONGEST_TEXT:,}")
        if "\0" in value:
            raise click.UsageError(f"{_name(parameter)}={short(value)} holds a NUL character")
        return value


class FilePath(Word):
    """A path that the file system can hold; whether something is there is for the command to say."""

    name = "path"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, Path):
            return value
        super().convert(value, parameter, context)
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ):
                raise click.UsageError(f"{_name(parameter)} {one_line(value)[:60]}: {error.strerror}") from None
        except ValueError as error:
            raise click.UsageError(f"{_name(parameter)} {short(value)}: {error}") from None
        return Path(value)


BATCH = Whole(1, LARGEST_STEP)
COUNT = Whole(0, LARGEST_COUNT)
PROCESS = Whole(0, LARGEST_COUNT)
TIMEOUT = Number(1, LONGEST_TIMEOUT)
PATH = FilePath()


def axes_of(text: str | None) -> tuple[str, ...] | None:
    """`--axes data,fsdp`: each a mesh axis, named once; None where the option was left out."""
    if text is None:
        return None
    from autotune.space import check_axes

    names = tuple(name.strip() for name in text.split(","))
    try:
        check_axes(names)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from None
    return names


def guarded(command: click.Command) -> click.Command:
    """The command with every option and argument that takes any text taking a `Word`, in its subcommands too."""
    for parameter in command.params:
        if parameter.type is click.STRING:
            parameter.type = Word()
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        guarded(inner)
    return command
