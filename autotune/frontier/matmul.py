"""How long one GPU takes for one matmul, through its memory hierarchy. Every function takes arrays of shapes.

Weights d1 x d2 meet activations d2 x b. A weight-gradient matmul (d1 x b by b x d2) accumulates into d1 x d2 instead,
so its weights are read and written. The weight matrix is cut into tiles that a memory can hold; the more tiles, the
more often the activations pass through the level above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.frontier.gpu import PROCESSING_BLOCKS_PER_SM, Gpu
from autotune.frontier.run import WORD_BYTES

Floats = NDArray[np.float64]

PADDING = 8
"""Tensor cores work on multiples of 8 in every dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulTime:
    """Seconds of one matmul on one GPU, by what it would take if that part alone existed. Arrays over shapes.

    `seconds` = the longest of the four, plus the latency.
    """

    hbm: Floats
    l2: Floats
    shared: Floats
    compute: Floats
    latency: float

    @property
    def seconds(self) -> Floats:
        return self.longest + self.latency

    @property
    def longest(self) -> Floats:
        return np.maximum(np.maximum(self.hbm, self.l2), np.maximum(self.shared, self.compute))


def matmul_time(gpu: Gpu, d1: Floats, d2: Floats, b: Floats, *, weight_gradient: bool) -> MatmulTime:
    """Seconds of weights d1 x d2 by activations d2 x b on one GPU.

    t = max(a / BW_hbm, (a + l) / BW_L2, (l + y + s) / BW_shared, padded FLOP / F) + latency, where a is what HBM and
    L2 exchange, l what L2 and the SMs exchange, y what SMs exchange among themselves, s what shared memory and
    registers exchange.
    """
    d1, d2, b = (np.asarray(x, dtype=np.float64) for x in (d1, d2, b))
    hbm_l2, _ = _traffic(d1, d2, b, gpu.l2_tile_bytes, 1, weight_gradient, exchange=False)
    l2_sm, among_sms = _traffic(
        d1, d2, b, gpu.sm_tile_bytes, gpu.sms, weight_gradient, exchange=gpu.distributed_shared_memory
    )
    shared_registers, _ = _traffic(
        d1, d2, b, gpu.register_tile_bytes, PROCESSING_BLOCKS_PER_SM * gpu.sms, weight_gradient, exchange=False
    )
    blocks = np.ceil(d1 / PADDING) * np.ceil(d2 / PADDING) * np.ceil(b / PADDING)
    return MatmulTime(
        hbm=hbm_l2 / gpu.hbm_bytes_per_second,
        l2=(hbm_l2 + l2_sm) / gpu.l2_bytes_per_second,
        shared=(l2_sm + among_sms + shared_registers) / gpu.shared_bytes_per_second,
        compute=2 * PADDING**3 * blocks / gpu.sustained_flop_per_second,
        latency=gpu.matmul_latency_seconds,
    )


def _tiles(d1: Floats, d2: Floats, tile_bytes: float) -> tuple[Floats, Floats]:
    """Rows and columns of tiles (real numbers) when d1 x d2 is cut, as squarely as it goes, to fit `tile_bytes`."""
    words = d1 * d2
    area = words / np.ceil(words * WORD_BYTES / tile_bytes)
    side = np.sqrt(area)
    height = np.maximum(np.minimum(d1, side), area / d2)
    return d1 / height, d2 / (area / height)


def _traffic(
    d1: Floats, d2: Floats, b: Floats, holder_bytes: float, holders: int, weight_gradient: bool, *, exchange: bool
) -> tuple[Floats, Floats | float]:
    """Bytes between a memory and the `holders` of `holder_bytes` below it, and bytes the holders exchange.

    Holders that can `exchange` hold one common tile between them; otherwise each streams for its own.
    """
    weights, left, right = d1 * d2 * WORD_BYTES, d1 * b * WORD_BYTES, d2 * b * WORD_BYTES
    rows, columns = _tiles(d1, d2, holder_bytes * holders if exchange else holder_bytes)
    weights_moved = np.where(2 * weights <= holder_bytes * holders, 0.0, (2 if weight_gradient else 1) * weights)
    partial_sums = columns if weight_gradient else 2 * columns - 1
    between = weights_moved + rows * right + partial_sums * left
    if not exchange:
        return between, 0.0
    inner_rows, inner_columns = _tiles(d1, d2, holder_bytes)
    among = np.where(inner_rows > 1, inner_rows * right, 0.0)
    if weight_gradient:
        return between, among + np.where(inner_columns > 1, inner_columns * left, 0.0)
    return between, among + 2 * (inner_columns - 1) * left
