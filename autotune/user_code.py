"""Errors of the user's own code: kept apart from ours, with their traceback."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.system.code_owner import owner_of


class UserCodeError(Exception):
    """The user's code raised: where we called it, what it raised in one line, and its own traceback as text."""

    def __init__(self, doing: str, error: BaseException) -> None:
        self.doing = doing
        self.summary = " ".join(f"{type(error).__name__}: {error}".split())[:400]
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


def _theirs(error: BaseException) -> str:
    """The traceback without this package's frames."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if owner_of(frame.filename) != "autotune"]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return "".join([*lines, *traceback.format_exception_only(error)])
