"""The limits model of arXiv 2411.01137 written to be read: one loop per choice, no arrays, no pruning.

The baseline that `autotune.frontier` is timed against, and the oracle that its search must agree with. It shares the
figures of the GPUs with the library and nothing else.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from autotune.frontier.gpu import Gpu

WORD = 2


class Run(NamedTuple):
    d: int
    f: int
    layers: int
    experts: int
    batch: int

    @property
    def params(self) -> int:
        return 2 * self.d * self.f * self.layers * self.experts


class Degrees(NamedTuple):
    """One degree of each kind; in `split` mixes one such tuple a network level."""

    data: int
    model: int
    ff: int
    stages: int
    experts: int


def matmul_seconds(gpu: Gpu, d1: int, d2: int, b: int, gradient: bool) -> float:
    """One GPU, weights d1 x d2, activations d2 x b."""

    def tile(size: float) -> tuple[float, float]:
        count = math.ceil(d1 * d2 * WORD / size)
        area = d1 * d2 / count
        t1 = max(min(d1, math.sqrt(area)), area / d2)
        return d1 / t1, d2 / (area / t1)

    def traffic(size: float, holders: int, exchange: bool) -> tuple[float, float]:
        rows, columns = tile(size * holders) if exchange else tile(size)
        r, k = tile(size) if exchange else (1.0, 1.0)
        weights, left, right = d1 * d2 * WORD, d1 * b * WORD, d2 * b * WORD
        moved = 0 if 2 * weights <= size * holders else (2 * weights if gradient else weights)
        between = moved + rows * right + (columns if gradient else 2 * columns - 1) * left
        among = r * right if r > 1 else 0.0
        if gradient:
            among += k * left if k > 1 else 0.0
        else:
            among += 2 * (k - 1) * left
        return between, among

    register = 0.75 * gpu.register_bytes_per_block
    sm = 4 * register
    hbm, _ = traffic(max(0.75 * gpu.l2_bytes, sm), 1, False)
    l2, among_sms = traffic(sm, gpu.sms, gpu.distributed_shared_memory)
    shared, _ = traffic(register, 4 * gpu.sms, False)
    flop = 2 * 8**3 * math.ceil(d1 / 8) * math.ceil(d2 / 8) * math.ceil(b / 8)
    rate = gpu.flop_per_clock_per_thread * 128 * gpu.sms * gpu.clock_hz * gpu.large_matmul_efficiency
    shared_rate = 128 * gpu.sms * gpu.clock_hz * gpu.large_matmul_efficiency
    return (
        max(
            hbm / gpu.hbm_bytes_per_second,
            (hbm + l2) / gpu.l2_bytes_per_second,
            (l2 + among_sms + shared) / shared_rate,
            flop / rate,
        )
        + gpu.matmul_latency_seconds
    )


def layer_seconds(run: Run, gpu: Gpu, total: Degrees, microbatches: int) -> float:
    """Six matmuls of one layer, expert and microbatch."""
    x, y = run.f // total.ff, run.d // total.model
    z = run.batch // (total.data * microbatches * run.experts)
    forward = matmul_seconds(gpu, x, y, z, False) + matmul_seconds(gpu, y, x, z, False)
    return 2 * forward + matmul_seconds(gpu, x, y, z, True) + matmul_seconds(gpu, y, x, z, True)


def batch_seconds(
    run: Run, gpu: Gpu, levels: list[Degrees], microbatches: int, interleave: int, zero_bubble: bool, layer: float
) -> float:
    """One batch; tensor and pipeline communication hides behind matmuls, the sum of gradients does not."""
    total = Degrees(*(math.prod(level[i] for level in levels) for i in range(5)))
    gpus = math.prod(total)
    count = len(levels)

    def beyond(kind: int, level: int) -> int:
        return math.prod(levels[j][kind] for j in range(level + 1, count))

    def seconds(level: int, amount: float) -> float:
        return amount / (gpus * gpu.levels[level].bidirectional_bytes_per_second / 2)

    tensor, data, tensor_latency, data_latency = 0.0, 0.0, 0.0, 0.0
    for i, degrees in enumerate(levels):
        moves = 2 * run.layers * run.batch
        amount = 2 * (degrees.model - 1) * run.f * WORD * moves * beyond(1, i)
        amount += 2 * (degrees.ff - 1) * run.d * WORD * moves * beyond(2, i)
        tensor = max(tensor, seconds(i, amount))
        data = max(data, seconds(i, 2 * (degrees.data - 1) * run.params * WORD * beyond(0, i)))
        step = gpu.levels[i].latency_seconds
        tensor_latency += 4 * run.layers * step * ((degrees.model > 1) + (degrees.ff > 1))
        data_latency += 2 * step * (degrees.data > 1)

    piped = [i for i in range(count) if levels[i].stages > 1]
    hops = {-1: run.layers - interleave * total.stages}
    for i in range(count):
        if piped and i == piped[-1]:
            hops[i] = interleave * levels[i].stages - 1
        else:
            hops[i] = interleave * beyond(3, i) * (levels[i].stages - 1)
    routed = [i for i in range(count) if levels[i].experts > 1]
    share = {-1: 1 / total.experts}
    for j in range(count):
        share[j] = 1 / beyond(4, j) - 1 / (beyond(4, j) * levels[j].experts)
    reach = {j: float(j == (routed[-1] if routed else -1)) for j in range(-1, count)}
    point, point_latency = 0.0, 0.0
    for i, j in itertools.product(range(-1, count), repeat=2):
        if max(i, j) >= 0:
            point += seconds(max(i, j), 2 * hops[i] * share[j] * run.batch * run.d * WORD)
            point_latency += 2 * hops[i] * reach[j] * gpu.levels[max(i, j)].latency_seconds

    matmul = (run.layers // total.stages) * (run.experts // total.experts) * microbatches * layer
    core = max(matmul, point + tensor)
    if zero_bubble:
        return core + data + data_latency
    stalled = (interleave - 1) * max(0, total.stages - microbatches)
    bubble = (stalled + total.stages - 1) / (stalled + total.stages - 1 + interleave * microbatches)
    return core / (1 - bubble) + tensor_latency + point_latency + data + data_latency


def divisors(n: int) -> list[int]:
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0] if n else []
    return sorted({*small, *(n // k for k in small)})


def splits(total: Degrees, sizes: list[int]) -> list[list[Degrees]]:
    """Every way to lay the degrees over levels of these sizes and one that takes the rest."""
    if not sizes:
        return [[total]]
    found = []
    for inner in itertools.product(*(divisors(math.gcd(degree, sizes[0])) for degree in total)):
        if math.prod(inner) == sizes[0]:
            rest = Degrees(*(degree // part for degree, part in zip(total, inner, strict=True)))
            found += [[Degrees(*inner), *outer] for outer in splits(rest, sizes[1:])]
    return found


def best_batch_seconds(run: Run, gpu: Gpu, gpus: int) -> float:
    """The least time of one batch over every mix of `gpus` GPUs; infinite if none fits."""
    best = math.inf
    powers = [2**i for i in range(gpus.bit_length())]
    experts = math.gcd(gpus, run.experts)
    copies = gpus // experts
    sizes = [level.size for level in gpu.levels if level.size is not None]
    for data in (n for n in powers if copies % n == 0 and run.batch % n == 0):
        if gpus * gpu.memory_bytes < run.params * WORD * data + 4 * run.params * WORD:
            continue
        microbatch_counts = divisors(run.batch // (run.experts * data))
        for stages in (n for n in powers if (copies // data) % n == 0 and run.layers % n == 0):
            tensor = copies // data // stages
            if copies % (data * stages) or run.d * run.f % tensor:
                continue
            root = math.isqrt(tensor)
            for ff in divisors(tensor):
                model = tensor // ff
                if not root <= ff <= 4 * root or run.d % model or run.f % ff:
                    continue
                total = Degrees(data, model, ff, stages, experts)
                interleaved = run.layers // stages if stages > 1 else 1
                choices = [(m, interleaved, False) for m in microbatch_counts if m >= stages][:4]
                choices += [(m, 1, True) for m in microbatch_counts if m >= 2 * stages][:1]
                for microbatches, interleave, zero_bubble in choices:
                    layer = layer_seconds(run, gpu, total, microbatches)
                    for levels in splits(total, sizes):
                        seconds = batch_seconds(run, gpu, levels, microbatches, interleave, zero_bubble, layer)
                        best = min(best, seconds)
    return best
