"""Where the processes of a job meet before they join JAX: each learns that all came and all run the same, or why not.

JAX's own joining waits minutes for a process that never started, and joins processes of different commands without a
word. So process 0 first listens on the port beside the coordinator's (`port_beside`). Each other process connects, and
sends its id and what it runs, as one line of JSON. Process 0 answers "go" to all when each has come and all run the
same; otherwise it answers one line that says what is wrong, and every process ends with that line.
"""

from __future__ import annotations

import ipaddress
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.system.connection import Connection, NotAMessage

PROTOCOL = 1
JOIN_SECONDS = 60.0
"""How long a process waits for the others, unless told otherwise."""
LAST_PORT = 65535
GREETING_SECONDS = 10.0
"""How long a connection may take to send its greeting; then it is closed: it is none of the job's."""
STRANGERS = 64
"""Connections without a greeting that are held at once; more are closed as they come."""
GRACE_SECONDS = 5.0
"""After a difference was found, how long process 0 waits for the rest, so that they hear of it too."""
SILENCE_SECONDS = 15.0
"""Process 0 says every second that it waits; one that is silent for so long is lost."""
FOREIGN_SECONDS = 5.0
"""How long process 0 waits to hear whether what holds its port is another process 0."""
RETRY_SECONDS = 0.2


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


SAY_AFTER = 3.0
"""Seconds of waiting after which a process says for whom it waits."""


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


def meet(place: Place) -> tuple[dict[int, Connection], Doorkeeper | None]:
    """Meet the other processes: process 0 gets a connection to each other, the others one to process 0.

    Process 0 also gets the Doorkeeper that answers who comes too late, to be closed when the job ends.
    NoJob: one did not come in time, or runs something else. LostEarly: one came and ended before all were there.
    """
    if place.process_id:
        return {0: _knock(place)}, None
    try:
        listener = listen(place.host, place.port)
    except OSError as error:
        raise NoJob(_why_not_listening(place, error)) from None
    try:
        connections = _Host(place, listener).meet()
    except BaseException:
        listener.close()
        raise
    return connections, Doorkeeper(
        listener, f"the job at {place.address} began without this process: each of its {place.processes} is there"
    )


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


class _Host:
    """Process 0: waits for one greeting from each other process, compares, and answers all."""

    def __init__(self, place: Place, listener: socket.socket) -> None:
        self.place, self.listener = place, listener
        self.greeted: dict[int, Connection] = {}
        self.came_from: dict[int, str] = {}
        self.strangers: dict[Connection, float] = {}
        self.refused: list[Connection] = []
        self.wrong: str | None = None
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ, None)

    def meet(self) -> dict[int, Connection]:
        try:
            self._await_all()
        finally:
            for stranger in list(self.strangers):
                self._drop(stranger)
            self.selector.close()
        if self.wrong is None and self.missing:
            names = names_of(self.missing, self.place.processes)
            self.wrong = f"{names} did not come to {self.place.address} within {self.place.seconds:g} s"
        if self.wrong is not None:
            self._end({"no": self.wrong})
            raise NoJob(self.wrong)
        self._tell_all({"go": self.place.processes})
        return self.greeted

    def _await_all(self) -> None:
        began = time.monotonic()
        until = began + self.place.seconds
        next_word, said = began + 1.0, False
        while self.missing and time.monotonic() < until:
            for key, _ in self.selector.select(min(0.2, max(0.0, until - time.monotonic()))):
                self._accept() if key.data is None else self._read(key.data)
            now = time.monotonic()
            if self.wrong is not None:
                until = min(until, now + GRACE_SECONDS)
            for stranger in [one for one, since in self.strangers.items() if now - since > GREETING_SECONDS]:
                self._drop(stranger)
            names = names_of(self.missing, self.place.processes) if self.missing and self.wrong is None else ""
            if now >= next_word:
                next_word = now + 1.0
                self._tell_all({"wait": names})
            if names and not said and now - began > SAY_AFTER:
                said = True
                self.place.say(f"waiting for {names} at {self.place.address}, up to {self.place.seconds:g} s")

    @property
    def missing(self) -> list[int]:
        """Ids of the processes that have not come yet."""
        return [one for one in range(1, self.place.processes) if one not in self.greeted]

    def _accept(self) -> None:
        try:
            connected, _ = self.listener.accept()
            stranger = Connection(connected)
        except OSError:
            return  # gone again before it was accepted
        if len(self.strangers) >= STRANGERS:
            stranger.close()
            return
        self.strangers[stranger] = time.monotonic()
        self.selector.register(stranger, selectors.EVENT_READ, stranger)

    def _read(self, connection: Connection) -> None:
        try:
            messages, there = connection.read()
        except (NotAMessage, OSError):
            messages, there = [], False
        for message in messages:
            if connection in self.strangers:
                self._greet(connection, message)
        if there:
            return
        if connection in self.strangers:
            self._drop(connection)
            return
        self.selector.unregister(connection)
        gone = [one for one, known in self.greeted.items() if known is connection]
        if gone and self.wrong is None:
            line = f"process {gone[0]} of {self.place.processes} was lost before the job began"
            del self.greeted[gone[0]]
            self._end({"lost": line})
            raise LostEarly(line)

    def _greet(self, connection: Connection, message: Any) -> None:
        greeting = _greeting(message)
        if greeting is None:
            return
        process_id, processes, came_from, runs = greeting
        del self.strangers[connection]
        if process_id in self.greeted or process_id == 0:
            other = self.came_from.get(process_id, here())
            wrong: str | None = f"two processes have --process-id {process_id}: {other} and {came_from}"
        else:
            wrong = difference(self.place.processes, self.place.runs, process_id, processes, runs)
        if wrong is None:
            self.greeted[process_id] = connection
            self.came_from[process_id] = came_from
        else:
            self.wrong = self.wrong or wrong
            self.refused.append(connection)
            self.greeted.setdefault(process_id, connection)

    def _drop(self, stranger: Connection) -> None:
        del self.strangers[stranger]
        self.selector.unregister(stranger)
        stranger.close()

    def _tell_all(self, message: Any) -> None:
        for connection in {*self.greeted.values(), *self.refused}:
            try:
                connection.send(message)
            except OSError:
                pass  # its end is read next

    def _end(self, message: Any) -> None:
        """Tell all why there is no job, and wait a moment for them to hear it before their connections close."""
        self._tell_all(message)
        until = time.monotonic() + 1.0
        for connection in {*self.greeted.values(), *self.refused}:
            _await_end(connection, until)
            connection.close()


