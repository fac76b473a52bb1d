"""What the C library does with memory that simulated devices free."""

from __future__ import annotations

import ctypes
import sys

SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_ARENA_MAX": (-8, 1)}
"""mallopt(3): no block of its own from the system for any size, nothing given back, one pool for all threads."""


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, as a device's allocator does.

    XLA's CPU runtime gets a program's temporaries anew in every step. By default the C library gives large ones back in
    between, and the system clears every page of the next ones: a quarter of a step of eight devices was spent so, or
    nothing, as the sizes fell. Best called before jax has devices: pools that threads already have go on giving back.
    Only where the C library is glibc; elsewhere nothing is changed.
    """
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return
    for name, (parameter, value) in SETTINGS.items():
        if not library.mallopt(parameter, value):
            raise OSError(f"mallopt({name}, {value}) was refused")
