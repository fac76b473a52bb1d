"""What a handful of small compiles say of a step that is no transformer we know: the law of every amount in its price.

Probes are compiles of the same step, on a small part of the same kind of machine: each axis alone, then pairs. What a
device computes, holds and moves there is fitted to laws (`autotune.price.traced.scaling_law`) that hold for any sizes.
Of a collective the amount is the array that it moves; how much of that one device sends follows from the size of the
axes it runs along ((n - 1) / n of it, twice for an all-reduce), as in `autotune.meshes.collectives`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.analysis.analysis import Analysis
from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import AXES, Layout
from autotune.price.terms import COMPUTE
from autotune.price.traced.laws import (
    OWN_SHARE,
    AxisEffect,
    ChoiceFactors,
    CollectiveClass,
    CollectiveLaw,
    Laws,
    Probed,
)
from autotune.price.traced.scaling_law import ScalingLaw, fit
from autotune.replay.replay import CollectiveTotal

CLOSE = 0.02
"""Amounts this near to a law follow it: the compiler's scalars and paddings are less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The collectives of one class in one compile: how many, the bytes of all their arrays, and which share of their
    time lies on the critical path."""

    count: int
    array_bytes: float
    exposed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one small compile showed, per device and step.

    `core_seconds`: of the core's own work, by resource (`COMPUTE`), on the hardware it was replayed with.
    `held_bytes`: at the peak, beside parameters and optimizer state.
    """

    layout: Layout
    flops: float
    core_seconds: Mapping[str, float]
    held_bytes: float
    sent: Mapping[CollectiveClass, Moved]


def probe_of(layout: Layout, analysis: Analysis) -> Probe:
    """The amounts of one compiled layout."""
    prediction, memory = analysis.prediction, analysis.memory
    critical: dict[str, float] = {}
    for (resource, detail), seconds in prediction.critical.items():
        name = "launch" if (resource, detail) == ("latency", "launch") else resource
        if name in COMPUTE:
            critical[name] = critical.get(name, 0.0) + seconds
    # What runs while the core waits for the network is not on the critical path; all of it is work nonetheless.
    whole = prediction.busy["core"] / (sum(critical.values()) or 1.0)
    lines: dict[CollectiveClass, list[CollectiveTotal]] = {}
    for line in prediction.ledger:
        lines.setdefault((tuple(line.axis.split("+")), line.kind), []).append(line)
    sent = {}
    for (axes, kind), tiers in lines.items():
        size = math.prod(layout.axes.get(axis, 1) for axis in axes)
        if size > 1 and any(line.wire_bytes for line in tiers):
            seconds = sum(line.seconds - line.hidden_seconds for line in tiers)
            sent[axes, kind] = Moved(
                count=max(line.count for line in tiers),
                array_bytes=sum(line.wire_bytes for line in tiers) / float(wire_bytes(_as_gather(kind), 1.0, size)),
                exposed=min(sum(line.exposed_seconds for line in tiers) / seconds, 1.0) if seconds else 1.0,
            )
    held = memory.peak_bytes - memory.by_category["parameters"] - memory.by_category["optimizer_state"]
    return Probe(
        layout=layout,
        flops=analysis.flops,
        core_seconds={name: seconds * whole for name, seconds in critical.items()},
        held_bytes=float(max(held, 0)),
        sent=sent,
    )


def _as_gather(kind: str) -> str:
    """A permute as if its array were gathered: the compiler writes gathers and reductions as chains of permutes, which
    send as much; a lone shift by one place is so priced up to 4/3 too high from probes of size 4."""
    return "all_gather" if kind == "permute" else kind


def probed_of(probes: Sequence[Probe], hardware: str) -> Probed | None:
    """The laws that these probes follow; None where there are none.

    Most probes share one remat and accumulation: they say what the mesh does, the others what those two do.
    ZeRO changes the program wherever there is `data`: its laws come from probes with it, and from those without `data`.
    """
    if not probes:
        return None
    base = statistics.mode(_choices(probe.layout) for probe in probes)
    others = [probe for probe in probes if _choices(probe.layout) != base]
    probes = [probe for probe in probes if _choices(probe.layout) == base]
    laws = {}
    for zero in (0, 1):
        some = [probe for probe in probes if probe.layout.zero == zero or probe.layout.data == 1]
        if zero and not any(probe.layout.zero for probe in some):
            continue
        if some:
            laws[zero] = _laws(some)
    axes = tuple(axis for axis in AXES if any(getattr(probe.layout, axis) > 1 for probe in probes))
    remat, accumulate = {}, None
    for probe in others:
        like = [one for one in probes if (one.layout.axes, one.layout.zero) == (probe.layout.axes, probe.layout.zero)]
        if like and probe.layout.remat != base[0]:
            remat[probe.layout.remat] = _choice(like[0], probe)
        elif like:
            accumulate = _choice(like[0], probe)
    return Probed(hardware=hardware, axes=axes, laws=laws, remat=remat, accumulate=accumulate, passes=base[1])


