"""A process's place in a job, and what it runs: what the processes tell each other when they meet, and compare."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PROTOCOL = 1
JOIN_SECONDS = 60.0
"""How long a process waits for the others, unless told otherwise."""
LAST_PORT = 65535
SAY_AFTER = 3.0
"""Seconds of waiting after which a process says for whom it waits."""


class NoJob(ValueError):
    """The processes cannot be one job, in one line: one is missing, or runs something else."""


class LostEarly(Exception):
    """A process ended between its greeting and the beginning of the job, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A process's place in the job, and what it runs.

    `runs`: what must be the same in all, field -> value as a user reads it ("--batch" -> "8", "jax" -> "0.10.2").
    `seconds`: how long it waits for the others. `say`: hears one line where waiting takes longer than `SAY_AFTER`.
    """

    host: str
    port: int
    processes: int
    process_id: int
    runs: Mapping[str, str]
    seconds: float
    say: Callable[[str], None]

    @property
    def address(self) -> str:
        """Where the processes meet, HOST:PORT."""
        return f"{self.host}:{self.port}"


def parse_coordinator(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; an IPv6 address stands in brackets. ValueError says how it is written.

    >>> parse_coordinator("10.0.0.1:1234"), parse_coordinator("[::1]:80")
    (('10.0.0.1', 1234), ('::1', 80))
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]]+):([0-9]{1,5})", text)
    if not match:
        raise ValueError(f"coordinator: {text!r} must be written HOST:PORT")
    if not 1 <= int(match[2]) <= LAST_PORT:
        raise ValueError(f"coordinator: {text!r} has port {match[2]}; ports are from 1 to {LAST_PORT}")
    return match[1].strip("[]"), int(match[2])


def port_beside(port: int) -> int:
    """The port on which the processes meet: the one after the coordinator's (before it, where that is the last).

    >>> port_beside(1234), port_beside(65535)
    (1235, 65534)
    """
    return port + 1 if port < LAST_PORT else port - 1


def difference(
    our_processes: int, our_runs: Mapping[str, str], process_id: int, processes: int, runs: Mapping[str, str]
) -> str | None:
    """In one line, what process `process_id` runs otherwise than process 0 (`our_...`); None: nothing."""
    ours = {"--processes": str(our_processes), **our_runs}
    theirs = {"--processes": str(processes), **runs}
    fields = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if not fields:
        return None
    said = [f"{name} is {_value(theirs, name)}, in process 0 it is {_value(ours, name)}" for name in fields[:3]]
    more = f"; {len(fields) - 3} more differ" if len(fields) > 3 else ""
    return f"process {process_id}: {'; '.join(said)}{more}; all processes of a job run the same command"


def _value(runs: Mapping[str, str], name: str) -> str:
    value = runs.get(name, "not there")
    return value if len(value) <= 80 else value[:77] + "..."


def names_of(missing: list[int], processes: int) -> str:
    """The processes in words.

    >>> names_of([1], 2), names_of([1, 3], 4), names_of(list(range(1, 20)), 20)
    ('process 1 of 2', 'processes 1, 3 of 4', 'processes 1, 2, 3, 4, 5, 6, 7, 8 and 11 others of 20')
    """
    shown = ", ".join(map(str, missing[:8]))
    others = f" and {len(missing) - 8} others" if len(missing) > 8 else ""
    return f"process{'es' if len(missing) > 1 else ''} {shown}{others} of {processes}"


def reason(error: OSError) -> str:
    """What the system says, without the address that Python adds.

    >>> reason(OSError(98, "Address already in use (while ...)"))
    'address already in use'
    """
    return (os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)).lower()


def here() -> str:
    """This process, so that a user finds it.

    >>> here().startswith("pid ")
    True
    """
    return f"pid {os.getpid()} on {socket.gethostname()}"


def greeting_of(place: Place) -> dict[str, Any]:
    """What a process says when it comes: a line of JSON."""
    return {
        "autotune": PROTOCOL,
        "process": place.process_id,
        "processes": place.processes,
        "from": here(),
        "runs": dict(place.runs),
    }


def read_greeting(message: Any) -> tuple[Any, Any, str, dict[str, str]] | None:
    """Process id, number of processes, where from, what it runs; None when the message is no greeting."""
    if not isinstance(message, dict) or not isinstance(message.get("runs"), dict) or "autotune" not in message:
        return None
    process_id, processes, came_from = (message.get(name) for name in ("process", "processes", "from"))
    runs = message["runs"]
    if not (_whole_number(process_id) and _whole_number(processes) and isinstance(came_from, str)):
        return None
    if not all(isinstance(value, str) for value in runs.values()):
        return None
    if message["autotune"] != PROTOCOL:
        runs = {"protocol of the meeting": str(message["autotune"])}
    return process_id, processes, came_from[:200], runs


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
