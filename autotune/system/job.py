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
from typing import Any

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
