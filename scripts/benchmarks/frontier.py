"""How fast `autotune.frontier` is, beside the same search in plain Python loops, measured in the same run."""

from __future__ import annotations

import time
from typing import Any

from benchmarks import frontier_plain

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.batch import Overlap
from autotune.frontier.curve import curve
from autotune.frontier.gpu import GPUS
from autotune.frontier.run import BATCH_RULES
from autotune.frontier.search import fastest_mix

REPEATS = 5


def run() -> dict[str, Any]:
    """Seconds of one curve, of every curve, and of one model on one cluster with and without arrays and pruning.

    The model and cluster are those where linear scaling ends on the H100 curve. `speedup_*` are ratios of the
    baseline's time to ours on the same question, which all answer alike.
    """
    gpu, assumptions = GPUS["h100"], Assumptions()
    curve_seconds = sorted(_seconds(lambda: curve(gpu, assumptions))[0] for _ in range(REPEATS))
    all_seconds, sizes = _seconds(_every_curve)

    model = assumptions.run(53248)
    gpus = 2**23
    plain_model = frontier_plain.Run(model.d_model, model.d_ff, model.layers, model.experts, model.batch_tokens)
    ours = sorted(_seconds(lambda: fastest_mix(model, gpu, gpus, Overlap()))[0] for _ in range(REPEATS))
    unpruned, _ = _seconds(lambda: fastest_mix(model, gpu, gpus, Overlap(), prune=False))
    plain, plain_best = _seconds(lambda: frontier_plain.best_batch_seconds(plain_model, gpu, gpus))
    found = fastest_mix(model, gpu, gpus, Overlap())
    if found is None or abs(found.batch_seconds / plain_best - 1) > 1e-9:
        raise RuntimeError(f"the search and its plain baseline disagree: {found} against {plain_best}")
    middle = REPEATS // 2
    return {
        "h100_dense_curve_seconds": curve_seconds[middle],
        "h100_dense_curve_seconds_spread": [curve_seconds[0], curve_seconds[-1]],
        "every_curve_seconds": all_seconds,
        "every_curve_sizes": sizes,
        "one_size_seconds": ours[middle],
        "one_size_unpruned_seconds": unpruned,
        "one_size_plain_python_seconds": plain,
        "speedup_over_unpruned": unpruned / ours[middle],
        "speedup_over_plain_python": plain / ours[middle],
    }


def _every_curve() -> int:
    """All hardware, dense and sparse, all batch rules; returns how many model sizes that is."""
    return sum(
        len(curve(gpu, Assumptions(sparse=sparse, batch_rule=rule)).points)
        for gpu in GPUS.values()
        for sparse in (False, True)
        for rule in BATCH_RULES
    )


def _seconds(call: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
