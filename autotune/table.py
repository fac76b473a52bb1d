"""Many layouts as columns of whole numbers, one row a layout: what the vectorised price works on. JAX-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.meshes.layout import AXES, OUTERMOST_FIRST, Layout
from autotune.meshes.layout_words import LAYOUT_WORDS

CONTEXT_ATTENTION: tuple[str, ...] = LAYOUT_WORDS["context_attention"].values


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
    """One int64 column of shape (layouts,) for each word of a Layout, and one for each `dcn.` factor.

    A column of a word holds `LayoutWord.code` of its values: a choice is its position in the `values` of the word, -1
    where it is None. `order` holds positions in `orders`, `options` in `option_sets`. `compiler_options` and `rules`
    are those of every row: no price looks at them.
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
    reduce: np.ndarray
    microbatches: np.ndarray
    schedule: np.ndarray
    virtual_stages: np.ndarray
    sequence_parallel: np.ndarray
    context_attention: np.ndarray
    vocab_tiles: np.ndarray
    offload: np.ndarray
    options: np.ndarray
    order: np.ndarray
    orders: tuple[tuple[str, ...], ...] = (OUTERMOST_FIRST,)
    option_sets: tuple[str | None, ...] = (None,)
    compiler_options: tuple[tuple[str, str], ...] = ()
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __len__(self) -> int:
        return len(self.data)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Names of the columns."""
        shared = ("orders", "option_sets", "compiler_options", "rules")
        return tuple(field.name for field in dataclasses.fields(cls) if field.name not in shared)

    @classmethod
    def from_layouts(cls, layouts: Sequence[Layout]) -> LayoutTable:
        """One row a layout, in order; their compiler options and rules are left behind."""
        orders = tuple(dict.fromkeys(layout.order for layout in layouts))
        sets = tuple(dict.fromkeys(layout.options for layout in layouts))
        rows = [_row(layout, orders, sets) for layout in layouts]
        columns: dict[str, Any] = {
            name: np.array([row[name] for row in rows], dtype=np.int64) for name in cls.columns()
        }
        return cls(orders=orders, option_sets=sets, **columns)

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
        choices: dict[str, Any] = {
            name: LAYOUT_WORDS[name].value(value[name]) for name in LAYOUT_WORDS if name not in ("order", "options")
        }
        return Layout(
            **choices,
            dcn=tuple((name, value[f"dcn_{name}"]) for name in AXES),
            order=self.orders[value["order"]],
            options=self.option_sets[value["options"]],
            compiler_options=self.compiler_options,
            rules=self.rules,
        )


def across(table: LayoutTable, sets: np.ndarray) -> LayoutTable:
    """The table with columns of shape (rows, 1), and `sets` (codes of `remat`) as its column of shape (1, sets): it
    stands for every row with every set, and columns broadcast against each other."""
    columns: dict[str, Any] = {name: getattr(table, name)[:, None] for name in LayoutTable.columns()}
    return dataclasses.replace(table, **{**columns, "remat": sets[None, :]})


def _row(layout: Layout, orders: tuple[tuple[str, ...], ...], sets: tuple[str | None, ...]) -> dict[str, int]:
    outer = {f"dcn_{name}": factor for name, factor in layout.dcn_axes.items()}
    return {**layout.codes, **outer, "options": sets.index(layout.options), "order": orders.index(layout.order)}
