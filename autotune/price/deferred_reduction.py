"""Which layouts win by reducing their gradients over `data` once a step: added to the space where the price says so."""

from __future__ import annotations

import dataclasses

import numpy as np

from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.legality import ONCE_A_STEP
from autotune.price.price import price
from autotune.price.priced_space import PricedSpace, broken_rules
from autotune.price.winning_rows import NEAR, WINS, may_be_best


def with_deferred_reduction(space: PricedSpace, keep: int) -> PricedSpace:
    """The space with further rows: layouts that fit, are faster with `reduce=step` and may be the best, at most `keep`.

    A row is tried where it has several passes and replicas, and may be the best if no collective took any time.
    """
    transformer, hardware = space.workload.transformer, space.target.hardware
    if transformer is None:
        return space
    table = space.table
    rows = np.flatnonzero(
        space.legal & space.compilable & (table.accumulate > 1) & (table.data > 1) & (table.reduce != ONCE_A_STEP)
    )
    if not len(rows):
        return space
    tried = dataclasses.replace(table.take(rows), reduce=np.full(len(rows), ONCE_A_STEP, dtype=np.int64))
    workload = space.workload
    legal = broken_rules(workload, space.target, tried) < 0
    fits = space.legal & (space.peak_bytes <= hardware.capacity_bytes)
    best = space.seconds[fits].min(initial=np.inf)
    # Compute, and collectives that are perfectly hidden, take their time in any case.
    legal &= space.prices.low_seconds[rows] <= NEAR * best
    rows, tried = rows[legal], tried.take(legal)
    if not len(rows):
        return space
    prices = price(workload, tried, space.target, space.probed)
    wins = (prices.peak_bytes <= hardware.capacity_bytes) & (prices.step_seconds < WINS * space.seconds[rows])
    order = may_be_best(prices.step_seconds, wins, best)[:keep]
    if not len(order):
        return space
    word = LAYOUT_WORDS["reduce"]
    note = (
        f"{len(rows):,} layouts with {word.name}={word.value(ONCE_A_STEP)} priced: {int(wins.sum()):,} of them fit and "
        f"are faster so; {len(order)} may be the best and are listed"
    )
    return space.with_rows(tried.take(order), prices, order, rows[order], note)
