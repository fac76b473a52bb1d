"""Seconds, bytes and shares as people read them."""

from __future__ import annotations

GIB = 2**30


def seconds_text(value: float | None) -> str:
    """Four significant digits in s, ms or us; a dash when unknown.

    >>> seconds_text(1.23456), seconds_text(0.0123456), seconds_text(None)
    ('1.235 s', '12.35 ms', '-')
    """
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.4g} {unit}"
    return f"{value * 1e6:.4g} us"


def bytes_text(value: float | None) -> str:
    """GiB, MiB, KiB or B with three significant digits; a dash when unknown.

    >>> bytes_text(12 * 2**30), bytes_text(3.5 * 2**20)
    ('12 GiB', '3.5 MiB')
    """
    if value is None:
        return "-"
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 1024)):
        if value >= scale:
            size = value / scale
            return f"{size:.0f} {unit}" if size >= 100 else f"{size:.3g} {unit}"
    return f"{value:.0f} B"


def percent(value: float | None) -> str:
    """A share with one decimal; a dash when unknown."""
    return "-" if value is None else f"{100 * value:.1f} %"


def percent_change(value: float, base: float) -> str:
    """How far `value` is from `base`.

    >>> percent_change(1.1, 1.0), percent_change(0.5, 1.0)
    ('+10 %', '-50 %')
    """
    return f"{100 * (value / base - 1):+.0f} %"


def duration_text(seconds: float) -> str:
    """Wall time in whole seconds, minutes or hours.

    >>> duration_text(0.4), duration_text(75), duration_text(240), duration_text(7300)
    ('1 s', '75 s', '4 min', '2 h')
    """
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
