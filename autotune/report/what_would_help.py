"""What better resources or looser constraints would be worth, the layout chosen again.

Compiled layouts answer with what their replay gains on the better machine, applied to the best number known of them.
Layouts that were only priced answer with the closed form, scaled by what is known of the chosen one. The search chose
that one before all others, so none is taken to be faster than it before the change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autotune.analysis.limits import ARC, KeptOut, arc_gain
from autotune.compile.compilation import CompileFailure
from autotune.meshes.hardware import scale
from autotune.meshes.layout import Layout
from autotune.meshes.legality import rules_about
from autotune.meshes.target import Target
from autotune.price.priced_space import PricedSpace
from autotune.report.findings import Row

WORTH_SAYING = 0.01
"""Gains below one per cent are within what prices cannot tell."""


def prices_of_resources(target: Target, space: PricedSpace, runnable: Sequence[Row]) -> dict[str, float]:
    """Fraction of the step time saved when each resource is `ARC` times as good and the layout is chosen again."""
    best = runnable[0]
    base = _known_seconds(best)
    trust = base / best.price.step_seconds if best.price else 1.0
    fits = space.legal & (space.peak_bytes <= target.hardware.capacity_bytes)
    for row in runnable:
        if row.analysis:
            fits[space.row_of(row.layout)] = False
    # A resource that is ARC times as good divides no time by more: slower layouts stay behind the chosen one.
    hopeful = np.flatnonzero(fits & (space.seconds * trust <= ARC * base))
    before = np.maximum(space.seconds[hopeful] * trust, base)
    gains = {}
    for resource in best.elasticities:
        times = [
            max(_known_seconds(row), base) * row.analysis.improved_seconds.get(resource, compiled) / compiled
            for row in runnable
            if row.analysis and (compiled := row.analysis.prediction.step_seconds)
        ]
        if len(hopeful):
            better = space.repriced(scale(target.hardware, resource, ARC), hopeful).step_seconds
            times.append(float((before * better / space.seconds[hopeful]).min()))
        gains[resource] = arc_gain(base, min(times, default=base))
    roomier = space.legal & ~fits & (space.peak_bytes <= ARC * target.hardware.capacity_bytes)
    roomier &= space.peak_bytes > target.hardware.capacity_bytes
    gains["capacity"] = arc_gain(base, float(space.seconds[roomier].min()) * trust) if roomier.any() else 0.0
    return gains


def kept_out_by(
    target: Target,
    space: PricedSpace,
    runnable: Sequence[Row],
    failures: Mapping[Layout, CompileFailure],
) -> KeptOut | None:
    """What keeps a better layout out: too little memory, a size that does not divide, or too small a batch.

    Of capacity, what `ARC` times as much would let in; of the other two, what the closed form says of the excluded
    layouts if the cuts came out even. None when nothing excluded would be `WORTH_SAYING` faster.
    """
    best = runnable[0]
    base = _known_seconds(best)
    trust = base / best.price.step_seconds if best.price else 1.0
    capacity = target.hardware.capacity_bytes
    too_large = space.legal & (space.peak_bytes > capacity) & (space.peak_bytes <= ARC * capacity)
    for layout, failure in failures.items():
        if failure.kind == "oom" and failure.needed_bytes is not None and failure.needed_bytes <= ARC * capacity:
            too_large[space.row_of(layout)] = True
    groups = {"capacity": too_large}
    for rule in ("divisibility", "batch"):
        rows = np.isin(space.broken, rules_about(rule))
        groups[rule] = rows & (space.peak_bytes <= capacity)
    found: list[KeptOut] = []
    for constraint, rows in groups.items():
        members = np.flatnonzero(rows)
        if members.size:
            row = int(members[np.argmin(space.seconds[members])])
            gain = arc_gain(base, float(space.seconds[row]) * trust)
            if gain >= WORTH_SAYING:
                found.append(KeptOut(constraint=constraint, layout=str(space.layout(row)), gain=gain))
    return max(found, key=lambda one: (one.gain, one.constraint), default=None)


def _known_seconds(row: Row) -> float:
    """The best number there is for a row that can run: measured, else compiled, else priced."""
    seconds = row.step_seconds
    assert seconds is not None, row.layout
    return seconds
