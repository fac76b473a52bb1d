"""Base class of the terms of some layouts: sizes, parameters and flags of each row, and helpers that add a collective's
seconds to `CostTerms`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from autotune.efficiency import DTYPE_BYTES
from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import AXES
from autotune.meshes.legality import ONCE_A_STEP
from autotune.price.collective_costs import CollectiveCost, Meshes
from autotune.price.terms import CollectivePart, CostTerms, TermRows
from autotune.price.transformer.adapters import Adapters, adapters_of
from autotune.price.transformer.device_work import DeviceWork
from autotune.price.transformer.inputs import Inputs
from autotune.price.transformer.orthogonalisation import Orthogonalisation
from autotune.price.transformer.parameters import Parameters, parameters_of
from autotune.price.transformer.training_stack import TrainingStack
from autotune.table import LayoutTable

SUMMED_FROM = 64
"""Chips of a three-dimensional slice that is gathered over by sums: a sharded matrix that one matmul reads whole is
all-reduced on v5p:2x2x16, 2x4x8, 4x4x4 and 4x4x8, whatever its size; it is gathered on v5p:2x2x2, 2x2x4, 2x2x8, 2x4x4
and 2x2x12, over part of a larger slice, and on v5e:8x8 and 16x16 (libtpu 0.0.42)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a whole table shares: its distinct meshes with the cost of every collective, and its distinct pieces of
    work.

    Rows that agree in mesh, microbatches of a step, `sequence_parallel`, `context_attention` and `vocab_tiles` share a
    piece. `piece_of_row`: shape (rows,). `mesh_of_piece`: shape (pieces,)."""

    meshes: Meshes
    costs: dict[tuple[str, str], CollectiveCost]
    work: DeviceWork
    piece_of_row: np.ndarray
    mesh_of_piece: np.ndarray


Kind = TypeVar("Kind", bound="Rows")


def hides(stack: TrainingStack, axis: str) -> bool:
    """Whether compute hides any of an axis's collectives."""
    return bool(stack.hidden_share.get(axis, 0.0) or stack.hidden_outer.get(axis))


def hidden_beside(
    stack: TrainingStack,
    axis: str,
    lines: list[TermRows],
    beside: np.ndarray,
    outer: str,
    most_inside: np.ndarray | None = None,
) -> list[TermRows]:
    """The terms of one collective along an axis, less what compute hides of it: the least of `hidden_share` x `beside`
    (seconds of compute that runs at the same time) and `hidden_most` x the collective's seconds. `outer`: the tier that
    may have a share and a most of its own. `most_inside`: in place of `hidden_most`."""
    most_of_axis = stack.hidden_most.get(axis, 1.0) if most_inside is None else most_inside
    inside: tuple[float, Any] = (stack.hidden_share.get(axis, 0.0), most_of_axis)
    limits: dict[bool, tuple[float, Any]] = {False: inside, True: stack.hidden_outer.get(axis, inside)}
    found = []
    for is_apart, (share, most) in limits.items():
        some = [line for line in lines if _is_apart(line, axis, outer, stack) == is_apart]
        if some and share:
            total = np.add.reduce([line.full_seconds for line in some])
            exposed = np.maximum(total - np.minimum(share * beside, most * total), 0.0)
            left = np.divide(exposed, total, out=np.zeros(exposed.shape), where=total > 0)
            some = [line.with_seconds(line.full_seconds * left, line.full_seconds) for line in some]
        found += some
    return found


def _is_apart(line: TermRows, axis: str, outer: str, stack: TrainingStack) -> bool:
    """Whether a line is what the axis sends over the outermost tier, where that has a share of its own."""
    return axis in stack.hidden_outer and line.part is not None and line.part.tier == outer


