"""The fastest layout that fits a target, as pricing the whole space would find it, without pricing it all.

Branch and bound: meshes, then boxes (a mesh with its recomputation, ZeRO and context attention), then ways to cut the
batch are left out when `sweep.bounds` says that none of their layouts can win. What is left is priced in full, best
bound first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autotune.meshes.hardware import scale
from autotune.meshes.layout import Layout
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.legality import rule_names, rules_about
from autotune.meshes.target import Target
from autotune.price.axis_orders import other_orders
from autotune.price.price import Estimate, Prices, price_table
from autotune.price.priced_space import broken_rules, price_space
from autotune.space import enumerate_layouts, pass_columns, sizes_over, with_choices, with_crossings, with_passes
from autotune.sweep.bounds import ROUNDING, Bounds, Columns, searched
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

ORDER_SLACK = 1.15
"""On a torus the order of a layout's axes inside a slice is chosen too, for layouts that are at most this much slower
than the best in the default order. A choice, not a bound: bounds over all orders take ten times as long. At 1.05 the
fastest layout of mixtral-8x7b on v5e:16x16 was missed by 1.6 %."""

FIRST_BLOCK = 128
"""Rows taken before bounds cut; each next block is eight times as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """The layout of least time that fits, and its price. `priced` rows were needed to know it."""

    layout: Layout
    estimate: Estimate
    priced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingFits:
    """Why no layout can run. `limit`: "memory", "batch" or "divisibility".

    `rule`: the rule most meshes break, where none is legal. `closest`, `least_bytes`: the legal layout of least memory.
    """

    limit: str
    rule: str | None
    closest: Layout | None
    least_bytes: float | None


def fastest(
    workload: Workload,
    target: Target,
    axes: tuple[str, ...],
    fixed: Mapping[str, str],
    known: Fastest | None = None,
) -> Fastest | NothingFits:
    """The legal layout over `axes` with the least priced step that fits; of equal ones the first by its text.

    `known`: a layout that fits, to be beaten: the search is the shorter for it.
    ValueError when the pinned words leave no mesh.
    """
    if workload.transformer is None:
        return _of_everything(workload, target, axes, fixed)
    return _Search(workload, target, axes, fixed, (1.0,), known).run()


def fastest_and_roomier(
    workload: Workload, target: Target, axes: tuple[str, ...], fixed: Mapping[str, str], factor: float
) -> tuple[Fastest | NothingFits, Fastest | None]:
    """`fastest`, and what it would be with `factor` times the memory (None where nothing fits as it is)."""
    if workload.transformer is None:
        found = _of_everything(workload, target, axes, fixed)
        if isinstance(found, NothingFits):
            return found, None
        larger = dataclasses.replace(target, hardware=scale(target.hardware, "capacity", factor))
        roomier = _of_everything(workload, larger, axes, fixed)
        assert isinstance(roomier, Fastest), "what fits in less memory fits"
        return found, roomier
    search = _Search(workload, target, axes, fixed, (1.0, factor))
    found = search.run()
    return found, None if isinstance(found, NothingFits) else search.found(1)


