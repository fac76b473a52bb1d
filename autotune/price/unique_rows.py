"""Which rows of integer columns are equal, so that what equal rows share is computed once."""

from __future__ import annotations

import numpy as np

from autotune.table import is_constant

TABLE_PLACES = 8
"""Places of the lookup table for each row; keys that need more places are sorted instead."""


def unique_rows(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(first row of each distinct combination, combination of each row) of integer columns of equal length.

    Combinations are numbered in order, the first column the most significant digit: tables are all but sorted by it, so
    neighbouring rows look up neighbouring places, several times faster than at random.
    """
    rows = len(columns[0])
    room = max(TABLE_PLACES * rows, 1 << 12)
    key, extent = np.zeros(rows, dtype=np.int64), 1
    for column in columns if rows else ():
        if is_constant(column) or (column[0] == column[-1] and (column == column[0]).all()):
            continue
        least = int(column.min())
        digits = int(column.max()) - least + 1
        digit = column - least
        if extent * digits > room:
            digit, digits = _numbered(digit, digits, room)
        if extent * digits > room:
            key, extent = _numbered(key, extent, room)
        key *= digits
        key += digit
        extent *= digits
    of_row, count = _numbered(key, extent, room)
    first = np.empty(count, dtype=np.int64)
    first[of_row[::-1]] = np.arange(rows - 1, -1, -1)
    return first, of_row


def _numbered(key: np.ndarray, extent: int, room: int) -> tuple[np.ndarray, int]:
    """(number of each row's key among those that occur, in order; how many do) of keys in [0, extent): by a lookup
    table, or where that were too large by sorting."""
    if extent <= room:
        occurs = np.zeros(extent, dtype=bool)
        occurs[key] = True
        found = np.flatnonzero(occurs)
        number = np.empty(extent, dtype=np.int64)
        number[found] = np.arange(len(found))
        return number[key], len(found)
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    number = np.empty(len(key), dtype=np.int64)
    number[order] = np.cumsum(np.append(False, ranked[1:] != ranked[:-1]))
    return number, int(number[order[-1]]) + 1
