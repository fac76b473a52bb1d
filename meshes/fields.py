"""Fields of a file that somebody else wrote, each checked: file, field and rule are said. JAX-free."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_FILE = 256 * 2**20
"""Bytes of a file that is read: a plan for 1,048,576 devices takes a tenth of it."""

LARGEST_NUMBER = 2**63
"""Whole numbers of a file stay below it, so that columns and times of our own can hold them."""

_KINDS = {int: "a whole number", float: "a number", str: "a text", dict: "an object", list: "a list",
          bool: "true or false", type(None): "null"}  # fmt: skip


def one_line(value: object) -> str:
    """The text of a value without anything that ends a line or that a terminal obeys: such characters are escaped.

    >>> print(one_line("two" + chr(10) + "lines, " + chr(27) + "[2J"))
    two\\nlines, \\x1b[2J
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


def short(value: object) -> str:
    """The value as it is quoted in a message: one line of at most 60 characters."""
    try:
        text = one_line(repr(value))
    except (RecursionError, ValueError):  # ValueError: a whole number of more digits than Python writes out
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'tensor'?" where a known word is close to this one in any case, else nothing.

    >>> did_you_mean("Tensr", ("data", "tensor"))
    "; did you mean 'tensor'?"
    """
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near is not None else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is closest to this one in any case; None where none is close."""
    spelt = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word[:100].lower(), list(spelt), n=1, cutoff=0.65)
    return spelt[close[0]] if close else None


def read_text(path: Path | str, what: str) -> str:
    """The text of a regular file of at most `LARGEST_FILE` bytes; ValueError begins with `what` and the path."""
    where = Path(path)
    try:
        if where.exists() and not where.is_file():
            raise ValueError(f"{what} {one_line(path)}: {'is a folder' if where.is_dir() else 'is no regular file'}")
        with where.open("rb") as file:
            found = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{what} {one_line(path)}: {error.strerror}") from None
    except ValueError as error:  # a path with a NUL in it
        raise ValueError(str(error) if str(error).startswith(what) else f"{what} {one_line(path)}: {error}") from None
    if len(found) > LARGEST_FILE:
        raise ValueError(f"{what} {one_line(path)}: has more than {LARGEST_FILE // 2**20} MiB")
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what} {one_line(path)}: not a text file") from None


def json_object(text: str, where: str) -> dict[str, Any]:
    """The one JSON object that a text holds.

    ValueError where it is no JSON, is nested too deeply, gives a key twice, holds NaN, an infinite number, a whole
    number of `LARGEST_NUMBER` or more, or a text with control characters.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise _Refused(f"{short(max(names, key=names.count))} is given twice")
        return found

    def constant(name: str) -> Any:
        raise _Refused(f"{name} is no number that JSON has")

    try:
        values = json.loads(text, object_pairs_hook=once, parse_constant=constant)
        if not isinstance(values, dict):
            raise _Refused("must be one JSON object")
        _check_all(values)
        return values
    except _Refused as error:
        raise ValueError(f"{where}: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON of ours: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {one_line(error)}") from None


def toml_table(text: str, where: str) -> dict[str, Any]:
    """The table that a TOML text holds. ValueError, in one line, where it is none or gives a key twice.

    >>> toml_table("a = 1\\na = 2", "job mine.toml")
    Traceback (most recent call last):
    ValueError: job mine.toml: 'a' is given twice, the second time in line 2
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: not TOML of ours: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        told = str(error)
    found = re.fullmatch(
        r"Cannot (?:overwrite a value|declare .* twice) \(at (?:line ([0-9]+), .*|end of document)\)", told
    )
    number = int(found[1] or text.rstrip("\n").count("\n") + 1) if found else 1
    line = text.split("\n")[number - 1]  # the one on which the second one ends
    key = re.match(r"\s*(?:\[+\s*([^\[\]=]+?)\s*\]+\s*(?:#.*)?$|([^\s=\[\]{}#]+)\s*=)", line)
    if found and key:
        raise ValueError(f"{where}: {short(key[1] or key[2])} is given twice, the second time in line {number}")
    raise ValueError(f"{where}: not TOML: {one_line(told)}")


class _Refused(Exception):
    """What a JSON text holds that no file of ours does."""


def _check_all(values: Any) -> None:
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            for key in value:
                _check_text(f"a key of {path.strip('.') or 'the object'}", key)
            waiting += [(f"{path}.{key}", inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(path, inner) for inner in value]
        elif isinstance(value, str):
            _check_text(path.strip("."), value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise _Refused(f"{path.strip('.')}={value} must be a finite number")
        elif isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise _Refused(f"{path.strip('.')}={short(value)} must be below 2^63")


def _check_text(name: str, text: str) -> None:
    if not text.isprintable():
        raise _Refused(f"{one_line(name)}={short(text)} holds a control character")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one object of a file; every reading method raises ValueError with file, field and rule.

    `where`: the file, as messages begin. `path`: of the object within it, with a dot at the end ("tiers.ici.").
    """

    where: str
    values: Mapping[str, Any]
    path: str = ""

    def error(self, name: str, rule: str) -> ValueError:
        """The error that says of one field, with its value, what it breaks: `must be above 0`."""
        return ValueError(f"{self.where}: {self.path}{name}={short(self.values.get(name))} {rule}")

    def __call__(self, name: str, kind: Any) -> Any:
        """A field of a kind (a type or a tuple of types); true and false are no whole numbers."""
        if name not in self.values:
            raise ValueError(f"{self.where}: {self.path}{name} is missing")
        value, kinds = self.values[name], kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(name, f"must be {' or '.join(_KINDS[one] for one in kinds)}")
        return value

    def listed(self, name: str, kind: Any) -> list[Any]:
        """A list of which each item is of a kind."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        found = self(name, list)
        for value in found:
            if not isinstance(value, kinds) or isinstance(value, bool):
                what = " or ".join(_KINDS[one] for one in kinds)
                raise ValueError(f"{self.where}: {self.path}{name} holds {short(value)}; each must be {what}")
        return found

    def mapping(self, name: str, kind: Any) -> dict[str, Any]:
        """An object of which each value is of a kind."""
        found = self(name, dict)
        inside = Fields(self.where, found, f"{self.path}{name}.")
        return {key: inside(key, kind) for key in found}

    def inside(self, name: str) -> Fields:
        """The fields of an object that is a field."""
        return Fields(self.where, self(name, dict), f"{self.path}{name}.")

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self(name, int)
        if not low <= value <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float:
        """A number from `low` to `high`, both included; `above`: `low` is not."""
        value = self(name, (int, float))
        if value < low or (above and value == low) or value != value:
            raise self.error(name, f"must be {'above' if above else 'at least'} {low:g}")
        if value > high:
            raise self.error(name, f"must be at most {high:g}")
        return value

    def text(self, name: str, choices: Collection[str] = ()) -> str:
        """A text without control characters that is not empty; one of `choices` where there are some."""
        value = self(name, str)
        if choices and value not in choices:
            raise self.error(name, f"must be one of {', '.join(choices)}{did_you_mean(value, choices)}")
        if not value or not value.isprintable():
            raise self.error(name, "must be a text of printable characters")
        return value

    def only(self, known: Collection[str]) -> None:
        """Refuse a field of another name than those known."""
        for name in self.values:
            if name not in known:
                close = did_you_mean(name, known) or f"; known: {', '.join(known)}"
                raise ValueError(f"{self.where}: {self.path}{one_line(name)} is not known{close}")
