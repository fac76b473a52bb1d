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

CollectiveClass = tuple[tuple[str, ...], str]
"""Collectives of one kind along the same mesh axes, outermost first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisEffect:
    """What another axis of size n > 1 does to an array: it is `times` x (`falls` / n + 1 - `falls`) as large."""

    falls: float
    """The share of the array that this axis cuts."""
    times: float
    """1, but where the compiler does otherwise with the axis cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveLaw:
    """The law of one class of collectives; every axis acts on the array by itself."""

    axes: tuple[str, ...]
    """Mesh axes that they run along, outermost first."""
    kind: str
    needs: tuple[str, ...]
    """The axes that must all be larger than 1 for the collectives to be there."""
    count: int
    """Collectives in a step."""
    array_bytes: float
    """Of all their arrays in a step where no other axis is cut (and, of `OWN_SHARE`, their own have size 1)."""
    beside: Mapping[str, AxisEffect]
    """What each other axis does to the arrays."""
    exposed: float
    """The share of their time that nothing hid in the probes."""

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
    sent: tuple[CollectiveLaw, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceFactors:
    """By how much a choice beside the mesh multiplies every amount, as one probe with it and one without show."""

    flops: float
    core_seconds: Mapping[str, float]
    held_bytes: float
    sent: Mapping[CollectiveClass, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What the probes on one kind of machine taught."""

    hardware: str
    """Name of the machine's hardware."""
    axes: tuple[str, ...]
    """Mesh axes along which something was probed. Along others the assumptions of `autotune.price.traced` hold."""
    laws: Mapping[int, Laws]
    """Value of `zero` -> the laws under it."""
    remat: Mapping[str, ChoiceFactors]
    """Other value of `remat` than the probes' -> what it does."""
    accumulate: ChoiceFactors | None
    """What twice as many passes as the probes' do; a power of that is what more do. None: not probed."""
    passes: int
    """Passes over the batch in the probes."""
