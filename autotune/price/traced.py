"""Prices of a step that is no transformer we know, from its trace: matmuls, bytes of every array and how it is cut.

Matmuls are divided by the axes of the mesh, weights and optimizer state exactly as the partition cuts them. What the
trace does not say is estimated: along `tensor`, a quarter of what leaves the matmuls is reduced (in a transformer with
d_ff = 4 d, 4 of 18 parts); memory traffic is two passes over the activations; nothing hides behind anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autotune.efficiency import matmul_seconds
from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import REMAT, WORDS
from autotune.meshes.target import Target
from autotune.partition import Partition
from autotune.price.ledger import UNITS, Ledger
from autotune.price.network import CollectiveCost, Meshes, cost_of, distinct, meshes_of
from autotune.price.work import DTYPE_BYTES
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

KINDS = {
    "data": ("all_reduce",),
    "context": ("all_reduce",),
    "fsdp": ("all_gather", "reduce_scatter"),
    "tensor": ("all_reduce",),
    "expert": ("all_to_all", "all_reduce"),
}
REDUCED_SHARE = 0.25
"""Of what leaves the matmuls, along `tensor`."""

KEPT_BY_FULL_REMAT = 0.1
"""Of the traced activations: layer inputs, about a tenth of a layer's values (2 of 16 to 34 bytes a token and d_model,
arXiv 2205.05198)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Bytes a device of each row: `weights` and `state` (optimizer) as kept; `gathered` over fsdp and `repeated` along
    each axis that leaves weights whole, as one device holds them there."""

    weights: np.ndarray
    state: np.ndarray
    gathered: np.ndarray
    repeated: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a whole table shares."""

    meshes: Meshes
    costs: dict[tuple[str, str], CollectiveCost]
    shares: Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPricer:
    """Prices tables of layouts of one traced workload on one target."""

    workload: Workload
    target: Target

    def prepare(self, table: LayoutTable) -> Prepared:
        """The distinct meshes with the cost of each collective, and the bytes of every row."""
        meshes = meshes_of(table, self.target)
        costs = {(axis, kind): cost_of(kind, axis, meshes) for axis, kinds in KINDS.items() for kind in kinds}
        return Prepared(meshes=meshes, costs=costs, shares=self._shares(table))

    def _shares(self, table: LayoutTable) -> Shares:
        """Rows that use the same axes cut every array along the same ones: each such set of axes is asked once."""
        traced = self.workload.traced
        assert traced is not None, "a workload without a transformer is traced"
        rows = len(table)
        size = {name: getattr(table, name).astype(np.float64) for name in WORDS}
        found = Shares(
            weights=np.zeros(rows), state=np.zeros(rows), gathered=np.zeros(rows),
            repeated={axis: np.zeros(rows) for axis in ("data", "context", "expert")},
        )  # fmt: skip
        first, used = distinct([(getattr(table, name) > 1).astype(np.int64) for name in WORDS] + [table.zero])
        for group, row in enumerate(first):
            members = np.flatnonzero(used == group)
            for role, axes, share in _cuts(self.workload.partition, table.layout(int(row))):
                whole = share * (traced.parameter_bytes if role == "parameters" else traced.optimizer_bytes)
                each = whole / math.prod((size[axis][members] for axis in axes), start=np.ones(len(members)))
                if role == "optimizer":
                    found.state[members] += each
                    continue
                found.weights[members] += each
                if "fsdp" in axes:
                    found.gathered[members] += each * size["fsdp"][members]
                for axis, total in found.repeated.items():
                    if axis not in axes:
                        total[members] += each
        return found

    def ledger(self, table: LayoutTable, prepared: Prepared, rows: slice, *, counting: bool = False) -> Ledger:
        """Every term of some rows."""
        traced, hardware, shares = self.workload.traced, self.target.hardware, prepared.shares
        assert traced is not None, "a workload without a transformer is traced"
        mesh = prepared.meshes.of_row[rows]
        size = {name: getattr(table, name).astype(np.float64) for name in WORDS}
        pieces = size["data"] * size["fsdp"] * size["expert"] * size["context"]
        passes = table.accumulate * table.microbatches
        waiting = hardware.waiting(self.target.groups)
        book = Ledger(rows=len(table), waiting=waiting, counting=counting)
        left = 0.0
        for dot in traced.dots:
            dtype = dot.dtype if dot.dtype in hardware.flops_per_second else "float32"
            width = DTYPE_BYTES.get(dot.dtype, 4.0)
            each = matmul_seconds(
                hardware, dtype, width, dot.m / (pieces * passes), dot.n / size["tensor"], dot.k, dot.batch
            )
            name = "recompute.matmul" if dot.recomputed else "matmul"
            book.add(name, "matmul", "step", each * dot.trips * passes / size["stage"])
            share = dot.trips / (pieces * size["tensor"] * size["stage"])
            book.count("flops", "step", 2.0 * dot.batch * dot.m * dot.n * dot.k * share)
            book.add("launches", "launch", "step", passes * dot.trips * hardware.launch_seconds / size["stage"])
            left += width * dot.batch * dot.m * dot.n * dot.trips
        hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
        activations = traced.activation_bytes / (pieces * size["tensor"] * size["stage"])
        book.add("elementwise", "hbm", "step", 2.0 * activations / hbm)
        weights, state = shares.weights[rows], shares.state[rows]
        book.add("optimizer", "hbm", "step", (2.0 * state + 3.0 * weights) / hbm)
        moved = [
            (axis, "all_reduce", repeated[rows] / size["stage"], passes) for axis, repeated in shares.repeated.items()
        ]
        gathered = shares.gathered[rows] / size["stage"]
        moved += [("fsdp", "all_gather", gathered, 2.0 * passes), ("fsdp", "reduce_scatter", gathered, 1.0 * passes)]
        moved += [("tensor", "all_reduce", REDUCED_SHARE * left / (pieces * size["stage"] * passes), passes)]
        moved += [("expert", "all_to_all", activations / passes, 2.0 * passes)]
        for axis, kind, payload, times in moved:
            if (size[axis] > 1).any():
                cost = prepared.costs[axis, kind]
                parts, latency = cost.seconds(mesh, payload)
                for tier, part in zip(cost.tiers, parts, strict=True):
                    if part.any():
                        book.add(f"{kind}[{axis}]@{tier}", f"network:{axis}@{tier}", "step", part * times)
                book.count(axis, "step", wire_bytes(kind, payload, size[axis]) * times)
                book.add(f"latency[{axis}]", "latency", "step", latency * times)
        book.times = dict.fromkeys(UNITS, np.ones(len(table)))
        stages = size["stage"]
        fill = (stages - 1.0) / table.virtual_stages / table.microbatches
        book.bubble = np.where(stages > 1, book.unit_seconds("step") * fill, 0.0)
        kept = np.where(table.remat >= REMAT.index("full"), KEPT_BY_FULL_REMAT, 1.0)
        book.memory = {
            "parameters": weights / stages,
            "gradients": weights / stages,
            "optimizer_state": state / stages,
            "activations": activations * kept / table.accumulate,
            "logits": np.zeros(len(table)),
            "workspace": np.full(len(table), traced.batch_bytes) / pieces,
        }
        return book


