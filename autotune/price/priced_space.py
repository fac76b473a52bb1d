"""The space of layouts with a verdict on each: illegal and why, or its closed-form price."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.meshes.hardware import Hardware
from autotune.meshes.layout import AXES, Layout
from autotune.meshes.legality import reject, reject_codes, rule_names
from autotune.meshes.target import Target
from autotune.price.large_space import Blocks, Dropped
from autotune.price.price import Estimate, Prices, price
from autotune.price.traced.laws import Probed
from autotune.price.transformer.pipeline_schedules import as_published
from autotune.price.unique_rows import unique_rows
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

STATE = ("parameters", "gradients", "optimizer_state")
"""Categories of memory that stay between passes, however small a piece of the batch is worked on at a time."""

NEAR_CAPACITY = 0.95
"""From this share of the capacity on the compiler starts to rematerialise on its own, and times are less sure."""

OWN_RULE = "divides(an array of the step)"
"""What a user's own step adds to the rules of `autotune.meshes.legality`; its code is the one after theirs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PricedSpace:
    """A LayoutTable with, for each row, the first rule it breaks (-1: legal) and its price.

    `seconds` and `peak_bytes` are per device and step; of illegal rows they are what the closed form would say if the
    cuts came out even. `probed`: what small compiles for this kind of machine taught of a user's step; None where there
    were none. `notes`: what was done to the space, a line each. Of a large space only the rows that a claim can rest on
    are kept: `dropped` counts the others, `blocks` enumerates them again (`autotune.price.blocks`); None of small ones.
    """

    workload: Workload
    target: Target
    table: LayoutTable
    layouts: tuple[Layout, ...] | None
    broken: np.ndarray
    prices: Prices
    probed: Probed | None
    notes: tuple[str, ...]
    dropped: Dropped | None = None
    blocks: Blocks | None = None

    @property
    def legal(self) -> np.ndarray:
        return self.broken < 0

    @property
    def compilable(self) -> np.ndarray:
        """Rows that the reference models can be compiled with: none where they lack a part of the architecture, else
        those of the schedules that they run; of a user's own step, all rows."""
        if self.workload.transformer is None:
            return np.ones(len(self.table), dtype=bool)
        if self.workload.priced_only(self.target.platform):
            return np.zeros(len(self.table), dtype=bool)
        return (self.table.stage == 1) | ~as_published(self.table.schedule)

    def can_be_compiled(self, row: int) -> bool:
        """`compilable` of one row."""
        return bool(dataclasses.replace(self, table=self.table.take(slice(row, row + 1))).compilable[0])

    @property
    def seconds(self) -> np.ndarray:
        return self.prices.step_seconds

    @property
    def peak_bytes(self) -> np.ndarray:
        return self.prices.peak_bytes

    def layout(self, row: int) -> Layout:
        """One row as a Layout (the user's own, with its compiler options, where layouts were named)."""
        return self.layouts[row] if self.layouts is not None else self.table.layout(row)

    def row_of(self, layout: Layout) -> int:
        """The row of a layout of this space; KeyError when it is not there."""
        if self.layouts is not None:
            return self.layouts.index(layout)
        same = np.ones(len(self.table), dtype=bool)
        wanted = LayoutTable.from_layouts([layout])
        for name in LayoutTable.columns():
            if name not in ("order", "options"):
                same &= getattr(self.table, name) == getattr(wanted, name)[0]
        for row in np.flatnonzero(same):
            sets = self.table.option_sets[self.table.options[row]]
            if self.table.orders[self.table.order[row]] == layout.order and sets == layout.options:
                return int(row)
        raise KeyError(str(layout))

    def mesh_of(self, row: int) -> tuple[int, ...]:
        """The axis sizes of a row."""
        return tuple(int(getattr(self.table, name)[row]) for name in AXES)

    def price(self, row: int) -> Estimate:
        """The price of one row with all its terms."""
        return self.prices.estimate(row)

    def with_rows(
        self, table: LayoutTable, prices: Prices, rows: np.ndarray, like: np.ndarray, note: str | None,
        layouts: Sequence[Layout] = (),
    ) -> PricedSpace:  # fmt: skip
        """The space with the rows of `table` behind its own. `rows`: where their prices stand in `prices`; `like`: for
        each, the row of this space that breaks the same rules. `note` says what was added; `layouts`: the
        same rows, where this space has those that the user named."""
        whole = _joined(self.table, table)
        return dataclasses.replace(
            self,
            table=whole,
            broken=np.concatenate([self.broken, self.broken[like]]),
            prices=_joined_prices(self.prices, prices, rows, whole),
            layouts=None if self.layouts is None else (*self.layouts, *layouts),
            notes=(*self.notes, *([note] if note else [])),
        )

    def again(self, rows: Sequence[int], layouts: Sequence[Layout]) -> PricedSpace:
        """The space with some of its rows once more behind its own: layouts that differ from them in nothing that a
        price looks at."""
        at = np.array(rows, dtype=np.int64)
        same = self.table.take(at)
        table = dataclasses.replace(
            same,
            option_sets=tuple(layout.options for layout in layouts),
            options=np.arange(len(at), dtype=np.int64),
        )
        return self.with_rows(table, self.prices, at, at, None, layouts)

    def best_by(self, figure: np.ndarray, among: np.ndarray) -> int | None:
        """Of the rows in the mask `among`, the one with the least `figure` (one number a row); None of an empty mask.

        Of equal ones the faster, then the first by its text.
        """
        rows = np.flatnonzero(among)
        for column in (figure, self.seconds):
            rows = rows[column[rows] == column[rows].min()] if rows.size else rows
        return min((int(row) for row in rows), key=lambda row: str(self.layout(row)), default=None)

    def best_policies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rows that are legal and can be compiled, where in them each mesh with its other choices comes first, the
        mesh of each of them, seconds of the fastest policy that fits on each mesh; infinite where none does)."""
        rows = np.flatnonzero(self.legal & self.compilable)
        columns = [name for name in LayoutTable.columns() if name != "remat"]
        first, mesh_of = unique_rows([getattr(self.table, name)[rows] for name in columns])
        fastest = np.full(len(first), np.inf)
        fits = self.peak_bytes[rows] <= self.target.hardware.capacity_bytes
        np.minimum.at(fastest, mesh_of[fits], self.seconds[rows][fits])
        return rows, first, mesh_of, fastest

    def least_state_bytes(self) -> float:
        """Bytes of parameters, gradients and optimizer state over all devices, of the legal layout with the least.

        Each array counts once, however many devices repeat it; where ZeRO cuts only part of the state over `data`, what
        is repeated there counts as often as it is held. Stages of the reference pipeline hold sums of gradients among
        their activations, so layouts without stages answer where there are any.
        """
        rows = np.flatnonzero(self.legal & (self.table.stage == 1))
        rows = rows if rows.size else np.flatnonzero(self.legal)
        held = self.prices.memory(rows)
        some = self.table.take(rows)
        state = sum((held[name] for name in STATE if name in held), np.zeros(len(rows)))
        copies = some.fsdp * some.tensor * some.stage * some.expert * np.where(some.zero > 0, some.data, 1)
        return float((state * copies).min())

    def rule_of(self, row: int) -> str:
        """Name of the first rule an illegal row breaks."""
        return rule_named(int(self.broken[row]))

    def __len__(self) -> int:
        """Layouts of the space, those in no row too."""
        return len(self.table) + (self.dropped.count if self.dropped else 0)

    def why_illegal(self, row: int) -> str:
        """The first rule an illegal row breaks, with its values."""
        return why_illegal(self.workload, self.target, self.layout(row)) or self.rule_of(row)

    def repriced(self, hardware: Hardware, rows: np.ndarray) -> Prices:
        """Some rows of the space priced on other hardware."""
        target = dataclasses.replace(self.target, hardware=hardware)
        return price(self.workload, self.table.take(rows), target, self.probed)


def _joined(first: LayoutTable, second: LayoutTable) -> LayoutTable:
    """The rows of two tables, one after the other."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in LayoutTable.columns()
    }
    columns["order"] = np.concatenate([first.order, second.order + len(first.orders)])
    columns["options"] = np.concatenate([first.options, second.options + len(first.option_sets)])
    return dataclasses.replace(
        first,
        orders=(*first.orders, *second.orders),
        option_sets=(*first.option_sets, *second.option_sets),
        **columns,
    )


