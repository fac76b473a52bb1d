"""What is to be trained: a train step that can be built for any layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autotune.meshes.layout import Layout
from autotune.meshes.step import Step
from autotune.meshes.transformer import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`build(layout, mesh)` makes the Step of one layout on a `jax.sharding.Mesh` (deviceless meshes included).

    `batch` sequences of `seq` tokens make one step over the whole mesh. `transformer` is the shape that the closed-form
    prices use; None for a step that is no transformer we know. `fingerprint` names the program: two workloads with the
    same fingerprint compile to the same thing. Travels to worker processes by cloudpickle.
    """

    name: str
    build: Callable[[Layout, Any], Step]
    batch: int
    seq: int
    dtype: str
    transformer: Transformer | None
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Tokens of one step over the whole mesh."""
        return self.batch * self.seq
