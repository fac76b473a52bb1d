"""Seconds per byte and latency of every collective on every mesh of a table, with the formulas of `meshes.collectives`.

Meshes are few where layouts are many: what depends on axis sizes, outer factors and order alone is worked out once a
mesh and looked up.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import numpy as np

from autotune.meshes.collectives import link_bytes, messages, tier_payloads
from autotune.meshes.hardware import Hardware
from autotune.meshes.layout import AXES
from autotune.meshes.placement import assign, row_factors, torus
from autotune.meshes.route import Factor, Route, switch_route, torus_route
from autotune.meshes.target import Target
from autotune.price.unique_rows import unique_rows
from autotune.table import LayoutTable

FIELDS = ("size", "links", "hops", "spread", "far_hops", "share", "near_hops")
NCCL_RAMP_BYTES = 17e6
"""Bytes that one device could have sent while NCCL fills its pipeline of chunks: an all-reduce of 32, 64, 128 and 256
MiB on 8 H200 takes 195, 318, 567 and 1063 us where its 482 GB/s, launch and hops come to 163, 285, 528 and 1016
(stas00/ml-engineering, network/benchmarks/README.md): 32 to 47 us more, 15 to 23 MB at that rate."""

_NOWHERE = Route(
    tier="", size=1, links=1.0, wraps=True, hops=0, spread=0.0, far_hops=0, share=1, near_hops=0, lanes=()
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshes:
    """The meshes of a table: `of_row` (rows) maps its rows to them.

    Many meshes share few routes: `route` (axes as in `AXES`, meshes) is the one that an axis takes, `routes` (tiers of
    the hardware, inner first; fields of `FIELDS`; routes) are their figures.
    """

    hardware: Hardware
    of_row: np.ndarray
    route: np.ndarray
    routes: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCost:
    """One kind of collective along one axis, on every route: seconds = bytes x per_byte + latency, tier by tier.

    `route` (meshes): the one the axis takes. `per_byte` (tiers, routes): seconds a payload byte; `latency` (tiers,
    routes): hops. `tree_*`: the same of NCCL's tree, where an all_reduce on a switch has that choice; None elsewhere.
    `fixed` (routes): the seconds that no byte decides: launches, paid once a collective (where the tiers work as one
    pipeline, on GPUs, by the slowest tier only, else by each), and hops where there is no tree to choose.
    `ramp_seconds` (tiers): what NCCL takes to fill its pipeline, at most half of the bytes' time; None where that is
    not how it works. `crossed` (tiers): whether anything crosses it on any route.
    """

    kind: str
    axis: str
    tiers: tuple[str, ...]
    pipelined: bool
    route: np.ndarray
    per_byte: np.ndarray
    latency: np.ndarray
    fixed: np.ndarray
    crossed: tuple[bool, ...]
    tree_per_byte: np.ndarray | None
    tree_latency: np.ndarray | None
    ramp_seconds: tuple[float, ...] | None

    def seconds(
        self, mesh: np.ndarray, payload_bytes: np.ndarray, outer_share: np.ndarray | float = 1.0
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """(tier -> seconds of bytes on it, of those that any mesh crosses; seconds of latency) of one collective,
        network to itself, per row.

        `outer_share`: of the bytes on the outer tier, what is left where other axes of a joint reduction cut them.
        """
        route = self.route[mesh]
        parts, latency = {}, self.fixed[route]
        for tier, name in enumerate(self.tiers):
            if not self.crossed[tier]:
                continue
            payload = payload_bytes * outer_share if tier == len(self.tiers) - 1 else payload_bytes
            bytes_seconds = payload * self.per_byte[tier][route]
            if self.ramp_seconds is not None:
                bytes_seconds = bytes_seconds + np.minimum(0.5 * bytes_seconds, self.ramp_seconds[tier])
            if self.tree_per_byte is not None and self.tree_latency is not None:
                wait = self.latency[tier][route]
                tree_bytes = payload * self.tree_per_byte[tier][route]
                tree_wait = self.tree_latency[tier][route]
                tree = tree_bytes + tree_wait < bytes_seconds + wait
                bytes_seconds = np.where(tree, tree_bytes, bytes_seconds)
                latency = latency + np.where(tree, tree_wait, wait)
            parts[name] = bytes_seconds
        if self.pipelined and len(parts) > 1:
            slowest = functools.reduce(np.maximum, parts.values())
            left = np.ones_like(slowest)
            for name, part in parts.items():
                mine = (part >= slowest) * left
                left = left - mine
                parts[name] = part * mine
        return parts, latency


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
    tiers = meshes.hardware.tiers
    payloads = tier_payloads(kind, 1.0, meshes.routes[:, 0])
    per_byte, latency, launch, tree_per_byte, tree_latency = [], [], [], [], []
    for tier, route, payload in zip(tiers, meshes.routes, payloads, strict=True):
        size, links, hops, spread, far_hops, share, near_hops = route
        used = size > 1
        per_byte.append(link_bytes(kind, payload, size, links, spread, share) / tier.rate(kind))
        latency.append(messages(kind, hops, far_hops, near_hops) * tier.latency_seconds * used)
        launch.append(tier.launch(kind) * used)
        if kind == "all_reduce":
            switch = tier.kind == "switch"
            tree_per_byte.append(np.where(used, 2 * payload / tier.rate(kind), 0.0) if switch else per_byte[-1])
            tree_latency.append(2 * np.ceil(np.log2(size)) * tier.latency_seconds if switch else latency[-1])
    pipelined = meshes.hardware.platform != "tpu" or kind == "permute"
    ramps = meshes.hardware.platform == "cuda" and kind in ("all_gather", "reduce_scatter", "all_reduce")
    launches = np.stack(launch)
    if pipelined:
        launches = np.where(np.arange(len(tiers))[:, None] == launches.argmax(axis=0), launches, 0.0)
    return CollectiveCost(
        kind=kind,
        axis=axis,
        tiers=tuple(tier.name for tier in tiers),
        pipelined=pipelined,
        route=meshes.route[AXES.index(axis)],
        per_byte=np.stack(per_byte),
        crossed=tuple(bool(each.any()) for each in per_byte),
        latency=np.stack(latency),
        fixed=launches.sum(axis=0) + (0.0 if tree_per_byte else np.sum(latency, axis=0)),
        tree_per_byte=np.stack(tree_per_byte) if tree_per_byte else None,
        tree_latency=np.stack(tree_latency) if tree_latency else None,
        ramp_seconds=tuple(NCCL_RAMP_BYTES / tier.rate(kind) for tier in tiers) if ramps else None,
    )


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
    the sizes from the innermost out, not on names, and axes of size 1 take nothing: each row of `cuts` has the others
    first, and those that are the same are placed once.
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
