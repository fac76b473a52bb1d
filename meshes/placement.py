"""Which physical links each mesh axis rides, and the order of devices that makes it so. JAX-free.

A slice of TPUs is a torus; every mesh axis takes whole dimensions of it or contiguous factors of them, inner axes
nearest. GPUs of one NVLink domain hang on a switch, where every order is as good. Between slices or domains lies the
outer tier; `layout.dcn` says which factor of which axis crosses it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from autotune.meshes.layout import Layout, default_outer_factors
from autotune.meshes.route import Factor, Route, merge, ring_hops, ring_links, switch_route, torus_route
from autotune.meshes.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the axes of one layout lie on one target.

    `factors`: axis -> pieces of the torus dimensions of a slice (of the switch of a domain: one piece of dimension 0).
    `cores`: axis -> its factor inside a chip of several devices. `outer`: axis -> its factor over slices or domains.
    """

    target: Target
    sizes: Mapping[str, int]
    factors: Mapping[str, tuple[Factor, ...]]
    cores: Mapping[str, int]
    outer: Mapping[str, int]

    @property
    def routes(self) -> dict[str, tuple[Route, ...]]:
        """Axis -> its routes, inner tier first; () for an axis of size 1."""
        return {axis: self.route((axis,)) for axis in self.sizes}

    def route(self, axes: tuple[str, ...]) -> tuple[Route, ...]:
        """The routes of groups that run along all of `axes` together, inner tier first."""
        tiers = self.target.hardware.tiers
        cores = math.prod(self.cores[axis] for axis in axes)
        outer = math.prod(self.outer[axis] for axis in axes)
        factors = merge(tuple(factor for axis in axes for factor in self.factors[axis]))
        inner = tiers[1] if self.target.hardware.devices_per_chip > 1 else tiers[0]
        routes = []
        if cores > 1:
            routes.append(switch_route(tiers[0].name, cores))
        if factors and inner.kind == "torus":
            routes.append(torus_route(inner.name, factors))
        elif factors:
            routes.append(switch_route(inner.name, math.prod(factor.size for factor in factors)))
        if outer > 1:
            routes.append(switch_route(tiers[-1].name, outer))
        return tuple(routes)

    def device_order(self) -> np.ndarray:
        """Indices into the target's devices, in the shape of `layout.mesh_shape`.

        The target's devices are sorted by slice or domain, then by coordinates (first dimension slowest), then core.
        """
        cuts: list[tuple[int, tuple[int, str]]] = []  # (size, (rank within the axis, axis)), slowest device bit first
        for axis in self.sizes:
            cuts.append((self.outer[axis], (0, axis)))
        dimensions = len(torus(self.target))
        for dimension in range(dimensions):
            pieces = [
                (factor, axis) for axis in self.sizes for factor in self.factors[axis] if factor.dimension == dimension
            ]
            for factor, axis in sorted(pieces, key=lambda piece: -piece[0].stride):
                cuts.append((factor.size, (1 + dimension, axis)))
        for axis in self.sizes:
            cuts.append((self.cores[axis], (1 + dimensions, axis)))
        wanted = [
            position
            for axis in self.sizes
            for position in sorted((i for i, cut in enumerate(cuts) if cut[1][1] == axis), key=lambda i: cuts[i][1][0])
        ]
        devices = np.arange(self.target.devices).reshape([size for size, _ in cuts])
        return devices.transpose(wanted).reshape(tuple(self.sizes.values()))


