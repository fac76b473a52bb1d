"""Where linear scaling ends and where latency stops training, as formulas: the paper's estimates beside its simulation.

Derived from arXiv 2411.01137. Works in multiply-adds inside and returns FLOP (twice as many). Two choices of the
authors are kept as they are: T0 is a FLOP figure that meets a multiply-add figure inside the power, and a year has
365.25 days here but 3.154e7 s in the simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.frontier.gpu import GPUS_PER_NODE, Gpu
from autotune.frontier.run import WORD_BYTES

REFERENCE_BATCH_TOKENS = 4e6
REFERENCE_LAYERS = 100
REFERENCE_FLOP = 3e23
SECONDS_PER_MONTH = 365.25 * 86400 / 12
DENSE_ALPHA = 1 / 6 - 0.1364
"""Exponent of batch over depth in training FLOP: batch grows as C^(1/6), depth of a dense model as C^0.1364."""
PAPER_ALPHAS = (0.0, DENSE_ALPHA, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBalance:
    """What one node of 8 GPUs must work on so that neither its memory nor its network waits.

    `nanobatch_tokens` (m*): tokens per weight-gradient matmul that hide its reads and writes of HBM.
    `activation_shard` (a): width of weight shard, in each dimension, that hides tensor-parallel traffic.
    """

    multiply_adds_per_second: float
    nanobatch_tokens: float
    activation_shard: float


def node_balance(gpu: Gpu) -> NodeBalance:
    """m* = C_n / M_n and a = 4 C_n / (3 B_n), with C_n multiply-adds/s, M_n and B_n words/s one way, all of one node.

    >>> from autotune.frontier.gpu import GPUS
    >>> balance = node_balance(GPUS["a100"])
    >>> round(balance.nanobatch_tokens, 1), round(balance.activation_shard)
    (401.1, 16633)
    """
    compute = GPUS_PER_NODE * gpu.peak_flop_per_second / 2
    network = GPUS_PER_NODE * gpu.levels[-1].bidirectional_bytes_per_second / (2 * WORD_BYTES)
    memory = GPUS_PER_NODE * gpu.hbm_bytes_per_second / (2 * WORD_BYTES)
    return NodeBalance(
        multiply_adds_per_second=compute,
        nanobatch_tokens=compute / memory,
        activation_shard=4 * compute / (3 * network),
    )


def linear_scaling_end_flop(
    gpu: Gpu, *, alpha: float = DENSE_ALPHA, months: float = 3, batch_scale: float = 1
) -> float:
    """T_crit: training FLOP above which a node's share of the run is too small to keep it busy. inf: it never is.

    T_crit(MAC) = [(1/960) (b0/L0 * T0^-alpha * C_n t / (a^2 m*))^2]^(1 / (1 - 2 alpha)), for batch over depth
    b/L = b0/L0 * (T/T0)^alpha. Faster arithmetic alone lowers it: C_n / (a^2 m*) = 9 B_n^2 M_n / (16 C_n^2).
    """
    node = node_balance(gpu)
    if node.activation_shard == 0:
        return math.inf
    per_second = node.multiply_adds_per_second / (node.activation_shard**2 * node.nanobatch_tokens)
    return _solve(per_second, alpha, months, batch_scale, 1 / 960)


def step_latency_seconds(gpu: Gpu) -> float:
    """l: the least one matmul takes with its all-reduce: its own latency, and two network steps at every level.

    >>> from autotune.frontier.gpu import GPUS
    >>> round(step_latency_seconds(GPUS["h100"]) * 1e6, 6)
    9.0
    """
    return gpu.matmul_latency_seconds + 2 * sum(level.latency_seconds for level in gpu.levels)


def latency_wall_flop(
    latency_seconds: float, *, alpha: float = DENSE_ALPHA, months: float = 3, batch_scale: float = 1
) -> float:
    """T_limit: training FLOP at which one matmul after another, 4 per layer and batch, takes the whole time.

    T_limit(MAC) = [(3/320) (b0/L0 * T0^-alpha * t / l)^2]^(1 / (1 - 2 alpha)). inf without latency.
    """
    if latency_seconds == 0:
        return math.inf
    return _solve(1 / latency_seconds, alpha, months, batch_scale, 3 / 320)


def _solve(per_second: float, alpha: float, months: float, batch_scale: float, coefficient: float) -> float:
    if not alpha < 0.5:
        raise ValueError(f"alpha={alpha} must be below 1/2: the formula has no solution there")
    batch_per_layer = batch_scale * REFERENCE_BATCH_TOKENS / REFERENCE_LAYERS * REFERENCE_FLOP**-alpha
    reach = batch_per_layer * per_second * months * SECONDS_PER_MONTH
    return 2 * (coefficient * reach**2) ** (1 / (1 - 2 * alpha))