def _cuts(partition: Partition | None, layout) -> list[tuple[str, tuple[str, ...], float]]:
    """(role, axes that cut it, share of the role's elements) of every array; without a partition, the ideal."""
    if partition is None:
        axes = tuple(axis for axis in ("fsdp", "tensor") if getattr(layout, axis) > 1)
        zero = ("data",) if layout.zero and layout.data > 1 else ()
        return [("parameters", axes, 1.0), ("optimizer", (*axes, *zero), 1.0)]
    elements: dict[tuple[str, tuple[str, ...]], int] = {}
    totals: dict[str, int] = {}
    for leaf in partition.state.values():
        if leaf.role in ("parameters", "optimizer"):
            axes = tuple(axis for dimension in partition.cut(leaf, layout) for axis in dimension)
            count = math.prod(leaf.shape)
            elements[leaf.role, axes] = elements.get((leaf.role, axes), 0) + count
            totals[leaf.role] = totals.get(leaf.role, 0) + count
    return [(role, axes, count / totals[role]) for (role, axes), count in elements.items()]


def traced_pricer(workload: Workload, target: Target) -> TracedPricer:
    """The pricer of a workload without a transformer; ValueError where it was not traced either."""
    if workload.traced is None:
        raise ValueError(f"price: {workload.name} has neither a transformer nor a trace to be priced from")
    return TracedPricer(workload=workload, target=target)
