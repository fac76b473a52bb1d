"""What no layout of a box can beat: its seconds and its bytes, for every way to cut the batch into passes.

A box is a mesh with its recomputation, ZeRO and context attention. The time of one pass over the whole batch with the
least bubble is never more than theirs, for matmuls lose by being cut and collectives pay their latency again; the
memory of the most passes is never less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.meshes.layout import AXES, SCHEDULES
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.target import Target
from autotune.price.price import BLOCK_ROWS, price_table
from autotune.price.transformer.pricer import Pricer
from autotune.price.transformer.rows import hides
from autotune.price.transformer.training_stack import stack_of
from autotune.space import order_of
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

Columns = dict[str, np.ndarray]


ROUNDING = 1e-9
"""Bounds are kept this much below what they are, so that sums in another order cut nothing off."""


def searched(name: str) -> tuple[int, ...]:
    """The counts that the search tries for a word of the pipeline."""
    values = LAYOUT_WORDS[name].searched
    assert values is not None
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSeconds:
    """Of each box: `work`, without its bubble, and the part of it spent in `layers`, which a bubble stretches."""

    work: np.ndarray
    layers: np.ndarray
    bubble: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """With the least bubble that any number of microbatches has."""
        return self.work + self.bubble * self.layers


class Bounds:
    """The bounds of one workload on one target, with some words of a layout pinned."""

    def __init__(self, workload: Workload, target: Target, fixed: Mapping[str, str]) -> None:
        assert workload.transformer is not None
        self.workload, self.target, self.fixed = workload, target, fixed
        self.layers = workload.transformer.layers
        self.pricer = Pricer(
            transformer=workload.transformer,
            batch=workload.sequences,
            seq=workload.seq,
            dtype=workload.dtype,
            target=target,
            stack=stack_of(target.hardware, workload.dtype, workload.training),
        )
        stack = self.pricer.stack
        self.hidden_share = {axis: stack.hidden_share.get(axis, 0.0) for axis in AXES}
        self.hidden_outer = {axis: stack.hidden_outer.get(axis, (0.0, 0.0))[0] for axis in AXES}
        self.priced = 0

    def table(self, columns: Columns, **changed: np.ndarray) -> LayoutTable:
        """Rows as a table, other columns left behind: one pass over the whole batch where nothing else is said."""
        plain = {name: np.ones_like(columns["data"]) for name in LayoutTable.columns()}
        for word in LAYOUT_WORDS.values():
            if word.kind == "choice":
                plain[word.name] = np.full_like(columns["data"], word.code(word.default))
        plain["order"] = plain["options"] = np.zeros_like(columns["data"])
        known: dict[str, Any] = {name: column for name, column in {**columns, **changed}.items() if name in plain}
        return LayoutTable(
            orders=(order_of(self.fixed),), option_sets=(self.fixed.get("options"),), **{**plain, **known}
        )

    def seconds(self, boxes: Columns, *, any_zero: bool = False, any_remat: bool = False) -> LeastSeconds:
        """Seconds that no way to cut the batch into passes brings each box below.

        `any_zero`: nor any ZeRO, for boxes of none: what happens once a step is left out. `any_remat`: nor any
        recomputation, for boxes of none: what they save more is left out.
        """
        table = self.table(boxes)
        self.priced += len(table)
        prepared = self.pricer.prepare(table)
        work, layers = np.empty(len(table)), np.empty(len(table))
        for begin in range(0, len(table), BLOCK_ROWS):
            rows = slice(begin, min(begin + BLOCK_ROWS, len(table)))
            terms = self.pricer.cost_terms(table.take(rows), prepared, rows)
            doubt = self._doubt(table.take(rows))
            total, layer = np.zeros(terms.rows), np.zeros(terms.rows)
            for entry in terms.all_entries():
                if (any_zero and entry.unit == "step") or (any_remat and entry.name == "saving"):
                    continue
                sure = entry.seconds * terms.times[entry.unit]
                if entry.name == "casts":
                    # Of a pipeline other virtual stages have less of it.
                    sure = np.where(boxes["stage"][rows] > 1, 0.0, sure)
                if entry.part is not None and hides(self.pricer.stack, entry.part.axis):
                    sure = sure * doubt
                total += sure
                if entry.unit == "layer":
                    layer += sure
            work[rows], layers[rows] = total, layer
        if self.fixed.keys() & {"schedule", "virtual_stages"}:
            # A pinned schedule may send less than the one pass does.
            work = np.where(boxes["stage"] > 1, 0.0, work)
            layers = np.where(boxes["stage"] > 1, 0.0, layers)
        return LeastSeconds(
            work=work * (1 - ROUNDING), layers=layers * (1 - ROUNDING), bubble=self._least_bubble(boxes)
        )

    def _doubt(self, table: LayoutTable) -> np.ndarray:
        """Share of the exposed collectives of one pass that any number of passes exposes at least.

        More passes compute d longer and hide up to sum(s_i) d more. With w = 1 / sum(s_i), where that sum is above 1,
        compute + w x exposed cannot fall: it gains d and loses at most w sum(s_i) d.
        """
        share = self.hidden_share
        gathers = (table.context > 1) * (1.0 + (table.context_attention == 0))  # its gather and reduction hide apart
        hidden = share["fsdp"] * (table.fsdp > 1) + share["context"] * gathers + share["data"] * (table.data > 1)
        hidden += self.hidden_outer["data"] * (table.dcn_data > 1)
        return 1.0 / np.maximum(hidden, 1.0)

    def _least_bubble(self, boxes: Columns) -> np.ndarray:
        """The bubble's least share of the layers' time: (stages - 1) / (microbatches x virtual stages)."""
        most = self._microbatches(boxes, max(searched("microbatches")))
        return (boxes["stage"] - 1) / (most * self._most_virtual(boxes))

    def _most_virtual(self, boxes: Columns) -> np.ndarray:
        virtual = np.ones_like(boxes["stage"])
        for count in sorted(searched("virtual_stages")):
            virtual = np.where(self.layers % (boxes["stage"] * count) == 0, count, virtual)
        return virtual

    def _microbatches(self, boxes: Columns, a_stage: int) -> np.ndarray:
        """So many a stage (or as pinned), but no more than there are pieces of the batch; at least 1."""
        pieces = self.workload.sequences // (boxes["data"] * boxes["fsdp"] * boxes["expert"])
        wanted = int(self.fixed["microbatches"]) if "microbatches" in self.fixed else a_stage * boxes["stage"]
        return np.maximum(np.minimum(wanted, pieces), 1)

    def bytes(self, boxes: Columns) -> np.ndarray:
        """Bytes that no way to cut the batch into passes brings each box below.

        Accumulation: as many passes as there can be, or one, which sums no gradients. A pipeline holds more for more
        microbatches (what each tick saves) or for fewer (their size): the least over all that the space has.
        """
        pieces = np.maximum(self.workload.sequences // (boxes["data"] * boxes["fsdp"] * boxes["expert"]), 1)
        staged = boxes["stage"] > 1
        if "accumulate" in self.fixed:
            pieces = np.minimum(int(self.fixed["accumulate"]), pieces)
        least = np.full(len(staged), np.inf)
        flat = _where(boxes, ~staged)
        for accumulate in (pieces[~staged], *([] if "accumulate" in self.fixed else [np.ones_like(pieces[~staged])])):
            least[~staged] = np.minimum(least[~staged], self._peak(self.table(flat, accumulate=accumulate)))
        deep = _where(boxes, staged)
        for a_stage in searched("microbatches"):
            table = self.table(
                deep,
                microbatches=self._microbatches(deep, a_stage),
                accumulate=pieces[staged] if "accumulate" in self.fixed else np.ones_like(pieces[staged]),
                virtual_stages=self._most_virtual(deep),
                # Of the searched schedules circular holds least: with the most virtual stages it has the fewest ticks.
                schedule=np.full(len(deep["data"]), SCHEDULES.index(self.fixed.get("schedule", "circular"))),
            )
            least[staged] = np.minimum(least[staged], self._peak(table))
        return least * (1 - ROUNDING)

    def _peak(self, table: LayoutTable) -> np.ndarray:
        self.priced += len(table)
        return price_table(self.pricer, table).peak_bytes


def _where(columns: Columns, keep: np.ndarray) -> Columns:
    return {name: column[keep] for name, column in columns.items()}