def chunks_of(table: LayoutTable, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """(whether a chunk of `autotune.models.pipeline` has several layers, whether a stage has several chunks)."""
    return table.stage * table.virtual_stages < layers, table.virtual_stages > 1


class Rows:
    """Some layouts of a table, the mesh and the piece of work of each, and the terms that `add_terms` adds.

    Every array has one entry a row. Where the table stands for every row with every set (`autotune.table.across`), an
    array is (rows, sets), of length 1 where all rows or all sets agree.
    """

    terms: CostTerms
    size: dict[str, np.ndarray]
    """Of each mesh axis."""
    used: dict[str, bool]
    """Mesh axis -> whether any row has it above 1."""
    parallel: np.ndarray
    """Rows with sequence parallelism."""
    layers: np.ndarray
    """Layers of a stage."""
    staged: np.ndarray
    """Rows with a pipeline (`autotune.models.pipeline`)."""
    sliced: np.ndarray
    """Rows with a pipeline whose virtual stages have several layers."""
    dealt: np.ndarray
    """Rows with several virtual stages on each stage."""
    parameters: Parameters
    adapters: Adapters | None
    """What alone is trained, where the `parameters` are frozen; None: the parameters are trained."""
    nothing: np.ndarray
    """Zeros."""
    stream_bytes: np.ndarray
    """The residual stream of a microbatch in the compute dtype, whole along `tensor`."""

    orthogonalised: Orthogonalisation | None = None
    """What makes the update of the layers' matrices orthogonal; None: nothing does."""

    def __init__(
        self,
        inputs: Inputs,
        prepared: Prepared,
        table: LayoutTable,
        piece: np.ndarray,
        counting: bool,
    ) -> None:
        self.inputs, self.prepared, self.table, self.piece = inputs, prepared, table, piece
        self.mesh = prepared.mesh_of_piece[piece]
        self.stack, self.shape, self.hardware = inputs.stack, inputs.transformer, inputs.target.hardware
        self.width = DTYPE_BYTES[inputs.dtype]
        self.size = {name: getattr(table, name).astype(np.float64) for name in AXES}
        self.used = {name: bool((getattr(table, name) > 1).any()) for name in AXES}
        self.parallel = table.sequence_parallel > 0
        self.staged = self.size["stage"] > 1
        self.parameters = parameters_of(self.shape, self.size)
        base = self.stack.state.base
        self.adapters = adapters_of(self.shape, base.lora, self.size) if base else None
        straggler_share = self.hardware.straggler_share(inputs.target.groups)
        shape = np.broadcast_shapes(piece.shape, table.remat.shape)
        self.terms = CostTerms(
            rows=shape if len(shape) > 1 else len(table), straggler_share=straggler_share, counting=counting
        )
        self.nothing = np.zeros(piece.shape)
        count = float(self.shape.layers)
        slices = self.size["stage"] * table.virtual_stages
        of_a_stage = np.ceil(count / slices - 1e-9) * table.virtual_stages
        self.layers = np.where(self.staged, of_a_stage, count)
        several_layers, self.dealt = chunks_of(table, self.shape.layers)
        self.sliced = self.staged & several_layers
        self.stream_bytes = self.per_row(prepared.work.stream_bytes)
        self.add_terms()

    def add_terms(self) -> None:
        """Work out these rows and add their terms."""
        raise NotImplementedError

    def some(self, kind: type[Kind], rows: np.ndarray) -> Kind:
        """Some of these rows, worked out as another kind."""
        return kind(self.inputs, self.prepared, self.table.take(rows), self.piece[rows], self.terms.counting)

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """Values of each row's piece of work."""
        return values[self.piece]

    def reductions(self, axis: str) -> np.ndarray:
        """How often a step reduces gradients along an axis that repeats the weights."""
        deferred = self.deferred & (axis == "data")
        return np.where(self.stack.gradients_per_pass & ~deferred, self.table.accumulate, 1.0)

    def table_share(self, axis: str) -> np.ndarray:
        """Of these reductions, the share in which the vocabulary's tables take part."""
        summed_once = self.stack.sums_tables_once & (self.table.zero == 0)
        return np.where(summed_once, 1.0 / self.reductions(axis), 1.0)

    @property
    def deferred(self) -> np.ndarray:
        """Rows that reduce gradients along `data` once a step (`reduce=step`), by a collective of their own."""
        return self.table.reduce == ONCE_A_STEP

    @property
    def hbm_rate(self) -> float:
        """Bytes a second that the device's memory gives."""
        return self.hardware.hbm_bytes_per_second * self.hardware.hbm_efficiency

    @property
    def host_rate(self) -> float:
        """Bytes a second between a device and its host's memory, one way."""
        return self.hardware.host_bytes_per_second

    def add_collective(self, axis: str, kind: str, unit: str, payload, times, beside=None, outer_share=1.0) -> None:
        """Add `times` collectives of `kind` along `axis`. `payload`: bytes of one, as in `meshes.collectives`.
        `beside`: seconds of compute that runs at the same time and hides it (`hidden_beside`); None: nothing does.
        `outer_share`: see `RouteCost.seconds`."""
        lines = self.collective_terms(axis, kind, unit, payload, times, outer_share)
        if beside is not None and hides(self.stack, axis):
            lines = hidden_beside(self.stack, axis, lines, beside, self.hardware.tiers[-1].name)
        self.terms.entries += lines

    def collective_terms(self, axis: str, kind: str, unit: str, payload, times, outer_share=1.0) -> list[TermRows]:
        """Count `times` collectives along an axis; what they take with nothing to hide behind."""
        if not self.used[axis] or not np.any(times):
            return []
        cost = self.prepared.costs[axis, kind]
        if self.terms.counting:
            self.terms.count(axis, unit, wire_bytes(kind, payload, self.size[axis]) * times)
        parts, latency = cost.seconds(self.mesh, payload, outer_share)
        links = [(CollectivePart(axis, tier, kind), part * times) for tier, part in parts.items()]
        links.append((CollectivePart(axis, None, None), latency * times))
        return [TermRows(link.name, link.resource, unit, seconds, seconds, link) for link, seconds in links]

    def add_gather(self, unit: str, weights: np.ndarray, times: np.ndarray | float, beside=None) -> None:
        """Add all-gathers along fsdp. `weights`: bytes of one device after the gather."""
        summed = self.summed
        self.add_collective("fsdp", "all_gather", unit, weights, np.where(summed, 0.0, times), beside)
        if summed.any():
            self.add_collective("fsdp", "all_reduce", unit, weights, np.where(summed, times, 0.0))

    @property
    def summed(self) -> np.ndarray:
        """Rows whose fsdp axis fills a three-dimensional slice: there the compiler replaces the all-gather by an
        all-reduce of shards padded with zeros."""
        target, table = self.inputs.target, self.table
        solid = len(target.shape) == 3 and min(target.shape) > 1 and target.devices_per_group >= SUMMED_FROM
        return (table.fsdp // table.dcn_fsdp == target.devices_per_group) & solid & self.stack.sums_over_slice

    def add_scatter(self, unit: str, gradients: np.ndarray, times: np.ndarray | float, beside=None) -> None:
        """Add reduce-scatters along fsdp. `gradients`: bytes of one device before the reduction."""
        whole = (self.shape.d_model / self.size["fsdp"] < self.stack.least_shard) | self.summed
        if beside is not None:
            over_fsdp_only = (self.size["data"] == 1) & (self.size["context"] == 1)
            alone = over_fsdp_only & (self.stack.scatter_hides == "alone")
            beside = np.where(alone, beside, 0.0)
            if self.terms.counting and alone.any():
                # Under its matmul it is a chain of permutes both ways, two more than shards to send (v5e, v5p and v6e,
                # fsdp 8 to 32, libtpu 0.0.42).
                windowed = alone & ~whole & (self.size["fsdp"] > 2)
                self.terms.count("fsdp", unit, np.where(windowed, 2.0 * gradients / self.size["fsdp"] * times, 0.0))
        self.add_collective("fsdp", "reduce_scatter", unit, gradients, np.where(whole, 0.0, times), beside)
        if whole.any():
            self.add_collective("fsdp", "all_reduce", unit, gradients, np.where(whole, times, 0.0))
