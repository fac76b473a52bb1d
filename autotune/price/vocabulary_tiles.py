"""Which layouts win by computing the loss in tiles of the vocabulary: added to the space where the price says so."""

from __future__ import annotations

import dataclasses

import numpy as np

from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.price.price import price
from autotune.price.priced_space import PricedSpace, broken_rules
from autotune.price.winning_rows import NEAR, WINS, may_be_best

TRIED = (2, 4, 8, 16)
"""Counts of tiles that are priced. More than these save little: the logits are a sixteenth."""

STAND_IN_THE_WAY = 0.02
"""Layouts are tried whose logits are priced at this share of the memory or more: tiles can give no more than that."""

MOST_ROWS = 1 << 19
"""Layouts tried, the most hopeful first."""


def with_vocabulary_tiles(space: PricedSpace, keep: int) -> PricedSpace:
    """The space with further rows, at most `keep`: layouts that fit with tiles, win over every policy that fits on
    their mesh without, and may be the best. Where nothing fits, with tiles or without, those that need least memory.
    """
    workload, transformer, capacity = space.workload, space.workload.transformer, space.target.hardware.capacity_bytes
    if transformer is None:
        return space
    rows = np.flatnonzero(space.legal & space.compilable & (space.table.vocab_tiles == 1))
    if not len(rows):
        return space
    best = space.seconds[space.legal & (space.peak_bytes <= capacity)].min(initial=np.inf)
    low = space.prices.low_seconds[rows]
    logits = space.prices.memory(rows).get("logits", np.zeros(len(rows)))
    hopeful = (low <= NEAR * best) & (logits >= STAND_IN_THE_WAY * capacity)
    rows = rows[hopeful][np.argsort(low[hopeful], kind="stable")][:MOST_ROWS]
    if not len(rows):
        return space
    # The best of each mesh (with its other choices) without tiles.
    all_rows, _, mesh_of, policy = space.best_policies()
    beaten = policy[mesh_of[np.searchsorted(all_rows, rows)]]

    like = np.tile(rows, len(TRIED))
    tiles = np.repeat(np.array(TRIED, dtype=np.int64), len(rows))
    tried = dataclasses.replace(space.table.take(like), vocab_tiles=tiles)
    legal = broken_rules(workload, space.target, tried) < 0
    like, tried, beaten = like[legal], tried.take(legal), np.tile(beaten, len(TRIED))[legal]
    if not len(like):
        return space
    prices = price(workload, tried, space.target, space.probed)
    seconds, peak = prices.step_seconds, prices.peak_bytes
    wins = (peak <= capacity) & (seconds < WINS * beaten)
    order = may_be_best(seconds, wins, best)
    if not np.isfinite(best) and not len(order):
        order = np.argsort(peak, kind="stable")
        order = order[peak[order] < space.peak_bytes[all_rows].min()]
    order = order[np.sort(np.unique(like[order], return_index=True)[1])][:keep]  # of each layout its best count
    if not len(order):
        return space
    word = LAYOUT_WORDS["vocab_tiles"]
    note = (
        f"{len(like):,} layouts with {word.name}={'|'.join(map(str, TRIED))} priced: {int(wins.sum()):,} of them fit "
        f"and beat all that fits on their mesh without; {len(order)} may be the best, or nearest to fit, and are listed"
    )
    return space.with_rows(tried.take(order), prices, order, like[order], note)
