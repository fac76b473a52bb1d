"""The fit of every calibration: numbers, none below zero, with the least relative deviations from what was seen."""

from __future__ import annotations

import numpy as np


def least_deviations(rows: np.ndarray) -> np.ndarray:
    """x >= 0 that minimises the sum over rows of |row . x - 1|; a row: amounts over the seconds they took together.

    Deviations and not their squares: of a few timings on a shared machine one may be twenty times too long, and squares
    would follow it.

    >>> least_deviations(np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0], [0.1, 1.0]]) / np.array([[3], [5], [9], [60]]))
    array([2., 1.])
    """
    from scipy.optimize import linprog

    count, unknowns = rows.shape
    scale = np.where(rows.max(axis=0) > 0, rows.max(axis=0), 1.0)
    # Each deviation is the difference of two numbers that are not negative.
    equal = np.hstack([rows / scale, np.eye(count), -np.eye(count)])
    price = np.concatenate([np.zeros(unknowns), np.ones(2 * count)])
    found = linprog(price, A_eq=equal, b_eq=np.ones(count), bounds=(0, None), method="highs")
    assert found.status == 0, found.message
    return found.x[:unknowns] / scale