def _choices(layout: Layout) -> tuple[str, int]:
    """The choices beside the mesh that are probed."""
    return layout.remat, layout.accumulate


def _choice(before: Probe, after: Probe) -> ChoiceFactors:
    """What the second has over the first, of the same mesh."""

    def times(new: float, old: float) -> float:
        return new / old if old else 1.0

    def array(key: CollectiveClass) -> float:
        return after.sent[key].array_bytes if key in after.sent else 0.0

    core = {name: times(after.core_seconds.get(name, 0.0), old) for name, old in before.core_seconds.items()}
    return ChoiceFactors(
        flops=times(after.flops, before.flops),
        core_seconds=core,
        held_bytes=times(after.held_bytes, before.held_bytes),
        sent={key: times(array(key), old.array_bytes) for key, old in before.sent.items()},
    )


def _laws(probes: Sequence[Probe]) -> Laws:
    sizes = [probe.layout.axes for probe in probes]
    resources = dict.fromkeys(name for probe in probes for name in probe.core_seconds)
    seconds = {name: [probe.core_seconds.get(name, 0.0) for probe in probes] for name in resources}
    return Laws(
        flops=_law([(probe.layout.axes, probe.flops) for probe in probes]),
        core_seconds={name: _law(list(zip(sizes, values, strict=True))) for name, values in seconds.items()},
        held_bytes=_law([(probe.layout.axes, probe.held_bytes) for probe in probes]),
        sent=tuple(_sent(probes)),
    )


def _law(seen: Sequence[tuple[Mapping[str, int], float]]) -> ScalingLaw:
    """The law of these amounts, which is taken to fall with every axis that no probe has cut."""
    uncut = [axis for axis in seen[0][0] if all(size[axis] == 1 for size, _ in seen)]
    return fit(seen).falling_with(uncut)


def _sent(probes: Sequence[Probe]) -> list[CollectiveLaw]:
    """The laws of all classes of collectives.

    A class that the probe of its own axes alone shows is there wherever these axes are cut; each pair with another axis
    says what that one does to it. A class that only pairs show is there wherever such a pair is cut. Axes that nothing
    was probed with are taken to cut the whole array.
    """
    found = []
    for key in dict.fromkeys(key for probe in probes for key in probe.sent):
        axes, kind = key
        having = {frozenset(_active(probe.layout)): probe for probe in probes
                  if set(axes) <= _active(probe.layout)}  # fmt: skip
        alone = having.get(frozenset(axes))
        if alone is not None and key in alone.sent:
            bases = [alone]
        else:
            bases = [probe for probe in having.values() if key in probe.sent]
        for base in bases:
            needs = frozenset(_active(base.layout))
            beside = dict.fromkeys((axis for axis in AXES if axis not in axes), AxisEffect(falls=1.0, times=1.0))
            if base is alone:
                beside |= {axis: _beside(key, base, probe, axis) for cut, probe in having.items()
                           for axis in cut - needs if len(cut) == len(needs) + 1}  # fmt: skip
            whole = math.prod(getattr(base.layout, axis) for axis in AXES if kind in OWN_SHARE or axis not in axes)
            showing = [probe.sent[key] for probe in having.values() if key in probe.sent]
            found.append(
                CollectiveLaw(
                    axes=axes,
                    kind=kind,
                    needs=tuple(axis for axis in AXES if axis in needs),
                    count=max(moved.count for moved in showing),
                    array_bytes=base.sent[key].array_bytes * whole,
                    beside=beside,
                    exposed=sum(moved.exposed for moved in showing) / len(showing),
                )
            )
    return found


def _beside(key: CollectiveClass, alone: Probe, pair: Probe, axis: str) -> AxisEffect:
    """What `axis` does to a class, from the probe of its own axes and the one that has `axis` too."""
    axes, kind = key
    size = getattr(pair.layout, axis)
    before, after = alone.sent[key].array_bytes, pair.sent[key].array_bytes if key in pair.sent else 0.0
    if kind in OWN_SHARE:
        before, after = (
            amount * math.prod(getattr(probe.layout, own) for own in axes)
            for amount, probe in ((before, alone), (after, pair))
        )
    left = after / before
    if left > 1.0 + CLOSE:
        return AxisEffect(falls=0.0, times=left)
    if left < (1.0 - CLOSE) / size:
        return AxisEffect(falls=1.0, times=left * size)
    falls = (1.0 - left) / (1.0 - 1.0 / size)
    return AxisEffect(falls=min(max(falls, 0.0), 1.0), times=1.0)


def _active(layout: Layout) -> set[str]:
    return {axis for axis, size in layout.axes.items() if size > 1}
