"""A way to JAX's coordinator that stays open when the coordinator dies.

JAX's runtime aborts a process, with a C++ stack trace and without a name, as soon as its connection to the coordinator
closes. Our own connections notice the loss at the same moment, and the two would race. So a process other than 0 gives
JAX the address of this relay: it passes bytes both ways, and keeps silent when the coordinator's end closes.
"""

from __future__ import annotations

import socket
import threading

PIECE_BYTES = 1 << 16


class Relay:
    """Listens on a port of the loopback (`address`), and passes each connection on to `host`:`port`."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        """What JAX is told, HOST:PORT."""
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self._to, timeout=5.0)
            except OSError:
                near.close()  # JAX tries again until its own limit
                continue
            far.settimeout(None)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(one)  # one that nobody refers to would be closed
            threading.Thread(target=_pass_on, args=(near, far), daemon=True).start()
            threading.Thread(target=_pass_on, args=(far, near), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(PIECE_BYTES):
            sink.sendall(piece)
    except OSError:
        return  # as good as the end: whoever is lost is named by the job's own connections
