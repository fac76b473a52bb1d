"""The gradient of the embedding: a scatter of the residual stream's gradient that XLA's partitioner cuts its own way.

It takes what needs the least memory, and sends accordingly. Read from programs for a100-80 and h100 (jax 0.10.2; tables
of 32768 to 256000 rows, 2 to 32 shards, with `data`, `context`, `expert` and `stage` beside them) after tables larger
than the saved spaces' had put bytes up to 190 % off; the programs for v5e, v5p and v6e do the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.price.transformer.rows import Rows

INNER_FIRST = ("expert", "context", "data", "stage")
"""Axes along which weights are repeated (routed experts not along the first), as joint collectives take them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Which rows go which way; `cut`: shards of the table along d_model.

    `moved`: every shard has the same batch as the others, and the stream's gradient changes from batch to d_model by an
    all-to-all. `gathered`: it is gathered along the other axes first; `partly`: of these, sums along them are left to
    do, as where the vocabulary or the sequence is cut too. `scattered`: each device sums its own part into a
    whole table, which is reduced onto the shards and then along the other axes. `summed`: that is reduced whole, along
    all axes together, where the partitioner sees no reduce-scatter in it: where any but `data` and `stage` cut the
    batch, or `tensor` the table. Without shards: `summed`.
    """

    cut: np.ndarray
    moved: np.ndarray
    gathered: np.ndarray
    partly: np.ndarray
    scattered: np.ndarray
    summed: np.ndarray


def ways_of(size: Mapping[str, np.ndarray], zero2: np.ndarray, local: np.ndarray, table: np.ndarray) -> Ways:
    """The way of each row: `local` bytes of the stream's gradient on a device, `table` bytes of the table's."""
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
    """What the embedding's gradient sends in a step, of some layouts."""

    def enter(self) -> None:
        """Every way, for the rows that take it."""
        size, state = self.size, self.stack.state
        zero2 = self.table.zero == 2
        times = self.reductions()
        table = state.reduced * self.parameters.embedding
        local = self.stream_bytes * self.table.microbatches / size["stage"]
        ways = ways_of(size, zero2, local, table)
        # Under ZeRO-1 the weights' copy is one array: the gradients of both uses of a tied table are added, and reduced
        # along the axes that repeat it as one (that one is counted with the unembedding's).
        again = np.where(self.shape.tied_embeddings & (self.table.zero == 1), 0.0, times)
        whole = np.where(ways.summed & (ways.cut > 1), times, np.where(ways.summed, again, 0.0))
        share = self.table_share()
        gathers = np.where(ways.gathered, times, 0.0)
        inside, held = np.ones(len(self.table)), local
        for axis in ("expert", "context", "fsdp", "data", "stage"):
            self.move(axis, "all_reduce", "step", table / inside, whole if axis == "fsdp" else whole * share)
            inside = inside * size[axis]
            if axis != "fsdp":
                gathered = gathers * np.where(zero2, 0.0, 1.0) if axis == "data" else gathers
                held = held * np.where(gathered > 0, size[axis], 1.0)
                self.move(axis, "all_gather", "step", held, gathered)
        along_fsdp, along_data = (size["fsdp"] > 1), (size["fsdp"] == 1)
        moves = np.where(ways.moved | ways.gathered, times, 0.0)
        for axis, here in (("fsdp", along_fsdp), ("data", along_data & zero2)):
            # Of an all-to-all over both axes all is counted to the inner one: it sends as much as there are shards.
            sent = held * (1.0 - 1.0 / ways.cut) / np.maximum(1.0 - 1.0 / size[axis], 0.5)
            self.move(axis, "all_to_all", "step", sent, np.where(here, moves, 0.0))
        scatters = np.where(ways.scattered, times, 0.0)
        if self.used["fsdp"]:
            self.scatter("step", table, scatters)
        shard = table / size["fsdp"]
        self.move("data", "reduce_scatter", "step", shard, np.where(zero2, scatters, 0.0))
        sums, shard = np.where(ways.scattered | ways.partly, again, 0.0), table / ways.cut
        for axis in INNER_FIRST:
            mine = np.where(zero2, 0.0, sums) if axis == "data" else sums
            self.move(axis, "all_reduce", "step", shard, mine * share)
            shard = shard / np.where(mine > 0, size[axis], 1.0)
