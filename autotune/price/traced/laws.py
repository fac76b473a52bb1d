"""What probes taught of a step that is no transformer we know: the law of every amount in its price.

Types only: `autotune.probes.fit` makes them from compiles, `autotune.price.traced.pricer` prices with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.price.traced.scaling_law import ScalingLaw

OWN_SHARE = ("all_to_all",)
"""Collectives whose array is what one device holds: it falls with the axes that they run along, too."""

Class = tuple[tuple[str, ...], str]
"""Collectives of one kind along the same mesh axes, outermost first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What another axis of size n > 1 does to an array: it is `times` x (`falls` / n + 1 - `falls`) as large.

    `falls`: the share of it that this axis cuts. `times`: 1, but where the compiler does otherwise with the axis cut.
    """

    falls: float
    times: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The law of one class of collectives; every axis acts on the array by itself.

    `needs`: the axes that must all be larger than 1 for it to be there. `array_bytes`: of all its arrays in a step,
    where no other axis is cut (and, of `OWN_SHARE`, its own have size 1). `beside`: what each other axis does to it.
    `exposed`: the share of its time that nothing hid in the probes.
    """

    axes: tuple[str, ...]
    kind: str
    needs: tuple[str, ...]
    count: int
    array_bytes: float
    beside: Mapping[str, Beside]
    exposed: float

    def payload(self, size: Mapping[str, Any]) -> Any:
        """Bytes of all its arrays in a step at those sizes (arrays of one entry a layout), 0 where it is not there."""
        total = self.array_bytes * np.all([size[axis] > 1 for axis in self.needs], axis=0)
        for axis, one in self.beside.items():
            cut = one.times * (one.falls / size[axis] + 1.0 - one.falls)
            total = total * np.where(size[axis] > 1, cut, 1.0)
        if self.kind in OWN_SHARE:
            total = total / math.prod(size[axis] for axis in self.axes)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """Of every amount in the price, at one value of `zero`; bytes, seconds and FLOPs of one device and step."""

    flops: ScalingLaw
    core_seconds: Mapping[str, ScalingLaw]
    held_bytes: ScalingLaw
    sent: tuple[Sent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """By how much a choice beside the mesh multiplies every amount, as one probe with it and one without show."""

    flops: float
    core_seconds: Mapping[str, float]
    held_bytes: float
    sent: Mapping[Class, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What the probes on one kind of machine taught: the laws without and with ZeRO, and of the other choices.

    `axes`: those along which something was probed; along others the assumptions of `autotune.price.traced` hold.
    `remat`: what other values of it do. `accumulate`: what twice as many passes as the probes' `passes` do; a power of
    that is what more do. None where that was not probed.
    """

    hardware: str
    axes: tuple[str, ...]
    laws: Mapping[int, Laws]
    remat: Mapping[str, Choice]
    accumulate: Choice | None
    passes: int