def place(layout: Layout, target: Target) -> Placement:
    """The placement of a layout; where it says nothing about the outer tier, `default_dcn` fills that in.

    ValueError when the sizes do not multiply to the devices, or the `dcn` factors not to the slices or domains.

    >>> from autotune.meshes.target import parse_target
    >>> place(Layout(fsdp=16, tensor=16), parse_target("v5e:16x16")).routes["tensor"][0].links
    2.0
    """
    layout = default_dcn(layout, target)
    outer = {axis: layout.dcn_axes[axis] for axis in layout.order}
    inner = {axis: size // outer[axis] for axis, size in layout.mesh_shape.items()}
    cores = dict.fromkeys(layout.order, 1)
    left = target.hardware.devices_per_chip
    for axis in reversed(layout.order):
        cores[axis] = math.gcd(inner[axis], left)
        left //= cores[axis]
        inner[axis] //= cores[axis]
    assert left == 1, "the sizes multiply to the devices, so they hold every factor of a chip"
    dimensions = torus(target)
    names = tuple(axis for axis in reversed(layout.order) if inner[axis] > 1)
    matrix = assign(dimensions, tuple(inner[axis] for axis in names))
    factors = dict.fromkeys(layout.order, ()) | dict(zip(names, pieces(dimensions, matrix), strict=True))
    return Placement(target=target, sizes=layout.mesh_shape, factors=factors, cores=cores, outer=outer)


def default_dcn(layout: Layout, target: Target) -> Layout:
    """The layout with its `dcn` factors said: as given, or the outermost axes take the slices or domains.

    >>> from autotune.meshes.target import parse_target
    >>> str(default_dcn(Layout(fsdp=64), parse_target("h100:8x8")))
    'fsdp=64,dcn.fsdp=8'
    """
    if layout.devices != target.devices:
        sizes = " x ".join(f"{axis}={size}" for axis, size in layout.axes.items() if size > 1) or "data=1"
        raise ValueError(f"layout: {sizes} = {layout.devices} devices, {target.name} has {target.devices}")
    given = math.prod(layout.dcn_axes.values())
    if given == target.groups:
        return layout
    if layout.dcn:
        factors = " x ".join(f"dcn.{axis}={factor}" for axis, factor in layout.dcn)
        raise ValueError(f"layout: {factors} = {given}, {target.name} has {target.groups} slices or domains")
    return dataclasses.replace(layout, dcn=tuple(default_outer_factors(layout.mesh_shape, target.groups).items()))


def torus(target: Target) -> tuple[tuple[int, bool], ...]:
    """(extent, wraps) of each dimension of one slice; a switch is one dimension that does not wrap.

    Which dimensions close to rings is in the hardware file: those of one full length, or all of a slice of whole cubes.
    """
    if target.platform != "tpu":
        return ((math.prod(target.shape), False),)
    slices = target.hardware.slices
    side, cube = (slices.ring_side, slices.ring_cube) if slices else (None, None)
    cubes = cube is not None and all(extent % cube == 0 for extent in target.shape)
    return tuple((extent, cubes or extent == side) for extent in target.shape)


@lru_cache(maxsize=65536)
def assign(dimensions: tuple[tuple[int, bool], ...], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Factor of each dimension that each axis takes, axes innermost first: rows multiply to sizes, columns to extents.

    Tables that give every axis whole dimensions come first: their collectives share no links, so they overlap. Then
    the least sum over axes of seconds per byte of an all-gather, where each axis out counts half of the one inside it
    (inner axes carry the activations of every layer); then the fewest hops; then the table that fills the last
    dimensions first. There always is one: prime by prime, any way of dealing works.
    """
    nothing_taken = (1,) * len(dimensions)
    best = _cheapest(dimensions, sizes, nothing_taken, True) or _cheapest(dimensions, sizes, nothing_taken, False)
    assert best is not None, "the sizes multiply to the extents"
    return best[2]


@lru_cache(maxsize=65536)
def _cheapest(
    dimensions: tuple[tuple[int, bool], ...], sizes: tuple[int, ...], taken: tuple[int, ...], whole: bool
) -> tuple[float, float, tuple[tuple[int, ...], ...]] | None:
    """(seconds, hops, rows) of the best way to place these axes, outside the factors that inner ones have `taken`.

    Both add up, so the best rest after each first row makes the best whole. None if `whole` and there is no such way.
    """
    if not sizes:
        return 0.0, 0.0, ()
    best = None
    for step in _steps(dimensions, sizes[0], taken, whole):
        rest = _cheapest(dimensions, sizes[1:], step.outside, whole)
        if rest is not None:
            seconds = round(step.seconds + rest[0] / 2, 12)
            found = (seconds, step.hops + rest[1] / 2, (step.row, *rest[2]))
            best = found if best is None else min(best, found)
    return best


class _Step(NamedTuple):
    """One axis placed: its factor of each dimension, what is taken of each dimension then, seconds per byte and hops
    of its all-gather."""

    row: tuple[int, ...]
    outside: tuple[int, ...]
    seconds: float
    hops: int


@lru_cache(maxsize=65536)
def _steps(
    dimensions: tuple[tuple[int, bool], ...], size: int, taken: tuple[int, ...], whole: bool
) -> tuple[_Step, ...]:
    """The ways to place one axis outside what inner ones have `taken`; of whole dimensions only if `whole`.

    Dimensions that are alike, as much taken of each, can be exchanged at no cost: of rows that differ in such an
    exchange only the one that fills the last dimensions first is here, as `assign` prefers it.
    """
    left = tuple(extent // factor for (extent, _), factor in zip(dimensions, taken, strict=True))
    so_far = list(zip(dimensions, taken, strict=True))
    alike = [(i, j) for i, j in itertools.combinations(range(len(so_far)), 2) if so_far[i] == so_far[j]]
    steps = []
    for row in splits(size, left):
        parted = any(factor not in (1, extent) for factor, (extent, _) in zip(row, dimensions, strict=True))
        if (whole and parted) or any(row[i] > row[j] for i, j in alike):
            continue
        factors = row_factors(dimensions, row, taken)
        outside = tuple(map(operator.mul, taken, row))
        steps.append(_Step(row, outside, (size - 1) / size / ring_links(factors), ring_hops(factors)))
    return tuple(steps)


def splits(size: int, extents: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every way to write `size` as a product of one divisor of each extent."""
    if len(extents) == 1:
        if extents[0] % size == 0:
            yield (size,)
        return
    common = math.gcd(size, extents[0])
    for factor in (f for f in range(1, common + 1) if common % f == 0):
        for rest in splits(size // factor, extents[1:]):
            yield (factor, *rest)


def row_factors(
    dimensions: tuple[tuple[int, bool], ...], row: tuple[int, ...], taken: tuple[int, ...]
) -> tuple[Factor, ...]:
    """One axis's factors, outside what inner axes have taken of each dimension."""
    return tuple(
        Factor(dimension=dimension, size=size, stride=stride, extent=extent, wraps=wraps)
        for dimension, (size, stride, (extent, wraps)) in enumerate(zip(row, taken, dimensions, strict=True))
        if size > 1
    )


def pieces(dimensions: tuple[tuple[int, bool], ...], matrix: tuple[tuple[int, ...], ...]) -> list[tuple[Factor, ...]]:
    """The table as factors with strides, axes innermost first: the inner axis of a dimension takes its neighbours."""
    taken = (1,) * len(dimensions)
    rows = []
    for row in matrix:
        rows.append(row_factors(dimensions, row, taken))
        taken = tuple(factor * size for factor, size in zip(taken, row, strict=True))
    return rows
