"""Which of some further layouts are worth a row of their own in a priced space."""

from __future__ import annotations

import numpy as np

WINS = 0.99
"""A layout with a further choice is listed where it takes no more than this share of the time of those without."""

NEAR = 1.05
"""And no more than this multiple of the fastest layout that fits: as far as prices are sure."""


def may_be_best(seconds: np.ndarray, wins: np.ndarray, best: float) -> np.ndarray:
    """Positions of those that win and may be the best of all, the fastest first. `best`: seconds of the fastest layout
    that fits among the others; infinite where none does."""
    most = NEAR * min(best, seconds[wins].min(initial=np.inf))
    found = np.flatnonzero(wins & (seconds <= most))
    return found[np.argsort(seconds[found], kind="stable")]
