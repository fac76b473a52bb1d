"""What an option's text must be: finite numbers in a range, whole numbers, paths, axes. Bad values become one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from autotune.meshes.fields import did_you_mean, one_line, short
from autotune.meshes.layout_words import LARGEST_COUNT, LAYOUT_WORDS
from autotune.meshes.lora import LARGEST_RANK, LORA_TARGETS, lora_targets_of
from autotune.meshes.training import MOST_DOCUMENTS
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


class LoraTargets(Word):
    """Names of `autotune.meshes.lora.LORA_TARGETS`, with commas between them."""

    name = "matrices"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """As the help shows it."""
        return ",".join(LORA_TARGETS)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        try:
            return lora_targets_of(super().convert(value, parameter, context))
        except ValueError as error:
            raise click.UsageError(f"--{str(error).replace('_', '-', 1)}") from None


class OneOf(click.ParamType):
    """One of `choices`. `others`: spelling that is accepted and not shown -> the choice that it means."""

    name = "choice"

    def __init__(self, choices: Iterable[str], others: Mapping[str, str] | None = None) -> None:
        self.choices, self.others = tuple(choices), dict(others or {})

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """All of them, as the help shows them."""
        return f"[{'|'.join(self.choices)}]"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        word = self.others.get(value.strip(), value.strip())
        if word not in self.choices:
            close = did_you_mean(word, self.choices)
            raise click.UsageError(f"{_name(parameter)}={short(value)} must be one of {', '.join(self.choices)}{close}")
        return word

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The choices that begin so."""
        return [CompletionItem(word) for word in self.choices if word.startswith(incomplete)]


class TrueOrFalse(OneOf):
    """True or false."""

    def __init__(self) -> None:
        super().__init__(("true", "false"), {"True": "true", "False": "false"})

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(value, parameter, context) == "true"


class Suggested(Word):
    """A text whose last part the shell completes from `words`, or from the names of files where none of them fits.

    `separators`: signs after which another part begins. `heading`: how the help begins the list of `names`; empty where
    it lists none. `names` is asked only then.
    """

    def __init__(
        self, name: str, words: Callable[[], Iterable[str]], *, separators: str = "", files: bool = False,
        heading: str = "", names: Callable[[], Iterable[str]] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._words, self._separators, self._files = words, separators, files
        self._heading, self._names = heading, names or words

    def listed(self) -> str:
        """The sentence of the help that lists the names; empty where it lists none."""
        return f"{self._heading}: {', '.join(self._names())}." if self._heading else ""

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What the text can go on with."""
        cut = max((incomplete.rfind(sign) + 1 for sign in self._separators), default=0)
        before, part = incomplete[:cut], incomplete[cut:]
        found = [CompletionItem(before + word) for word in self._words() if word.startswith(part)]
        return found or ([CompletionItem(incomplete, type="file")] if self._files else [])


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

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names of files."""
        return [CompletionItem(incomplete, type="file")]


def preset_names() -> Collection[str]:
    """The reference models."""
    from autotune.models.presets import PRESETS

    return PRESETS


def chip_names() -> tuple[str, ...]:
    """The hardware that there are files of; nothing where the user's own folder of them cannot be read, which a command
    that needs one of them says."""
    from autotune.meshes.hardware import hardware_names

    try:
        return hardware_names()
    except ValueError:
        return ()


def target_texts() -> list[str]:
    """Targets as they are written, a few sizes of each chip, and `local`."""
    from autotune.meshes.hardware import load_hardware
    from autotune.meshes.target import slice_shapes

    found = []
    for name in chip_names():
        try:
            chip = load_hardware(name)
        except ValueError:
            continue  # as of `chip_names`
        if chip.platform == "tpu":
            found += [f"{name}:{shape}" for shape in slice_shapes(chip)]
        elif chip.platform == "cpu":
            found += [f"{name}:{devices}" for devices in (2, 4, 8)]
        else:
            found += [f"{name}:{domains}x8" for domains in (1, 2, 4, 8)]
    return [*found, "local"]


def layout_texts() -> list[str]:
    """Every word of a layout with its values, as a layout text writes them; `dcn.` ones too."""
    found = []
    for word in LAYOUT_WORDS.values():
        found += [f"{word.name}={word.text(value)}" for value in word.values] or [f"{word.name}="]
    return found + [f"dcn.{word.name}=" for word in LAYOUT_WORDS.values() if word.kind == "axis"]


def axis_names() -> list[str]:
    """The mesh axes."""
    return [word.name for word in LAYOUT_WORDS.values() if word.kind == "axis"]


MODEL = Suggested("model", preset_names, files=True, heading="Presets")
TARGET = Suggested("target", target_texts, separators=",", heading="Chips", names=chip_names)
LAYOUT = Suggested("layout", layout_texts, separators=",;")
LAYOUT_OR_PLAN = Suggested("layout", layout_texts, separators=",;", files=True)
CHIP = Suggested("chip", chip_names)
AXES = Suggested("axes", axis_names, separators=",")
BATCH = Whole(1, LARGEST_STEP)
COUNT = Whole(0, LARGEST_COUNT)
PROCESS = Whole(0, LARGEST_COUNT)
RANK = Whole(0, LARGEST_RANK)
DOCUMENTS = Whole(0, MOST_DOCUMENTS)
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