class Doorkeeper:
    """Process 0, while the job runs: answers each process that comes too late with the reason, on a thread."""

    def __init__(self, listener: socket.socket, why: str) -> None:
        self._listener, self._why = listener, why
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Free the port."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        except OSError:
            pass
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            try:
                late = Connection(connected)
                late.send({"no": self._why})
                _await_end(late, time.monotonic() + 1.0)
                late.close()
            except OSError:
                continue


def _knock(place: Place) -> Connection:
    """Another process than 0: connect to process 0, greet it, and wait for "go"."""
    began = time.monotonic()
    until = began + place.seconds
    said = False
    why = "nothing answers there"
    while True:
        connection, why = _connected(place, why)
        if connection is not None:
            heard = _hear(connection, place, until)
            if heard is not None:
                return heard
            why = "what answers there is not autotune"
        now = time.monotonic()
        if now >= until:
            raise NoJob(
                f"process 0 of {place.processes} did not come to {place.address} within {place.seconds:g} s: {why}"
            )
        if not said and now - began > SAY_AFTER:
            said = True
            place.say(f"waiting for process 0 of {place.processes} at {place.address}, up to {place.seconds:g} s")
        time.sleep(RETRY_SECONDS)


def _connected(place: Place, why: str) -> tuple[Connection | None, str]:
    try:
        connected = socket.create_connection((place.host, place.port), timeout=5.0)
    except OSError as error:
        return None, reason(error)
    # A port in the range that the kernel gives to outgoing connections can be connected to itself.
    if connected.getsockname() == connected.getpeername():
        connected.close()
        return None, why
    return Connection(connected), why


def _hear(connection: Connection, place: Place, until: float) -> Connection | None:
    """The connection once process 0 says "go"; None when what answers says nothing that process 0 would by `until`.

    Once process 0 has spoken its own limit counts. Raises as `meet` does.
    """
    known, said = False, False
    began = heard_at = time.monotonic()
    try:
        connection.send(
            {
                "autotune": PROTOCOL,
                "process": place.process_id,
                "processes": place.processes,
                "from": here(),
                "runs": dict(place.runs),
            }
        )
        while time.monotonic() - heard_at < SILENCE_SECONDS and (known or time.monotonic() < until):
            if not connection.has_bytes(0.2):
                continue
            messages, there = connection.read()
            for message in messages:
                if not isinstance(message, dict):
                    raise NotAMessage(message)
                heard_at = time.monotonic()
                known = True
                if "go" in message:
                    connection.held = messages[messages.index(message) + 1 :]
                    return connection
                if isinstance(message.get("no"), str):
                    raise NoJob(message["no"])
                if isinstance(message.get("lost"), str):
                    raise LostEarly(message["lost"])
                missing = message.get("wait")
                if not said and time.monotonic() - began > SAY_AFTER and isinstance(missing, str) and missing:
                    said = True
                    place.say(f"waiting for {missing} at {place.address}")
            if not there:
                break
    except (OSError, NotAMessage):
        pass
    except (NoJob, LostEarly):
        connection.close()
        raise
    connection.close()
    if known:
        raise LostEarly(f"process 0 of {place.processes} was lost before the job began")
    return None


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


def _greeting(message: Any) -> tuple[Any, Any, str, dict[str, str]] | None:
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


def _await_end(connection: Connection, until: float) -> None:
    """Read until the other end closes, or the time is over."""
    try:
        while connection.has_bytes(until - time.monotonic()) and connection.read()[1]:
            if time.monotonic() >= until:
                return
    except (OSError, NotAMessage):
        return


def listen(host: str, port: int) -> socket.socket:
    """A listener on every interface of this host, as JAX's own; on the loopback alone where `host` is that.

    OSError when the port is taken, or the host is not known here.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) if host else []
    loopback = [one for one in found if ipaddress.ip_address(str(one[4][0]).split("%")[0]).is_loopback]
    if found and len(loopback) == len(found):
        first = min(loopback, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(first[4][:2], family=first[0], backlog=STRANGERS)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=STRANGERS)
    return socket.create_server(("", port), backlog=STRANGERS)


def _why_not_listening(place: Place, error: OSError) -> str:
    """Why process 0 cannot listen, in one line: what holds the port may be another process 0."""
    beside = f"port {place.port} beside the coordinator's"
    connection, _ = _connected(place, "")
    if connection is not None:
        try:
            _hear(connection, place, time.monotonic() + FOREIGN_SECONDS)
        except NoJob as told:
            return str(told)
        except LostEarly:
            pass
        return f"coordinator: {beside} is used by another program; give --coordinator another port"
    return f"coordinator: process 0 cannot listen on {place.address}, {beside}: {reason(error)}"
