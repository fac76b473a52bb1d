"""Several processes of one JAX job acting as one tuner: process 0 decides and reports, the others do as it says.

JAX's own distributed runtime joins the processes and carries the collectives. Beside it, process 0 keeps one TCP
connection to each other process (its address travels once through JAX): orders and answers are lines of JSON. A lost
connection is a lost process: whoever notices says so in one line and ends with exit code 3, even in the middle of a
collective that would wait for ever. What was learned until then is in the store.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from autotune.compile.compilation import Compilation, CompileFailure, CompileJob
from autotune.measure.measure import Prepared, RunFailure, Turn
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import Target
from autotune.workload.workload import Workload

LOST = 3
"""Exit code of a process whose job lost another one."""
ADDRESS_BYTES = 256
CONNECT_SECONDS = 60.0

_current: Job | None = None


class Job:
    """This process's place in the job, and its connections: process 0 has one to each other, the others one to it."""

    def __init__(self, process_id: int, processes: int, connections: dict[int, socket.socket]) -> None:
        self.process_id, self.processes = process_id, processes
        self._connections = connections
        self._files = {peer: connection.makefile("w") for peer, connection in connections.items()}
        self._inbox: dict[int, queue.Queue] = {peer: queue.Queue() for peer in connections}
        self._leaving = False
        for peer, connection in connections.items():
            _keep_alive(connection)
            threading.Thread(target=self._read, args=(peer, connection), daemon=True).start()

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and reports."""
        return self.process_id == 0

    def tell(self, message: Any) -> None:
        """Process 0: send a JSON-able value to every other process."""
        for peer in self._files:
            self._send(peer, message)

    def hear(self) -> Any:
        """The others: the next value that process 0 sent."""
        return self._inbox[0].get()

    def answer(self, message: Any) -> None:
        """The others: send a value to process 0."""
        self._send(0, message)

    def answers(self) -> list[Any]:
        """Process 0: one value from every other process."""
        return [self._inbox[peer].get() for peer in sorted(self._inbox)]

    def agree(self, value: float) -> float:
        """Process 0's number, in every process."""
        if self.leads:
            self.tell(value)
            return value
        return float(self.hear())

    def dismiss(self) -> None:
        """Process 0: let the others return from `follow`, still in the job."""
        self.tell(["dismiss"])

    def leave(self) -> None:
        """End the job in good order: process 0 sends the others home."""
        if self.leads:
            self.tell(["leave"])
        self._leaving = True

    def _send(self, peer: int, message: Any) -> None:
        try:
            self._files[peer].write(json.dumps(message) + "\n")
            self._files[peer].flush()
        except OSError:
            self._lost(peer)

    def _read(self, peer: int, connection: socket.socket) -> None:
        try:
            for line in connection.makefile():
                message = json.loads(line)
                if message == ["leave"]:
                    self._leaving = True
                self._inbox[peer].put(message)
        except OSError:
            pass
        self._lost(peer)

    def _lost(self, peer: int) -> None:
        if not self._leaving:
            # Not an exception: the main thread may be inside a collective that never returns.
            print(
                f"autotune: process {peer} of {self.processes} was lost; process {self.process_id} ends, "
                "what was measured until now is in the store",
                file=sys.stderr,
                flush=True,
            )
            os._exit(LOST)


