"""Which limit a mix runs into: shares of one batch's time, and whether memory keeps a better mix out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from autotune.frontier.batch import Overlap, layers_per_gpu
from autotune.frontier.gpu import Gpu
from autotune.frontier.matmul import matmul_time
from autotune.frontier.mix import Mixes
from autotune.frontier.run import TrainingRun
from autotune.frontier.search import FastestMix, fastest_mix, unsplit_mixes

RESOURCES = (
    "compute",
    "hbm",
    "l2",
    "shared-memory",
    "tensor-network",
    "data-network",
    "pipeline-expert-network",
    "bubble",
    "matmul-latency",
    "network-latency",
)
"""What one batch's time is divided among. The bubble is idle time, the rest is busy."""

GROUPS = {"matmul-latency": "latency", "network-latency": "latency"}
"""Resources that count as one limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The limit that binds one point of a curve.

    `shares`: of one batch's time, by resource; they sum to 1. `memory_gain`: how much shorter the batch would be on
    as many GPUs with unlimited memory, as a share of the time (0: memory keeps no better mix out).
    """

    shares: dict[str, float]
    memory_gain: float

    @property
    def by_limit(self) -> dict[str, float]:
        """Shares with resources of one limit added, largest first; a tie keeps the order of RESOURCES."""
        sums: dict[str, float] = {}
        for resource, share in self.shares.items():
            limit = GROUPS.get(resource, resource)
            sums[limit] = sums.get(limit, 0.0) + share
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def limit(self) -> str:
        """The largest share, or "memory" where lifting it would save more than any resource's whole share."""
        limit, share = next(iter(self.by_limit.items()))
        return "memory" if self.memory_gain > share else limit

    @property
    def runner_up(self) -> str:
        """The largest share after the one that binds."""
        return next(limit for limit in self.by_limit if limit != self.limit)


def binding(run: TrainingRun, gpu: Gpu, found: FastestMix, overlap: Overlap) -> Binding:
    """Shares of the time of the mix found, and what memory costs at this cluster size."""
    return Binding(shares=time_shares(run, gpu, found, overlap), memory_gain=_memory_gain(run, gpu, found, overlap))


def time_shares(run: TrainingRun, gpu: Gpu, found: FastestMix, overlap: Overlap) -> dict[str, float]:
    """Every part of one batch's time given to the resource that takes it, as shares that sum to 1.

    Of things that overlap only the longest counts (equal: the matmul before communication, compute before HBM before
    L2 before shared memory). The bubble's share is the time the pipeline stands idle.
    """
    time, total = found.time, found.batch_seconds
    seconds = dict.fromkeys(RESOURCES, 0.0)
    matmul, tensor, point = float(time.matmul[0]), float(time.tensor[0]), float(time.point_to_point[0])
    data, core, bubble = float(time.data[0]), float(time.core[0]), float(time.bubble[0])
    beside = (point if overlap.pipeline else 0.0) + (tensor if overlap.tensor else 0.0)
    hidden = matmul >= beside
    pipe_latency = 0.0 if found.mix.zero_bubble else float(time.tensor_latency[0] + time.point_to_point_latency[0])
    pipe = core / (1 - bubble) + pipe_latency

    if not overlap.data or pipe >= data:
        if hidden:
            for resource, part in _matmul_parts(run, gpu, found).items():
                seconds[resource] += part
        if not (overlap.tensor and hidden):
            seconds["tensor-network"] += tensor
        if not (overlap.pipeline and hidden):
            seconds["pipeline-expert-network"] += point
        seconds["bubble"] += core * bubble / (1 - bubble)
        seconds["network-latency"] += pipe_latency
    if not overlap.data or pipe < data:
        seconds["data-network"] += data
    seconds["network-latency"] += float(time.data_latency[0])
    return {resource: part / total for resource, part in seconds.items()}


def elasticities(shares: dict[str, float], bubble: float) -> dict[str, float]:
    """d ln(time) / d ln(cost) of each resource, mix kept; they sum to 1 without the bubble.

    What the pipeline's bubble stretches (everything but gradients and latencies of the network) weighs 1 / (1 - bubble)
    of its share. Where two overlapping times are equal it is the one-sided derivative of the side that counts.
    """
    outside = ("data-network", "network-latency")
    return {
        resource: share if resource in outside else share / (1 - bubble)
        for resource, share in shares.items()
        if resource != "bubble"
    }


def _matmul_parts(run: TrainingRun, gpu: Gpu, found: FastestMix) -> dict[str, float]:
    """`matmul_seconds` of one mix, each of its six matmuls given to the longest of its parts, and their latency."""
    mixes = Mixes.of([found.mix])
    rows = run.d_ff // math.prod(found.mix.tensor_ff)
    columns = run.d_model // math.prod(found.mix.tensor_model)
    nanobatch = run.batch_tokens // (math.prod(found.mix.data) * found.mix.microbatches * run.experts)
    repeats = float(layers_per_gpu(run, mixes)[0]) * found.mix.microbatches
    parts = dict.fromkeys(("compute", "hbm", "l2", "shared-memory", "matmul-latency"), 0.0)
    for d1, d2 in ((rows, columns), (columns, rows)):
        for weight_gradient, times in ((False, 2), (True, 1)):
            one = matmul_time(
                gpu,
                np.array(d1, dtype=np.float64),
                np.array(d2, dtype=np.float64),
                np.array(nanobatch, dtype=np.float64),
                weight_gradient=weight_gradient,
            )
            candidates = {
                "compute": float(one.compute),
                "hbm": float(one.hbm),
                "l2": float(one.l2),
                "shared-memory": float(one.shared),
            }
            longest = max(candidates, key=lambda name: candidates[name])
            parts[longest] += repeats * times * candidates[longest]
            parts["matmul-latency"] += repeats * times * one.latency
    return parts


def _memory_gain(run: TrainingRun, gpu: Gpu, found: FastestMix, overlap: Overlap) -> float:
    unlimited = replace(gpu, memory_bytes=math.inf)
    if len(unsplit_mixes(run, unlimited, found.gpus)) == len(unsplit_mixes(run, gpu, found.gpus)):
        return 0.0
    better = fastest_mix(run, unlimited, found.gpus, overlap, within_seconds=found.batch_seconds)
    return 0.0 if better is None else max(0.0, 1 - better.batch_seconds / found.batch_seconds)
