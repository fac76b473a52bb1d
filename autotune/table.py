"""Many layouts as columns of whole numbers, one row a layout: what the vectorised price works on. JAX-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.meshes.layout import AXES, REMAT, SCHEDULES, WORDS, Layout

CONTEXT_ATTENTION = ("gather", "ring")
OFFLOAD = ("none", "optimizer")


def constant(value: int, rows: int) -> np.ndarray:
    """A column of one number, which takes no memory and is known to be one."""
    return np.broadcast_to(np.int64(value), rows)


def is_constant(column: np.ndarray) -> bool:
    """Whether a column was made by `constant`, or chosen from one that was."""
    return column.strides == (0,)


def chosen(column: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """The rows of an index array, a mask or a slice of a column; of a constant one a constant."""
    if not is_constant(column) or isinstance(rows, slice) or not len(column):
        return column[rows]
    return constant(column[0], int(np.count_nonzero(rows)) if rows.dtype == bool else len(rows))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayoutTable:
    """One int64 column of shape (layouts,) for each choice of a Layout.

    `remat`, `schedule`, `context_attention`, `offload`, `order` hold indices: into REMAT, SCHEDULES (-1: none),
    CONTEXT_ATTENTION, OFFLOAD and `orders`. `compiler_options` and `rules` are every row's: no price looks at them.
    Columns are not written to: one that says the same of every row may be a single number (`constant`).
    """

    data: np.ndarray
    fsdp: np.ndarray
    tensor: np.ndarray
    stage: np.ndarray
    context: np.ndarray
    expert: np.ndarray
    dcn_data: np.ndarray
    dcn_fsdp: np.ndarray
    dcn_tensor: np.ndarray
    dcn_stage: np.ndarray
    dcn_context: np.ndarray
    dcn_expert: np.ndarray
    zero: np.ndarray
    remat: np.ndarray
    accumulate: np.ndarray
    microbatches: np.ndarray
    schedule: np.ndarray
    virtual_stages: np.ndarray
    sequence_parallel: np.ndarray
    context_attention: np.ndarray
    offload: np.ndarray
    order: np.ndarray
    orders: tuple[tuple[str, ...], ...] = (AXES,)
    compiler_options: tuple[tuple[str, str], ...] = ()
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __len__(self) -> int:
        return len(self.data)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Names of the columns."""
        shared = ("orders", "compiler_options", "rules")
        return tuple(field.name for field in dataclasses.fields(cls) if field.name not in shared)

    @classmethod
    def from_layouts(cls, layouts: Sequence[Layout]) -> LayoutTable:
        """One row a layout, in order; their compiler options and rules are left behind."""
        orders = tuple(dict.fromkeys(layout.order for layout in layouts))
        rows = [_row(layout, orders) for layout in layouts]
        columns: dict[str, Any] = {
            name: np.array([row[name] for row in rows], dtype=np.int64) for name in cls.columns()
        }
        return cls(orders=orders, **columns)

    def take(self, rows: np.ndarray | slice) -> LayoutTable:
        """The rows of an index array, a mask or a slice."""
        columns: dict[str, Any] = {name: chosen(getattr(self, name), rows) for name in self.columns()}
        return dataclasses.replace(self, **columns)

    def chunks(self, size: int) -> Iterable[LayoutTable]:
        """The table in pieces of at most `size` rows."""
        for begin in range(0, len(self), size):
            yield self.take(slice(begin, begin + size))

    def layout(self, row: int) -> Layout:
        """One row as a Layout."""
        value = {name: int(getattr(self, name)[row]) for name in self.columns()}
        schedule = value["schedule"]
        return Layout(
            **{name: value[name] for name in WORDS},  # type: ignore[arg-type]
            dcn=tuple((name, value[f"dcn_{name}"]) for name in WORDS),
            zero=value["zero"],
            remat=REMAT[value["remat"]],
            accumulate=value["accumulate"],
            microbatches=value["microbatches"],
            schedule=None if schedule < 0 else SCHEDULES[schedule],
            virtual_stages=value["virtual_stages"],
            sequence_parallel=bool(value["sequence_parallel"]),
            context_attention=CONTEXT_ATTENTION[value["context_attention"]],
            offload=OFFLOAD[value["offload"]],
            order=self.orders[value["order"]],
            compiler_options=self.compiler_options,
            rules=self.rules,
        )


def _row(layout: Layout, orders: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {
        **layout.axes,
        **{f"dcn_{name}": factor for name, factor in layout.dcn_axes.items()},
        "zero": layout.zero,
        "remat": REMAT.index(layout.remat),
        "accumulate": layout.accumulate,
        "microbatches": layout.microbatches,
        "schedule": -1 if layout.schedule is None else SCHEDULES.index(layout.schedule),
        "virtual_stages": layout.virtual_stages,
        "sequence_parallel": int(layout.sequence_parallel),
        "context_attention": CONTEXT_ATTENTION.index(layout.context_attention),
        "offload": OFFLOAD.index(layout.offload),
        "order": orders.index(layout.order),
    }
