"""What a space that is too large for one table keeps beside its rows: how to enumerate it again, and how many layouts
are in no row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.meshes.target import Target
from autotune.space import meshes_in_blocks, with_choices, with_passes
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

MESHES_AT_ONCE = 1024
"""Meshes whose layouts make one block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Layouts that were priced and are in no row: how many fit, how many do not, and how many break each rule (by code
    of `autotune.meshes.legality`, and the one after them: see `autotune.price.priced_space.OWN_RULE`)."""

    fits: int
    oom: int
    illegal: Mapping[int, int]

    @property
    def count(self) -> int:
        return self.fits + self.oom + sum(self.illegal.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How to enumerate a large space again: its axes, its pins and the words of `autotune.space.with_passes`."""

    axes: tuple[str, ...]
    fixed: Mapping[str, str]
    orders: bool
    """Whether other orders of the axes will be tried, so that layouts which these may help are kept."""

    def tables(self, workload: Workload, target: Target) -> Iterator[tuple[int, LayoutTable]]:
        """(meshes so far, the layouts of the next block)."""
        layers = workload.transformer.layers if workload.transformer else None
        done = 0
        for meshes in meshes_in_blocks(target, self.axes, self.fixed, MESHES_AT_ONCE):
            done += len(meshes["data"])
            choices = with_choices(meshes, self.fixed, target)
            yield done, with_passes(choices, workload.sequences, layers, self.fixed)
