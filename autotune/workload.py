"""What is to be trained: a train step that can be built for any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.meshes.layout import WORDS, Layout
from autotune.meshes.step import Step
from autotune.meshes.transformer import Transformer


@dataclass(frozen=True, slots=True, init=False)
class Workload:
    """`build(layout, mesh)` makes the Step of one layout on a `jax.sharding.Mesh` (deviceless meshes included).

    `sequences` of `seq` tokens make one step over the whole mesh (examples of 1 token where the data has no length).
    `transformer` is the shape that the closed-form prices use; None for a step that is no transformer we know.
    `axes`: mesh axes that this step can make use of; `fixed`: words of a layout that it cannot change (a step that was
    not built from the layout keeps its own remat and microbatches).
    `fingerprint` names the program: two workloads with the same fingerprint compile to the same thing.
    `guesses`: what nobody said and was guessed, and how to pin it. `recipe`: the command-line words that build it again
    (model or workload, batch, seq, dtype); empty when only Python can. Travels to worker processes by cloudpickle.
    """

    name: str
    build: Callable[[Layout, Any], Step]
    sequences: int
    seq: int
    dtype: str
    transformer: Transformer | None
    axes: tuple[str, ...]
    fixed: Mapping[str, str]
    fingerprint: str
    guesses: tuple[str, ...]
    recipe: Mapping[str, str | int]

    @classmethod
    def of(
        cls,
        *,
        name: str,
        build: Callable[[Layout, Any], Step],
        sequences: int,
        seq: int,
        dtype: str,
        fingerprint: str,
        transformer: Transformer | None = None,
        axes: tuple[str, ...] = WORDS,
        fixed: Mapping[str, str] | None = None,
        guesses: tuple[str, ...] = (),
        recipe: Mapping[str, str | int] | None = None,
    ) -> Workload:
        """The workload whose `build` and figures are already known."""
        workload = object.__new__(cls)
        values = dict(
            name=name, build=build, sequences=sequences, seq=seq, dtype=dtype, transformer=transformer, axes=axes,
            fixed=fixed or {}, fingerprint=fingerprint, guesses=guesses, recipe=recipe or {},
        )  # fmt: skip
        for field, value in values.items():
            object.__setattr__(workload, field, value)
        return workload

    @property
    def tokens(self) -> int:
        """Tokens of one step over the whole mesh."""
        return self.sequences * self.seq
