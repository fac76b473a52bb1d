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
from autotune.price.distinct import distinct
from autotune.price.ledger import Ledger
from autotune.price.network import cost_of, meshes_of
from autotune.price.once import Once
from autotune.price.passes import Passes
from autotune.price.rows import Prepared, chunks_of, hidden_beside
from autotune.price.schedules import ZERO_BUBBLE, bubble_seconds
from autotune.price.work import work_of
from autotune.table import CONTEXT_ATTENTION, LayoutTable

COLLECTIVES_OF_AXIS = {
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
        passes = table.accumulate * table.microbatches
        first, piece_of_row = distinct([meshes.of_row, passes, table.sequence_parallel, table.context_attention])
        some = table.take(first)
        work = work_of(
            self.transformer,
            self.seq,
            self.dtype,
            self.target.hardware,
            self.assumptions,
            sequences=self.batch / (some.data * some.fsdp * some.expert * passes[first]),
            tensor=some.tensor.astype(np.float64),
            context=some.context.astype(np.float64),
            expert=some.expert.astype(np.float64),
            sequence_parallel=some.sequence_parallel,
            ring=some.context_attention == CONTEXT_ATTENTION.index("ring"),
        )
        used = {axis: kinds for axis, kinds in COLLECTIVES_OF_AXIS.items() if (getattr(table, axis) > 1).any()}
        costs = {(axis, kind): cost_of(kind, axis, meshes) for axis, kinds in used.items() for kind in kinds}
        return Prepared(
            meshes=meshes, costs=costs, work=work, piece_of_row=piece_of_row, mesh_of_piece=meshes.of_row[first]
        )

    def ledger(self, table: LayoutTable, prepared: Prepared, rows: slice, *, counting: bool = False) -> Ledger:
        """Every term of some rows (already taken as `table`) of the prepared table."""
        return Chunk(self, prepared, table, prepared.piece_of_row[rows], counting).book


class Chunk:
    """One chunk while it is worked out: of every row its passes, at `of_pass`, and what happens once, at `of_once`.

    Every other array has one entry a row.
    """

    def __init__(
        self, pricer: Pricer, prepared: Prepared, table: LayoutTable, piece: np.ndarray, counting: bool
    ) -> None:
        self.pricer, self.table = pricer, table
        first, self.of_pass = distinct([piece, table.remat, *chunks_of(table, pricer.transformer.layers)])
        self.passes = Passes(pricer, prepared, table.take(first), piece[first], counting)
        choices = ("zero", "microbatches", "schedule", "virtual_stages", "offload")
        first, self.of_once = distinct([piece, *(getattr(table, name) for name in choices)])
        self.once = Once(pricer, prepared, table.take(first), piece[first], counting)
        waiting = pricer.target.hardware.waiting(pricer.target.groups)
        self.book = Ledger(rows=len(table), waiting=waiting, counting=counting)
        self.book.parts = ((self.passes.book, self.of_pass), (self.once.book, self.of_once))
        self.layer, self.head = self.passes.layer[self.of_pass], self.passes.head[self.of_pass]
        self._gradients()
        others = self._times()
        if self.once.used["stage"]:
            self.book.bubble = self._bubble(others)
        self.book.memory = self._saved()

    def _saved(self) -> dict[str, np.ndarray]:
        """Category -> bytes that the layers of a stage save for the backward pass, beside what `Once` counts."""
        waiting, layers = self.once.stage.waiting[self.of_once], self.once.layers[self.of_once]
        made, of = self.passes, self.of_pass
        return {"activations": (made.kept[of] * waiting + made.kept_weights[of]) * layers}

    def _gradients(self) -> None:
        """Gradients over `data`, beside the backward pass of the layers."""
        if not self.once.hidden_later:
            return
        stack = self.pricer.assumptions
        beside = self.layer * self.once.layers[self.of_once]
        if stack.scatter_hides == "never":
            # Reduced layer by layer beside the backward pass only where no scatter along fsdp comes first.
            beside = np.where(self.table.fsdp > 1, 0.0, 0.5 * beside)
        outer = self.pricer.target.hardware.tiers[-1].name
        for lines in self.once.hidden_later:
            every = [(line, line.full[self.of_once]) for line in lines]
            mine = [line.lasting(full, full) for line, full in every]
            self.book.entries += hidden_beside(stack, "data", mine, beside, outer)

    def _times(self) -> np.ndarray:
        """Enter how often each unit counts on the busiest stage; seconds of one microbatch on all the others."""
        book, once, of = self.book, self.once, self.of_once
        stages, table = once.size["stage"], once.table
        staged = stages > 1
        passes = (table.accumulate * table.microbatches).astype(np.float64)
        # Head and embedding are dealt out over the stages, so all stages are alike.
        heads = np.where(staged, 1.0 / stages, 1.0)
        rest = np.where(staged, (stages - 1.0) * once.layers, 0.0)
        times = {"layer": passes * once.layers, "head": passes * heads, "pass": passes}
        book.times = {unit: each[of] for unit, each in times.items()}
        others = rest[of] * self.layer
        book.times["step"] = np.ones(book.rows)
        if book.counting:
            book.idle = np.where(staged, (stages - 1.0) / (passes * table.virtual_stages), 0.0)[of]
        return others

    def _bubble(self, others: np.ndarray) -> np.ndarray:
        """Seconds a step that the busiest stage waits for the others."""
        table, made, layers = self.table, self.passes, self.once.layers
        communication = made.layer - made.forward - made.backward - made.weight
        bubble = np.zeros(self.book.rows)
        for code, schedule in enumerate(SCHEDULES):
            rows = np.flatnonzero((table.stage > 1) & (table.schedule == code))
            if len(rows):
                name = ZERO_BUBBLE if schedule == "zero-bubble" else schedule
                of_pass, of_once = self.of_pass[rows], self.of_once[rows]
                seconds = bubble_seconds(
                    name,
                    stages=table.stage[rows].astype(np.float64),
                    passes=table.microbatches[rows],
                    virtual_stages=table.virtual_stages[rows].astype(np.float64),
                    others=others[rows],
                    forward=layers[of_once] * (made.forward + 0.5 * communication)[of_pass],
                    backward_input=layers[of_once] * (made.backward + 0.5 * communication)[of_pass],
                    backward_weight=layers[of_once] * made.weight[of_pass],
                    transfer=self.once.one_way[of_once],
                )
                bubble[rows] = seconds * table.accumulate[rows]
        return bubble