class _Search:
    def __init__(
        self,
        workload: Workload,
        target: Target,
        axes: tuple[str, ...],
        fixed: Mapping[str, str],
        headroom: tuple[float, ...],
        known: Fastest | None = None,
    ) -> None:
        self.workload, self.target, self.axes = workload, target, axes
        self.fixed = {**fixed, **workload.fixed}
        self.bounds = Bounds(workload, target, self.fixed)
        self.slack = ORDER_SLACK if target.platform == "tpu" and "order" not in self.fixed else 1.0
        self.capacities = [factor * target.hardware.capacity_bytes for factor in headroom]
        first = (known.estimate.step_seconds, str(known.layout), known.layout, known.estimate) if known else None
        self.best: list[tuple[float, str, Layout, Estimate] | None] = [first for _ in headroom]

    def run(self) -> Fastest | NothingFits:
        """The best for the first capacity; `self.found` has the others too."""
        sizes = sizes_over(self.target, self.axes, self.fixed)
        if not sizes["data"].size:
            pins = ", ".join(f"{key}={value}" for key, value in self.fixed.items())
            raise ValueError(f"target {self.target.name}: no mesh has its {self.target.devices} devices with {pins}")
        fewest = min(searched("microbatches")) * sizes["stage"]  # no pipeline of the space has fewer
        least = int(self.fixed["microbatches"]) if "microbatches" in self.fixed else fewest
        broken = self._broken(self.bounds.table(sizes, microbatches=np.where(sizes["stage"] > 1, least, 1)))
        sizes = _rows(sizes, broken < 0)
        if not sizes["data"].size:
            return self._nothing_legal(broken)
        # How axes cross the outer tier is nothing to memory: whole sizes go or stay.
        least_kept = {"remat": LAYOUT_WORDS["remat"].searched_on(self.target.platform)[-1]}
        peaks = self._least_of(sizes, self.bounds.bytes, least_kept)
        hopeful = np.flatnonzero(peaks <= max(self.capacities))
        meshes = with_crossings({**_rows(sizes, hopeful), "peak": peaks[hopeful]}, self.target, self.fixed)
        self._best_first(meshes)
        return self.found(0) or self._least_memory(sizes, peaks)

    def found(self, which: int) -> Fastest | None:
        """The best that fits one of the capacities."""
        best = self.best[which]
        return Fastest(layout=best[2], estimate=best[3], priced=self.bounds.priced) if best else None

    def _best_first(self, meshes: Columns) -> None:
        """Expand meshes, best bound first: what holds for all choices, then what holds for the best of them."""
        one = {"remat": "none", "zero": "0"}
        floor = self._least_of(
            meshes, lambda boxes: self.bounds.seconds(boxes, any_zero=True, any_remat=True).seconds, one
        )
        for block in self._blocks(floor, meshes["peak"]):
            some = _rows(meshes, block)
            least = self._least_of(
                some, lambda boxes: self.bounds.seconds(boxes, any_remat=True).seconds, {"remat": "none"}
            )
            for rows in self._blocks(least, some["peak"]):
                self._expand(_rows(some, rows))

    def _blocks(self, seconds: np.ndarray, peaks: np.ndarray) -> Iterator[np.ndarray]:
        """Rows whose bounds leave them a chance, best first: a few, then eight times as many each time."""
        order = np.argsort(seconds, kind="stable")
        begin, size = 0, FIRST_BLOCK
        while begin < order.size:
            block = order[begin : begin + size]
            block = block[self._hopeful(seconds[block], peaks[block])]
            if block.size:
                yield block
            begin, size = begin + size, size * 8

    def _hopeful(self, seconds: np.ndarray, peaks: np.ndarray) -> np.ndarray:
        """Whether a row may still be the best for some capacity."""
        hope = np.zeros(len(seconds), dtype=bool)
        for capacity, best in zip(self.capacities, self.best, strict=True):
            hope |= (peaks <= capacity) & (seconds <= (self.slack * best[0] if best else np.inf))
        return hope

    def _expand(self, meshes: Columns) -> None:
        """Price what the bounds of single boxes (a mesh with its other choices) leave of some meshes."""
        boxes = with_choices(meshes, self.fixed, self.target)
        least = self.bounds.seconds(boxes)
        rows = np.flatnonzero(self._hopeful(least.seconds, np.zeros(len(least.seconds))))
        boxes = {**_rows(boxes, rows), "work": least.work[rows], "layers": least.layers[rows]}
        seconds = least.seconds[rows]
        for block in self._blocks(seconds, self.bounds.bytes(boxes)):
            self._price(_rows(boxes, block))

    def _price(self, boxes: Columns) -> None:
        """Price every way to cut the batch into passes that its own bubble leaves a chance."""
        assert self.workload.transformer is not None
        layers = self.workload.transformer.layers
        columns = pass_columns(boxes, self.workload.sequences, layers, self.fixed)
        bubble = (columns["stage"] - 1) / (columns["microbatches"] * columns["virtual_stages"])
        hope = self._hopeful(columns["work"] + bubble * columns["layers"], np.zeros(len(bubble)))
        table = self.bounds.table(_rows(columns, hope))
        table = table.take(self._broken(table) < 0)
        if not len(table):
            return
        prices = self._prices(table)
        self._take(table, prices, 1.0)
        if self.slack > 1.0:
            fits = prices.peak_bytes <= max(self.capacities)
            others = other_orders(
                table.take(fits & self._hopeful(prices.step_seconds, prices.peak_bytes)), self.target
            )[1]
            if len(others):
                self._take(others, self._prices(others), 1 - ROUNDING)

    def _take(self, table: LayoutTable, prices: Prices, share: float) -> None:
        """Keep what is best for each capacity; it must take no more than `share` of what was best before."""
        for which, capacity in enumerate(self.capacities):
            fits = np.flatnonzero(prices.peak_bytes <= capacity)
            if not fits.size:
                continue
            least, best = float(prices.step_seconds[fits].min()), self.best[which]
            if best and least > best[0] * share:
                continue
            for row in fits[prices.step_seconds[fits] == least]:
                layout, best = table.layout(int(row)), self.best[which]
                if best is None or (least, str(layout)) < best[:2]:
                    self.best[which] = (least, str(layout), layout, prices.estimate(int(row)))

    def _least_of(
        self, meshes: Columns, bound: Callable[[Columns], np.ndarray], pinned: Mapping[str, str]
    ) -> np.ndarray:
        """The least of a bound over the other choices of each mesh, but for those `pinned` to what is best for it."""
        rows = len(meshes["data"])
        numbered = {**meshes, "mesh": np.arange(rows)}
        choices = with_choices(numbered, {**pinned, **self.fixed}, self.target)
        mesh = choices.pop("mesh")
        least = np.full(rows, np.inf)
        np.minimum.at(least, mesh, bound(choices))
        return least

    def _passes(self, columns: Columns) -> LayoutTable:
        assert self.workload.transformer is not None
        return with_passes(columns, self.workload.sequences, self.workload.transformer.layers, self.fixed)

    def _prices(self, table: LayoutTable) -> Prices:
        self.bounds.priced += len(table)
        return price_table(self.bounds.pricer, table)

    def _broken(self, table: LayoutTable) -> np.ndarray:
        return broken_rules(self.workload, self.target, table)

    def _nothing_legal(self, broken: np.ndarray) -> NothingFits:
        """The rule that most meshes break first: of the batch, or of the model's sizes."""
        codes, counts = np.unique(broken, return_counts=True)
        code = int(codes[np.argmax(counts)])
        return _illegal(code, rule_names()[code])

    def _least_memory(self, sizes: Columns, peaks: np.ndarray) -> NothingFits:
        """The legal layout of least memory, sizes of the least bound first."""
        closest: tuple[float, str, Layout] | None = None
        order = np.argsort(peaks, kind="stable")
        for begin in range(0, order.size, FIRST_BLOCK):
            block = order[begin : begin + FIRST_BLOCK]
            if closest and peaks[block[0]] > closest[0]:
                break
            meshes = with_crossings(_rows(sizes, block), self.target, self.fixed)
            table = self._passes(with_choices(meshes, self.fixed, self.target))
            table = table.take(self._broken(table) < 0)
            if len(table):
                prices = self._prices(table)
                row = int(np.argmin(prices.peak_bytes))
                found = (float(prices.peak_bytes[row]), str(table.layout(row)), table.layout(row))
                closest = found if closest is None else min(closest, found, key=lambda one: one[:2])
        if closest is None:
            return NothingFits(limit="divisibility", rule=None, closest=None, least_bytes=None)
        return NothingFits(limit="memory", rule=None, closest=closest[2], least_bytes=closest[0])


