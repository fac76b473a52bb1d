"""Whether a value can travel to another process. JAX is not imported here."""

from __future__ import annotations

from typing import Any

import cloudpickle


def can_be_pickled(value: Any) -> bool:
    """Whether cloudpickle takes `value`.

    >>> import threading
    >>> can_be_pickled({"a": 1}), can_be_pickled(threading.Lock())
    (True, False)
    """
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True
