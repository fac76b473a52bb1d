"""The result of a search that a training codebase saves and applies.

Importing this module needs no JAX; `mesh`, `shardings` and `jit` do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.plan.fields import PlanFields
from autotune.plan.screen import plan_entries, plan_headline
from autotune.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan(PlanFields, Shown):
    """What a plan holds, applied to a training step and shown."""

    def mesh(self, devices: Sequence[Any] | None = None) -> Any:
        """The `jax.sharding.Mesh` of the plan on these devices (default: all that JAX has), in the planned order.

        ValueError with both values when their kind or number is not the plan's.
        """
        from autotune.plan.apply import mesh

        return mesh(self, devices)

    def shardings(self, tree: Any, mesh: Any = None) -> Any:
        """The tree with a `NamedSharding` in place of every array: of the state, or of a part of it."""
        from autotune.plan.apply import shardings

        return shardings(self, tree, mesh)

    def batch_shardings(self, batch: Any, mesh: Any = None) -> Any:
        """The same for a batch: cut along its first dimension."""
        from autotune.plan.apply import batch_shardings

        return batch_shardings(self, batch, mesh)

    def jit(self, step: Callable[..., Any], mesh: Any = None, **options: Any) -> Callable[..., Any]:
        """`jax.jit(step)` under the plan's mesh and compiler options; arrays keep the shardings they come with.

        `options` go to `jax.jit` (`donate_argnums=0` where the step gives back a new state). A Flax logical constraint
        inside the step finds the plan's rules.
        """
        from autotune.plan.apply import jit

        return jit(self, step, mesh, options)

    def use(self, mesh: Any = None) -> AbstractContextManager[Any]:
        """A context with the plan's mesh set (`jax.set_mesh`) and its rules for Flax's logical axes; gives the mesh."""
        from autotune.plan.apply import use

        return use(self, mesh)

    def headline(self) -> str:
        """Layout, job, machine, step time and its source, in one line."""
        return plan_headline(self)

    def screen(self) -> RenderableType:
        """What the plan says: a name and its words, one below the other. Words that wrap stay in their column."""
        from rich.table import Table

        from autotune.tables import GAP, Prose

        table = Table.grid(padding=(0, GAP, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for name, words in plan_entries(self):
            table.add_row(name, Prose(words))
        return table
