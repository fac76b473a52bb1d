"""Which small compiles to make of a step that is no transformer we know, so that its whole space can be priced.

Each axis that the space cuts is probed alone, on the smallest part of the machine with two devices or more, and with
each other axis that it is ever combined with, on the smallest with four or more; the same again with ZeRO for what has
`data`. Of a step that reads them from the layout, every other remat and twice the accumulation are probed once, on the
last pair. The batch is the step's own and needs no law; what `stage` does is not probed. A TPU's compiler refuses what
does not fit, a GPU's then recomputes on its own: parts are the smallest on which every axis is in a probe that the
trace says fits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.compile.compilation import Candidate, CompileFailure
from autotune.meshes.layout import AXES, OUTERMOST_FIRST, REMAT, Layout
from autotune.meshes.target import Target, part_of
from autotune.price.price import price
from autotune.price.priced_space import PricedSpace, why_illegal
from autotune.price.traced.laws import Probed
from autotune.probes.fit import Probe, probed_of
from autotune.table import LayoutTable

WORTH = 2
"""Probes are made of spaces so many times as large as what is compiled then: in smaller ones prices save little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """The compiles to make, and a line on everything that is left out."""

    jobs: tuple[Candidate, ...]
    notes: tuple[str, ...]


def probing(space: PricedSpace, compile_count: int) -> Probing:
    """The probes that are worth their time for this space, of whose layouts `compile_count` are compiled anyway."""
    if not compile_count:
        return _none("nothing is to be compiled")
    plan = every_probe(space)
    legal, count = int(space.legal.sum()), len(plan.jobs)
    if plan.jobs and legal < WORTH * (compile_count + count):
        compiled = f"{count} of them and {compile_count} layouts"
        return _none(f"{compiled} would be more than half of all {legal} legal ones")
    return plan


def every_probe(space: PricedSpace) -> Probing:
    """All probes of this space, whatever their worth."""
    base = _base(space)
    if base is None:
        return _none("no legal layout runs without a pipeline")
    axes = _axes(space)
    if not axes:
        return _none("no axis is cut in any legal layout")
    jobs, notes = _fitting_jobs(space, base, axes)
    return Probing(jobs=tuple(jobs), notes=tuple(notes))


def _none(why: str) -> Probing:
    return Probing(jobs=(), notes=(f"no probe compiles, since {why}: layouts are priced from the trace alone",))


def learned(probes: Sequence[Probe], failures: Sequence[CompileFailure], target: Target) -> tuple[Probed | None, str]:
    """The laws, and one line on what was probed and what was not."""
    probed = probed_of(probes, target.hardware.name)
    axes = ", ".join(probed.axes) if probed else "none"
    line = f"priced with {len(probes)} probe compiles on parts of {target.name}, axes probed: {axes}"
    if failures:
        first = failures[0]
        line += f"; {len(failures)} probes failed, e.g. {first.layout} on {first.target}: {first.kind}, {first.reason}"
    return probed, line


def _base(space: PricedSpace) -> Layout | None:
    """The choices beside the mesh that all probes share: those of the first legal layout without a pipeline, with full
    recomputation if there is a choice: it fits on the fewest devices."""
    rows = np.flatnonzero(space.legal & (space.table.stage == 1))
    full = rows[space.table.remat[rows] == REMAT.index("full")]
    return next((space.layout(int(row)) for row in (*full, *rows)), None)


def _axes(space: PricedSpace) -> tuple[str, ...]:
    legal = space.legal
    return tuple(axis for axis in AXES if axis != "stage" and (getattr(space.table, axis)[legal] > 1).any())


def _fitting_jobs(space: PricedSpace, base: Layout, axes: tuple[str, ...]) -> tuple[list[Candidate], list[str]]:
    """The jobs on the smallest parts that do."""
    factor = 1
    jobs, notes = _jobs(space, base, axes, factor)
    while space.target.platform != "cpu" and not _each_fits(jobs, axes) and 8 * factor <= space.target.devices:
        factor *= 2
        jobs, notes = _jobs(space, base, axes, factor)
    return jobs, notes


def _each_fits(jobs: Sequence[Candidate], axes: Sequence[str]) -> bool:
    """Whether each axis is in a probe that is priced to fit."""
    fitting = set()
    for job in jobs:
        peak = price(job.workload, LayoutTable.from_layouts([job.layout]), job.target).peak_bytes[0]
        if peak <= job.target.hardware.capacity_bytes:
            fitting |= {axis for axis in axes if getattr(job.layout, axis) > 1}
    return fitting == set(axes)


def _jobs(space: PricedSpace, base: Layout, axes: tuple[str, ...], factor: int) -> tuple[list[Candidate], list[str]]:
    """The probes on parts of at least 2 x `factor` (axes alone) and 4 x `factor` devices (pairs)."""
    one, two = part_of(space.target, 2 * factor), part_of(space.target, 4 * factor)
    cuts = [(one, {axis: one.devices}) for axis in axes]
    few = 1 << (two.devices.bit_length() - 1) // 2
    for pair in itertools.combinations(axes, 2):
        together = np.all([getattr(space.table, axis) > 1 for axis in pair], axis=0)
        if (together & space.legal).any():
            cuts.append((two, dict(zip(pair, (few, two.devices // few), strict=True))))
    zeros = sorted({int(zero) for zero in np.unique(space.table.zero[space.legal])})
    jobs: list[Candidate] = []
    notes: list[str] = []

    def probe(layout: Layout, part: Target) -> None:
        problem = why_illegal(space.workload, part, layout)
        if problem is None:
            jobs.append(Candidate(workload=space.workload, layout=layout, target=part))
        else:
            notes.append(f"not probed: {problem}")

    for part, sizes in cuts:
        for zero in zeros if "data" in sizes else [0]:
            cut: dict[str, Any] = dict.fromkeys(OUTERMOST_FIRST, 1) | sizes
            layout = dataclasses.replace(base, **cut, dcn=(), order=OUTERMOST_FIRST, zero=zero)
            probe(layout, part)
    if jobs:
        last = next((job for job in reversed(jobs) if job.layout.zero == 0), jobs[-1])
        legal = space.table.take(space.legal)
        for name in (name for code, name in enumerate(REMAT) if (legal.remat == code).any() and name != base.remat):
            probe(dataclasses.replace(last.layout, remat=name), last.target)
        if (legal.accumulate != base.accumulate).any():
            probe(dataclasses.replace(last.layout, accumulate=2 * base.accumulate), last.target)
    return jobs, notes
