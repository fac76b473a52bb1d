"""Standard output that cannot be written any more: a full disk, a reader that has gone."""

from __future__ import annotations

import os
import sys


def drop_stdout() -> None:
    """Forget what stdout could not take: Python would try again at the exit, and end with another code."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
