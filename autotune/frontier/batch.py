"""How long one batch takes on a cluster that is divided in a given way: the time terms, and how they overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.frontier.gpu import Gpu
from autotune.frontier.matmul import matmul_time
from autotune.frontier.mix import Mixes
from autotune.frontier.run import WORD_BYTES, TrainingRun

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Which communication hides behind computation. As published: tensor and pipeline do, gradients do not."""

    tensor: bool = True
    pipeline: bool = True
    data: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTime:
    """Seconds of one batch, whole cluster, arrays over mixes. Each term is what it takes if nothing hides it.

    `point_to_point` is pipeline and expert traffic. The three latencies are kept apart from the bytes' times.
    `bubble` is the idle share of the pipeline, 0 to 1; `core` is what it stretches: matmuls with the communication
    that is not hidden behind them.
    """

    matmul: Floats
    tensor: Floats
    data: Floats
    point_to_point: Floats
    tensor_latency: Floats
    data_latency: Floats
    point_to_point_latency: Floats
    core: Floats
    bubble: Floats
    seconds: Floats

    @property
    def communication(self) -> Floats:
        """What breaks ties between mixes of equal time."""
        return self.tensor + self.data + self.point_to_point


def matmul_seconds(run: TrainingRun, gpu: Gpu, mixes: Mixes) -> Floats:
    """Seconds per batch in which one GPU multiplies: six matmuls for each of its layers, experts and microbatches.

    Two forward, two for activation gradients, two for weight gradients. It depends on the total degrees only, not on
    how they lie over network levels.
    """
    rows = np.floor(run.d_ff / np.prod(mixes.tensor_ff, axis=0))
    columns = np.floor(run.d_model / np.prod(mixes.tensor_model, axis=0))
    members = np.prod(mixes.data, axis=0) * mixes.microbatches * run.experts
    nanobatch = np.floor(run.batch_tokens / members)
    layer = 2 * (
        matmul_time(gpu, rows, columns, nanobatch, weight_gradient=False).seconds
        + matmul_time(gpu, columns, rows, nanobatch, weight_gradient=False).seconds
    ) + (
        matmul_time(gpu, rows, columns, nanobatch, weight_gradient=True).seconds
        + matmul_time(gpu, columns, rows, nanobatch, weight_gradient=True).seconds
    )
    return layers_per_gpu(run, mixes) * mixes.microbatches * layer


def layers_per_gpu(run: TrainingRun, mixes: Mixes) -> Floats:
    """Weight-matrix pairs that one GPU works through per microbatch: its layers times its experts."""
    layers = np.floor(run.layers / np.prod(mixes.pipeline, axis=0))
    return layers * np.floor(run.experts / np.prod(mixes.expert, axis=0))


def batch_time(run: TrainingRun, gpu: Gpu, mixes: Mixes, overlap: Overlap, matmul: Floats) -> BatchTime:
    """Every time term of one batch; `matmul` is `matmul_seconds` of the same mixes.

    core = max(matmul, hidden communication) + the rest; the pipeline's bubble stretches it; gradients are summed
    over the data-parallel members after the pipeline has drained.
    """
    cluster = _cluster_bytes_per_second(gpu, mixes)
    tensor, tensor_latency = _tensor(run, gpu, mixes, cluster)
    data, data_latency = _data(run, gpu, mixes, cluster)
    point_to_point, point_to_point_latency = _point_to_point(run, gpu, mixes, cluster)

    beside = (point_to_point if overlap.pipeline else 0.0) + (tensor if overlap.tensor else 0.0)
    after = (0.0 if overlap.pipeline else point_to_point) + (0.0 if overlap.tensor else tensor)
    core = np.maximum(matmul, beside) + after

    stages = np.prod(mixes.pipeline, axis=0)
    stalled = (mixes.interleave - 1) * np.maximum(0, stages - mixes.microbatches)
    idle = stalled + stages - 1
    bubble = np.where(mixes.zero_bubble, 0.0, idle / (idle + mixes.interleave * mixes.microbatches))
    # The zero-bubble schedule of the paper's simulation pays neither of these latencies; adding them would be the
    # obvious thing and gives other rows than the published ones.
    pipe_latency = np.where(mixes.zero_bubble, 0.0, tensor_latency + point_to_point_latency)
    pipe = core / (1 - bubble) + pipe_latency
    seconds = (np.maximum(pipe, data) if overlap.data else pipe + data) + data_latency
    return BatchTime(
        matmul=matmul,
        tensor=tensor,
        data=data,
        point_to_point=point_to_point,
        tensor_latency=tensor_latency,
        data_latency=data_latency,
        point_to_point_latency=point_to_point_latency,
        core=core,
        bubble=bubble,
        seconds=seconds,
    )


