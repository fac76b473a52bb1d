"""The smallest changes that would make a layout fit: its neighbours, priced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autotune.meshes.layout import REMAT, Layout
from autotune.meshes.target import Target
from autotune.price.price import Estimate
from autotune.price.priced_space import PricedSpace, price_space, why_illegal
from autotune.price.traced.laws import Probed
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

FACTORS = (2, 4, 8, 16, 32, 64)
"""By how much a batch, a sequence or a pass over the batch is made smaller, the least first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change to a layout that does not fit, or to its job, taken as far as it needs to go to fit.

    `what`: in words. `layout`: the changed one, or the same where the job changes (`same_job` is False then).
    `peak_bytes`: of one device, `source`: "priced" or "compiled". `time_change`: of the priced time of one token, as a
    fraction.
    """

    what: str
    layout: Layout
    same_job: bool
    peak_bytes: float
    time_change: float
    source: str

    def __str__(self) -> str:
        peak = f"{self.peak_bytes / 2**30:.2f} GiB {self.source}"
        return f"{self.what} -> {peak} ({100 * self.time_change:+.0f} % time a token, priced)"


def smallest_changes(
    workload: Workload,
    target: Target,
    layout: Layout,
    held: Mapping[str, float] | None,
    probed: Probed | None = None,
) -> tuple[Change, ...]:
    """Changes after which the layout would fit, the fastest first: one each, or full recomputation and another.

    More recomputation, smaller pieces of the batch, more sharding, the optimizer's state in host memory, a smaller
    batch, shorter sequences. `held`: what the layout was found to hold, by category; each category then shrinks as the
    closed form says that it does. None: the closed form's own word. `probed`: what probes taught of the step.
    """
    found = _that_fit(workload, target, layout, layout, held, probed)
    if layout.remat != "full" and not any(change.same_job for change in found):
        full = dataclasses.replace(layout, remat="full")
        both = _that_fit(workload, target, layout, full, held, probed)
        found += [dataclasses.replace(change, what=f"remat=full and {change.what}") for change in both]
    return tuple(sorted(found, key=lambda change: (not change.same_job, change.time_change)))


def _that_fit(
    workload: Workload,
    target: Target,
    layout: Layout,
    start: Layout,
    held: Mapping[str, float] | None,
    probed: Probed | None,
) -> list[Change]:
    """Changes to `start`, itself `layout` or a neighbour of it, that fit; compared with `layout`."""
    base = price_one(workload, target, layout, probed)
    found = []
    for attempt in _attempts(workload, start):
        for what, changed, other in attempt:
            if changed.problem(other) or why_illegal(changed, target, other):
                continue
            new = price_one(changed, target, other, probed)
            peak = scaled_peak(held, base, new)
            if peak <= target.hardware.capacity_bytes:
                slower = new.step_seconds / changed.tokens / (base.step_seconds / workload.tokens) - 1
                same = changed is workload
                found.append(
                    Change(what=what, layout=other, same_job=same, peak_bytes=peak, time_change=slower, source="priced")
                )
                break
    return found


def scaled_peak(held: Mapping[str, float] | None, base: Estimate, new: Estimate) -> float:
    """The peak after a change from `base` to `new`: what is held, each category scaled as its price changes."""
    if held is None:
        return new.peak_bytes
    total = 0.0
    for name in {*held, *new.memory}:
        size, before, after = held.get(name, 0.0), base.memory.get(name, 0.0), new.memory.get(name, 0.0)
        total += size * after / before if before else size + after
    return total


def devices_needed(space: PricedSpace) -> str | None:
    """How many devices the least state of any layout of the space asks for, where the target has fewer; None where it
    has enough."""
    whole = space.least_state_bytes()
    least = math.ceil(whole / space.target.hardware.capacity_bytes)
    if least <= space.target.devices:
        return None
    words = "parameters, gradients and optimizer state alone are"
    return f"{least} devices of this kind or more: {words} {whole / 2**30:,.0f} GiB in all (priced)"


def price_one(workload: Workload, target: Target, layout: Layout, probed: Probed | None = None) -> Estimate:
    """The price of one layout."""
    return price_space(workload, target, LayoutTable.from_layouts([layout]), [layout], probed).price(0)


def _attempts(workload: Workload, layout: Layout) -> Sequence[Iterator[tuple[str, Workload, Layout]]]:
    """The ways to need less, each from the smallest step on: (words, job, layout)."""

    def cut(**words) -> Layout:
        return dataclasses.replace(layout, **words)

    def moved(by: int) -> Iterator[tuple[str, Workload, Layout]]:
        dcn = layout.dcn_axes["data"]
        if layout.data % (by * dcn) == 0:  # what crosses DCN stays as it is
            other = cut(data=layout.data // by, fsdp=layout.fsdp * by)
            yield f"fsdp={other.fsdp},data={other.data}", workload, other

    ways: list[Iterator[tuple[str, Workload, Layout]]] = [
        ((f"remat={name}", workload, cut(remat=name)) for name in _keeping_less(layout.remat)),
        ((f"accumulate={by * layout.accumulate}", workload, cut(accumulate=by * layout.accumulate)) for by in FACTORS),
        iter([("offload=optimizer", workload, cut(offload="optimizer"))] if layout.offload == "none" else []),
        ((f"zero={zero}", workload, cut(zero=zero)) for zero in (1, 2) if layout.data > 1 and zero > layout.zero),
        (one for by in FACTORS for one in moved(by)),
    ]
    if workload.transformer is not None:  # a step that is only traced has one batch
        batch, seq = workload.sequences, workload.seq
        ways += [
            ((f"batch {batch // by} instead of {batch}", _resized(workload, batch // by, seq), layout)
             for by in FACTORS if batch % by == 0),
            ((f"sequence {seq // by} instead of {seq}", _resized(workload, batch, seq // by), layout)
             for by in FACTORS if seq % by == 0),
        ]  # fmt: skip
    return ways


def _keeping_less(remat: str) -> tuple[str, ...]:
    """Policies that keep less than `remat` on the device; of a set without a name, those that keep least."""
    return REMAT[REMAT.index(remat) + 1 :] if remat in REMAT else REMAT[REMAT.index("full") :]


def _resized(workload: Workload, sequences: int, seq: int) -> Workload:
    """The same step on another batch, to be priced only: its `build` still makes the old one."""
    fields = {name: getattr(workload, name) for name in workload.__slots__}
    return Workload.of(**fields | {"sequences": sequences, "seq": seq})
