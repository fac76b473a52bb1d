"""A worker process ends when its parent does, whatever the worker is doing."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable


def when_parent_dies(pipe: int, end: Callable[[], object]) -> None:
    """Call `end` once nobody holds the other end of `pipe` (a file descriptor of this process); watched by a thread.

    `end` is called from that thread, so it must end the process by itself (`os._exit`, `os.killpg`).
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(pipe, 0)
        poll.poll()
        end()

    threading.Thread(target=watch, daemon=True).start()
