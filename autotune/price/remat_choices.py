"""Which arrays of a layer to keep, offload or compute again: for every layout that may be best, the best set.

The policies of the space are six sets of thousands (`autotune.meshes.remat_sets`). Arrays of equal size and work cost
the same, so one set stands for all that differ only in which of such arrays they name. Arrays that the model lacks, or
whose absence costs nothing, are computed again.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from autotune.meshes.layout_words import LAYOUT_WORDS, RematWord
from autotune.meshes.legality import has_array
from autotune.meshes.remat_sets import DEVICE, HOST, PLACES, RECOMPUTE, REMAT_ARRAYS, digits_of, set_code
from autotune.meshes.transformer import TransformerShape
from autotune.price.price import price, price_sets, price_transformer
from autotune.price.priced_space import NEAR_CAPACITY, PricedSpace
from autotune.price.transformer.training_stack import stack_of
from autotune.price.winning_rows import WINS
from autotune.table import LayoutTable

HOST_WINS = 0.9
"""The same of a set with arrays in host memory, beside all layouts without: its price takes the copies to hide beside
matmuls as far as they can, and the compiler works several times as long on such a program."""

AT_ONCE = 1 << 17
"""Rows priced together."""

MOST_ROWS = 1 << 21
"""Rows priced in all, the most hopeful meshes first."""

TWINS = (("key", "value"), ("mlp_gate", "mlp_up"))
"""Arrays of equal size and work."""


@functools.lru_cache(maxsize=8)
def candidate_sets(shape: TransformerShape, host: bool) -> np.ndarray:
    """Shape (sets,): one code for each group of sets with equal price. `host`: whether arrays can wait in host
    memory."""
    word, somewhere = LAYOUT_WORDS["remat"], (DEVICE, HOST) if host else (DEVICE,)
    assert isinstance(word, RematWord)
    places: dict[str, tuple[int, ...]] = {}
    for name, array in REMAT_ARRAYS.items():
        # Nothing reads the last matmul of a dense MLP again.
        read = has_array(array, shape) and (name != "mlp_out" or shape.experts > 0)
        places[name] = (*somewhere, RECOMPUTE) if read else (RECOMPUTE,)
    places["layer_input"] = somewhere
    sets = np.zeros(1, dtype=np.int64)
    for name, digits in places.items():
        own = [set_code({**dict.fromkeys(REMAT_ARRAYS, "recompute"), name: PLACES[digit]}) for digit in digits]
        sets = (sets[:, None] + np.array(own)).ravel()
    digit_of = digits_of(sets)
    for first, second in TWINS:
        if places[first] == places[second]:
            # Of two that differ in which of the twins is where: the device before the host before neither.
            rank = [(digit_of[name] - DEVICE) % len(PLACES) for name in (first, second)]
            keep = rank[0] <= rank[1]
            sets, digit_of = sets[keep], {name: digit[keep] for name, digit in digit_of.items()}
    return np.unique(word.codes_of_sets(sets))


def with_best_sets(space: PricedSpace, keep: int) -> PricedSpace:
    """The space with more rows: for each layout up to `remat`, the fastest set of arrays that are all on the device,
    and the fastest with some on the host, where it beats the best named policy.

    Only sets whose peak is at most `NEAR_CAPACITY` of the memory count: programs nearer to the limit often do not fit.
    A set with arrays in host memory must be faster than all layouts without by more (`HOST_WINS`). Layouts that would
    not be among the `keep` best even if they had the memory to keep every array are passed over: no set makes them so.
    """
    shape, hardware = space.workload.transformer, space.target.hardware
    if shape is None:
        return space
    legal, first, _, policy = space.best_policies()
    if not len(legal):
        return space
    meshes = space.table.take(legal[first])
    least, bound = _bounds(space, meshes)
    order = np.argsort(bound, kind="stable")
    order = order[(least[order] <= NEAR_CAPACITY * hardware.capacity_bytes) & (bound[order] < WINS * policy[order])]
    sets = candidate_sets(shape, space.target.platform == "tpu")
    best = np.sort(policy)[:keep]
    waits = LAYOUT_WORDS["remat"].on_host(sets)
    rows, mesh_rows, times, priced = [], [], [], 0
    size = max(AT_ONCE // len(sets), 1)
    for begin in range(0, len(order), size):
        some = order[begin : begin + size]
        some = some[bound[some] <= best[-1]] if len(best) == keep else some
        if not len(some) or priced >= MOST_ROWS:
            break
        seconds, peak = price_sets(space.workload, meshes.take(some), sets, space.target)
        priced += seconds.size
        seconds = np.where(peak <= NEAR_CAPACITY * hardware.capacity_bytes, seconds, np.inf)
        beaten = policy[some]
        for on_host in (False, True):
            fastest, at = _fastest(seconds, waits == on_host)
            wins = fastest < WINS * beaten
            rows.append(_with_remat(meshes.take(some[wins]), sets[at[wins]]))
            mesh_rows.append(legal[first[some[wins]]])
            times.append(fastest[wins])
            if not on_host:
                beaten = np.minimum(beaten, fastest)
                best = np.sort(np.concatenate([best, fastest[wins]]))[:keep]
    if not rows:
        return space
    table, found, seconds = _concatenated(rows), np.concatenate(mesh_rows), np.concatenate(times)
    waits = LAYOUT_WORDS["remat"].on_host(table.remat)
    listed = np.flatnonzero(~waits | (seconds < HOST_WINS * min(seconds[~waits].min(initial=np.inf), policy.min())))
    if not len(listed):
        return space
    table, found = table.take(listed), found[listed]
    prices = price(space.workload, table, space.target, space.probed)
    note = (
        f"{priced:,} layouts that keep, offload or recompute arrays one by one priced; "
        f"{len(found):,} of them beat every named policy of their mesh, and are listed with their arrays"
    )
    return space.with_rows(table, prices, np.arange(len(table)), found, note)


def _fastest(seconds: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the least of each row, its column), each of shape (meshes,). `among`: mask of the sets that count; infinite
    where there is none."""
    seconds = np.where(among, seconds, np.inf)
    at = seconds.argmin(axis=1)
    return seconds[np.arange(len(seconds)), at], at


