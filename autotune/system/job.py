"""Several processes of one JAX job acting as one tuner: process 0 decides and reports, the others do as it says.

The processes first meet on a port of their own (`autotune.system.rendezvous`), which compares what they run. The
connections of that meeting, one from process 0 to each other process, last as long as the job: orders and answers are
lines of JSON. JAX's own distributed runtime carries the collectives. A lost connection is a lost process: process 0
tells the others which one it is, and each says so in one line and ends with exit code 3, even in the middle of a
collective that would wait for ever. What was learned until then is in the store.
"""

from __future__ import annotations

import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from autotune.system.connection import Connection, NotAMessage
from autotune.system.gathering import Doorkeeper, listen
from autotune.system.place import (
    JOIN_SECONDS,
    LostEarly,
    NoJob,
    Place,
    difference,
    parse_coordinator,
    port_beside,
    reason,
)
from autotune.system.relay import Relay
from autotune.system.rendezvous import meet

LOST = 3
"""Exit code of a process whose job lost another one."""
BAD_INPUT = 2
BEAT_SECONDS = 5.0
"""Each process says so often that it is there; TCP itself notices a host that vanished within half a minute."""
SILENCE_SECONDS = 90.0
"""A process that is silent for so long (stopped, or stuck for good) is lost."""
FAREWELL_SECONDS = 3.0
"""How long an ending process waits for the others to hear why: JAX's runtime aborts whoever outlives process 0."""
JAX_HEARTBEAT_SECONDS, JAX_SHUTDOWN_SECONDS = 300, 60
"""JAX's own limits: the first is over ours, so that the lost process is named before JAX aborts without a name."""
JAX_JOIN_SECONDS = 60
ADDRESS_BYTES = 256

_current: Job | None = None


class Job:
    """This process's place in the job, and its connections: process 0 has one to each other, the others one to it."""

    def __init__(
        self,
        process_id: int,
        processes: int,
        connections: Mapping[int, Connection],
        doorkeeper: Doorkeeper | None,
    ) -> None:
        self.process_id, self.processes = process_id, processes
        self._connections, self._doorkeeper = dict(connections), doorkeeper
        self._inbox: dict[int, queue.Queue] = {peer: queue.Queue() for peer in connections}
        self._heard = {peer: time.monotonic() for peer in connections}
        self._gone = {peer: threading.Event() for peer in connections}
        self._leaving = False
        self._ending = threading.Lock()
        for peer, connection in self._connections.items():
            threading.Thread(target=self._read, args=(peer, connection), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and reports."""
        return self.process_id == 0

    def tell(self, message: Any) -> None:
        """Process 0: send a JSON-able value to every other process."""
        for peer in self._connections:
            self._send(peer, {"value": message})

    def hear(self) -> Any:
        """The others: the next value that process 0 sent."""
        return self._inbox[0].get()

    def answer(self, message: Any) -> None:
        """The others: send a value to process 0."""
        self._send(0, {"value": message})

    def answers(self) -> list[Any]:
        """Process 0: one value from every other process, by their ids."""
        return [self._inbox[peer].get() for peer in sorted(self._inbox)]

    def agree(self, value: float) -> float:
        """Process 0's number, in every process."""
        if self.leads:
            self.tell(value)
            return value
        return float(self.hear())

    def require_same(self, values: Mapping[str, str]) -> None:
        """Every process calls this with the same names. ValueError in all, naming process and field, where one differs.

        For what is known only after JAX was joined: the devices, and the program that the workload stands for.
        """
        if not self.leads:
            self.answer(dict(values))
            self.hear()  # where something differs, the reading thread ends this process
            return
        for process_id, theirs in zip(sorted(self._inbox), self.answers(), strict=True):
            problem = difference(self.processes, values, process_id, self.processes, theirs)
            if problem is not None:
                self._part({"wrong": problem})
                raise NoJob(problem)
        self.tell(None)

    def dismiss(self) -> None:
        """Process 0: let the others return from `follow`, still in the job."""
        self.tell(["dismiss"])

    def leave(self) -> None:
        """End the job in good order: process 0 sends the others home."""
        if self.leads:
            self.tell(["leave"])
        self._leaving = True
        if self._doorkeeper is not None:
            self._doorkeeper.close()

    def fail(self, line: str, code: int) -> None:
        """Tell the others that this process ends, and why: each says it in one line and ends with `code`.

        Returns when they have heard it (or after a few seconds): JAX aborts whoever outlives process 0.
        """
        self._part({"ended": self.process_id, "why": line[:2000], "code": code})

    def _send(self, peer: int, message: Any) -> None:
        try:
            self._connections[peer].send(message)
        except OSError:
            self._lost(peer)

    def _read(self, peer: int, connection: Connection) -> None:
        how = ""
        try:
            messages, there = connection.held, True
            while there or messages:
                for message in messages:
                    self._take(peer, message)
                messages, there = connection.read() if there else ([], False)
        except OSError:
            pass  # as good as its end
        except NotAMessage as error:
            how = f" (it sent what is no message: {error})"
        self._gone[peer].set()
        self._lost(peer, how)

    def _take(self, peer: int, message: Any) -> None:
        self._heard[peer] = time.monotonic()
        match message:
            case {"beat": True}:
                pass
            case {"value": value}:
                if value == ["leave"]:
                    self._leaving = True
                self._inbox[peer].put(value)
            case {"lost": int(other)}:
                self._end(f"process {other} of {self.processes} was lost", LOST, message, other)
            case {"ended": int(other), "why": str(why), "code": int(code)}:
                self._end(f"process {other} of {self.processes} ended: {why}", code, message, other)
            case {"wrong": str(why)}:
                self._end(why, BAD_INPUT, message, peer)
            case _:
                raise NotAMessage(str(message)[:80])

    def _beat(self) -> None:
        while not self._leaving:
            time.sleep(BEAT_SECONDS)
            for peer in self._connections:
                if self._leaving:
                    return
                self._send(peer, {"beat": True})
                if time.monotonic() - self._heard[peer] > SILENCE_SECONDS:
                    self._lost(peer, f" (silent for {SILENCE_SECONDS:.0f} s)")

    def _lost(self, peer: int, how: str = "") -> None:
        self._end(f"process {peer} of {self.processes} was lost{how}", LOST, {"lost": peer}, peer)

    def _end(self, why: str, code: int, message: Mapping[str, Any], origin: int) -> None:
        """End this process, unless it ends already; process 0 first tells all but `origin`, of which they know nothing.

        Not an exception: the main thread may be inside a collective that never returns.
        """
        with self._ending:
            if self._leaving:
                return
            kept = "; what was measured until now is in the store" if self.leads and code == LOST else ""
            print(f"autotune: {why}; process {self.process_id} ends{kept}", file=sys.stderr, flush=True)
            if self.leads:
                self._farewell(message, but=origin)
            sys.stdout.flush()
            os._exit(code)

    def _part(self, message: Mapping[str, Any]) -> None:
        """Say farewell, and go on: from now on a lost connection means nothing."""
        with self._ending:
            if not self._leaving:
                self._farewell(message)
            self._leaving = True

    def _farewell(self, message: Mapping[str, Any], but: int | None = None) -> None:
        """Send the last message to every other process, and wait a moment for each to end its connection."""
        others = [peer for peer in self._connections if peer != but]
        for peer in others:
            try:
                self._connections[peer].send(message)
            except OSError:
                self._gone[peer].set()
        until = time.monotonic() + FAREWELL_SECONDS
        for peer in others:
            self._gone[peer].wait(max(0.0, until - time.monotonic()))


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    runs: Mapping[str, str] | None = None,
    seconds: float = JOIN_SECONDS,
    say: Callable[[str], None] | None = None,
) -> bool:
    """Join the processes of one job, before JAX is used; returns True in the process that writes the report.

    Without arguments JAX finds the job by itself (TPU pods, Slurm, ...). `runs`: what must be the same in all, field ->
    value. `seconds`: how long to wait for the others. `say`: hears for whom it waits.
    ValueError names an argument that is wrong, a process that is missing, or one that runs something else. The process
    ends with exit code 3 when another one is lost on the way.
    """
    global _current
    say = say or (lambda line: print(f"autotune: {line}", file=sys.stderr, flush=True))
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"join-timeout: {seconds} must be a number of seconds over 0")
    relay = None
    if coordinator is not None:
        host, port = parse_coordinator(coordinator)
        if processes is None or processes < 1:
            raise ValueError(f"processes: {processes} must be 1 or more")
        if process_id is None or not 0 <= process_id < processes:
            raise ValueError(f"process-id: {process_id} must be from 0 to {processes - 1}")
        _current = _met(host, port_beside(port), processes, process_id, runs or {}, seconds, say)
        relay = Relay(host, port) if process_id else None
        if process_id == 0:
            _require_free(port)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would catch SIGTERM and do nothing with it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator if relay is None else relay.address,
            processes,
            process_id,
            initialization_timeout=max(JAX_JOIN_SECONDS, math.ceil(seconds)),
            heartbeat_timeout_seconds=JAX_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=JAX_SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        line = " ".join(f"coordinator: could not join the job at {coordinator}: {error}".split())
        if _current is not None:
            _current.fail(line, BAD_INPUT)
        raise ValueError(line) from None
    if coordinator is None and jax.process_count() > 1:
        host, port = _told_by_jax(jax.process_index())
        _current = _met(host, port, jax.process_count(), jax.process_index(), runs or {}, seconds, say)
    return jax.process_index() == 0


