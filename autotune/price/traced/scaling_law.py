"""How an amount depends on the sizes of the mesh axes: a sum of terms, each falling with some axes and not with others.

Whatever a device holds, moves or computes is an array cut along some axes and whole along the others: its part is
coefficient / product of the sizes of the axes that cut it. Amounts add up over arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 0.02
"""Fewer terms are preferred to more as long as they come this close to every amount."""

MOST_TERMS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingLaw:
    """`terms`: (axes that it falls with, coefficient: the amount where all of these have size 1), largest first.

    `error`: the worst relative error at the amounts it was fitted to.
    """

    terms: tuple[tuple[tuple[str, ...], float], ...]
    error: float

    def at(self, size: Mapping[str, Any]) -> Any:
        """The amount at those sizes (numbers or arrays).

        >>> ScalingLaw(terms=((("data",), 8.0), ((), 1.0)), error=0.0).at({"data": 4})
        3.0
        """
        total: Any = 0.0
        for axes, coefficient in self.terms:
            total = total + coefficient / math.prod((size[axis] for axis in axes), start=1.0)
        return total

    def falling_with(self, axes: Sequence[str]) -> ScalingLaw:
        """The same law, every term of which falls with these axes as well."""
        terms = tuple((tuple(dict.fromkeys((*mine, *axes))), coefficient) for mine, coefficient in self.terms)
        return ScalingLaw(terms=terms, error=self.error)


def fit(seen: Sequence[tuple[Mapping[str, int], float]]) -> ScalingLaw:
    """The law with the fewest terms that gives every amount seen at its sizes, within `TOLERANCE`; else the closest.

    Only axes that were larger than 1 somewhere can appear. Of laws that do as well, the one that falls with more axes:
    probes of one number of devices cannot tell what is whole everywhere from what is cut by all, and nearly all is cut.

    >>> round(fit([({"data": 2}, 5.0), ({"data": 4}, 3.0), ({"data": 8}, 2.0)]).at({"data": 16}), 6)
    1.5
    """
    amounts = np.array([amount for _, amount in seen], dtype=np.float64)
    scale = np.abs(amounts).max(initial=0.0)
    if scale == 0.0:
        return ScalingLaw(terms=(), error=0.0)
    axes = [axis for axis in seen[0][0] if any(sizes[axis] > 1 for sizes, _ in seen)]
    features = [chosen for count in range(len(axes), -1, -1) for chosen in itertools.combinations(axes, count)]
    shares = np.array([[1.0 / math.prod(sizes[axis] for axis in chosen) for chosen in features] for sizes, _ in seen])
    # An amount of nothing has no relative error: it is held against a tenth of the largest.
    weight = np.maximum(np.abs(amounts), 0.1 * scale)
    best: ScalingLaw | None = None
    for count in range(1, min(MOST_TERMS, len(seen), len(features)) + 1):
        for chosen in itertools.combinations(range(len(features)), count):
            design = shares[:, chosen] / weight[:, None]
            found, _, rank, _ = np.linalg.lstsq(design, amounts / weight, rcond=1e-9)
            if rank < count or found.min() <= 0.0:
                continue
            error = float(np.abs(design @ found - amounts / weight).max())
            if best is None or error < best.error - 1e-9:
                terms = sorted(zip((features[index] for index in chosen), found.tolist(), strict=True),
                               key=lambda term: -term[1])  # fmt: skip
                best = ScalingLaw(terms=tuple(terms), error=error)
        if best is not None and best.error <= TOLERANCE:
            break
    assert best is not None, "amounts are positive, so a single term fits somehow"
    return best