def _bounds(space: PricedSpace, meshes: LayoutTable) -> tuple[np.ndarray, np.ndarray]:
    """(peak bytes, step seconds) below which no set goes, each of shape (meshes,). Least memory: nothing is kept on the
    device. Least time: every matmul is kept, and keeping costs nothing."""
    workload, word, transformer = space.workload, LAYOUT_WORDS["remat"], space.workload.transformer
    assert transformer is not None
    least = [word.code("full"), *([word.code("offload")] if space.target.platform == "tpu" else [])]
    peak = np.minimum.reduce([
        price(workload, _with_remat(meshes, np.full(len(meshes), code)), space.target, space.probed).peak_bytes
        for code in least
    ])  # fmt: skip
    stack = stack_of(space.target.hardware, workload.dtype, workload.training)
    free = dataclasses.replace(stack, traffic=dataclasses.replace(stack.traffic, saving=0.0))
    all_kept = _with_remat(meshes, np.full(len(meshes), word.code("dots")))
    prices = price_transformer(
        transformer, workload.sequences, workload.seq, workload.dtype, all_kept, space.target, free
    )
    return peak, prices.step_seconds * (1 - 1e-9)


def _with_remat(table: LayoutTable, codes: np.ndarray) -> LayoutTable:
    return dataclasses.replace(table, remat=codes)


def _concatenated(tables: list[LayoutTable]) -> LayoutTable:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(table, name) for table in tables]) for name in LayoutTable.columns()
    }
    return dataclasses.replace(tables[0], **columns)