def current() -> Job | None:
    """The job that this process joined; None in a process of its own."""
    return _current


def leave() -> None:
    """End the job, if there is one; its other processes then leave it too."""
    global _current
    if _current is not None:  # alone, a process that only prices never needs jax
        import jax

        _current.leave()
        _current = None
        jax.distributed.shutdown()


def end_process(code: int) -> None:
    """End this process at once if it is still in a job: JAX's own exit would wait for the others, who have ended."""
    if _current is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _met(host, port, processes, process_id, runs, seconds, say) -> Job | None:
    """The Job of the processes that met; None in a job of one. Ends the process where one was lost on the way."""
    if processes == 1:
        return None
    place = Place(host=host, port=port, processes=processes, process_id=process_id, runs=runs, seconds=seconds, say=say)
    try:
        return Job(process_id, processes, *meet(place))
    except LostEarly as error:
        say(f"{error}; process {process_id} ends")
        raise SystemExit(LOST) from None


def _require_free(port: int) -> None:
    """ValueError in all processes when process 0 cannot have the coordinator's port: JAX's runtime would crash."""
    try:
        listen("", port).close()
    except OSError as error:
        line = f"coordinator: process 0 cannot listen on port {port}: {reason(error)}; give --coordinator another port"
        if _current is not None:
            _current.fail(line, BAD_INPUT)
        raise NoJob(line) from None


def _told_by_jax(process_id: int) -> tuple[str, int]:
    """Host and port to meet at, where JAX found the job by itself: process 0 picks them, JAX tells them to all."""
    import numpy as np
    from jax.experimental import multihost_utils

    told = ""
    if process_id == 0:
        host = socket.gethostbyname(socket.gethostname())
        with socket.create_server((host, 0)) as free:
            told = f"{host} {free.getsockname()[1]}"
    padded = np.frombuffer(told.encode().ljust(ADDRESS_BYTES), dtype=np.uint8)
    host, port = bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode().split()
    return host, int(port)
