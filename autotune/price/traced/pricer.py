"""Prices of a step that is no transformer we know: from its trace, and from probe compiles where there were any.

From the trace: matmuls are divided by the axes of the mesh, weights and optimizer state exactly as the partition cuts
them. What the trace does not say is assumed: along `tensor`, a quarter of what leaves the matmuls is reduced (in a
transformer with d_ff = 4 d, 4 of 18 parts); memory traffic is two passes over the activations. With probes
(`autotune.probes`) all of these but weights and optimizer state follow the laws that the probes showed, along the
axes that were probed. Every term says which it is. Nothing is hidden but what was in the probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.efficiency import DTYPE_BYTES, matmul_seconds
from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import AXES, REMAT
from autotune.meshes.target import Target
from autotune.partition import Partition
from autotune.price.collective_costs import CollectiveCost, Meshes, cost_of, meshes_of
from autotune.price.terms import COMPUTE, UNITS, CollectivePart, CostTerms
from autotune.price.traced.laws import ChoiceFactors, CollectiveLaw, Probed
from autotune.price.traced.scaling_law import ScalingLaw
from autotune.price.unique_rows import unique_rows
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

COLLECTIVES_OF_AXIS = {
    "data": ("all_reduce",),
    "context": ("all_reduce",),
    "fsdp": ("all_gather", "reduce_scatter"),
    "tensor": ("all_reduce",),
    "expert": ("all_to_all", "all_reduce"),
}
REDUCED_SHARE = 0.25
"""Of what leaves the matmuls, along `tensor`."""

CORE_TERMS = {"matmul": "matmul", "hbm": "elementwise", "core": "core", "launch": "launches"}
"""What a probed resource of the core is called among the terms."""

NO_LAW = ScalingLaw(terms=(), error=0.0)

KEPT_BY_FULL_REMAT = 0.1
"""Of the traced activations: layer inputs, about a tenth of a layer's values (2 of 16 to 34 bytes a token and d_model,
arXiv 2205.05198)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Bytes of one device, one entry a row."""

    weights: np.ndarray
    """Trained weights between steps."""
    frozen: np.ndarray
    """Frozen weights between steps. They are gathered as the others are, and have no gradients."""
    mutable: np.ndarray
    """Arrays that change without a gradient."""
    state: np.ndarray
    """The optimizer's state."""
    gathered: np.ndarray
    """Trained weights that are cut along fsdp, as one device holds them after the gather."""
    frozen_gathered: np.ndarray
    """The same of frozen weights."""
    repeated: dict[str, np.ndarray]
    """Mesh axis -> trained weights that it leaves whole."""


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
    probed: Probed | None  # what probes on this kind of machine taught

    def prepare(self, table: LayoutTable) -> Prepared:
        """The distinct meshes with the cost of each collective, and the bytes of every row."""
        meshes = meshes_of(table, self.target)
        pairs = {(axis, kind) for axis, kinds in COLLECTIVES_OF_AXIS.items() for kind in kinds}
        if self.probed:
            pairs |= {(axis, one.kind) for laws in self.probed.laws.values() for one in laws.sent for axis in one.axes}
        costs = {(axis, kind): cost_of(kind, axis, meshes) for axis, kind in sorted(pairs)}
        return Prepared(meshes=meshes, costs=costs, shares=self._shares(table))

    def _shares(self, table: LayoutTable) -> Shares:
        """Rows that use the same axes cut every array along the same ones: each such set of axes is asked once."""
        traced = self.workload.traced
        assert traced is not None, "a workload without a transformer is traced"
        role_bytes = {
            "parameters": traced.parameter_bytes,
            "frozen": traced.frozen_bytes,
            "mutable": traced.mutable_bytes,
            "optimizer": traced.optimizer_bytes,
        }
        rows = len(table)
        size = {name: getattr(table, name).astype(np.float64) for name in AXES}
        found = Shares(
            weights=np.zeros(rows), frozen=np.zeros(rows), mutable=np.zeros(rows), state=np.zeros(rows),
            gathered=np.zeros(rows), frozen_gathered=np.zeros(rows),
            repeated={axis: np.zeros(rows) for axis in ("data", "context", "expert")},
        )  # fmt: skip
        own = self._own_sizes(size)
        size |= own
        cut = [(getattr(table, name) > 1).astype(np.int64) for name in AXES if name not in own]
        first, used = unique_rows([*cut, *((sizes > 1).astype(np.int64) for sizes in own.values()), table.zero])
        for group, row in enumerate(first):
            members = np.flatnonzero(used == group)
            for role, axes, share in _cuts(self.workload.partition, table.layout(int(row))):
                whole = share * role_bytes[role]
                each = whole / math.prod((size[axis][members] for axis in axes), start=np.ones(len(members)))
                kinds = {self._kind(axis) for axis in axes}
                if role == "optimizer":
                    found.state[members] += each
                    continue
                if role == "mutable":
                    found.mutable[members] += each
                    continue
                if role == "frozen":
                    found.frozen[members] += each
                    if "fsdp" in kinds:
                        found.frozen_gathered[members] += each * self._whole(size, axes, "fsdp", members)
                    continue
                found.weights[members] += each
                if "fsdp" in kinds:
                    found.gathered[members] += each * self._whole(size, axes, "fsdp", members)
                for axis, total in found.repeated.items():
                    if axis not in kinds:
                        total[members] += each
        return found

    def _kind(self, axis: str) -> str:
        partition = self.workload.partition
        return partition.kind(axis) if partition else axis

    def _whole(self, size: Mapping[str, np.ndarray], axes: Sequence[str], kind: str, members: np.ndarray) -> Any:
        """The parts that the axes of a kind cut an array into."""
        return math.prod(size[axis][members] for axis in axes if self._kind(axis) == kind)

    def _own_sizes(self, size: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sizes of the step's own axes that share one of ours, as the partition's cuts name them."""
        partition = self.workload.partition
        found: dict[str, np.ndarray] = {}
        if partition is None:
            return found
        for axis in dict.fromkeys(partition.extra_axes.values()):
            totals, number = np.unique(size[axis], return_inverse=True)
            each = [partition.own_sizes(axis, int(total)) for total in totals]
            for one, own in zip(partition.expanded((axis,)), partition.own_axes(axis), strict=True):
                found[one] = np.array([sizes[own] for sizes in each], dtype=np.float64)[number]
        return found

    def cost_terms(self, table: LayoutTable, prepared: Prepared, rows: slice, *, counting: bool = False) -> CostTerms:
        """Every term of some rows."""
        straggler_share = self.target.hardware.straggler_share(self.target.groups)
        terms = CostTerms(rows=len(table), straggler_share=straggler_share, counting=counting)
        block = _Block(self, table, prepared, rows, terms)
        if self.probed:
            block.probed_compute(self.probed)
            block.probed_collectives(self.probed)
        else:
            block.traced_compute()
        block.assumed_collectives(self.probed.axes if self.probed else ())
        terms.times = dict.fromkeys(UNITS, np.ones(len(table)))
        stages = block.size["stage"]
        fill = (stages - 1.0) / table.virtual_stages / table.microbatches
        terms.bubble = np.where(stages > 1, terms.unit_seconds("step") * fill, 0.0)
        terms.memory = block.memory(self.probed)
        return terms


class _Block:
    """Some rows while they are priced; every array has one entry a row."""

    def __init__(
        self, pricer: TracedPricer, table: LayoutTable, prepared: Prepared, rows: slice, terms: CostTerms
    ) -> None:
        traced = pricer.workload.traced
        assert traced is not None, "a workload without a transformer is traced"
        self.traced, self.hardware, self.table, self.terms = traced, pricer.target.hardware, table, terms
        self.costs, self.mesh = prepared.costs, prepared.meshes.of_row[rows]
        self.size = {name: getattr(table, name).astype(np.float64) for name in AXES}
        self.pieces = self.size["data"] * self.size["fsdp"] * self.size["expert"] * self.size["context"]
        self.passes = table.accumulate * table.microbatches
        shares = prepared.shares
        self.weights, self.state = shares.weights[rows], shares.state[rows]
        self.frozen, self.mutable = shares.frozen[rows], shares.mutable[rows]
        self.gathered = shares.gathered[rows] / self.size["stage"]
        self.frozen_gathered = shares.frozen_gathered[rows] / self.size["stage"]
        self.repeated = {axis: repeated[rows] / self.size["stage"] for axis, repeated in shares.repeated.items()}
        self.activations = traced.activation_bytes / (self.pieces * self.size["tensor"] * self.size["stage"])
        self.core = np.zeros(len(table))
        self.left = sum(DTYPE_BYTES.get(dot.dtype, 4.0) * dot.batch * dot.m * dot.n * dot.trips for dot in traced.dots)

    def add(self, source: str, name: str, resource: str, seconds: np.ndarray) -> None:
        self.terms.add(name, resource, "step", seconds)
        self.terms.sources[name] = source
        if resource in COMPUTE:
            self.core = self.core + seconds

    def add_collective_part(self, source: str, part: CollectivePart, seconds: np.ndarray, exposed: float) -> None:
        shown = seconds if exposed == 1.0 else np.maximum(exposed * seconds, seconds - self.core)
        self.terms.add_collective_part(part, "step", shown, seconds)
        self.terms.sources[part.name] = source

    def traced_compute(self) -> None:
        """Matmuls by the trace; passes over the activations and over the state."""
        size, passes, hardware = self.size, self.passes, self.hardware
        for dot in self.traced.dots:
            dtype = dot.dtype if dot.dtype in hardware.flops_per_second else "float32"
            width = DTYPE_BYTES.get(dot.dtype, 4.0)
            each = matmul_seconds(
                hardware, dtype, width, dot.m / (self.pieces * passes), dot.n / size["tensor"], dot.k, dot.batch
            )
            name = "recompute.matmul" if dot.recomputed else "matmul"
            self.add("traced", name, "matmul", each * dot.trips * passes / size["stage"])
            share = dot.trips / (self.pieces * size["tensor"] * size["stage"])
            self.terms.count("flops", "step", 2.0 * dot.batch * dot.m * dot.n * dot.k * share)
            self.add("traced", "launches", "launch", passes * dot.trips * hardware.launch_seconds / size["stage"])
        hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
        self.add("assumed", "elementwise", "hbm", 2.0 * self.activations / hbm)
        self.add("traced", "optimizer", "hbm", (2.0 * self.state + 3.0 * self.weights) / hbm)

    def probed_compute(self, probed: Probed) -> None:
        """The core's own work by resource, as probes showed it; on hardware made faster by `scale`, that much less."""
        for resource in dict.fromkeys(name for laws in probed.laws.values() for name in laws.core_seconds):
            laws_of = {zero: laws.core_seconds.get(resource, NO_LAW) for zero, laws in probed.laws.items()}
            seconds = self.by_zero(laws_of) * self.choice_factor(probed, lambda one: one.core_seconds, resource)
            made = "latency" if resource == "launch" else resource
            self.add("probed", CORE_TERMS[resource], resource, seconds / self.hardware.faster.get(made, 1.0))
        flops = self.by_zero({zero: laws.flops for zero, laws in probed.laws.items()})
        self.terms.count("flops", "step", flops * self.choice_factor(probed, lambda one: {"": one.flops}))

    def by_zero(self, law_of: Mapping[int, ScalingLaw]) -> np.ndarray:
        """An amount by the law of each row's `zero`."""
        values = {zero: law.at(self.size) * np.ones(len(self.table)) for zero, law in law_of.items()}
        first = next(iter(values.values()))
        return np.where(self.table.zero > 0, values.get(1, first), values.get(0, first))

    @property
    def _policy(self) -> np.ndarray:
        """The policy of each row. A set without a name, whose arrays a user's step need not have, is priced as full
        recomputation."""
        return np.where(self.table.remat < len(REMAT), self.table.remat, REMAT.index("full"))

    def choice_factor(
        self, probed: Probed, factors: Callable[[ChoiceFactors], Mapping[Any, float]], key: Any = ""
    ) -> np.ndarray:
        """What each row's remat and accumulation multiply an amount by; `key` says which of a choice's factors."""
        by_remat = np.ones(len(REMAT))
        for name, choice in probed.remat.items():
            by_remat[REMAT.index(name)] = factors(choice).get(key, 1.0)
        total = by_remat[self._policy]
        if probed.accumulate is not None:
            doublings = np.log2(self.table.accumulate / probed.passes)
            total = total * np.power(factors(probed.accumulate).get(key, 1.0), doublings)
        return total

    def probed_collectives(self, probed: Probed) -> None:
        """The classes of collectives that probes showed."""
        for zero, laws in probed.laws.items():
            mine = (self.table.zero > 0) == (zero > 0) if len(probed.laws) > 1 else np.ones(len(self.table), bool)
            for one in laws.sent:
                times = self.choice_factor(probed, lambda choice: choice.sent, (one.axes, one.kind))
                self.probed_class(one, mine * one.payload(self.size) * times)

    def probed_class(self, one: CollectiveLaw, payload: np.ndarray) -> None:
        """One class along all its axes: a gather or reduction axis by axis, the innermost first; what else moves, along
        the innermost."""
        reduces = one.kind in ("all_gather", "reduce_scatter", "all_reduce")
        total = math.prod(self.size[axis] for axis in one.axes)
        if not reduces:
            inner = self.size[one.axes[-1]]
            sent = payload * (total - 1.0) / total
            payload = sent * inner / np.maximum(inner - 1.0, 1.0)
            self.send("probed", one.axes[-1], one.kind, payload, one.count, one.exposed)
            return
        for axis in reversed(one.axes):
            self.send("probed", axis, one.kind, payload, one.count, one.exposed)
            payload = payload / self.size[axis]

    def send(
        self, source: str, axis: str, kind: str, payload: np.ndarray, times: float | np.ndarray, exposed: float = 1.0
    ) -> None:
        """Collectives along one axis: `payload` bytes in all, in so many `times` (0 bytes: none). All but a share
        `exposed` of their time is hidden, as long as the core works."""
        size = self.size[axis]
        there = (payload > 0) & (size > 1)
        if not there.any():
            return
        sent = wire_bytes("all_gather" if kind == "permute" else kind, payload, size)
        cost = self.costs[axis, kind]
        parts, latency = cost.seconds(self.mesh, (sent if kind == "permute" else payload) / times)
        for tier, part in parts.items():
            self.add_collective_part(source, CollectivePart(axis, tier, kind), part * times, exposed)
        self.terms.count(axis, "step", sent)
        self.add_collective_part(
            source, CollectivePart(axis, None, None), np.where(there, latency * times, 0.0), exposed
        )

    def assumed_collectives(self, probed: Sequence[str]) -> None:
        """What the trace and the partition let expect along the axes that no probe has cut."""
        passes = self.passes
        moved = [(axis, "all_reduce", repeated, passes) for axis, repeated in self.repeated.items()]
        moved += [
            ("fsdp", "all_gather", self.gathered + self.frozen_gathered, 2.0 * passes),
            ("fsdp", "reduce_scatter", self.gathered, passes),
        ]
        reduced = REDUCED_SHARE * self.left / (self.pieces * self.size["stage"] * passes)
        moved += [("tensor", "all_reduce", reduced, passes)]
        moved += [("expert", "all_to_all", self.activations / passes, 2.0 * passes)]
        for axis, kind, payload, times in moved:
            if axis not in probed:
                self.send("assumed", axis, kind, payload * times, times)

    def memory(self, probed: Probed | None) -> dict[str, np.ndarray]:
        """Bytes by category: weights and optimizer state as they are cut, the rest as traced or as probes held it."""
        stages = self.size["stage"]
        gradients = self.weights / stages
        if probed:
            held = self.by_zero({zero: laws.held_bytes for zero, laws in probed.laws.items()})
            held = held * self.choice_factor(probed, lambda one: {"": one.held_bytes})
            # In the probes activations are the most; where they have fallen below them, gradients are still held.
            activations, workspace = np.maximum(held - gradients, 0.0), np.zeros(len(self.table))
        else:
            kept = np.where(self._policy >= REMAT.index("full"), KEPT_BY_FULL_REMAT, 1.0)
            activations = self.activations * kept / self.table.accumulate
            workspace = self.traced.batch_bytes / self.pieces + self.mutable / stages
        return {
            "parameters": self.weights / stages + self.frozen / stages,
            "gradients": gradients,
            "optimizer_state": self.state / stages,
            "activations": activations,
            "logits": np.zeros(len(self.table)),
            "workspace": workspace,
        }


def _cuts(partition: Partition | None, layout) -> list[tuple[str, tuple[str, ...], float]]:
    """(role, axes that cut it, share of the role's elements) of every array; without a partition, the ideal."""
    if partition is None:
        axes = tuple(axis for axis in ("fsdp", "tensor") if getattr(layout, axis) > 1)
        zero = ("data",) if layout.zero and layout.data > 1 else ()
        return [("parameters", axes, 1.0), ("optimizer", (*axes, *zero), 1.0)]
    elements: dict[tuple[str, tuple[str, ...]], int] = {}
    totals: dict[str, int] = {}
    for leaf in partition.state.values():
        if leaf.role in ("parameters", "frozen", "mutable", "optimizer"):
            axes = tuple(axis for dimension in partition.cut(leaf, layout) for axis in dimension)
            count = math.prod(leaf.shape)
            elements[leaf.role, axes] = elements.get((leaf.role, axes), 0) + count
            totals[leaf.role] = totals.get(leaf.role, 0) + count
    return [(role, axes, count / totals[role]) for (role, axes), count in elements.items()]


def traced_pricer(workload: Workload, target: Target, probed: Probed | None) -> TracedPricer:
    """The pricer of a workload without a transformer; ValueError where it was not traced either.

    What was `probed` on another kind of machine is left out.
    """
    if workload.traced is None:
        raise ValueError(f"price: {workload.name} has neither a transformer nor a trace to be priced from")
    here = probed if probed is not None and probed.hardware == target.hardware.name else None
    return TracedPricer(workload=workload, target=target, probed=here)
