"""A large space, priced a block at a time: every layout is priced and counted, and those are kept that a claim of the
report can rest on.

Kept are the fastest layouts that fit, the fastest that may fit once compiled, the fastest and the smallest that do not
fit, and of each rule the fastest that break it. What is chosen, what keeps better layouts out, what is closest to
fitting and what better resources would be worth are found among these; see `Kept.mask`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from autotune.analysis.limits import ARC
from autotune.meshes.layout import AXES
from autotune.meshes.target import Target
from autotune.price.axis_orders import without_links
from autotune.price.large_space import Blocks, Dropped
from autotune.price.price import Prices, price
from autotune.price.priced_space import PricedSpace, broken_rules
from autotune.price.traced.laws import Probed
from autotune.space import mesh_count, no_mesh
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

BLOCKS_FROM = 10_000
"""Meshes from which a space is priced in blocks: one mesh is some two hundred layouts, a layout some 400 bytes."""

LARGEST_SPACE = 2_000_000
"""Meshes of the largest space that is priced: about ten minutes."""

FAST = 1 << 18
"""Layouts that fit, of which the fastest are kept: those within `limits.ARC` of the best are far fewer as a rule."""

SHORTLISTED = 5000
"""Layouts that may fit once compiled, of which the fastest are kept."""

FEW = 200
"""Layouts kept of each kind that is looked at only for its best, and of which a hundred are listed."""

SLACK = 1.15
"""Layouts priced at up to this much of the capacity are still given to the compiler, whose word is the last: the
closed form's peak is off by 15 % at times, and a compile that does not fit fails within seconds."""

EVERY_SECONDS = 5.0
"""How often the screen hears how far the pricing is."""

Say = Callable[[str], None]


def large_space(workload: Workload, target: Target, axes: tuple[str, ...], fixed: Mapping[str, str]) -> bool:
    """Whether a space is priced in blocks; ValueError where it is larger than any that is priced."""
    count = mesh_count(target, axes, fixed)
    if count > LARGEST_SPACE:
        wanted = ", ".join(name for name in AXES if name in axes or name in fixed)
        raise ValueError(
            f"{workload.name} on {target.name}: {count:,} meshes over {wanted}; at most {LARGEST_SPACE:,} are priced: "
            "name fewer --axes, pin some sizes with --fix, or name the --layouts"
        )
    return count > BLOCKS_FROM


