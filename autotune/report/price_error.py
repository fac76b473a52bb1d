"""How far the closed form is from what the compiler made of the same layouts: FLOPs, bytes by axis, memory, seconds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotune.report.findings import Row


def price_errors(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Priced over compiled, one number a compiled layout: "FLOPs", "bytes along fsdp", "peak memory", "seconds".

    Bytes that the compiler moves along two axes at once are compared with the sum of what was priced along either; an
    axis along which nothing is moved in one of the two is left out, and counted in the bytes of all axes together.
    """
    found: dict[str, list[float]] = {}

    def compare(what: str, priced: float | None, compiled: float | None) -> None:
        if priced and compiled:
            found.setdefault(what, []).append(priced / compiled)

    for row in rows:
        if row.analysis is None or row.price is None:
            continue
        prediction = row.analysis.prediction
        compare("seconds", row.price.step_seconds, prediction.step_seconds)
        compare("FLOPs", row.price.flops, row.analysis.flops)
        compare("peak memory", row.price.peak_bytes, row.analysis.memory.peak_bytes)
        compiled: dict[str, float] = {}
        for line in prediction.ledger:
            compiled[line.axis] = compiled.get(line.axis, 0.0) + line.wire_bytes
        for axes, (ours, theirs) in _together(row.price.sent, compiled).items():
            compare(f"bytes along {axes}", ours, theirs)
        compare("bytes along all axes", sum(row.price.sent.values()), sum(compiled.values()))
    return found


def said(errors: Mapping[str, list[float]], source: str) -> str | None:
    """One line: the median of each ratio of what was priced from `source`; None where nothing was compiled."""
    if not errors.get("seconds"):
        return None
    words = [f"{what} {statistics.median(ratios):.2f}" for what, ratios in sorted(errors.items())]
    return f"priced from {source}, over compiled, median of {len(errors['seconds'])} layouts: {', '.join(words)}"


def _together(priced: Mapping[str, float], compiled: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """(priced, compiled) bytes by axes; axes that one collective rides at once ("data+fsdp") are one."""
    groups = [{axis} for axis in priced]
    for label in compiled:
        joint = set(label.split("+"))
        joint = joint.union(*(group for group in groups if group & joint))
        groups = [group for group in groups if not group & joint] + [joint]
    return {
        "+".join(sorted(group)): (
            sum(priced.get(axis, 0.0) for axis in group),
            sum(sent for label, sent in compiled.items() if set(label.split("+")) <= group),
        )
        for group in groups
    }