def join(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None) -> bool:
    """Join the job of these processes, before JAX is used; True in the one that reports.

    Without arguments JAX finds the job by itself (TPU pods, Slurm, ...). ValueError names an argument that is wrong.
    """
    global _current
    import jax

    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"coordinator: {coordinator!r} must be written HOST:PORT")
        if processes is None or processes < 1:
            raise ValueError(f"processes: {processes} must be 1 or more")
        if process_id is None or not 0 <= process_id < processes:
            raise ValueError(f"process-id: {process_id} must be from 0 to {processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except RuntimeError as error:
        raise ValueError(f"coordinator: could not join the job at {coordinator}: {error}") from None
    if jax.process_count() > 1:
        _current = _connected(jax.process_index(), jax.process_count(), coordinator)
    return jax.process_index() == 0


def current() -> Job | None:
    """The job that this process joined; None in a process of its own."""
    return _current


def leave() -> None:
    """End the job, if there is one: after this the other processes are on their way home."""
    global _current
    import jax

    if _current is not None:
        _current.leave()
        _current = None
        jax.distributed.shutdown()


def follow(workload: Workload | None, target: Target, *, timeout_seconds: float = 600.0) -> int:
    """What every process but 0 does: carry out process 0's orders until it is dismissed or the job ends. Returns 0.

    `workload` is None in a job that only calibrates.
    """
    from autotune.measure.local_runner import LocalRunner

    job = _current
    assert job is not None and not job.leads
    runner = None
    if workload is not None:
        runner = LocalRunner(workload, target, timeout_seconds=timeout_seconds, resident=True)
    while True:
        order, *arguments = job.hear()
        if order == "leave":
            leave()
            return 0
        if order == "dismiss":
            return 0
        if order == "calibrate":
            from autotune.calibrate.calibrate import calibrate

            calibrate(target, agree=job.agree, tiers_only=arguments[0])
            job.answer(None)
            continue
        assert runner is not None, order
        layout = parse_layout(arguments[0])
        if order == "prepare":
            job.answer(_outgoing(runner.prepare([layout])[0]))
        elif order == "turn":
            job.answer(_outgoing(runner.turn(layout, arguments[1])))
        else:
            assert order == "release", order
            runner.release(layout)


class AgreedRunner:
    """A Runner for all processes of a job together, used by process 0: each call is made in every process at once.

    A layout that fails anywhere has failed; a turn took as long as in the slowest process.
    """

    def __init__(self, job: Job, workload: Workload, target: Target, *, timeout_seconds: float = 600.0) -> None:
        from autotune.measure.local_runner import LocalRunner

        self.job = job
        self.local = LocalRunner(workload, target, timeout_seconds=timeout_seconds, resident=True)

    def prepare(self, layouts: Sequence[Layout]) -> list[Prepared | RunFailure]:
        """Compile each layout and run its first steps, one after another, in every process."""
        return [self._prepare(layout) for layout in layouts]

    def turn(self, layout: Layout, steps: int) -> Turn | RunFailure:
        """One untimed step, then `steps` timed ones, in every process."""
        self.job.tell(["turn", str(layout), steps])
        outcomes = [self.local.turn(layout, steps), *(_incoming(one) for one in self.job.answers())]
        failures = [one for one in outcomes if isinstance(one, RunFailure)]
        if failures:
            return failures[0]
        peaks = [one.peak_bytes for one in outcomes if one.peak_bytes is not None]
        return Turn(seconds=max(one.seconds for one in outcomes), steps=steps, peak_bytes=max(peaks, default=None))

    def compilation(self, layout: Layout) -> Compilation:
        """What was compiled for a prepared layout (every process compiles the same program)."""
        return self.local.compilation(layout)

    def release(self, layout: Layout) -> None:
        """Drop a layout in every process."""
        self.job.tell(["release", str(layout)])
        self.local.release(layout)

    def close(self) -> None:
        """Drop every layout; the job goes on."""
        for layout in self.local.prepared:
            self.release(layout)

    def _prepare(self, layout: Layout) -> Prepared | RunFailure:
        self.job.tell(["prepare", str(layout)])
        outcomes = [self.local.prepare([layout])[0], *(_incoming(one) for one in self.job.answers())]
        failures = [one for one in outcomes if isinstance(one, RunFailure)]
        if failures:
            self.release(layout)
            return failures[0]
        return Prepared(
            compile_seconds=max(one.compile_seconds for one in outcomes),
            step_seconds=max(one.step_seconds for one in outcomes),
        )


def compile_together(job: Job, jobs: Sequence[CompileJob]):
    """Yield (CompileJob, outcome) for layouts of this job's own devices, compiled in every process at once."""
    for one in jobs:
        runner = AgreedRunner(job, one.workload, one.target)
        prepared = runner.prepare([one.layout])[0]
        if isinstance(prepared, RunFailure):
            yield one, _compile_failure(one, prepared)
        else:
            yield one, runner.compilation(one.layout)
        runner.close()


def calibrate_together(job: Job, target: Target, *, tiers_only: bool = False, **hearers):
    """The calibrated Hardware of this job's devices, every process taking part; `hearers`: as of `calibrate`."""
    from autotune.calibrate.calibrate import calibrate

    job.tell(["calibrate", tiers_only])
    hardware = calibrate(target, agree=job.agree, tiers_only=tiers_only, **hearers)
    job.answers()
    return hardware


def _compile_failure(job: CompileJob, failure: RunFailure) -> CompileFailure:
    return CompileFailure(
        layout=str(job.layout),
        target=job.target.name,
        kind=failure.kind,
        stage="build" if failure.phase == "build" else "compile",
        reason=failure.reason,
        last_line=None,
        traceback=None,
        source=None,
        log_path=os.devnull,
        seconds=0.0,
        needed_bytes=None,
        available_bytes=None,
        arguments=(),
    )


_TYPES = {kind.__name__: kind for kind in (Prepared, Turn, RunFailure)}


def _outgoing(value: Prepared | Turn | RunFailure) -> list[Any]:
    return [type(value).__name__, asdict(value)]


def _incoming(message: list[Any]) -> Any:
    name, values = message
    return _TYPES[name](**values)


def _connected(process_id: int, processes: int, coordinator: str | None) -> Job:
    """Process 0 listens, tells its address and a password through JAX, and takes one connection from each other."""
    import numpy as np
    from jax.experimental import multihost_utils

    listener = None
    told = ""
    if process_id == 0:
        host = coordinator.rpartition(":")[0] if coordinator else socket.gethostbyname(socket.gethostname())
        listener = socket.create_server((host, 0), backlog=processes)
        listener.settimeout(CONNECT_SECONDS)
        told = f"{host} {listener.getsockname()[1]} {secrets.token_hex(16)}"
    padded = np.frombuffer(told.encode().ljust(ADDRESS_BYTES), dtype=np.uint8)
    host, port, password = bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode().split()
    connections: dict[int, socket.socket] = {}
    if listener is None:
        connection = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
        connection.settimeout(None)
        connection.sendall(f"{password} {process_id:8d}".encode())
        return Job(process_id, processes, {0: connection})
    while len(connections) < processes - 1:
        connection, _ = listener.accept()
        connection.settimeout(CONNECT_SECONDS)
        greeting = connection.recv(len(password) + 9, socket.MSG_WAITALL).decode(errors="replace")
        if greeting[: len(password)] != password:
            connection.close()
            continue
        connection.settimeout(None)
        connections[int(greeting[len(password) :])] = connection
    listener.close()
    return Job(process_id, processes, connections)


def _keep_alive(connection: socket.socket) -> None:
    """Notice a host that vanished without a word within half a minute."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
