"""The collectives of the embedding's gradient: XLA's partitioner has five ways to reduce it, and takes the smallest.

The gradient is a scatter of the residual stream's gradient (tokens x d_model) into the table (vocab x d_model). The
rules were read from programs for a100-80 and h100 (jax 0.10.2; tables of 32,768 to 256,000 rows, 2 to 32 shards, beside
`data`, `context`, `expert` and `stage`); programs for v5e, v5p and v6e follow them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.price.transformer.rows import Rows

INNER_FIRST = ("expert", "context", "data", "stage")
"""Axes that repeat weights, in the order in which one joint collective reduces along them. `expert` repeats all but the
routed experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Which way each row takes (boolean arrays, but `cut`). Each row takes one of `moved`, `gathered`, `scattered` and
    `summed`."""

    cut: np.ndarray
    """Shards of the table along d_model."""
    moved: np.ndarray
    """An all-to-all turns the stream's gradient from a cut of the batch into a cut of d_model; no other axis repeats
    the table."""
    gathered: np.ndarray
    """The stream's gradient is gathered along the other axes that repeat the table, and then moved by an all-to-all."""
    partly: np.ndarray
    """Of `gathered`: the vocabulary or the sequence is cut too, so a sum along the other axes is still needed."""
    scattered: np.ndarray
    """Each device adds its tokens into a whole table, which is reduce-scattered onto the shards and then summed along
    the other axes."""
    summed: np.ndarray
    """Each device adds its tokens into a whole table, which is all-reduced along all axes together. So it is without
    shards, where an axis other than `data` and `stage` cuts the batch, and where `tensor` cuts the table."""


def ways_of(size: Mapping[str, np.ndarray], zero2: np.ndarray, local: np.ndarray, table: np.ndarray) -> Ways:
    """The way of each row. `local`: bytes of the stream's gradient on a device; `table`: those of the table's
    gradient."""
    cut = size["fsdp"] * np.where(zero2, size["data"], 1.0)
    # members that hold the same shard
    rest = size["stage"] * size["context"] * size["expert"] * np.where(zero2, 1.0, size["data"])
    plain = (size["context"] == 1) & (size["expert"] == 1)
    moved = (cut > 1) & (rest == 1) & (local / cut <= table)
    # Where `fsdp` shares the batch with another axis, all of it is gathered.
    shared = (size["data"] > 1) | (size["expert"] > 1)
    whole = local * rest * np.where(zero2, size["data"], 1.0) * np.where(shared, size["fsdp"], 1.0)
    small = np.where(shared, whole <= table, whole < table)
    gathered = (cut > 1) & (rest > 1) & small & ~(plain & (size["stage"] == 1))
    partly = gathered & ((size["tensor"] > 1) | ((size["context"] > 1) & (size["stage"] == 1)))
    left = (cut > 1) & ~moved & ~gathered
    scattered = left & ((rest == 1) | (plain & (size["tensor"] == 1)))
    return Ways(
        cut=cut,
        moved=moved,
        gathered=gathered,
        partly=partly,
        scattered=scattered,
        summed=(left & ~scattered) | (cut == 1),
    )


class Embedding(Rows):
    """The terms of the embedding's gradient for some layouts."""

    def add_terms(self) -> None:
        """Add the collectives of every way, for the rows that take it."""
        state, deferred = self.stack.state, self.deferred
        # Deferred, the partitioner sees one replica: what is left is a sum along `data` once a step.
        size = {**self.size, "data": np.where(deferred, 1.0, self.size["data"])}
        zero2 = self.table.zero == 2
        times = self.reductions("context")
        table = state.reduced * self.parameters.embedding
        local = self.stream_bytes * self.table.microbatches / size["stage"]
        ways = ways_of(size, zero2, local, table)
        # Under ZeRO-1 a tied table has one copy in the compute dtype: the gradients of its two uses are added and
        # reduced once, and that reduction is counted with the unembedding.
        again = np.where(self.shape.tied_embeddings & (self.table.zero == 1), 0.0, times)
        whole = np.where(ways.summed & (ways.cut > 1), times, np.where(ways.summed, again, 0.0))
        share = self.table_share("context")
        by_axis = {axis: share * ~deferred if axis == "data" else share for axis in size}
        gathers = np.where(ways.gathered, times, 0.0)
        inside, held = np.ones(len(self.table)), local
        for axis in ("expert", "context", "fsdp", "data", "stage"):
            self.add_collective(
                axis, "all_reduce", "step", table / inside, whole if axis == "fsdp" else whole * by_axis[axis]
            )
            inside = inside * size[axis]
            if axis != "fsdp":
                gathered = gathers * np.where(zero2 | deferred, 0.0, 1.0) if axis == "data" else gathers
                held = held * np.where(gathered > 0, size[axis], 1.0)
                self.add_collective(axis, "all_gather", "step", held, gathered)
        along_fsdp, along_data = (size["fsdp"] > 1), (size["fsdp"] == 1)
        moves = np.where(ways.moved | ways.gathered, times, 0.0)
        for axis, here in (("fsdp", along_fsdp), ("data", along_data & zero2)):
            # An all-to-all over both axes is counted whole on the inner axis.
            sent = held * (1.0 - 1.0 / ways.cut) / np.maximum(1.0 - 1.0 / size[axis], 0.5)
            self.add_collective(axis, "all_to_all", "step", sent, np.where(here, moves, 0.0))
        scatters = np.where(ways.scattered, times, 0.0)
        if self.used["fsdp"]:
            self.add_scatter("step", table, scatters)
        shard = table / size["fsdp"]
        self.add_collective("data", "reduce_scatter", "step", shard, np.where(zero2, scatters, 0.0))
        sums, shard = np.where(ways.scattered | ways.partly, again, 0.0), table / ways.cut
        for axis in INNER_FIRST:
            mine = np.where(zero2, 0.0, sums) if axis == "data" else sums
            self.add_collective(axis, "all_reduce", "step", shard, mine * by_axis[axis])
            shard = shard / np.where(mine > 0, size[axis], 1.0)
        self.add_collective("data", "all_reduce", "step", table / size["fsdp"], deferred * 1.0)
