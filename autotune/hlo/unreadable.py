"""The one error of the reader: a text that is no whole compiled program, or says what the reader does not know."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class UnreadableProgram(ValueError):
    """The text of a compiled program cannot be read: one line that says where and why."""


class Named(dict[str, T], Generic[T]):
    """Parts of a program by name; asking for one that is not there is an UnreadableProgram that names it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __missing__(self, name: str) -> T:
        raise UnreadableProgram(f"hlo: there is no {self.what} {name!r}")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes an UnreadableProgram.

    The text is the compiler's, of any version, and may be damaged: a field can be missing, of another type, or out of
    range in more ways than can be named, and each of them means that this program cannot be read.
    """
    try:
        yield
    except UnreadableProgram:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnreadableProgram(f"hlo: {what}: {said}") from error