def _cluster_bytes_per_second(gpu: Gpu, mixes: Mixes) -> Floats:
    """One-way bandwidth of the whole cluster at each level: (levels, mixes). Data sheets count both ways."""
    gpus = np.prod(mixes.data * mixes.tensor_model * mixes.tensor_ff * mixes.pipeline * mixes.expert, axis=0)
    one_way = np.array([level.bidirectional_bytes_per_second / 2 for level in gpu.levels])
    return gpus * one_way[:, None]


def _latencies(gpu: Gpu) -> Floats:
    return np.array([level.latency_seconds for level in gpu.levels])[:, None]


def _beyond(degree: Floats) -> Floats:
    """At each level, the product of the degrees at all levels outside it."""
    inclusive = np.cumprod(degree[::-1], axis=0)[::-1]
    return np.concatenate([inclusive[1:], np.ones_like(degree[:1])])


def _all_reduce_bytes(degree: Floats, words: float) -> Floats:
    """Bytes that all groups of one level send to sum `words` over `degree` members: reduce-scatter and all-gather.

    Where a level lies inside another, as many groups work side by side as the outer degrees have members.
    """
    return 2 * (degree - 1) * words * WORD_BYTES * _beyond(degree)


def _tensor(run: TrainingRun, gpu: Gpu, mixes: Mixes, cluster: Floats) -> tuple[Floats, Floats]:
    """All-reduces of activations: per layer and token, forward and backward, d_ff words over the members that cut
    d_model and d_model words over those that cut d_ff."""
    moves = 2.0 * run.layers * run.batch_tokens
    by_model = _all_reduce_bytes(mixes.tensor_model, run.d_ff) * moves
    by_ff = _all_reduce_bytes(mixes.tensor_ff, run.d_model) * moves
    crossings = (mixes.tensor_model > 1).astype(float) + (mixes.tensor_ff > 1)
    latency = np.sum(4.0 * run.layers * _latencies(gpu) * crossings, axis=0)
    return np.max((by_model + by_ff) / cluster, axis=0), latency


def _data(run: TrainingRun, gpu: Gpu, mixes: Mixes, cluster: Floats) -> tuple[Floats, Floats]:
    """One all-reduce of every gradient per batch. Parameters are whole on each member: nothing is gathered."""
    latency = np.sum(2.0 * _latencies(gpu) * (mixes.data > 1), axis=0)
    return np.max(_all_reduce_bytes(mixes.data, float(run.params)) / cluster, axis=0), latency


def _point_to_point(run: TrainingRun, gpu: Gpu, mixes: Mixes, cluster: Floats) -> tuple[Floats, Floats]:
    """Activations sent from layer to layer, forward and backward: to the next stage, to the token's expert, or both.

    A hop to another stage at level i and to an expert at level j crosses level max(i, j); index 0 stands for staying
    on the GPU.
    """
    stage_hops = _stage_hops(run, mixes)
    expert_share, expert_reach = _expert_moves(mixes)
    activation_bytes = float(run.batch_tokens) * run.d_model * WORD_BYTES
    latencies = _latencies(gpu)[:, 0]
    seconds = np.zeros(len(mixes))
    latency = np.zeros(len(mixes))
    levels = len(gpu.levels)
    for i in range(levels + 1):
        for j in range(levels + 1):
            level = max(i, j) - 1
            if level >= 0:
                seconds += 2 * stage_hops[i] * expert_share[j] * activation_bytes / cluster[level]
                latency += 2 * stage_hops[i] * expert_reach[j] * latencies[level]
    return seconds, latency


def _stage_hops(run: TrainingRun, mixes: Mixes) -> list[Floats]:
    """Of the layers - 1 hops of a token: how many stay on the GPU, then how many cross each level."""
    stages = np.prod(mixes.pipeline, axis=0)
    chunks = mixes.interleave
    beyond = _beyond(mixes.pipeline)
    hops = [run.layers - chunks * stages]
    for level in range(len(mixes.pipeline)):
        degree = mixes.pipeline[level]
        # The outermost level in use closes no ring: the last chunk has no next stage. A level outside it has degree 1
        # and no hops; a pipeline of one stage has none anywhere.
        outermost = (degree > 1) & (beyond[level] == 1)
        hops.append(np.where(outermost, chunks * degree - 1, chunks * beyond[level] * (degree - 1)))
    # Without a pipeline the formula's layers - 1 on-GPU hops come out directly: chunks = stages = 1.
    return hops


def _expert_moves(mixes: Mixes) -> tuple[list[Floats], list[Floats]]:
    """Share of tokens whose expert lies on the GPU and at each level (uniform routing), and the level that the
    slowest of them must cross (1 there, 0 elsewhere)."""
    beyond = _beyond(mixes.expert)
    experts = np.prod(mixes.expert, axis=0)
    share: list[Floats] = [1 / experts]
    reach: list[Floats] = [np.where(experts == 1, 1.0, 0.0)]
    for level in range(len(mixes.expert)):
        degree = mixes.expert[level]
        share.append(1 / beyond[level] - 1 / (beyond[level] * degree))
        reach.append(np.where((degree > 1) & (beyond[level] == 1), 1.0, 0.0))
    return share, reach
