"""Process 0 while the others come: it takes greetings, compares, and answers all. Later it turns late ones away."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import threading
import time
from typing import Any

from autotune.system.connection import Connection, NotAMessage
from autotune.system.place import SAY_AFTER, LostEarly, NoJob, Place, difference, here, names_of, read_greeting

GREETING_SECONDS = 10.0
"""How long a connection may take to send its greeting; then it is closed: it is none of the job's."""
STRANGERS = 64
"""Connections without a greeting that are held at once; more are closed as they come."""
GRACE_SECONDS = 5.0
"""After a difference was found, how long process 0 waits for the rest, so that they hear of it too."""


class Gathering:
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
        greeting = read_greeting(message)
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