def _of_everything(
    workload: Workload, target: Target, axes: tuple[str, ...], fixed: Mapping[str, str]
) -> Fastest | NothingFits:
    """The same by pricing the whole space: what bounds of a transformer's price say is not known of other steps."""
    layers = workload.transformer.layers if workload.transformer else None
    table = enumerate_layouts(target, axes, workload.sequences, layers, {**fixed, **workload.fixed})
    space = price_space(workload, target, table)
    if not space.legal.any():
        codes, counts = np.unique(space.broken, return_counts=True)
        code = int(codes[np.argmax(counts)])
        return _illegal(code, space.rule_of(int(np.flatnonzero(space.broken == code)[0])))
    legal = np.flatnonzero(space.legal)
    fits = legal[space.peak_bytes[legal] <= target.hardware.capacity_bytes]
    if not fits.size:
        row = int(legal[np.argmin(space.peak_bytes[legal])])
        return NothingFits(
            limit="memory", rule=None, closest=space.layout(row), least_bytes=float(space.peak_bytes[row])
        )
    least = space.seconds[fits].min()
    row = min((int(row) for row in fits[space.seconds[fits] == least]), key=lambda row: str(space.layout(row)))
    return Fastest(layout=space.layout(row), estimate=space.price(row), priced=len(table))


def _illegal(code: int, rule: str) -> NothingFits:
    limit = "batch" if code in rules_about("batch") else "divisibility"
    return NothingFits(limit=limit, rule=rule, closest=None, least_bytes=None)


def _rows(columns: Columns, rows: np.ndarray | slice) -> Columns:
    return {name: column[rows] for name, column in columns.items()}
