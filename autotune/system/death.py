"""How a process of ours ended, and whether that says something about the work it was doing.

A crash that a program brings upon itself comes again: a signal that it raised (SIGSEGV, SIGABRT) or an exit of its own.
A death from outside does not: somebody's SIGKILL or SIGTERM, the kernel's out-of-memory killer, a full disk.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

RAISED = frozenset(
    getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
)
"""Signals that a process brings upon itself; any other was sent to it."""

SHORTAGE = re.compile(
    r"File too large|No space left on device|Disk quota exceeded|Cannot allocate memory|bad_alloc|MemoryError"
    r"|Resource temporarily unavailable|Too many open files|signal 9\b|SIGKILL"
)
"""What a log says where this machine, not the program, was at its limit."""

SHORT = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
"""The same as errors of the system."""

ATTEMPTS = 3
"""How often one piece of work is tried that dies from outside."""

TAIL_BYTES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """`reason`: one line. `transient`: the process was ended from outside, so that another attempt may well succeed.

    `out_of_memory`: the kernel ended it because the memory of this machine ran out.
    """

    reason: str
    transient: bool
    out_of_memory: bool


def death(code: int, log: Path, *, killed_for_memory: bool = False) -> Death:
    """Of a child's return code (minus the signal) and the end of its log.

    `killed_for_memory`: whether the kernel has counted such a kill meanwhile.
    """
    short = _says_shortage(log)
    if code >= 0:
        sent = code > 128 and code - 128 not in RAISED and code - 128 in signal.valid_signals()
        transient = sent or short or code == os.EX_TEMPFAIL
        return Death(reason=f"the worker process exited with status {code}", transient=transient, out_of_memory=False)
    number = -code
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal between the named ones
        name = f"signal {number}"
    if killed_for_memory and number == signal.SIGKILL:
        reason = f"killed by {name}: this machine ran out of memory (the kernel's out-of-memory killer)"
        return Death(reason=reason, transient=True, out_of_memory=True)
    reason = f"the worker process was killed by {name} ({signal.strsignal(number)})"
    return Death(reason=reason, transient=number not in RAISED or short, out_of_memory=False)


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that this machine lacks memory, disk or descriptors."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORT):
        return True
    return SHORTAGE.search(str(error)) is not None


def _says_shortage(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return SHORTAGE.search(file.read().decode(errors="replace")) is not None
    except OSError:
        return False