def _joined_prices(first: Prices, second: Prices, rows: np.ndarray, table: LayoutTable) -> Prices:
    """The prices of `table`: those of `first`, then some rows of `second`."""
    return Prices(
        table=table,
        pricer=first.pricer,
        step_seconds=np.concatenate([first.step_seconds, second.step_seconds[rows]]),
        low_seconds=np.concatenate([first.low_seconds, second.low_seconds[rows]]),
        high_seconds=np.concatenate([first.high_seconds, second.high_seconds[rows]]),
        peak_bytes=np.concatenate([first.peak_bytes, second.peak_bytes[rows]]),
    )


def rule_named(code: int) -> str:
    """Name of the rule that a code of `PricedSpace.broken` stands for."""
    return (*rule_names(), OWN_RULE)[code]


def price_space(
    workload: Workload,
    target: Target,
    table: LayoutTable,
    layouts: Sequence[Layout] | None = None,
    probed: Probed | None = None,
) -> PricedSpace:
    """Judge and price every row of `table`; `layouts` are the same rows as the user named them."""
    return PricedSpace(
        workload=workload,
        target=target,
        table=table,
        layouts=tuple(layouts) if layouts is not None else None,
        broken=broken_rules(workload, target, table),
        prices=price(workload, table, target, probed),
        probed=probed,
        notes=(),
    )


def why_illegal(workload: Workload, target: Target, layout: Layout) -> str | None:
    """The first rule that `layout` breaks, in words with the values and the remedy; None when it breaks none."""
    rejection = reject(layout, workload.transformer, workload.sequences, workload.seq, target, workload.training)
    return str(rejection) if rejection else workload.problem(layout)


def broken_rules(workload: Workload, target: Target, table: LayoutTable) -> np.ndarray:
    """For each row the first rule it breaks, -1 for none: those of every model, then those of the user's own arrays."""
    codes = reject_codes(table, workload.transformer, workload.sequences, workload.seq, target, workload.training)
    if workload.partition is None:
        return codes
    first, mesh = unique_rows([getattr(table, name) for name in AXES])
    uneven = np.array([workload.partition.problem(table.layout(int(row))) is not None for row in first], dtype=bool)
    return np.where((codes < 0) & (uneven[mesh] | (table.zero == 2)), len(rule_names()), codes)
