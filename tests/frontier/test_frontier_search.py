"""The pruned, vectorised search answers as one written in plain loops, and as itself without pruning."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.batch import Overlap
from autotune.frontier.curve import curve
from autotune.frontier.gpu import GPUS, NetworkLevel
from autotune.frontier.run import TrainingRun, scaled_run
from autotune.frontier.search import (
    evaluate,
    fastest_mix,
    level_splits,
    smallest_cluster,
    split_over_levels,
    unsplit_mixes,
)

PLAIN = Path(__file__).parents[2] / "scripts" / "benchmarks" / "frontier_plain.py"
DEADLINE = Assumptions().deadline_seconds


@pytest.fixture(scope="module")
def plain():
    """The search written to be read."""
    spec = importlib.util.spec_from_file_location("frontier_plain", PLAIN)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def plain_best(plain, run: TrainingRun, gpu, gpus: int) -> float:
    return plain.best_batch_seconds(
        plain.Run(run.d_model, run.d_ff, run.layers, run.experts, run.batch_tokens), gpu, gpus
    )


THREE_LEVELS = replace(
    GPUS["h100"],
    levels=(
        NetworkLevel(size=2, bidirectional_bytes_per_second=9e11, latency_seconds=1e-6),
        NetworkLevel(size=4, bidirectional_bytes_per_second=3e11, latency_seconds=2e-6),
        NetworkLevel(size=None, bidirectional_bytes_per_second=1e11, latency_seconds=3e-6),
    ),
)


@pytest.mark.parametrize("name", [name for name in GPUS if name != "h100-superpod"])
def test_every_gpu_equals_the_plain_search(plain, name):
    run, gpu = scaled_run(12288), GPUS[name]
    found = smallest_cluster(run, gpu, DEADLINE, Overlap())
    assert found.batch_seconds == pytest.approx(plain_best(plain, run, gpu, found.gpus), rel=1e-12)


@pytest.mark.parametrize(
    ("gpu", "run", "gpus"),
    [
        (GPUS["h100"], scaled_run(12288, sparse=True), 8 * 2**12),
        (GPUS["a100"], scaled_run(14336, sparse=True), 9 * 2**13),
        (GPUS["h100"], scaled_run(12288, sparse=True, batch_rule="deepseek"), 8 * 2**11),
        (GPUS["v100"], scaled_run(16384, batch_rule="fixed"), 2**14),
        (GPUS["h100"], scaled_run(53248), 2**18),
        (THREE_LEVELS, scaled_run(12288), 2**11),
        (THREE_LEVELS, TrainingRun(d_model=4096, d_ff=16384, layers=24, experts=12, batch_tokens=2**22 * 3), 12 * 2**6),
        (GPUS["h100"].scaled(memory=0.02), scaled_run(12288), 2**12),
    ],
    ids=["experts", "odd experts", "experts deepseek", "fixed", "many", "three levels", "shared experts", "memory"],
)
def test_more_kinds_of_run_equal_the_plain_search(plain, gpu, run, gpus):
    expected = plain_best(plain, run, gpu, gpus)
    found = fastest_mix(run, gpu, gpus, Overlap())
    assert (math.inf if found is None else found.batch_seconds) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rule", ["default", "fixed", "deepseek"])
@pytest.mark.parametrize("d_model", [12288, 26624, pytest.param(98304, marks=pytest.mark.slow)])
def test_pruning_loses_nothing(d_model, rule, sparse):
    for name in ("h100", "v100", "h100-low-latency"):
        run = scaled_run(d_model, sparse=sparse, batch_rule=rule)
        pruned = smallest_cluster(run, GPUS[name], DEADLINE, Overlap())
        whole = smallest_cluster(run, GPUS[name], DEADLINE, Overlap(), prune=False)
        if pruned is None or whole is None:
            assert pruned is whole
            continue
        assert pruned.gpus == whole.gpus
        assert pruned.batch_seconds == whole.batch_seconds
        assert float(pruned.time.communication[0]) == float(whole.time.communication[0])


def test_pruning_loses_nothing_on_three_levels():
    run, gpu = scaled_run(20480), GPUS["h100-superpod"]
    pruned, whole = (fastest_mix(run, gpu, 2**15, Overlap(), prune=prune) for prune in (True, False))
    assert pruned.batch_seconds == whole.batch_seconds


@pytest.mark.parametrize("overlap", [Overlap(tensor=False), Overlap(pipeline=False), Overlap(data=True)])
def test_pruning_loses_nothing_whatever_overlaps(overlap):
    run = scaled_run(53248)
    pruned, whole = (fastest_mix(run, GPUS["h100"], 2**23, overlap, prune=prune) for prune in (True, False))
    assert pruned.batch_seconds == whole.batch_seconds


def test_splits_use_every_gpu_and_fill_every_node():
    run, gpu, gpus = scaled_run(20480, sparse=True), GPUS["h100-superpod"], 14 * 2**11
    totals = unsplit_mixes(run, gpu, gpus)
    few = totals.take(np.arange(0, len(totals), 97))
    mixes, source = split_over_levels(few, level_splits(gpu, gpus, run.experts))
    kinds = ("data", "tensor_model", "tensor_ff", "pipeline", "expert")
    per_level = math.prod(getattr(mixes, kind) for kind in kinds)
    assert set(per_level[0]) == {8} and set(per_level[1]) == {32} and set(per_level[2]) == {gpus / 256}
    for kind in kinds:
        assert np.array_equal(np.prod(getattr(mixes, kind), axis=0), getattr(few, kind)[0][source])
        assert np.array_equal(getattr(mixes, kind), np.floor(getattr(mixes, kind)))
    listed = {
        tuple(np.concatenate([getattr(mixes, kind)[:, i] for kind in kinds])) + (source[i],) for i in range(len(mixes))
    }
    assert len(listed) == len(mixes)


def test_the_smallest_cluster_in_time_not_the_best_used():
    run, gpu = scaled_run(61440), GPUS["h100"]
    found = smallest_cluster(run, gpu, DEADLINE, Overlap())
    assert run.batches * found.batch_seconds < DEADLINE
    half = fastest_mix(run, gpu, found.gpus // 2, Overlap())
    assert run.batches * half.batch_seconds >= DEADLINE


def test_the_mix_returned_has_the_time_returned():
    run, gpu = scaled_run(98304), GPUS["h100"]
    found = smallest_cluster(run, gpu, DEADLINE, Overlap())
    assert evaluate(run, gpu, found.mix, Overlap()).batch_seconds == found.batch_seconds
    assert found.mix.gpus == found.gpus


def test_a_cluster_that_is_no_power_of_two_times_the_experts_is_refused():
    with pytest.raises(ValueError, match="gpus=3000 must be experts=1 times a power of two"):
        fastest_mix(scaled_run(12288), GPUS["h100"], 3000, Overlap())


def test_a_cluster_smaller_than_a_node_still_has_an_answer():
    small = TrainingRun(d_model=2048, d_ff=8192, layers=16, experts=1, batch_tokens=2**18)
    seconds = [fastest_mix(small, GPUS["h100"], gpus, Overlap()).batch_seconds for gpus in (1, 2, 4, 8)]
    assert seconds == sorted(seconds, reverse=True)


def test_the_h100_curve_takes_less_than_three_seconds_of_one_core():
    start = time.process_time()
    curve(GPUS["h100"], Assumptions())
    assert time.process_time() - start < 3
