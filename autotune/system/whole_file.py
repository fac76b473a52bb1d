"""Write a file so that a reader sees the old one or the whole new one.

A regular file is written aside in its folder and renamed into place. Everything else keeps what it is: a symbolic link
is followed, a file with several names, a device, a pipe and an open descriptor (`/dev/stdout`, `/dev/fd/3`) are written
straight into. The mode of a file that is there stays; a new one gets the mode that the umask leaves.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

READER_SECONDS = 10.0
"""A pipe that nobody reads from for so long is given up."""

ABANDONED_SECONDS = 3600.0
"""What a killed process was writing aside is deleted by the next write after an hour."""


def write_whole(path: Path, text: str) -> None:
    """Write `text` as the whole contents of `path`; nothing half-written is left behind. OSError when it cannot be."""
    with writing_whole(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write to, in place of `path` once the block has ended without an exception.

    OSError when it cannot be written: the earlier contents stay, unless `path` must be written in place.
    """
    found = _stat(path)
    descriptor = descriptor_named(path)
    if descriptor is not None or (found is not None and not stat.S_ISREG(found.st_mode)):
        with io.BytesIO() as memory:
            yield memory
            _pour(path, descriptor, memory.getvalue())
        return
    target = Path(os.path.realpath(path))
    if found is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    aside = None if found is not None and found.st_nlink > 1 else _aside(target)
    if aside is None:  # several names, or a folder that takes no new file: the file itself may still be written
        with io.BytesIO() as memory:
            yield memory
            _overwrite(target, memory.getvalue())
        return
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if found is not None:
            with contextlib.suppress(PermissionError):  # another owner's file in our folder becomes ours
                os.chown(aside, found.st_uid, found.st_gid)
            os.chmod(aside, stat.S_IMODE(found.st_mode))
        try:
            os.replace(aside, target)
        except OSError as error:
            if found is None or error.errno not in (errno.EBUSY, errno.EACCES, errno.EPERM):
                raise
            _overwrite(target, aside.read_bytes())  # e.g. a single file that is mounted here
    finally:
        aside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """OSError where `path` cannot be written. Changes nothing, and does not wait for the reader of a pipe."""
    found = _stat(path)
    if descriptor_named(path) is not None:
        return
    if found is not None and not stat.S_ISREG(found.st_mode):
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.ENXIO, "Is a socket", str(path))
        # To open a pipe and close it again would send its reader away.
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    target = Path(os.path.realpath(path))
    # Permissions do not tell all: a folder of /proc looks writable to root.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    os.close(os.open(target, flags if found is not None else flags | os.O_CREAT | os.O_EXCL, 0o666))
    if found is None:
        target.unlink()


def descriptor_named(path: Path) -> int | None:
    """The open descriptor of this process that a path such as `/dev/stdout` or `/dev/fd/3` stands for, or None."""
    here = os.path.join(os.path.realpath(path.parent), path.name)
    for _ in range(40):  # as many links as the kernel follows
        match = re.fullmatch(rf"/proc/(?:self|{os.getpid()})/fd/(\d+)", here)
        if match:
            return int(match[1])
        if not os.path.islink(here):
            return None
        linked = os.path.join(os.path.dirname(here), os.readlink(here))
        here = os.path.join(os.path.realpath(os.path.dirname(linked)), os.path.basename(linked))
    return None


def _stat(path: Path) -> os.stat_result | None:
    """Of what the path leads to; None where nothing is there yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _aside(target: Path) -> Path | None:
    """A new empty file beside `target`, with the mode of a new file; None where the folder takes no new file."""
    names = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.part")
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if names.fullmatch(path.name) and time.time() - path.lstat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG) and target.exists():
            return None
        raise
    return aside


def _overwrite(target: Path, data: bytes) -> None:
    """Replace the contents of a regular file in place."""
    with open(target, "r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _pour(path: Path, descriptor: int | None, data: bytes) -> None:
    """Write into what is no regular file, without waiting for a reader that never comes."""
    if descriptor is not None:
        _send(os.dup(descriptor), data)
        return
    # Without O_NONBLOCK, opening a pipe waits for its reader for ever.
    try:
        opened = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "Nobody reads from it", str(path)) from None
        raise
    _send(opened, data)


def _send(descriptor: int, data: bytes) -> None:
    try:
        left = memoryview(data)
        while left:
            if not select.select([], [descriptor], [], READER_SECONDS)[1]:
                raise TimeoutError(errno.ETIMEDOUT, f"Nobody has read from it for {READER_SECONDS:g} s")
            # A pipe that can take anything takes so much without blocking.
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(descriptor, left[: select.PIPE_BUF]) :]
    finally:
        os.close(descriptor)
