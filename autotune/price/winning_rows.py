"""Which of some further layouts are worth a row of their own in a priced space."""

from __future__ import annotations

import numpy as np

WINS = 0.99
"""A further row is listed only where its step takes less than this share of the step that it must beat: a
smaller gain is within what prices are sure of."""

NEAR = 1.05
"""A further row is listed only where its step takes at most this multiple of the fastest step that fits: prices are no
surer than that."""


def may_be_best(seconds: np.ndarray, wins: np.ndarray, best: float) -> np.ndarray:
    """Indices of the further rows that may be the best layout of all, the fastest first.

    `seconds`: of each further row. `wins`: mask of those that fit and beat what they must. `best`: seconds of the
    fastest layout that fits in the space before; infinite where none does."""
    most = NEAR * min(best, seconds[wins].min(initial=np.inf))
    found = np.flatnonzero(wins & (seconds <= most))
    return found[np.argsort(seconds[found], kind="stable")]
