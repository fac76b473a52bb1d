"""Prices of a step that is no transformer we know, from its trace: FLOPs, parameter bytes, activations.

What the trace says for the whole mesh is divided by the axes that cut it: matmuls by all devices, weights by `fsdp` and
`tensor`, activations by all but `stage`. Along `tensor` a quarter of what leaves the matmuls is taken to be reduced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.efficiency import matmul_seconds
from autotune.meshes.layout import REMAT, WORDS
from autotune.meshes.target import Target
from autotune.price_ledger import Ledger
from autotune.price_network import CollectiveCost, Meshes, cost_of, meshes_of
from autotune.price_work import DTYPE_BYTES
from autotune.table import LayoutTable
from autotune.workload import Workload

KINDS = {
    "tensor": "all_reduce", "fsdp": "all_gather", "data": "all_reduce", "context": "all_reduce", "expert": "all_to_all",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPricer:
    """Prices tables of layouts of one traced workload on one target."""

    workload: Workload
    target: Target

    def prepare(self, table: LayoutTable) -> tuple[Meshes, dict[str, CollectiveCost]]:
        """The distinct meshes with the cost of each axis's collective."""
        meshes = meshes_of(table, self.target)
        return meshes, {axis: cost_of(kind, axis, meshes) for axis, kind in KINDS.items()}

    def ledger(self, table: LayoutTable, prepared: tuple[Meshes, dict[str, CollectiveCost]], rows: slice) -> Ledger:
        """Every term of some rows."""
        traced, hardware = self.workload.traced, self.target.hardware
        assert traced is not None, "a workload without a transformer is traced"
        meshes, costs = prepared
        mesh = meshes.of_row[rows]
        size = {name: getattr(table, name).astype(np.float64) for name in WORDS}
        devices = np.prod(list(size.values()), axis=0)
        shards = size["data"] * size["fsdp"] * size["expert"]
        book = Ledger(rows=len(table))
        for dot in traced.dots:
            dtype = dot.dtype if dot.dtype in hardware.flops_per_second else "float32"
            rows_each = dot.m / (shards * size["context"])
            seconds = matmul_seconds(
                hardware, dtype, DTYPE_BYTES.get(dot.dtype, 4.0), rows_each, dot.n / size["tensor"], dot.k, dot.batch
            )
            book.add("matmul.recomputed" if dot.recomputed else "matmul", "matmul", "step", seconds * dot.trips)
            book.add("launches", "launch", "step", np.full(len(table), dot.trips * hardware.launch_seconds))
        hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
        weights = traced.parameter_bytes / (size["fsdp"] * size["tensor"] * size["stage"])
        state = traced.optimizer_bytes / (size["fsdp"] * size["tensor"] * size["stage"])
        state = state / np.where(table.zero > 0, size["data"], 1.0)
        activations = traced.activation_bytes / (shards * size["context"] * size["tensor"]) / table.accumulate
        book.add("elementwise", "hbm", "step", 2.0 * activations * table.accumulate / hbm)
        book.add("optimizer", "hbm", "step", 2.0 * (weights + state) / hbm)
        gathered = weights * size["fsdp"]
        moved = {
            "data": (weights, table.accumulate),
            "context": (weights, table.accumulate),
            "fsdp": (gathered, 3.0 * table.accumulate),
            "tensor": (2.0 * self._stream_bytes(traced.dots) / (shards * size["context"]), 1.0),
            "expert": (activations, 2.0),
        }
        for axis, (payload, times) in moved.items():
            if (size[axis] > 1).any():
                parts, latency = costs[axis].seconds(mesh, payload)
                for tier, part in zip(costs[axis].tiers, parts, strict=True):
                    name = f"{costs[axis].kind}[{axis}]@{tier}"
                    book.add(name, f"network:{axis}@{tier}", "step", part * times)
                book.add(f"latency[{axis}]", "latency", "step", latency * times)
        book.times = dict.fromkeys(("layer", "head", "pass", "step"), np.ones(len(table)))
        stages = size["stage"]
        filled = table.microbatches / (table.microbatches + (stages - 1.0) / table.virtual_stages)
        busy = book.unit_seconds("step")
        book.bubble = np.where(stages > 1, busy / filled - busy, 0.0)
        kept = np.where(table.remat >= REMAT.index("full"), 0.25, 1.0)
        book.memory = {
            "parameters": weights,
            "gradients": weights,
            "optimizer_state": state,
            "activations": activations * kept,
            "logits": np.zeros(len(table)),
            "workspace": traced.batch_bytes / devices,
        }
        return book

    @staticmethod
    def _stream_bytes(dots) -> float:
        """Bytes that leave matmuls in one step: m x n of each, in its dtype."""
        return sum(dot.batch * dot.m * dot.n * dot.trips * DTYPE_BYTES.get(dot.dtype, 4.0) for dot in dots) / 4.0


def traced_pricer(workload: Workload, target: Target) -> TracedPricer:
    """The pricer of a workload without a transformer; ValueError where it was not traced either."""
    if workload.traced is None:
        raise ValueError(f"price: {workload.name} has neither a transformer nor a trace to be priced from")
    return TracedPricer(workload=workload, target=target)
