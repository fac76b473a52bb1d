"""What would help, and by how much: the same sizes with one thing made better, the layouts chosen again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.meshes.hardware import Hardware, scale
from autotune.sweep.budget import Budget
from autotune.sweep.point import Gap, Point, Question, point_at, resized
from autotune.sweep.shapes import of_shape, reshaped
from autotune.sweep.sweep_points import SweepPoints
from autotune.workload.workload import Workload

FACTOR = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing made better, alone. `resource` as `meshes.hardware.scale` has it, or "batch" or "depth"."""

    name: str
    resource: str
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Help:
    """`speedup`: chips -> tokens a second of a device, over what they are without the change; None where nothing fits
    in one of the two. `same_loss`: the same of the time to one loss, where a critical batch is known and the batch
    changed. `mfu` is of the changed machine's own peak; `largest_chips`: the largest of the sizes above `--min-mfu`.
    """

    change: Change
    speedup: dict[int, float | None]
    same_loss: dict[int, float | None]
    mfu: dict[int, float | None]
    largest_chips: int | None


def changes(hardware: Hardware, transformer_known: bool) -> list[Change]:
    """All that is tried: rates and capacity doubled, latencies halved, the batch doubled, the model half as deep."""
    found = [
        Change(name="arithmetic x2", resource="matmul", factor=FACTOR),
        Change(name="memory bandwidth x2", resource="hbm", factor=FACTOR),
        Change(name="memory x2", resource="capacity", factor=FACTOR),
        *(
            Change(name=f"{tier.name} bandwidth x2", resource=f"network:{tier.name}", factor=FACTOR)
            for tier in hardware.tiers
        ),
        Change(name="latencies /2", resource="latency", factor=FACTOR),
    ]
    if transformer_known:
        found.append(Change(name="batch x2", resource="batch", factor=FACTOR))
        found.append(Change(name="half as deep, as many parameters", resource="depth", factor=1 / FACTOR))
    return found


def changed(question: Question, point: Point | Gap, change: Change) -> Point | Gap:
    """The best layout at the same size with the change made."""
    target, workload = point.target, question.workload
    if change.resource == "batch":
        workload = resized(workload, round(workload.sequences * change.factor))
    elif change.resource == "depth":
        assert workload.transformer is not None
        workload = of_shape(
            workload, reshaped(workload.transformer, change.factor, lambda model: float(model.parameters))
        )
    else:
        target = dataclasses.replace(target, hardware=scale(target.hardware, change.resource, change.factor))
    return point_at(dataclasses.replace(question, workload=workload), target, arcs=False)


def what_helps(found: SweepPoints, sizes: Sequence[int], budget: Budget, min_mfu: float | None) -> list[Help]:
    """Every change at those of the sweep's sizes, each alone."""
    base = {point.chips: point for point in found.points if point.chips in sizes}
    tokens = found.question.workload.tokens
    rows = []
    for change in changes(found.family.hardware, _has_another_shape(found.question.workload)):
        better = {chips: changed(found.question, point, change) for chips, point in base.items()}
        speedup = {chips: _speedup(base[chips], better[chips]) for chips in base}
        same_loss: dict[int, float | None] = dict.fromkeys(base)
        if change.resource == "batch" and budget.critical_tokens is not None:
            before, after = budget.effort(tokens), budget.effort(change.factor * tokens)
            assert before is not None and after is not None
            same_loss = {
                chips: None if gain is None else gain * before.examples / after.examples
                for chips, gain in speedup.items()
            }
        mfu = {chips: point.mfu if isinstance(point, Point) else None for chips, point in better.items()}
        above = [
            chips for chips, value in mfu.items() if min_mfu is not None and value is not None and value >= min_mfu
        ]
        rows.append(
            Help(
                change=change,
                speedup=speedup,
                same_loss=same_loss,
                mfu=mfu,
                largest_chips=max(above, default=None),
            )
        )
    return rows


def _speedup(base: Point | Gap, better: Point | Gap) -> float | None:
    if isinstance(base, Gap) or isinstance(better, Gap):
        return None
    return better.tokens_per_second_per_device / base.tokens_per_second_per_device


def _has_another_shape(workload: Workload) -> bool:
    """Whether the model can be made deeper or thinner: a uniform stack can, layers that differ cannot."""
    return workload.transformer is not None and workload.transformer.architecture is None