class Kept:
    """The rows that are kept so far, of all blocks together."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.parts: list[dict[str, np.ndarray]] = []
        self.first: LayoutTable | None = None
        self.rows = 0
        self.totals: dict[str, int] = {"fits": 0, "oom": 0}
        self.illegal: dict[int, int] = {}
        self.fastest = np.empty(0)

    def add(self, table: LayoutTable, broken: np.ndarray, prices: Prices, bound: np.ndarray | None) -> None:
        """Count a block, and keep of it what may be among the best."""
        legal, fits = broken < 0, prices.peak_bytes <= self.capacity
        self.totals["fits"] += int((legal & fits).sum())
        self.totals["oom"] += int((legal & ~fits).sum())
        for code, count in zip(*np.unique(broken[~legal], return_counts=True), strict=True):
            self.illegal[int(code)] = self.illegal.get(int(code), 0) + int(count)
        self.fastest = np.sort(np.concatenate([self.fastest, prices.step_seconds[legal & fits]]))[: FEW // 2]
        columns = {name: getattr(table, name) for name in LayoutTable.columns()}
        columns |= {"broken": broken, "bound": np.full(len(table), np.inf) if bound is None else bound}
        columns |= {name: getattr(prices, name) for name in PRICES}
        keep = np.flatnonzero(self.mask(columns))
        self.first = self.first or table
        self.parts.append({name: np.ascontiguousarray(column[keep]) for name, column in columns.items()})
        self.rows += len(keep)
        if self.rows > 3 * FAST:
            self.compact()

    def compact(self) -> dict[str, np.ndarray]:
        """All parts as one, less what is no longer among the best; its columns."""
        names = self.parts[0]
        whole = {name: np.concatenate([part[name] for part in self.parts]) for name in names}
        keep = np.flatnonzero(self.mask(whole))
        self.parts = [{name: column[keep] for name, column in whole.items()}]
        self.rows = len(keep)
        return self.parts[0]

    def mask(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which rows are kept: each rule takes the best of something, so the best of two blocks are among the best of
        each."""
        broken, seconds, peak = columns["broken"], columns["step_seconds"], columns["peak_bytes"]
        legal, fits = broken < 0, peak <= self.capacity
        keep = np.zeros(len(broken), dtype=bool)

        def best(rows: np.ndarray, count: int, by: np.ndarray) -> None:
            members = np.flatnonzero(rows)
            if len(members) > count:
                members = members[np.argpartition(by[members], count - 1)[:count]]
            keep[members] = True

        best(legal & fits, FAST, seconds)
        best(legal & (peak <= SLACK * self.capacity), SHORTLISTED, seconds)
        best(legal & ~fits, FEW, seconds)
        best(legal & ~fits, FEW, peak)
        best(legal & ~fits & (peak <= ARC * self.capacity), FEW, seconds)
        for code in np.unique(broken[~legal]):
            best((broken == code) & fits, FEW // 10, seconds)
            best(broken == code, 1, seconds)
        if len(self.fastest) == FEW // 2:
            keep |= columns["bound"] <= self.fastest[-1]
        else:
            keep |= np.isfinite(columns["bound"])
        return keep


PRICES = ("step_seconds", "low_seconds", "high_seconds", "peak_bytes")


def price_in_blocks(
    workload: Workload, target: Target, blocks: Blocks, probed: Probed | None = None, say: Say | None = None
) -> PricedSpace:
    """Every layout of a large space judged, priced and counted; what is kept is in the rows, the rest in `dropped`.

    `say` hears how far it is every few seconds. ValueError where the pins leave no mesh.
    """
    tell = say or (lambda line: None)
    count = mesh_count(target, blocks.axes, blocks.fixed)
    tell(f"pricing every layout of {count:,} meshes in blocks; this takes some minutes where there are a million")
    kept = Kept(target.hardware.capacity_bytes)
    began = told = time.perf_counter()
    priced, pricer = 0, None
    for done, table in blocks.tables(workload, target):
        prices = price(workload, table, target, probed)
        pricer = prices.pricer
        broken = broken_rules(workload, target, table)
        kept.add(table, broken, prices, _bounds(workload, target, table, broken, prices, probed, blocks))
        priced += len(table)
        if time.perf_counter() - told > EVERY_SECONDS:
            told = time.perf_counter()
            tell(f"priced {priced:,} layouts, {100 * done / count:.0f} % of the meshes, {told - began:.0f} s")
    if kept.first is None or pricer is None:
        raise no_mesh(target, blocks.axes, blocks.fixed)
    columns: dict[str, Any] = kept.compact()
    table = dataclasses.replace(kept.first, **{name: columns[name] for name in LayoutTable.columns()})
    broken = columns["broken"]
    legal, fits = broken < 0, columns["peak_bytes"] <= kept.capacity
    codes, counts = np.unique(broken[~legal], return_counts=True)
    listed = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    dropped = Dropped(
        fits=kept.totals["fits"] - int((legal & fits).sum()),
        oom=kept.totals["oom"] - int((legal & ~fits).sum()),
        illegal={code: left for code, count in kept.illegal.items() if (left := count - listed.get(code, 0))},
    )
    note = (
        f"{priced:,} layouts were priced in blocks and counted; of those that fit, the {int((legal & fits).sum()):,} "
        "fastest were looked at for what better resources would be worth"
    )
    return PricedSpace(
        workload=workload,
        target=target,
        table=table,
        layouts=None,
        broken=broken,
        prices=Prices(table=table, pricer=pricer, **{name: columns[name] for name in PRICES}),
        probed=probed,
        notes=(note,),
        dropped=dropped,
        blocks=blocks,
    )


def _bounds(workload, target, table, broken, prices: Prices, probed, blocks: Blocks) -> np.ndarray | None:
    """Of rows that another order of their axes may bring among the best: seconds that no order beats; inf elsewhere.
    None where no order is tried."""
    if not blocks.orders or target.platform != "tpu":
        return None
    rows = np.flatnonzero((broken < 0) & (prices.peak_bytes <= SLACK * target.hardware.capacity_bytes))
    found = np.full(len(table), np.inf)
    if len(rows):
        found[rows] = price(workload, table.take(rows), without_links(target), probed).step_seconds
    return found


def priced_again(space: PricedSpace, probed: Probed | None) -> PricedSpace:
    """The same layouts priced by what probes taught; of a large space every block again."""
    if space.blocks is not None:
        return price_in_blocks(space.workload, space.target, space.blocks, probed)
    prices = price(space.workload, space.table, space.target, probed)
    return dataclasses.replace(space, probed=probed, prices=prices)
