"""`--job` and `--save-job`: what is trained and where, in one TOML file with the words of the flags.

A job file is data that may come from somebody else: every field is checked, and what is wrong is said with file, field
and rule. Paths in it are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from autotune.commands.values import PATH
from autotune.meshes.fields import Fields, one_line, read_text, short, toml_table
from autotune.meshes.training import WORD_KINDS

if TYPE_CHECKING:
    from autotune.meshes.target import Target
    from autotune.workload.workload import Workload

WORDS: dict[str, type] = {
    "model": str, "workload": str, "set": list, "target": str, "hardware": str, "memory-fraction": float, "batch": int,
    "seq": int, "dtype": str,
    **{word.replace("_", "-"): kind for word, kind in WORD_KINDS.items()},
    "axes": str, "fix": list, "layout": str, "layouts": str,
}  # fmt: skip
"""Words of a job file -> what each holds; a list holds texts. They are the long flags without their dashes."""

PATHS = ("model", "hardware")
"""Words that may name a file, by a path relative to the job file."""

JOB, SAVE = "autotune.job", "autotune.save_job"
"""Where a command's context keeps the job file's path and words, and where --save-job writes."""


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--job and --save-job."""
    for option in (
        click.option(
            "--save-job", type=PATH, expose_value=False, callback=_keep_save,
            help="Write the words of this job here (TOML), for --job.",
        ),
        click.option(
            "--job", type=PATH, is_eager=True, expose_value=False, callback=_take,
            help="A job file: model, target, batch, seq, optimizer and so on, by the words of the flags; a flag wins.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def load_job(path: Path) -> dict[str, Any]:
    """The words of a job file, paths as they are from here. ValueError with file, field and rule where it is none."""
    where = f"job {one_line(path)}"
    values = toml_table(read_text(path, "job"), where)
    read, found = Fields(where, values), dict(values)
    read.only(WORDS)
    for word in values:
        kind = WORDS[word]
        if kind is list:
            for text in read.listed(word, str):
                if not text or not text.isprintable():
                    raise ValueError(
                        f"{where}: {word} holds {short(text)}; each must be a text of printable characters"
                    )
        elif kind is bool:
            read(word, bool)
        elif kind is int:
            read.whole(word, 1, 2**53)
        elif kind is float:
            read.number(word, 0, 1, above=True)
        else:
            read.text(word)
    for word in PATHS:
        if word in found:
            found[word] = _from_here(found[word], path.parent, always=word != "model")
    return found


def save_job(path: Path, words: Mapping[str, Any]) -> None:
    """Write words as a job file, paths relative to it. OSError where it cannot be written."""
    import tomli_w

    from autotune.system.whole_file import write_whole

    told = {word: words[word] for word in WORDS if words.get(word) not in (None, "", (), [])}
    for word in PATHS:
        if word in told and Path(told[word]).exists():
            told[word] = Path(os.path.relpath(told[word], path.parent)).as_posix()
    told = {word: list(value) if isinstance(value, tuple) else value for word, value in told.items()}
    write_whole(path, tomli_w.dumps(told))


def instead_of_job() -> tuple[str, ...]:
    """Flags of the running command that won over its job file, a phrase each for the heading."""
    context = click.get_current_context()
    path, words = context.meta.get(JOB, (None, {}))
    given = _given(context)
    return tuple(
        f"--{word} {one_line(_text(given[word]))} ({one_line(path)} says {one_line(_text(before))})"
        for word, before in words.items()
        if word in given and _source(context, word) is ParameterSource.COMMANDLINE and given[word] != before
    )


def save_job_of(context: click.Context, words: Mapping[str, Any]) -> bool:
    """Write what --save-job asks for, the flags of the command and the words that they left open; True where that went
    well or was not asked."""
    from autotune.commands.options import saved

    path = context.meta.get(SAVE)
    if path is None:
        return True
    told = {**words, **_given(context)}
    return saved(lambda where: save_job(where, told), path, "--save-job")


def of_workload(workload: Workload, target: Target) -> dict[str, Any]:
    """The words that build a workload again on a target, whoever said them; of a step of your own the target alone."""
    words = {str(name).replace("_", "-"): value for name, value in workload.recipe.items()}
    if "set" in words:
        words["set"] = str(words["set"]).splitlines()
    return words | {"target": target.name}


def _take(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Make the file's words the defaults of the command's flags; those that it does not have are left out."""
    if path is None:
        return
    try:
        words = load_job(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    context.meta[JOB] = (path, words)
    names = {_word(parameter): str(parameter.name) for parameter in context.command.params}
    known = {names[word]: value for word, value in words.items() if word in names}
    if "batch" not in names and "batch-tokens" in names and {"batch", "seq"} <= words.keys():  # sweep
        known[names["batch-tokens"]] = words["batch"] * words["seq"]
    context.default_map = {
        name: list(map(str, value)) if isinstance(value, list) else _text(value) for name, value in known.items()
    } | dict(context.default_map or {})


def _keep_save(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    from autotune.commands.options import writable

    if path is not None:
        writable(path, "--save-job")
        context.meta[SAVE] = path


def _word(parameter: click.Parameter) -> str:
    """The word of a job file that a flag is: its longest spelling without dashes."""
    return max(parameter.opts, key=len).removeprefix("--") if isinstance(parameter, click.Option) else ""


def _source(context: click.Context, word: str) -> ParameterSource | None:
    name = next((str(one.name) for one in context.command.params if _word(one) == word), "")
    return context.get_parameter_source(name)


def _given(context: click.Context) -> dict[str, Any]:
    """Word -> value of every flag of a job that has one, by the command line or by the job file."""
    from autotune.commands.options import TRAINING_WORDS as GIVEN_TRAINING

    values = {**context.params, **context.meta.get(GIVEN_TRAINING, {})}
    found = {}
    for parameter in context.command.params:
        word, value = _word(parameter), values.get(str(parameter.name))
        if word in WORDS and value not in (None, (), ""):
            found[word] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _from_here(text: str, folder: Path, *, always: bool) -> str:
    """A path of a job file as it is from here; a preset's name, and what is no file, stay as they are."""
    path = folder / text
    looks = text.startswith((".", "/")) or text.endswith((".json", ".yml", ".yaml"))
    return str(path) if always or looks or path.exists() else text
