"""One train step ready to be lowered for one layout: the function, and its arguments' shapes and shardings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def nothing(state: Any) -> tuple[()]:
    """None of the state's arrays."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`function(state, batch) -> (state, metrics)`, with `state` and `batch` as trees of `jax.ShapeDtypeStruct`.

    Shapes are global; every leaf carries a `NamedSharding` on `mesh`. The new state has the old one's shardings and
    takes over its buffers (donated). `initialise(seed)` and `make_batch(seed)` make real trees of these shapes and
    shardings on the mesh's devices; they are called only where the step is run.
    `parameters(state)` is the tree of trained model parameters inside the state, `frozen(state)` of weights that are
    only read, `mutable(state)` of arrays that are neither trained nor optimizer state (for attribution of memory by
    category).
    `mesh_context`: where the function finds the mesh that is set (`autotune.partition.CONTEXTS`).
    """

    function: Callable[[Any, Any], tuple[Any, Any]]
    mesh: Any
    state: Any
    batch: Any
    initialise: Callable[[int], Any]
    make_batch: Callable[[int], Any]
    parameters: Callable[[Any], Any]
    frozen: Callable[[Any], Any] = nothing
    mutable: Callable[[Any], Any] = nothing
    mesh_context: str = "both"
