"""The routes of every axis on every mesh of a table, and what `meshes.collectives` says a collective takes on them.

Meshes are few where layouts are many: what depends on axis sizes, outer factors and order alone is worked out once a
mesh and looked up.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import numpy as np

from autotune.meshes.collectives import FIELDS, RouteCost, cost_of_routes
from autotune.meshes.hardware import Hardware
from autotune.meshes.layout import AXES
from autotune.meshes.placement import assign, row_factors, torus
from autotune.meshes.route import Factor, Route, switch_route, torus_route
from autotune.meshes.target import Target
from autotune.price.unique_rows import unique_rows
from autotune.table import LayoutTable

_NOWHERE = Route(
    tier="", size=1, links=1.0, wraps=True, hops=0, spread=0.0, far_hops=0, share=1, near_hops=0, lanes=()
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshes:
    """The distinct meshes of a table and the routes of their axes; many meshes share few routes."""

    hardware: Hardware
    of_row: np.ndarray
    """Shape (rows,): the mesh of each row."""
    route: np.ndarray
    """Shape (axes as in `AXES`, meshes): the route that each axis takes."""
    routes: np.ndarray
    """Shape (tiers of the hardware, inner first; `FIELDS`; routes): the figures of each route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCost:
    """One kind of collective along one axis, on every mesh of a table."""

    axis: str
    route: np.ndarray
    """(meshes) The route that the axis takes."""
    on_route: RouteCost
    """What the collective takes on each route."""

    def seconds(
        self, mesh: np.ndarray, payload_bytes: np.ndarray, outer_share: np.ndarray | float = 1.0
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({tier: seconds of its bytes}, seconds of latency) of one collective on an idle network, each of shape
        (rows,).

        `mesh`: the mesh of each row. `payload_bytes`: as in `meshes.collectives`. Tiers that no mesh crosses are left
        out. `outer_share`: see `RouteCost.seconds`."""
        return self.on_route.seconds(self.route[mesh], payload_bytes, outer_share)


def meshes_of(table: LayoutTable, target: Target) -> Meshes:
    """The distinct meshes of a table and the routes of their axes on the target."""
    columns = [getattr(table, name) for name in AXES] + [getattr(table, f"dcn_{name}") for name in AXES]
    first, of_row = unique_rows([*columns, table.order])
    outer = np.stack([getattr(table, f"dcn_{name}")[first] for name in AXES])
    inner = np.stack([getattr(table, name)[first] for name in AXES]) // outer
    hardware = target.hardware
    if hardware.platform == "tpu" or hardware.devices_per_chip > 1:
        inside, taken_inside = _placed_routes(target, inner, table.orders, table.order[first])
    else:
        inside, taken_inside = _switch_routes(inner)
    outside, taken_outside = _switch_routes(outer)
    count = outside.shape[-1]
    return Meshes(
        hardware=hardware,
        of_row=of_row,
        route=taken_inside * count + taken_outside,
        routes=np.concatenate([np.repeat(inside, count, axis=-1), np.tile(outside, inside.shape[-1])]),
    )


def cost_of(kind: str, axis: str, meshes: Meshes) -> CollectiveCost:
    """The cost of one kind of collective along one axis on all meshes (0 where the axis has size 1)."""
    hardware = meshes.hardware
    on_route = cost_of_routes(kind, hardware.tiers, meshes.routes, hardware.platform)
    return CollectiveCost(axis=axis, route=meshes.route[AXES.index(axis)], on_route=on_route)


def _switch_routes(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(figures of the routes over a switch (1, fields, routes), the route each axis takes (axes, meshes)).

    `sizes` (axes, meshes) of the groups on the switch. The array form of `meshes.route.switch_route`.
    """
    first, of_mesh = unique_rows(list(sizes))
    size, taken = np.unique(sizes[:, first], return_inverse=True)
    one, used = np.ones(len(size)), (size > 1) * 1.0
    fields = np.stack([size, one, size - 1, (size - 1) / size, used, one, used])
    return fields[None], taken.reshape(len(sizes), len(first))[:, of_mesh]


def _placed_routes(
    target: Target, sizes: np.ndarray, orders: tuple[tuple[str, ...], ...], order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(figures of the routes inside a slice (inner tiers, fields, routes), the route each axis takes (axes, meshes)).

    `sizes` (axes, meshes) inside the slice; `order` (meshes) of each mesh, of `orders`. Where an axis lies depends on
    the sizes from the innermost out, not on names, and axes of size 1 take nothing: `cuts[i]` holds the sizes of mesh
    i, innermost axis first and then the 1s; equal rows are placed once.
    """
    first, of_mesh = unique_rows([*sizes, order])
    innermost_first = [[AXES.index(axis) for axis in reversed(names)] for names in orders]
    axes = np.array(innermost_first, dtype=np.int64).reshape(-1, len(AXES))[order[first]]
    cuts = np.take_along_axis(sizes[:, first].T, axes, axis=1)
    ones_last = np.argsort(cuts == 1, axis=1, kind="stable")
    axes, cuts = np.take_along_axis(axes, ones_last, axis=1), np.take_along_axis(cuts, ones_last, axis=1)
    some, of_cut = unique_rows(list(cuts.T))
    dimensions, cores_a_chip, tiers = torus(target), target.hardware.devices_per_chip, len(target.hardware.tiers) - 1
    numbers: dict[tuple[tuple[float, ...], ...], int] = {}
    numbered = np.empty((len(some), len(AXES)), dtype=np.int64)
    for row, cut in enumerate(cuts[some].tolist()):
        found = _placed(dimensions, cores_a_chip, tiers, tuple(cut))
        numbered[row] = [numbers.setdefault(route, len(numbers)) for route in found]
    taken = np.empty_like(axes)
    np.put_along_axis(taken, axes, numbered[of_cut], axis=1)
    routes = np.array(list(numbers)).reshape(len(numbers), tiers, len(FIELDS)).transpose(1, 2, 0)
    return routes, taken.T[:, of_mesh]


def placed(target: Target, sizes: tuple[int, ...]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Per axis (sizes inside one slice, innermost first) and inner tier, the figures of its route (`FIELDS`)."""
    return _placed(torus(target), target.hardware.devices_per_chip, len(target.hardware.tiers) - 1, sizes)


@functools.lru_cache(maxsize=100_000)
def _placed(
    dimensions: tuple[tuple[int, bool], ...], cores_a_chip: int, tiers: int, sizes: tuple[int, ...]
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Per axis (innermost first) and inner tier, the fields of its route inside a slice: as `placement.place` has them.

    Sizes that the slice cannot make take one long line each: such a mesh does not exist, its price is never used.
    """
    inner = 1 if cores_a_chip > 1 else 0
    nothing = _fields(_NOWHERE)
    cores_left, chips = cores_a_chip, []
    rows = []
    for size in sizes:
        cores = math.gcd(size, cores_left)
        cores_left //= cores
        chips.append(size // cores)
        rows.append([_fields(switch_route("", cores)) if cores > 1 else nothing, *[nothing] * (tiers - 1)])
    named = [index for index, size in enumerate(chips) if size > 1]
    exists = math.prod(chips) == math.prod(extent for extent, _ in dimensions)
    table = assign(dimensions, tuple(chips[index] for index in named)) if exists else ()
    taken = (1,) * len(dimensions)
    for index, row in zip(named, table, strict=True) if exists else ():
        rows[index][inner] = _row_fields(dimensions, row, taken)
        taken = tuple(map(operator.mul, taken, row))
    if not exists:
        for index in named:
            line = Factor(dimension=0, size=chips[index], stride=1, extent=chips[index], wraps=False)
            rows[index][inner] = _fields(torus_route("", (line,)))
    return tuple(tuple(row) for row in rows)


def _fields(route: Route) -> tuple[float, ...]:
    return tuple(float(getattr(route, field)) for field in FIELDS)


@functools.lru_cache(maxsize=100_000)
def _row_fields(
    dimensions: tuple[tuple[int, bool], ...], row: tuple[int, ...], taken: tuple[int, ...]
) -> tuple[float, ...]:
    return _fields(torus_route("", row_factors(dimensions, row, taken)))
