"""The time and memory of a block of layouts of one transformer, as named terms.

step = (accumulate x microbatches x one microbatch on one stage (`per_microbatch`) + work once a step (`per_step`) +
pipeline bubble) x (1 + wait for the slowest slice). Memory: `peak_memory`.

Many layouts agree in the few columns that decide one part of the price, so each part is computed once for the rows that
differ in it: the work of a device (`device_work`), the cost of a collective on each mesh (`collective_costs`), a
microbatch, and a step. `RowBlock` adds the parts up row by row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from autotune.efficiency import at_sustained_share
from autotune.meshes.layout import SCHEDULES
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.legality import ONCE_A_STEP
from autotune.price.collective_costs import cost_of, meshes_of
from autotune.price.terms import CostTerms
from autotune.price.transformer.device_work import work_of
from autotune.price.transformer.inputs import Inputs
from autotune.price.transformer.per_microbatch import MicrobatchTerms
from autotune.price.transformer.per_step import StepTerms
from autotune.price.transformer.pipeline_schedules import ZERO_BUBBLE, as_published, bubble_seconds
from autotune.price.transformer.remat import Shares
from autotune.price.transformer.rows import Prepared, chunks_of, hidden_beside
from autotune.price.unique_rows import unique_rows
from autotune.table import CONTEXT_ATTENTION, LayoutTable, across

COLLECTIVES_OF_AXIS = {
    "tensor": ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"),
    "fsdp": ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"),
    "data": ("all_gather", "reduce_scatter", "all_reduce", "all_to_all"),
    "context": ("all_gather", "reduce_scatter", "permute", "all_reduce"),
    "expert": ("all_to_all", "all_reduce", "all_gather", "reduce_scatter"),
    "stage": ("permute", "all_gather", "reduce_scatter", "all_reduce"),
}
"""The collectives that each axis can ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricer(Inputs):
    """Prices tables of layouts of one transformer and batch on one target with one training stack."""

    def prepare(self, table: LayoutTable) -> Prepared:
        """What all blocks of the table share: routes of the meshes, costs of collectives, work of the devices."""
        meshes = meshes_of(table, self.target)
        passes = table.accumulate * table.microbatches
        choices = [table.sequence_parallel, table.context_attention, table.vocab_tiles]
        first, piece_of_row = unique_rows([meshes.of_row, passes, *choices])
        some = table.take(first)
        work_on = functools.partial(
            work_of,
            self.transformer,
            self.seq,
            self.dtype,
            stack=self.stack,
            sequences=self.batch / (some.data * some.fsdp * some.expert * passes[first]),
            tensor=some.tensor.astype(np.float64),
            context=some.context.astype(np.float64),
            expert=some.expert.astype(np.float64),
            sequence_parallel=some.sequence_parallel,
            ring=some.context_attention == CONTEXT_ATTENTION.index("ring"),
            tiles=some.vocab_tiles.astype(np.float64),
        )
        hardware = self.target.hardware
        if hardware.power_watts:
            saving = self.stack.traffic.saving / (hardware.hbm_bytes_per_second * hardware.hbm_efficiency)
            # Of all policies, one that is often the best stands for the clock.
            kept_shares = Shares(np.array([LAYOUT_WORDS["remat"].code("dots")]), self.transformer).kept
            spent = work_on(hardware=hardware).spent(float(self.transformer.layers), kept_shares, saving)
            # Where a better resource is asked about (`faster`), the power limit stays that of the real card.
            spent["matmul"] = spent["matmul"] * hardware.faster.get("matmul", 1.0)
            spent["passes"] = spent["passes"] * hardware.faster.get("hbm", 1.0)
            hardware = at_sustained_share(hardware, spent)
        work = work_on(hardware=hardware)
        used = {axis: kinds for axis, kinds in COLLECTIVES_OF_AXIS.items() if (getattr(table, axis) > 1).any()}
        costs = {(axis, kind): cost_of(kind, axis, meshes) for axis, kinds in used.items() for kind in kinds}
        return Prepared(
            meshes=meshes, costs=costs, work=work, piece_of_row=piece_of_row, mesh_of_piece=meshes.of_row[first]
        )

    def cost_terms(self, table: LayoutTable, prepared: Prepared, rows: slice, *, counting: bool = False) -> CostTerms:
        """The terms of some rows of the prepared table. `table` holds those rows alone, `rows` says where they were."""
        return RowBlock(self, prepared, table, prepared.piece_of_row[rows], counting).terms

    def cost_terms_of_sets(self, table: LayoutTable, prepared: Prepared, rows: slice, sets: np.ndarray) -> CostTerms:
        """The same with each of some sets of `remat` (codes) in every row: arrays of shape (rows, sets). What the sets
        do not change is worked out once a row."""
        return RowBlock(self, prepared, table, prepared.piece_of_row[rows], False, sets).terms


