"""One TCP connection between two processes of a job: a line of JSON is a message. Nothing is unpickled."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from typing import Any

MESSAGE_BYTES = 1 << 20
"""The longest line that is read. The longest of our own, a command with many layouts, has some ten thousand bytes."""
PIECE_BYTES = 1 << 16
SEND_SECONDS = 30.0
"""How long a peer that reads nothing can hold up who writes to it."""


class NotAMessage(Exception):
    """What came is not a line of JSON, or is longer than `MESSAGE_BYTES`."""


class Connection:
    """A connected socket that carries JSON values both ways. Any thread may send; one thread receives."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._unread = b""
        self._sending = threading.Lock()
        self.peer = "{}:{}".format(*connected.getpeername()[:2])
        """Address and port of the other end, for messages."""
        self.held: list[Any] = []
        """Messages that came in one piece with the last one its reader wanted: whoever reads next takes them first."""
        connected.setblocking(True)
        _keep_alive(connected)

    def fileno(self) -> int:
        """The socket's descriptor, so that a selector can wait for it."""
        return self._socket.fileno()

    def send(self, value: Any) -> None:
        """Send one JSON-able value. OSError when the other end is gone or reads nothing for `SEND_SECONDS`."""
        line = json.dumps(value).encode() + b"\n"
        assert len(line) <= MESSAGE_BYTES, f"a message of {len(line)} bytes"
        with self._sending:
            unsent = memoryview(line)
            until = time.monotonic() + SEND_SECONDS
            while unsent:
                if not _ready(self._socket, select.POLLOUT, until - time.monotonic()):
                    raise TimeoutError(f"{self.peer} reads nothing")
                unsent = unsent[self._socket.send(unsent, socket.MSG_DONTWAIT) :]

    def read(self) -> tuple[list[Any], bool]:
        """Wait for bytes; gives the messages that are whole by now, and whether the other end is still there.

        NotAMessage when it sends something else than lines of JSON; OSError when the connection broke.
        """
        piece = self._socket.recv(PIECE_BYTES)
        *lines, self._unread = (self._unread + piece).split(b"\n")
        if max(map(len, [*lines, self._unread])) > MESSAGE_BYTES:
            raise NotAMessage(f"a line of over {MESSAGE_BYTES} bytes")
        try:
            return [json.loads(line) for line in lines], bool(piece)
        except (ValueError, RecursionError) as error:
            raise NotAMessage(f"not a line of JSON: {error}") from None

    def has_bytes(self, seconds: float) -> bool:
        """Whether `read` would return at once, waiting at most so long for that."""
        return _ready(self._socket, select.POLLIN, seconds)

    def close(self) -> None:
        """End the connection: the other end reads its end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was first
        self._socket.close()


def _ready(connected: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(connected, event)
    return bool(poll.poll(1000 * max(0.0, seconds)))


def _keep_alive(connected: socket.socket) -> None:
    """Notice a host that vanished without a word within half a minute."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
