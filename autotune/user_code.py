"""Errors of the user's own code: kept apart from ours, with their traceback."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.system.code_owner import owner_of


class UserCodeError(Exception):
    """The user's code raised: where we called it, what it raised in one line, and its own traceback as text."""

    def __init__(self, doing: str, error: BaseException) -> None:
        self.doing = doing
        self.summary = _short_meshes(" ".join(f"{type(error).__name__}: {error}".split()))[:400]
        self.traceback = _theirs(error)
        super().__init__(f"{doing}: your code failed: {self.summary}")


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Inside, only the user's code runs: what it raises becomes a UserCodeError, what it prints goes to stderr.

    Not so a ValueError of our own borders (wrong rules for `Workload`): it is input, and one line says what is wrong.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserCodeError:
        raise
    except ValueError as error:
        if owner_of(traceback.extract_tb(error.__traceback__)[-1].filename) == "autotune":
            raise
        raise UserCodeError(doing, error) from error
    except (Exception, SystemExit) as error:
        raise UserCodeError(doing, error) from error


LONG_MESH = re.compile(r"\((?:'\w+'(?:: \d+)?, ){8,}(?:[^()]|\([^()]*\))*\)")
"""The axes of the mesh under which a step is traced, as JAX's own errors list them."""


def _short_meshes(text: str) -> str:
    """The text without such lists: they hold every name that a step may use, few of them the user's.

    >>> _short_meshes("axis x is not in ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i')")
    'axis x is not in (the axes of the tracing mesh)'
    """
    return LONG_MESH.sub("(the axes of the tracing mesh)", text)


def _theirs(error: BaseException) -> str:
    """The traceback without this package's frames."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if owner_of(frame.filename) != "autotune"]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return _short_meshes("".join([*lines, *traceback.format_exception_only(error)]))