class RowBlock:
    """The terms of one block of rows, put together from its microbatches and its steps.

    `per_microbatch` holds one entry for each distinct microbatch, and `of_microbatch`, of shape (rows,), each row's
    place in it. `per_step` and `of_step` are the same for the work once a step. Every other array has one entry a row;
    with `sets`, it is (rows, sets), of length 1 where all sets agree.
    """

    def __init__(
        self,
        pricer: Pricer,
        prepared: Prepared,
        table: LayoutTable,
        piece: np.ndarray,
        counting: bool,
        sets: np.ndarray | None = None,
    ) -> None:
        self.pricer, self.table = pricer, table
        kept = [table.remat] if sets is None else []
        first, self.of_microbatch = unique_rows([piece, *kept, *chunks_of(table, pricer.transformer.layers)])
        some, pieces = table.take(first), piece[first]
        if sets is not None:
            some, pieces = across(some, sets), pieces[:, None]
        self.per_microbatch = MicrobatchTerms(pricer, prepared, some, pieces, counting)
        choices = ("zero", "reduce", "microbatches", "schedule", "virtual_stages", "offload")
        first, self.of_step = unique_rows([piece, *(getattr(table, name) for name in choices)])
        self.per_step = StepTerms(pricer, prepared, table.take(first), piece[first], counting)
        straggler_share = pricer.target.hardware.straggler_share(pricer.target.groups)
        self.terms = CostTerms(rows=len(table), straggler_share=straggler_share, counting=counting)
        if sets is not None:
            self.table, self.of_step = across(table, sets), self.of_step[:, None]
            self.terms.rows = (len(table), len(sets))
        self.terms.shared = ((self.per_microbatch.terms, self.of_microbatch), (self.per_step.terms, self.of_step))
        self.layer = self.per_microbatch.layer[self.of_microbatch]
        self._gradients()
        others = self._times()
        if self.per_step.used["stage"]:
            self.terms.bubble = self._bubble(others)
        self.terms.memory = self._saved()

    def _saved(self) -> dict[str, np.ndarray]:
        """Category -> bytes that the layers of a stage save for the backward pass. `StepTerms` has all other memory."""
        held, layers = self.per_step.stage.microbatches_held[self.of_step], self.per_step.layers[self.of_step]
        per_microbatch, of = self.per_microbatch, self.of_microbatch
        kept = per_microbatch.kept_bytes[of]
        published = (self.table.stage > 1) & as_published(self.table.schedule)
        if published.any():
            # Only the reference pipeline saves, at each tick, the weights that its matmuls read.
            kept = kept - np.where(published, per_microbatch.tick_weight_bytes[of], 0.0)
        # Offloaded arrays of two layers are on the device at once: one layer's leave while the next one's are made.
        on_its_way = 2.0 * per_microbatch.offloaded_bytes[of]
        activations = (kept * held + per_microbatch.kept_weight_bytes[of]) * layers + on_its_way
        stage, of_step = self.per_step.stage, self.of_step
        if stage.at_update is None:
            return {"activations": activations}
        before = sum((amount[of_step] for amount in stage.fixed.values()), activations)
        return {"activations": activations, "workspace": np.maximum(stage.at_update[of_step] - before, 0.0)}

    def _gradients(self) -> None:
        """Reductions of gradients along `data` that the backward pass of the layers hides in part."""
        if not self.per_step.hidden_later:
            return
        stack = self.pricer.stack
        # The links of other axes may be busy meanwhile: all that layers take can hide these transfers. (On v5e:4x4*2
        # 36.8 of 45.6 ms over DCN are hidden in a step of 129 ms, 24 of which are compute.) Each pass of an
        # accumulation that ends with a reduction has layers of its own.
        beside = self.layer * self.per_step.layers[self.of_step] * self.per_step.reductions("data")[self.of_step]
        if stack.scatter_hides == "never":
            # Behind a reduce-scatter along fsdp they run after the backward pass: in 81 such layouts compiled for h100
            # and a100-80 a median 0.06 of their time is hidden (jax 0.10.2).
            beside = np.where(self.table.fsdp > 1, 0.0, beside)
        # Once a step they come after the last pass: nothing is left to run beside them.
        beside = np.where(self.table.reduce == ONCE_A_STEP, 0.0, beside)
        outer = self.pricer.target.hardware.tiers[-1].name
        every = [(line, line.full_seconds[self.of_step]) for line in self.per_step.hidden_later]
        mine = [line.with_seconds(full, full) for line, full in every]
        most = None if self.per_step.hidden_most is None else self.per_step.hidden_most[self.of_step]
        self.terms.entries += hidden_beside(stack, "data", mine, beside, outer, most)

    def _times(self) -> np.ndarray:
        """Set how often each unit counts on one stage; return the seconds of one microbatch in the layers of all other
        stages (the head is not in it)."""
        terms, per_step, of = self.terms, self.per_step, self.of_step
        stages, table = per_step.size["stage"], per_step.table
        staged = stages > 1
        passes = (table.accumulate * table.microbatches).astype(np.float64)
        # The head and the embedding are shared out over the stages, so all stages take the same time.
        heads = np.where(staged, 1.0 / stages, 1.0)
        rest = np.where(staged, (stages - 1.0) * per_step.layers, 0.0)
        times = {"layer": passes * per_step.layers, "head": passes * heads, "microbatch": passes}
        terms.times = {unit: each[of] for unit, each in times.items()}
        others = rest[of] * self.layer
        terms.times["step"] = np.ones(terms.rows)
        if terms.counting:
            terms.idle = np.where(staged, (stages - 1.0) / (table.microbatches * table.virtual_stages), 0.0)[of]
        return others

    def _bubble(self, others: np.ndarray) -> np.ndarray:
        """Seconds of a step that the busiest stage waits for the other stages."""
        table, per_microbatch, layers = self.table, self.per_microbatch, self.per_step.layers
        communication = per_microbatch.layer - per_microbatch.forward - per_microbatch.backward - per_microbatch.weight
        bubble = np.zeros(self.terms.rows)
        for code, schedule in enumerate(SCHEDULES):
            rows = np.flatnonzero((table.stage > 1) & (table.schedule == code))
            if len(rows):
                name = ZERO_BUBBLE if schedule == "zero-bubble" else schedule
                of_microbatch, of_step = self.of_microbatch[rows], self.of_step[rows]
                seconds = bubble_seconds(
                    name,
                    stages=table.stage[rows].astype(np.float64),
                    microbatches=table.microbatches[rows],
                    virtual_stages=table.virtual_stages[rows].astype(np.float64),
                    others=others[rows],
                    forward=layers[of_step] * (per_microbatch.forward + 0.5 * communication)[of_microbatch],
                    backward_input=layers[of_step] * (per_microbatch.backward + 0.5 * communication)[of_microbatch],
                    backward_weight=layers[of_step] * per_microbatch.weight[of_microbatch],
                    transfer=self.per_step.one_way[of_step],
                )
                bubble[rows] = seconds * table.accumulate[rows]
        return bubble
