"""The price of a chunk of layouts of a transformer, term by term; memory is in `price.memory`.

A step is accumulate x microbatches passes (`price.passes`) on the busiest stage, what happens once (`price.once`), and
the bubble. Passes and what happens once are worked out for the few of each that differ, and put together here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.meshes.layout import SCHEDULES
from autotune.meshes.target import Target
from autotune.meshes.transformer import Transformer
from autotune.price.assumptions import Assumptions
from autotune.price.ledger import Ledger
from autotune.price.memory import memory_of
from autotune.price.network import cost_of, distinct, meshes_of
from autotune.price.once import Once
from autotune.price.passes import Passes
from autotune.price.rows import Prepared, Rows
from autotune.price.schedules import bubble_seconds
from autotune.price.work import work_of
from autotune.table import CONTEXT_ATTENTION, LayoutTable

KINDS = {
    "tensor": ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"),
    "fsdp": ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"),
    "data": ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"),
    "context": ("all_gather", "reduce_scatter", "permute", "all_reduce"),
    "expert": ("all_to_all", "all_reduce", "all_gather"),
    "stage": ("permute", "all_gather", "reduce_scatter", "all_reduce"),
}
"""The collectives that each axis can ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricer:
    """Prices tables of layouts of one transformer and batch on one target under one set of assumptions."""

    transformer: Transformer
    batch: int
    seq: int
    dtype: str
    target: Target
    assumptions: Assumptions

    def prepare(self, table: LayoutTable) -> Prepared:
        """What all chunks of the table share."""
        meshes = meshes_of(table, self.target)
        pieces = table.data * table.fsdp * table.expert * table.accumulate * table.microbatches
        choices = [getattr(table, name) for name in ("tensor", "context", "expert", "sequence_parallel")]
        first, work_of_row = distinct([pieces, *choices, table.context_attention])
        work = work_of(
            self.transformer,
            self.seq,
            self.dtype,
            self.target.hardware,
            self.assumptions,
            sequences=self.batch / pieces[first],
            tensor=table.tensor[first].astype(np.float64),
            context=table.context[first].astype(np.float64),
            expert=table.expert[first].astype(np.float64),
            sequence_parallel=table.sequence_parallel[first],
            ring=table.context_attention[first] == CONTEXT_ATTENTION.index("ring"),
        )
        used = {axis: kinds for axis, kinds in KINDS.items() if (getattr(table, axis) > 1).any()}
        costs = {(axis, kind): cost_of(kind, axis, meshes) for axis, kinds in used.items() for kind in kinds}
        return Prepared(meshes=meshes, costs=costs, work=work, work_of_row=work_of_row)

    def ledger(self, table: LayoutTable, prepared: Prepared, rows: slice, *, counting: bool = False) -> Ledger:
        """Every term of some rows (already taken as `table`) of the prepared table."""
        mesh, piece = prepared.meshes.of_row[rows], prepared.work_of_row[rows]
        return Chunk(self, prepared, table, mesh, piece, counting).book


class Chunk(Rows):
    """One chunk while it is worked out; every array has one entry a row. `price.memory` reads it too."""

    def enter(self) -> None:
        """Everything of a step, and how it adds up."""
        table = self.table
        first, self.of_pass = distinct([self.mesh, table.remat, self.piece, self.sliced])
        self.passes = self.some(Passes, first)
        choices = ("zero", "microbatches", "schedule", "virtual_stages", "offload")
        first, self.of_once = distinct([self.mesh, *(getattr(table, name) for name in choices), self.piece])
        self.once = self.some(Once, first)
        self.book.parts = ((self.passes.book, self.of_pass), (self.once.book, self.of_once))
        self.kept, self.kept_again = self.passes.kept[self.of_pass], self.passes.kept_again[self.of_pass]
        self.kept_weights = self.passes.kept_weights[self.of_pass]
        layer, head = self.book.unit_seconds("layer"), self.book.unit_seconds("head")
        if self.used["data"] and self.hides_gradients:
            self._gradients(layer)
        others = self._times(layer, head)
        if self.used["stage"]:
            self.book.bubble = self._bubble(layer, others)
        self.book.memory = memory_of(self)

    def _gradients(self, layer: np.ndarray) -> None:
        """Gradients over `data`, which the backward pass of the layers may hide."""
        beside = layer * self.middle
        if self.stack.scatter_hides == "never":
            # Reduced layer by layer beside the backward pass only where no scatter along fsdp comes first.
            beside = np.where(self.size["fsdp"] > 1, 0.0, 0.5 * beside)
        self.reduce_gradients(self.once.whole[self.of_once], self.once.scattered[self.of_once], beside)

    def _times(self, layer: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Enter how often each unit counts on the busiest stage; seconds of one microbatch on all the others."""
        book, stages, table = self.book, self.size["stage"], self.table
        staged = stages > 1
        if self.stack.head_everywhere:
            layers, heads = self.middle, np.where(self.by_hand, 1.0 / stages, 1.0)
            others = (stages - 2.0) * self.middle * layer + 2.0 * self.ends * layer - self.middle * layer
        else:
            last_is_busiest = ~staged | (self.ends * layer + head >= self.middle * layer)
            layers = np.where(last_is_busiest, self.ends, self.middle)
            heads = np.where(last_is_busiest, 1.0, 0.0)
            everything = (stages - 2.0) * self.middle * layer + 2.0 * self.ends * layer + head
            others = everything - layers * layer - heads * head
        passes = (table.accumulate * table.microbatches).astype(np.float64)
        book.times = {"layer": passes * layers, "head": passes * heads, "pass": passes, "step": np.ones(book.rows)}
        if book.counting:
            book.idle = np.where(self.by_hand, (stages - 1.0) / (passes * table.virtual_stages), 0.0)
        return np.where(staged, others, 0.0)

    def _bubble(self, layer: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Seconds a step that the busiest stage waits for the others."""
        table, stages = self.table, self.size["stage"]
        made = self.passes
        forward, backward, weight = (each[self.of_pass] for each in (made.forward, made.backward, made.weight))
        communication = layer - forward - backward - weight
        bubble = np.zeros(self.book.rows)
        for code, schedule in enumerate(SCHEDULES):
            rows = (stages > 1) & (table.schedule == code)
            if rows.any():
                name = self.stack.zero_bubble if schedule == "zero-bubble" else schedule
                seconds = bubble_seconds(
                    name,
                    stages=stages,
                    passes=table.microbatches,
                    virtual_stages=table.virtual_stages.astype(np.float64),
                    others=others,
                    forward=self.middle * (forward + 0.5 * communication),
                    backward_input=self.middle * (backward + 0.5 * communication),
                    backward_weight=self.middle * weight,
                    transfer=self.once.one_way[self.of_once],
                )
                bubble = np.where(rows, seconds * table.accumulate, bubble)
        return bubble
