"""The fastest layout that fits a target, exactly as pricing the whole space would find it, without pricing it all.

Branch and bound in two steps. A mesh, then a mesh with its recomputation, ZeRO and context attention, is left out when
a bound says that none of its layouts can win: the time of one pass over the whole batch without a bubble is never more
than theirs, the memory of the most passes never less. What is left is priced in full, best bound first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from autotune.meshes.hardware import scale
from autotune.meshes.layout import REMAT, SCHEDULES, WORDS, Layout
from autotune.meshes.legality import reject_codes, rule_names, rules_about
from autotune.meshes.target import Target
from autotune.price.assumptions import assumptions_of
from autotune.price.price import CHUNK, Estimate, Prices, price_table
from autotune.price.space import price_space
from autotune.price.terms import Pricer
from autotune.space import enumerate_layouts, order_of, sizes_over, with_choices, with_crossings, with_passes
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

Columns = dict[str, np.ndarray]

FIRST_BLOCK = 32
"""Meshes priced in full before bounds cut; each next block is four times as large."""
ROUNDING = 1e-9
"""Bounds are kept this much below what they are, so that sums in another order cut nothing off."""


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
    return _Search(workload, target, axes, fixed, known).run()


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
    search = _Search(workload, target, axes, fixed, None)
    found = search.run(headroom=factor)
    if isinstance(found, NothingFits):
        return found, None
    return found, search.again_with(factor * target.hardware.capacity_bytes)


class _Search:
    def __init__(
        self,
        workload: Workload,
        target: Target,
        axes: tuple[str, ...],
        fixed: Mapping[str, str],
        known: Fastest | None,
    ) -> None:
        self.workload, self.target = workload, target
        self.axes = axes
        self.fixed = {**fixed, **workload.fixed}
        self.capacity = target.hardware.capacity_bytes
        self.best: tuple[float, str, Layout, Estimate] | None = None
        if known:
            self.best = (known.estimate.step_seconds, str(known.layout), known.layout, known.estimate)
        self.priced = 0
        assert workload.transformer is not None
        self.pricer = Pricer(
            transformer=workload.transformer,
            batch=workload.sequences,
            seq=workload.seq,
            dtype=workload.dtype,
            target=target,
            assumptions=assumptions_of(target.hardware, workload.dtype),
        )
        self.hidden_share = {axis: self.pricer.assumptions.hidden_share.get(axis, 0.0) for axis in WORDS}

    def run(self, headroom: float = 1.0) -> Fastest | NothingFits:
        sizes = sizes_over(self.target, self.axes, self.fixed)
        if not sizes["data"].size:
            pins = ", ".join(f"{key}={value}" for key, value in self.fixed.items())
            raise ValueError(f"target {self.target.name}: no mesh has its {self.target.devices} devices with {pins}")
        # No pipeline of the space has fewer microbatches than stages.
        least = int(self.fixed["microbatches"]) if "microbatches" in self.fixed else sizes["stage"]
        broken = self._broken(self._table(sizes, microbatches=np.where(sizes["stage"] > 1, least, 1)))
        sizes = _rows(sizes, broken < 0)
        if not sizes["data"].size:
            return self._nothing_legal(broken)
        # How axes cross the outer tier is nothing to memory: whole sizes go or stay.
        peaks = self._least_of(sizes, self._least_bytes, "offload" if self.target.platform == "tpu" else "full")
        hopeful = peaks <= self.capacity * headroom
        crossings = with_crossings({**_rows(sizes, hopeful), "peak": peaks[hopeful]}, self.target, self.fixed)
        self.mesh_peaks = crossings.pop("peak")
        self.meshes = crossings
        self.mesh_seconds = self._least_of(crossings, self._least_seconds, "none")
        self._best_of()
        if self.best is None:
            return self._least_memory(sizes, peaks)
        return Fastest(layout=self.best[2], estimate=self.best[3], priced=self.priced)

    def again_with(self, capacity: float) -> Fastest:
        """What more memory than before brings, after a run that found something; up to `headroom` times as much."""
        self.capacity = capacity
        self._best_of()
        assert self.best is not None
        return Fastest(layout=self.best[2], estimate=self.best[3], priced=self.priced)

    def _best_of(self) -> None:
        """Expand meshes that may fit, best bound first, until no bound is below what was found."""
        seconds = self.mesh_seconds
        order = np.flatnonzero(self.mesh_peaks <= self.capacity)
        order = order[np.argsort(seconds[order], kind="stable")]
        begin, size = 0, FIRST_BLOCK
        while begin < order.size:
            block = order[begin : begin + size]
            if self.best:
                block = block[seconds[block] <= self.best[0]]
            if not block.size:
                break
            self._expand(_rows(self.meshes, block))
            begin, size = begin + size, size * 4

    def _expand(self, meshes: Columns) -> None:
        """Price what the bounds of single boxes (a mesh with its other choices) leave of some meshes."""
        boxes = with_choices(meshes, self.fixed, self.target)
        seconds, peaks = self._least_seconds(boxes), self._least_bytes(boxes)
        hopeful = peaks <= self.capacity
        if self.best:
            hopeful &= seconds <= self.best[0]
        order = np.flatnonzero(hopeful)
        order = order[np.argsort(seconds[order], kind="stable")]
        begin, size = 0, FIRST_BLOCK
        while begin < order.size:
            block = order[begin : begin + size]
            if self.best and seconds[block[0]] > self.best[0]:
                break
            self._price(self._passes(_rows(boxes, block)))
            begin, size = begin + size, size * 4

    def _price(self, table: LayoutTable) -> None:
        table = table.take(self._broken(table) < 0)
        if not len(table):
            return
        prices = self._prices(table)
        fits = np.flatnonzero(prices.peak_bytes <= self.capacity)
        if not fits.size:
            return
        least = prices.step_seconds[fits].min()
        for row in fits[prices.step_seconds[fits] == least]:
            layout = table.layout(int(row))
            found = (float(least), str(layout))
            if self.best is None or found < self.best[:2]:
                self.best = (*found, layout, prices.estimate(int(row)))

    def _least_of(self, meshes: Columns, bound: Callable[[Columns], np.ndarray], remat: str) -> np.ndarray:
        """The least of a bound over the other choices of each mesh, with the recomputation that is best for it."""
        rows = len(meshes["data"])
        numbered = {**meshes, "mesh": np.arange(rows)}
        choices = with_choices(numbered, {"remat": remat, **self.fixed}, self.target)
        mesh = choices.pop("mesh")
        least = np.full(rows, np.inf)
        np.minimum.at(least, mesh, bound(choices))
        return least

    def _least_seconds(self, boxes: Columns) -> np.ndarray:
        """Seconds that no way to cut the batch into passes brings each box below.

        One pass over the whole batch, for matmuls lose by being cut, and collectives pay their latency again; and the
        least bubble: (stages - 1) / (microbatches x virtual stages) of the layers' time.
        """
        table = self._table(boxes)
        self.priced += len(table)
        prepared = self.pricer.prepare(table)
        seconds = np.empty(len(table))
        stretch = self._least_bubble(boxes)
        for begin in range(0, len(table), CHUNK):
            rows = slice(begin, min(begin + CHUNK, len(table)))
            ledger = self.pricer.ledger(table.take(rows), prepared, rows)
            doubt = self._doubt(table.take(rows))
            work, layers = np.zeros(ledger.rows), np.zeros(ledger.rows)
            for entry in ledger.entries:
                sure = entry.seconds * ledger.times[entry.unit]
                if any(f"[{axis}]" in entry.name for axis, share in self.hidden_share.items() if share):
                    sure = sure * doubt
                work += sure
                if entry.unit == "layer":
                    layers += sure
            seconds[rows] = work + stretch[rows] * layers
        if self.fixed.keys() & {"schedule", "virtual_stages"}:
            # A pinned schedule may send less than the one pass does.
            seconds = np.where(boxes["stage"] > 1, 0.0, seconds)
        return seconds * (1 - ROUNDING)

    def _doubt(self, table: LayoutTable) -> np.ndarray:
        """Share of the exposed collectives of one pass that any number of passes exposes at least.

        More passes compute d longer and hide up to sum(s_i) d more. With w = 1 / sum(s_i), where that sum is above 1,
        compute + w x exposed cannot fall: it gains d and loses at most w sum(s_i) d.
        """
        share = self.hidden_share
        gathers = (table.context > 1) * (1.0 + (table.context_attention == 0))  # its gather and reduction hide apart
        hidden = share["fsdp"] * (table.fsdp > 1) + share["context"] * gathers + share["data"] * (table.data > 1)
        return 1.0 / np.maximum(hidden, 1.0)

    def _least_bubble(self, boxes: Columns) -> np.ndarray:
        """The bubble's least share of the layers' time."""
        stages = boxes["stage"]
        microbatches = np.maximum(self._most_microbatches(boxes), 1)
        virtual = np.ones_like(stages)
        assert self.workload.transformer is not None
        for count in (2, 4, 8):
            virtual = np.where(self.workload.transformer.layers % (stages * count) == 0, count, virtual)
        return (stages - 1) / (microbatches * virtual)

    def _most_microbatches(self, boxes: Columns) -> np.ndarray:
        """As many as there are pieces of the batch, and as the space holds."""
        pieces = self.workload.sequences // (boxes["data"] * boxes["fsdp"] * boxes["expert"])
        most = int(self.fixed["microbatches"]) if "microbatches" in self.fixed else 8 * boxes["stage"]
        return np.minimum(most, pieces)

    def _least_bytes(self, boxes: Columns) -> np.ndarray:
        """Bytes that no way to cut the batch into passes brings each box below: as many passes as there can be."""
        one = np.ones_like(boxes["data"])
        shards = boxes["data"] * boxes["fsdp"] * boxes["expert"]
        pieces = np.maximum(self.workload.sequences // shards, 1)
        staged = boxes["stage"] > 1
        accumulate = int(self.fixed["accumulate"]) * one if "accumulate" in self.fixed else pieces
        smallest = self._table(
            boxes,
            microbatches=np.where(staged, np.maximum(self._most_microbatches(boxes), 1), 1),
            accumulate=np.where(staged & ("accumulate" not in self.fixed), 1, np.minimum(accumulate, pieces)),
            # Holds no more microbatches than any schedule of `schedules.waiting_microbatches`.
            schedule=np.where(staged, SCHEDULES.index("1f1b"), -1),
        )
        return self._prices(smallest).peak_bytes * (1 - ROUNDING)

    def _table(self, columns: Columns, **changed: np.ndarray) -> LayoutTable:
        """Rows as a table: one pass over the whole batch where nothing else is said."""
        plain = dict.fromkeys(LayoutTable.columns(), np.ones_like(columns["data"]))
        for name in ("zero", "context_attention", "offload", "order"):
            plain[name] = np.zeros_like(columns["data"])
        plain["remat"] = np.full_like(columns["data"], REMAT.index("none"))
        plain["schedule"] = np.full_like(columns["data"], -1)
        return LayoutTable(orders=(order_of(self.fixed),), **{**plain, **columns, **changed})

    def _passes(self, columns: Columns) -> LayoutTable:
        assert self.workload.transformer is not None
        return with_passes(columns, self.workload.sequences, self.workload.transformer.layers, self.fixed)

    def _prices(self, table: LayoutTable) -> Prices:
        self.priced += len(table)
        return price_table(self.pricer, table)

    def _broken(self, table: LayoutTable) -> np.ndarray:
        workload = self.workload
        return reject_codes(table, workload.transformer, workload.sequences, workload.seq, self.target)

    def _nothing_legal(self, broken: np.ndarray) -> NothingFits:
        """The rule that most meshes break first: of the batch, or of the model's sizes."""
        codes, counts = np.unique(broken, return_counts=True)
        return _illegal(int(codes[np.argmax(counts)]))

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
        return _illegal(int(codes[np.argmax(counts)]))
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


def _illegal(code: int) -> NothingFits:
    limit = "batch" if code in rules_about("batch") else "divisibility"
    return NothingFits(limit=limit, rule=rule_names()[code], closest=None, least_bytes=None)


def _rows(columns: Columns, rows: np.ndarray | slice) -> Columns:
    return {name: column[rows] for name, column in columns.items()}
