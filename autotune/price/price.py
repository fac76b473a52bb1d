"""The closed form: seconds of a step and peak bytes of one device, for every layout of a table.

It prices transformers (`transformer.pricer`) and steps of a user whose trace was probed (`traced`). No JAX, no
compiler; millions of layouts a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.meshes.transformer import TransformerShape
from autotune.price.transformer.pricer import Pricer
from autotune.price.transformer.training_stack import TrainingStack, stack_of
from autotune.table import LayoutTable

if TYPE_CHECKING:
    from autotune.price.terms import CostTerms
    from autotune.price.traced.laws import Probed
    from autotune.workload.workload import Workload

BLOCK_ROWS = 1 << 15
"""Rows worked on at a time: enough that many share their passes, few enough that their columns stay in cache."""


class AnyPricer(Protocol):
    """Prices a block of rows at a time, of a transformer (`price.transformer.pricer`) or a traced step
    (`price.traced`)."""

    def prepare(self, table: LayoutTable) -> Any:
        """What all blocks of the table share."""

    def cost_terms(self, table: LayoutTable, prepared: Any, rows: slice, *, counting: bool = False) -> CostTerms:
        """Every term of some rows (already taken as `table`) of the prepared table; `counting`: FLOPs and bytes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One named part of the step."""

    seconds: float
    resource: str | None
    """What they are spent on; None: waiting, as a bubble does."""
    source: str
    """"closed form" of a transformer's price; of a user's step "traced", "probed" or "assumed"."""
    axis: str | None = None
    """Of a collective: the mesh axis it runs along."""
    tier: str | None = None
    """Of a collective's bytes: the links they ride on."""
    kind: str | None = None
    """Of a collective's bytes: its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The price of one layout, per device and step."""

    step_seconds: float
    low_seconds: float
    """The step if communication overlapped compute perfectly: the longest of compute with its bubble and the bytes of
    each link."""
    high_seconds: float
    """The step if nothing overlapped."""
    peak_bytes: float
    terms: Mapping[str, Term]
    """Name -> term; they add up to `step_seconds`."""
    resources: Mapping[str, float]
    """Resource -> its seconds; they add up to `step_seconds`. Those of the bubble are divided over the resources of a
    microbatch. If a resource with the share r of the step gets 1 % faster, the step gets about r % shorter."""
    memory: Mapping[str, float]
    """Category -> bytes; they add up to `peak_bytes`."""
    flops: float
    """Of matmuls and attention, as the kernels run them."""
    sent: Mapping[str, float]
    """Mesh axis -> bytes that one device sends along it."""

    @property
    def elasticities(self) -> dict[str, float]:
        """Resource -> its share of the step, largest first; the shares add up to 1."""
        total = math.fsum(self.resources.values())  # whatever their order
        ranked = sorted(self.resources.items(), key=lambda item: (-item[1], item[0]))
        return {name: seconds / total for name, seconds in ranked}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """The prices of a table, one row a layout, per device and step; `estimate(row)` itemises one."""

    table: LayoutTable
    pricer: AnyPricer
    step_seconds: np.ndarray
    low_seconds: np.ndarray
    high_seconds: np.ndarray
    peak_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.step_seconds)

    def estimate(self, row: int) -> Estimate:
        """One row with every term."""
        return _estimates(self.pricer, self.table.take(slice(row, row + 1)))[0]

    def estimates(self, rows: np.ndarray) -> list[Estimate]:
        """The rows of an index array with every term, the same numbers as one by one."""
        return _estimates(self.pricer, self.table.take(rows)) if len(rows) else []

    def memory(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Category -> bytes of one device, shape (len(rows),), of the rows of an index array. Prices them once more."""
        table = self.table.take(rows)
        prepared = self.pricer.prepare(table)
        found: dict[str, list[np.ndarray]] = {}
        for begin in range(0, len(table), BLOCK_ROWS):
            some = slice(begin, min(begin + BLOCK_ROWS, len(table)))
            for name, amount in self.pricer.cost_terms(table.take(some), prepared, some).all_memory().items():
                found.setdefault(name, []).append(np.broadcast_to(amount, some.stop - some.start))
        return {name: np.concatenate(parts) for name, parts in found.items()}


def price(workload: Workload, table: LayoutTable, target: Target, probed: Probed | None = None) -> Prices:
    """Price every row of a table for the workload on the target.

    A step that is no transformer we know is priced from its trace, and from what was `probed`
    (`autotune.price.traced`).
    """
    if workload.transformer is None:
        from autotune.price.traced.pricer import traced_pricer

        return price_table(traced_pricer(workload, target, probed), table)
    stack = stack_of(target.hardware, workload.dtype, workload.training)
    return price_transformer(
        workload.transformer, workload.sequences, workload.seq, workload.dtype, table, target, stack
    )


def price_transformer(
    transformer: TransformerShape,
    batch: int,
    seq: int,
    dtype: str,
    table: LayoutTable,
    target: Target,
    stack: TrainingStack | None = None,
) -> Prices:
    """Price every row of a table for `batch` sequences of `seq` tokens a step (whole mesh) on the target.

    Rows are taken as they are: whether their sizes divide is for `autotune.meshes.legality` to say. `stack`: the
    training stack; None: our own models as XLA compiles them for the target.
    """
    pricer = Pricer(
        transformer=transformer,
        batch=batch,
        seq=seq,
        dtype=dtype,
        target=target,
        stack=stack or stack_of(target.hardware, dtype),
    )
    return price_table(pricer, table)


def price_sets(
    workload: Workload, table: LayoutTable, sets: np.ndarray, target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """(step seconds, peak bytes), each of shape (rows, sets). `sets`: shape (sets,), codes of `remat`; each replaces
    every row's own in turn. The numbers of `price`, several times faster. The workload is a transformer's."""
    transformer = workload.transformer
    assert transformer is not None, "a traced step has no arrays by name"
    stack = stack_of(target.hardware, workload.dtype, workload.training)
    pricer = Pricer(
        transformer=transformer,
        batch=workload.sequences,
        seq=workload.seq,
        dtype=workload.dtype,
        target=target,
        stack=stack,
    )
    prepared, size = pricer.prepare(table), max(BLOCK_ROWS // len(sets), 1)
    seconds, peak = np.empty((len(table), len(sets))), np.empty((len(table), len(sets)))
    for begin in range(0, len(table), size):
        rows = slice(begin, min(begin + size, len(table)))
        seconds[rows], _, _, peak[rows] = pricer.cost_terms_of_sets(table.take(rows), prepared, rows, sets).totals()
    return seconds, peak


def price_table(pricer: AnyPricer, table: LayoutTable) -> Prices:
    """All rows of the table, `BLOCK_ROWS` at a time."""
    totals = [np.empty(len(table)) for _ in range(4)]
    prepared = pricer.prepare(table)
    for begin in range(0, len(table), BLOCK_ROWS):
        rows = slice(begin, min(begin + BLOCK_ROWS, len(table)))
        cost = pricer.cost_terms(table.take(rows), prepared, rows)
        for total, values in zip(totals, cost.totals(), strict=True):
            total[rows] = values
    step, low, high, peak = totals
    return Prices(table=table, pricer=pricer, step_seconds=step, low_seconds=low, high_seconds=high, peak_bytes=peak)


def estimate(
    transformer: TransformerShape,
    batch: int,
    seq: int,
    dtype: str,
    layout: Layout,
    target: Target,
    stack: TrainingStack | None = None,
) -> Estimate:
    """The price of one layout with every term; the same numbers as `price_transformer` gives for its row."""
    table = LayoutTable.from_layouts([layout])
    return price_transformer(transformer, batch, seq, dtype, table, target, stack).estimate(0)


def _estimates(pricer: AnyPricer, table: LayoutTable) -> list[Estimate]:
    """Every row of a table with every term."""
    count = len(table)
    cost = pricer.cost_terms(table, pricer.prepare(table), slice(0, count), counting=True)

    def columns(amounts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.broadcast_to(amount, count) for name, amount in amounts.items()}

    counts, memory, resources = columns(cost.counted()), columns(cost.all_memory()), columns(cost.resources())
    totals = [np.broadcast_to(values, count) for values in cost.totals()]
    lines = [
        (name, resource, part, np.broadcast_to(seconds, count)) for name, resource, part, seconds in cost.itemised()
    ]
    flops = counts.pop("flops", np.zeros(count))
    found = []
    for row in range(count):
        terms: dict[str, Term] = {}
        for name, resource, part, seconds in lines:
            before = terms[name].seconds if name in terms else 0.0
            if seconds[row] or name in terms:
                source = cost.sources.get(name, "closed form")
                parts = {} if part is None else {"axis": part.axis, "tier": part.tier, "kind": part.kind}
                terms[name] = Term(seconds=before + float(seconds[row]), resource=resource, source=source, **parts)
        step, low, high, peak = (float(values[row]) for values in totals)
        found.append(
            Estimate(
                step_seconds=step,
                low_seconds=low,
                high_seconds=high,
                peak_bytes=peak,
                terms=dict(sorted(terms.items(), key=lambda item: -item[1].seconds)),
                resources={name: float(seconds[row]) for name, seconds in resources.items() if seconds[row]},
                memory={name: float(values[row]) for name, values in memory.items()},
                flops=float(flops[row]),
                sent={axis: float(amount[row]) for axis, amount in counts.items() if amount[row]},
            )
        )
    return found
