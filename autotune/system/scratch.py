"""Temporary folders that the next run deletes when this one is killed.

The owner of a folder holds a lock on a file in it. The kernel drops the lock with the process, however it ends, so a
folder whose lock can be had belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

OWNER = ".owner"
_NAME = re.compile(r"autotune-(compile|measure|logs)-[a-z0-9_]{8}")
UNLOCKED_SECONDS = 86400.0
"""A folder without an owner's file is being made, or was made by an earlier version: it is deleted after a day."""
LOG_SECONDS = 7 * 86400.0
"""A report names its logs: they stay for a week after the run."""

_held: dict[Path, int] = {}


def scratch_folder(purpose: str) -> Path:
    """A new temporary folder of this process: for "compile", "measure" or "logs". Cleans up after killed runs first."""
    if not _held:
        delete_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"autotune-{purpose}-"))
    descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: the folder goes by its age
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held[folder] = descriptor
    return folder


def delete_scratch(folder: Path) -> None:
    """Delete a folder that `scratch_folder` made."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(_held.pop(folder))


def delete_abandoned() -> int:
    """Delete the folders of this user's killed runs; how many."""
    count = 0
    try:
        names = os.listdir(tempfile.gettempdir())
    except OSError:
        return 0
    for name in names:
        match = _NAME.fullmatch(name)
        folder = Path(tempfile.gettempdir()) / name
        if match and folder not in _held and _abandoned(folder, match[1]):
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count


def _abandoned(folder: Path, purpose: str) -> bool:
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        age = time.time() - found.st_mtime
        if purpose == "logs" and age < LOG_SECONDS and set(os.listdir(folder)) - {OWNER}:
            return False
        try:
            descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return age > UNLOCKED_SECONDS
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        finally:
            os.close(descriptor)
    except OSError:  # its owner is alive, or it is gone already
        return False
