"""One cluster size: the best layout there, what it reaches, and the limit that binds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.analysis.limits import ARC, Limit, binding_limit
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.price.price import Estimate, estimate
from autotune.price.transformer.training_stack import stack_of
from autotune.sweep.fastest import Fastest, NothingFits, fastest, fastest_and_roomier
from autotune.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked at every size: the step, the mesh axes searched, and the words of a layout that are pinned."""

    workload: Workload
    axes: tuple[str, ...]
    fixed: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A target on which some layout fits. Seconds and bytes are per device and step.

    `shares`: resource -> its share of the step, the pipeline's "bubble" apart, adding up to 1; with the layout kept
    these are elasticities. `arcs`: "memory" and "batch" -> d log(time a token) / d log(resource) with the layout chosen
    again, over `limits.ARC` times the memory and twice the batch; comparable with `shares`.
    `limit`: the largest of both.
    `source`: "priced", or "compiled" where the compiler confirmed the layout; `priced` is the closed form's word.
    `mfu_causal`: as `mfu`, without the FLOPs that a causal mask hides.
    """

    target: Target
    layout: Layout
    step_seconds: float
    tokens_per_second_per_device: float
    mfu: float | None
    shares: Mapping[str, float]
    arcs: Mapping[str, float]
    limit: Limit
    peak_bytes: float
    source: str
    priced: Estimate
    mfu_causal: float | None = None

    @property
    def chips(self) -> int:
        return chips_of(self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A target on which nothing runs, and why."""

    target: Target
    why: NothingFits

    @property
    def chips(self) -> int:
        return chips_of(self.target)


def chips_of(target: Target) -> int:
    """Chips of a target; JAX devices are `target.devices` (two a chip on TPU7x)."""
    return target.devices // target.hardware.devices_per_chip


def point_at(question: Question, target: Target, arcs: bool = True) -> Point | Gap:
    """The best layout on one target. `arcs`: also ask what more memory and a larger batch would bring there."""
    if arcs:
        found, roomier = fastest_and_roomier(question.workload, target, question.axes, question.fixed, ARC)
    else:
        found, roomier = fastest(question.workload, target, question.axes, question.fixed), None
    if isinstance(found, NothingFits):
        return Gap(target=target, why=found)
    gains = {}
    if roomier is not None:
        gains["memory"] = _arc(found.estimate.step_seconds, roomier, ARC)
        if question.workload.transformer is not None:
            gains["batch"] = _batch_arc(question, target, found)
    return point_of(question.workload, target, found, gains)


def point_of(workload: Workload, target: Target, found: Fastest, arcs: Mapping[str, float]) -> Point:
    """The point of a priced layout."""
    price = found.estimate
    shares = time_shares(price)
    return Point(
        target=target,
        layout=found.layout,
        **rates(workload, target, price.step_seconds),
        shares=shares,
        arcs=arcs,
        limit=limit_of(shares, arcs),
        peak_bytes=price.peak_bytes,
        source="priced",
        priced=price,
    )


def rates(workload: Workload, target: Target, step_seconds: float) -> dict:
    """What follows from the time of a step."""
    mfu = mfu_causal = None
    if workload.transformer is not None:
        flops = workload.model_flops
        assert flops is not None
        peak = step_seconds * target.devices * target.hardware.peak(workload.dtype)
        hidden = workload.transformer.masked_flops(workload.sequences, workload.seq)
        mfu, mfu_causal = flops / peak, (flops - hidden) / peak
    return {
        "step_seconds": step_seconds,
        "tokens_per_second_per_device": workload.tokens / step_seconds / target.devices,
        "mfu": mfu,
        "mfu_causal": mfu_causal,
    }


def time_shares(price: Estimate) -> dict[str, float]:
    """Resource -> share of the step, largest first; "bubble" is what stages wait for each other, "waiting" slices."""
    seconds: dict[str, float] = {}
    for what, term in price.terms.items():
        name = term.resource or what.partition("[")[0]
        seconds[name] = seconds.get(name, 0.0) + term.seconds
    total = sum(seconds.values())
    ranked = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    return {name: value / total for name, value in ranked if value > 0}


def limit_of(shares: Mapping[str, float], arcs: Mapping[str, float]) -> Limit:
    """The largest share or arc."""
    limit = binding_limit({**shares, **arcs})
    assert limit is not None, "a step takes time"
    return limit


def _batch_arc(question: Question, target: Target, found: Fastest) -> float:
    """What twice the batch brings; the same layout with twice the passes is the least it can do."""
    twice = resized(question.workload, 2 * question.workload.sequences)
    layout = found.layout
    known = None
    if layout.stage == 1 and "accumulate" not in question.fixed:
        more = dataclasses.replace(layout, accumulate=2 * layout.accumulate)
        assert twice.transformer is not None
        stack = stack_of(target.hardware, twice.dtype, twice.training)
        price = estimate(twice.transformer, twice.sequences, twice.seq, twice.dtype, more, target, stack)
        fits = price.peak_bytes <= target.hardware.capacity_bytes
        known = Fastest(layout=more, estimate=price, priced=1) if fits else None
    larger = fastest(twice, target, question.axes, question.fixed, known)
    return _arc(2 * found.estimate.step_seconds, larger, 2.0)


def _arc(base: float, better: Fastest | NothingFits, factor: float) -> float:
    """log(base / better) / log(factor), not below 0: what was chosen before is there to choose again."""
    if isinstance(better, NothingFits):
        return 0.0
    return max(0.0, math.log(base / better.estimate.step_seconds) / math.log(factor))


def resized(workload: Workload, sequences: int) -> Workload:
    """The same step on another batch, to be priced only: its `build` still makes the old one."""
    fields = {name: getattr(workload, name) for name in workload.__slots__}
    return Workload.of(**fields | {"sequences": sequences})
