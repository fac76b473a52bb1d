"""Routes: what a set of positions on a torus or a switch has of its links. JAX-free.

How the TPU compiler uses the links of a torus was read from the strategies in its programs' text (libtpu 0.0.42).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """The piece of one torus dimension that an axis takes: `size` positions, `stride` links apart.

    `extent` is the length of the whole dimension, `wraps` whether its ends are joined.
    """

    dimension: int
    size: int
    stride: int
    extent: int
    wraps: bool

    @property
    def ring(self) -> bool:
        """Whether the positions close a circle (only a piece that reaches around a wrapped dimension does)."""
        return self.wraps and self.size * self.stride == self.extent

    @property
    def links(self) -> float:
        """Links one group has to itself, one way: 2 on a ring, 1 on a line, shared by `stride` interleaved groups."""
        return (2 if self.ring else 1) / self.stride

    @property
    def hops(self) -> int:
        """Links that the farthest datum of a ring collective passes: half the ring, or the whole line."""
        return (self.size // 2 if self.ring else self.size - 1) * self.stride

    @property
    def spread(self) -> float:
        """Bytes over the busiest link per byte a device holds, when each sends every other an equal share (1/k).

        Line of k: floor(k/2) ceil(k/2) pairs cross the middle link each way, so about k/4. Ring: the k devices' ways
        add up to k floor(k^2/4) links of 2k, so about k/8.
        """
        return self.size**2 // 4 / self.size * self.stride / (2 if self.ring else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What one axis (or several together) has of one tier: the figures the collective formulas take.

    `links`: links of the tier each device drives one way at the same time, as a ring collective uses them (a fraction
    where groups share them). `hops`: links or messages on the longest way through a ring all-gather. `wraps`: a circle
    of neighbours passes all of them. `spread`: bytes over the busiest link per byte held, in an all-to-all;
    `far_hops`: its longest way. `share`: groups that share one link in a shift by one; `near_hops`: its longest way.
    `lanes`: the links by name; collectives on the same lane wait for each other, on different lanes they overlap.
    """

    tier: str
    size: int
    links: float
    wraps: bool
    hops: int
    spread: float
    far_hops: int
    share: int
    near_hops: int
    lanes: tuple[str, ...]


def merge(factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """The same positions with factors of one dimension that follow on each other made one."""
    merged: list[Factor] = []
    for factor in sorted(factors, key=lambda factor: (factor.dimension, factor.stride)):
        last = merged[-1] if merged else None
        if last and last.dimension == factor.dimension and last.stride * last.size == factor.stride:
            merged[-1] = dataclasses.replace(last, size=last.size * factor.size)
        else:
            merged.append(factor)
    return tuple(merged)


def ring_links(factors: tuple[Factor, ...]) -> float:
    """Links one way that a gather or reduction over these pieces keeps busy.

    Whole dimensions: the array is cut in pieces that take the dimensions in different orders, so that all links work at
    once (`StrategyND` and `UniDirectionNDRingStrategy` in the text of libtpu 0.0.42). The links of any subset of the
    dimensions carry at least what those dimensions gather last: with sizes k and links b, the seconds per byte are the
    greatest (prod k - 1) / sum b over all subsets.
    Parts of dimensions: one ring through all positions, both ways at once (`StrategyRing`,
    `UniDirection1DRingStrategy`). A grid of an even number of positions has such a ring of neighbours, so a 2x2 or 2x4
    block is twice as fast as a line; its slowest step goes along the most shared dimension.
    """
    if len(factors) == 1 or all(factor.size == factor.extent for factor in factors):
        slowest = max(
            (math.prod(factor.size for factor in subset) - 1) / sum(factor.links for factor in subset)
            for count in range(1, len(factors) + 1)
            for subset in itertools.combinations(factors, count)
        )
        return (math.prod(factor.size for factor in factors) - 1) / slowest
    return (2 if closes(factors) else 1) / max(factor.stride for factor in factors)


def closes(factors: tuple[Factor, ...]) -> bool:
    """Whether one circle of neighbours passes all positions once."""
    if len(factors) == 1:
        return factors[0].ring
    return any(factor.size % 2 == 0 or factor.ring for factor in factors)


def ring_hops(factors: tuple[Factor, ...]) -> int:
    """Links on the longest way through a gather: dimension after dimension, or half around the one ring."""
    if len(factors) == 1 or all(factor.size == factor.extent for factor in factors):
        return sum(factor.hops for factor in factors)
    size = math.prod(factor.size for factor in factors)
    return (size // 2 if closes(factors) else size - 1) * min(factor.stride for factor in factors)


def torus_route(tier: str, factors: tuple[Factor, ...]) -> Route:
    """The route over pieces of a torus."""
    return Route(
        tier=tier,
        size=math.prod(factor.size for factor in factors),
        links=ring_links(factors),
        wraps=closes(factors),
        hops=ring_hops(factors),
        spread=max(factor.spread for factor in factors),
        far_hops=sum(factor.hops for factor in factors),
        share=max(factor.stride for factor in factors),
        near_hops=sum(factor.stride * (1 if factor.ring else factor.size - 1) for factor in factors),
        lanes=tuple(dict.fromkeys(f"{tier}:{factor.dimension}" for factor in factors)),
    )


def switch_route(tier: str, size: int) -> Route:
    """The route over a switch: one port a device, every other device one message away."""
    return Route(
        tier=tier,
        size=size,
        links=1.0,
        wraps=True,
        hops=size - 1,
        spread=(size - 1) / size,
        far_hops=1,
        share=1,
        near_hops=1,
        lanes=(f"{tier}:0",),
    )
