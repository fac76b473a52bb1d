"""Which resource binds one layout, by how much, and what better resources or constraints would be worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ARC = 1.25
"""How much better a resource becomes when its price is asked: finite, so that another layout may win."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The resource that binds: the largest elasticity of the step time with the layout kept.

    `elasticity`: share of the critical path, 0 to 1: 1 % more of this resource makes the step about this many per cent
    of 1 % faster. `margin`: elasticity less that of `runner_up` (None when there is no second resource).
    `certain`: False where the program holds what the reader did not understand: something else may bind then.
    """

    resource: str
    elasticity: float
    runner_up: str | None
    margin: float | None
    certain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptOut:
    """What keeps better layouts out: the constraint ("capacity", "divisibility", "batch"), the best layout it excludes,
    and the fraction of the step time that one would save."""

    constraint: str
    layout: str
    gain: float


def elasticities(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each resource's share of the time, largest first; the shares sum to 1.

    The time is a sum of durations, each inversely proportional to one rate or proportional to one latency, so this is
    d log(time) / d log(resource) wherever the critical path does not change.
    """
    total = sum(seconds.values())
    if total <= 0:
        return {}
    return {name: value / total for name, value in sorted(seconds.items(), key=lambda item: (-item[1], item[0]))}


def binding_limit(shares: Mapping[str, float], *, certain: bool = True) -> Limit | None:
    """The limit that those elasticities name; None when there are none. Ties go to the name that sorts first.

    `certain`: whether the elasticities are of everything that the program does.
    """
    ranked = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return None
    runner_up = ranked[1] if len(ranked) > 1 else None
    return Limit(
        resource=ranked[0][0],
        elasticity=ranked[0][1],
        runner_up=runner_up[0] if runner_up else None,
        margin=ranked[0][1] - runner_up[1] if runner_up else None,
        certain=certain,
    )


def arc_gain(base_seconds: float, seconds: float) -> float:
    """Fraction of the step time saved; never below 0, since the layout of before is still there to choose."""
    return max(0.0, 1.0 - seconds / base_seconds)
