"""The fastest way to divide a cluster, and the smallest cluster that meets a deadline.

Lossless pruning: one network level with the bandwidth of all levels together and the least of their latencies can
never be slower than the real network, so a mix whose time on it exceeds the best found is dropped before its splits
over the network levels are listed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from autotune.frontier.batch import BatchTime, Overlap, batch_time, matmul_seconds
from autotune.frontier.gpu import Gpu
from autotune.frontier.mix import Mix, Mixes
from autotune.frontier.run import WORD_BYTES, TrainingRun

Ints = NDArray[np.int64]

MICROBATCH_CHOICES = 4
"""How many microbatch counts the interleaved schedule tries: the smallest that fill the pipeline. Zero-bubble: one."""
DOUBLINGS = 60
"""Clusters tried: experts * 2^i GPUs, i below this."""
ROUNDING = 1 + 1e-12
"""The bound and the time it bounds are summed in different orders; far above float error, far below 1e-6."""
SPLITS_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FastestMix:
    """The best way found to divide `gpus` GPUs for a run, and what one batch then takes (arrays of length 1)."""

    gpus: int
    mix: Mix
    time: BatchTime

    @property
    def batch_seconds(self) -> float:
        return float(self.time.seconds[0])


def smallest_cluster(
    run: TrainingRun, gpu: Gpu, deadline_seconds: float, overlap: Overlap, *, prune: bool = True
) -> FastestMix | None:
    """The first of experts * 2^i GPUs whose best time for the whole run is below the deadline; None if none is.

    Not the best utilisation: a smaller cluster that is in time is taken, however close.
    """
    needed = run.flop / (deadline_seconds * gpu.sustained_flop_per_second)
    for i in range(DOUBLINGS):
        gpus = run.experts * 2**i
        if gpus < needed:
            continue
        limit = deadline_seconds / run.batches if prune else math.inf
        found = fastest_mix(run, gpu, gpus, overlap, within_seconds=limit, prune=prune)
        if found is not None and run.batches * found.batch_seconds < deadline_seconds:
            return found
    return None


def fastest_mix(
    run: TrainingRun,
    gpu: Gpu,
    gpus: int,
    overlap: Overlap,
    *,
    within_seconds: float = math.inf,
    prune: bool = True,
) -> FastestMix | None:
    """The mix of `gpus` GPUs with the least time per batch; None if no mix fits or none is within the limit.

    Equal times: the least communication, then the first in order of listing.
    """
    totals = unsplit_mixes(run, gpu, gpus)
    if len(totals) == 0:
        return None
    matmul = matmul_seconds(run, gpu, totals)
    bound = batch_time(run, gpu.pooled_network(), totals, overlap, matmul).seconds
    order = np.argsort(bound, kind="stable") if prune else np.arange(len(totals))
    best: FastestMix | None = None
    best_key = (within_seconds * ROUNDING, math.inf)
    splits = level_splits(gpu, gpus, run.experts)
    block = max(1, SPLITS_AT_ONCE // len(splits))
    start = 0
    while start < len(order):
        # The first block is small: its best time then prunes the rest.
        rows = order[start : start + (min(block, 8) if prune and start == 0 else block)]
        start += len(rows)
        if prune:
            rows = rows[bound[rows] <= best_key[0] * ROUNDING]
            if len(rows) == 0:
                break
        mixes, source = split_over_levels(totals.take(rows), splits)
        if len(mixes) == 0:
            continue
        time = batch_time(run, gpu, mixes, overlap, matmul[rows][source])
        winner = int(np.lexsort((time.communication, time.seconds))[0])
        key = (float(time.seconds[winner]), float(time.communication[winner]))
        if key < best_key:
            best_key = key
            best = evaluate(run, gpu, mixes[winner], overlap)
    return best


def evaluate(run: TrainingRun, gpu: Gpu, mix: Mix, overlap: Overlap) -> FastestMix:
    """One given mix, without a search."""
    mixes = Mixes.of([mix])
    return FastestMix(
        gpus=mix.gpus, mix=mix, time=batch_time(run, gpu, mixes, overlap, matmul_seconds(run, gpu, mixes))
    )


def unsplit_mixes(run: TrainingRun, gpu: Gpu, gpus: int) -> Mixes:
    """Every mix of `gpus` = experts * 2^i GPUs that divides the run and fits in memory, all on one network level."""
    if gpus % run.experts or (gpus // run.experts).bit_count() != 1:
        raise ValueError(f"gpus={gpus} must be experts={run.experts} times a power of two")
    data, stages, microbatches, interleave, zero_bubble = _schedules(run)
    copies = gpus // run.experts
    tensor = copies // (data * stages)
    fits = (tensor >= 1) & (tensor * data * stages == copies)
    fits &= gpus * gpu.memory_bytes >= float(run.params) * WORD_BYTES * (data + 4.0)
    parts: list[NDArray[np.intp]] = []
    model_degrees: list[Ints] = []
    ff_degrees: list[Ints] = []
    for degree in np.unique(tensor[fits]):
        rows = np.flatnonzero(fits & (tensor == degree))
        for ff in _tensor_ff_degrees(int(degree), run.d_model, run.d_ff):
            parts.append(rows)
            ff_degrees.append(np.full(len(rows), ff))
            model_degrees.append(np.full(len(rows), int(degree) // ff))
    rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.intp)

    def one_level(columns: list[Ints]) -> NDArray[np.float64]:
        return (np.concatenate(columns) if columns else np.zeros(0)).astype(np.float64)[None, :]

    return Mixes(
        data=data[rows].astype(np.float64)[None, :],
        tensor_model=one_level(model_degrees),
        tensor_ff=one_level(ff_degrees),
        pipeline=stages[rows].astype(np.float64)[None, :],
        expert=np.full((1, len(rows)), float(run.experts)),
        microbatches=microbatches[rows].astype(np.float64),
        interleave=interleave[rows].astype(np.float64),
        zero_bubble=zero_bubble[rows],
    )


def _tensor_ff_degrees(tensor: int, d_model: int, d_ff: int) -> list[int]:
    """Degrees that may cut d_ff: powers of two from the whole square root of the tensor degree to four times it."""
    root = math.isqrt(tensor)
    powers = (2**i for i in range(tensor.bit_length()))
    return [ff for ff in powers if root <= ff <= 4 * root and d_ff % ff == 0 and d_model % (tensor // ff) == 0]


@lru_cache(maxsize=8)
def _schedules(run: TrainingRun) -> tuple[Ints, Ints, Ints, Ints, NDArray[np.bool_]]:
    """Every (data degree, stages, microbatches, interleave, zero-bubble) that the run's batch and depth divide into.

    Data and pipeline degrees are powers of two, as every factor of experts * 2^i GPUs is but the experts.
    """
    rows: list[tuple[int, int, int, int, bool]] = []
    for data in _powers_of_two_dividing(run.batch_tokens):
        divisors = _divisors(run.batch_tokens // (run.experts * data))
        for stages in _powers_of_two_dividing(run.layers):
            filling = [m for m in divisors if m >= stages][:MICROBATCH_CHOICES]
            interleave = run.layers // stages if stages > 1 else 1
            rows += [(data, stages, m, interleave, False) for m in filling]
            rows += [(data, stages, m, 1, True) for m in [m for m in divisors if m >= 2 * stages][:1]]
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4].astype(bool)


def _powers_of_two_dividing(n: int) -> Iterator[int]:
    power = 1
    while n % power == 0:
        yield power
        power *= 2


def _divisors(n: int) -> list[int]:
    """All divisors in ascending order; none of 0 (a batch smaller than its data-parallel members).

    >>> _divisors(12), _divisors(0)
    ([1, 2, 3, 4, 6, 12], [])
    """
    odd, twos = n, 0
    while odd and odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    small = [k for k in range(1, math.isqrt(odd) + 1) if odd % k == 0] if odd else []
    odd_divisors = {*small, *(odd // k for k in small)}
    return sorted(k * 2**i for k in odd_divisors for i in range(twos + 1))


def level_splits(gpu: Gpu, gpus: int, experts: int) -> Ints:
    """Every way to fill the inner network levels: powers of two that each degree spends there.

    Shape (splits, levels - 1, 5), the five being data, tensor_model, tensor_ff, pipeline, expert; what a degree does
    not spend on the inner levels lies on the outermost. A cluster too small or too odd to fill a level fills what of
    it divides the cluster.
    """
    left = _twos(gpus)
    spends: list[int] = []
    for level in gpu.levels[:-1]:
        assert level.size is not None
        spends.append(min(_twos(level.size), left))
        left -= spends[-1]
    return _splits(tuple(spends), _twos(experts))


@lru_cache(maxsize=64)
def _splits(spends: tuple[int, ...], expert_twos: int) -> Ints:
    """`level_splits` for inner levels that take these powers of two, of which experts can give `expert_twos`."""
    splits = list(itertools.product(*(_compositions(spend, 5) for spend in spends)))
    array = np.array(splits, dtype=np.int64).reshape(len(splits), len(spends), 5)
    return array[array[:, :, 4].sum(axis=1) <= expert_twos]


def _twos(n: int) -> int:
    """How often 2 divides n."""
    return (n & -n).bit_length() - 1


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """Every way to write `total` as an ordered sum of `parts` whole numbers."""
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(total - first, parts - 1)]


def split_over_levels(totals: Mixes, splits: Ints) -> tuple[Mixes, NDArray[np.intp]]:
    """All splits of one-level mixes over the network levels, and for each the index of the mix it came from."""
    degrees = np.stack(
        [totals.data[0], totals.tensor_model[0], totals.tensor_ff[0], totals.pipeline[0], totals.expert[0]]
    ).astype(np.int64)
    twos = np.log2(degrees & -degrees).astype(np.int64)
    spent = splits.sum(axis=1)
    source, split = np.nonzero(np.all(spent[None, :, :] <= twos.T[:, None, :], axis=2))
    inner = 2.0 ** splits[split]
    outer = degrees.T[source] / np.prod(inner, axis=1)
    levels = np.concatenate([inner, outer[:, None, :]], axis=1)
    return (
        Mixes(
            data=levels[:, :, 0].T,
            tensor_model=levels[:, :, 1].T,
            tensor_ff=levels[:, :, 2].T,
            pipeline=levels[:, :, 3].T,
            expert=levels[:, :, 4].T,
            microbatches=totals.microbatches[source],
            interleave=totals.interleave[source],
            zero_bubble=totals.zero_bubble[source],
        ),
        source,
    )
