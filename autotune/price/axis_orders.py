"""Which mesh axis lies nearest on a torus: for every layout that may be among the best, the fastest order of its axes.

Where groups hang on a switch no order differs from another, and which axis crosses slices or domains is `dcn`'s to say,
of which the space holds every way. What remains is the placement inside a slice of TPUs.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from autotune.meshes.hardware import scale
from autotune.meshes.layout import AXES, OUTERMOST_FIRST
from autotune.meshes.target import Target
from autotune.price.collective_costs import placed
from autotune.price.price import price
from autotune.price.priced_space import PricedSpace
from autotune.price.unique_rows import unique_rows
from autotune.table import LayoutTable


def with_best_orders(space: PricedSpace, keep: int, most_bytes: float) -> PricedSpace:
    """The space with a further row for each layout that is faster under another order than the default one.

    Of the legal rows up to `most_bytes`, those are passed over that would not be among the `keep` best even if links
    inside a slice were free: no order makes them so. So the `keep` best layouts over all orders are in what returns.
    """
    if space.target.platform != "tpu":
        return space
    rows = np.flatnonzero(space.legal & (space.peak_bytes <= most_bytes))
    fitting = np.sort(space.seconds[rows[space.peak_bytes[rows] <= space.target.hardware.capacity_bytes]])
    if len(fitting) > keep:
        bound = price(space.workload, space.table.take(rows), without_links(space.target), space.probed).step_seconds
        rows = rows[bound <= fitting[keep - 1]]
    of_row, others = other_orders(space.table.take(rows), space.target)
    if not len(of_row):
        return space
    prices = price(space.workload, others, space.target, space.probed)
    best = np.lexsort((prices.step_seconds, of_row))
    best = best[np.unique(of_row[best], return_index=True)[1]]
    at = rows[of_row[best]]
    faster = prices.step_seconds[best] < space.seconds[at] * (1 - 1e-9)
    best, at = best[faster], at[faster]
    note = (
        f"{len(others)} other orders of the axes inside a slice priced for {len(np.unique(of_row))} layouts; "
        f"{len(best)} of these are faster so, and listed with their order"
    )
    return space.with_rows(others.take(best), prices, best, at, note)


def orders_that_differ(target: Target, inner: dict[str, int]) -> list[tuple[str, ...]]:
    """Orders (outermost axis first) that place these sizes inside a slice differently, the default one first."""
    moved = [axis for axis in OUTERMOST_FIRST if inner[axis] > 1]
    found: dict[tuple, tuple[str, ...]] = {}
    for permuted in itertools.permutations(moved):
        left = iter(permuted)
        order = tuple(next(left) if axis in moved else axis for axis in OUTERMOST_FIRST)
        routes = placed(target, tuple(inner[axis] for axis in reversed(permuted)))
        by_axis = dict(zip(reversed(permuted), routes, strict=True))
        found.setdefault(tuple(by_axis[axis] for axis in moved), order)
    return list(found.values())


def other_orders(table: LayoutTable, target: Target) -> tuple[np.ndarray, LayoutTable]:
    """(row of `table` that each is an order of, the rows again under every order that differs from the default)."""
    inner = [getattr(table, axis) // getattr(table, f"dcn_{axis}") for axis in AXES]
    first, mesh_of_row = unique_rows(inner)
    meshes = [dict(zip(AXES, (int(size[row]) for size in inner), strict=True)) for row in first]
    orders = [orders_that_differ(target, mesh)[1:] for mesh in meshes]
    names = tuple(dict.fromkeys(order for of_mesh in orders for order in of_mesh))
    count = np.array([len(of_mesh) for of_mesh in orders], dtype=np.int64)
    codes = np.array([names.index(order) for of_mesh in orders for order in of_mesh], dtype=np.int64)
    begin = np.cumsum(count) - count
    of_row = np.repeat(np.arange(len(table)), count[mesh_of_row])
    nth = np.arange(len(of_row)) - np.repeat(np.cumsum(count[mesh_of_row]) - count[mesh_of_row], count[mesh_of_row])
    ordered = dataclasses.replace(table.take(of_row), orders=names, order=codes[begin[mesh_of_row[of_row]] + nth])
    return of_row, ordered


def without_links(target: Target) -> Target:
    """The target with links inside a slice that take no time."""
    hardware = scale(target.hardware, "latency", 1e9)
    for tier in hardware.tiers[: 2 if hardware.devices_per_chip > 1 else 1]:
        hardware = scale(hardware, f"network:{tier.name}", 1e9)
    return dataclasses.replace(target, hardware=hardware)
