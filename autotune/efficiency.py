"""Seconds of one matmul on one device, by shape and dtype: how much of the peak a shape can reach, and why. NumPy only.

TPU: the time at the best rate, plus a start that no size avoids, plus the part of the traffic that nothing hides
(filling the first tiles, draining the last); both are in the hardware file. The form is that of the published size
curve of a TPU7x core (AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood, bfloat16, m=n=k from 128 to 32768).

GPU: whole tiles in whole waves over the multiprocessors, each tile at the rate that the L2 cache can feed, plus the
filling and emptying of each wave. Nothing fitted: tile sizes are cuBLAS's (NVIDIA, "Matrix multiplication background"),
the ceiling is the largest rate measured (`Hardware.matmul_efficiency`).

CPU: the measured rate of `Hardware`.
"""

from __future__ import annotations

import numpy as np

from autotune.meshes.hardware import Hardware

DTYPE_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8": 1.0, "int8": 1.0}
"""Of one element, by dtype."""

GPU_TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))
"""Output tiles of cuBLAS's tensor-core kernels (NVIDIA, "Matrix multiplication background user's guide", section 3)."""

GPU_PAIRED = 10
"""Compute capability from which two multiprocessors work on one tile pair, each loading half of the operand that both
need (PTX ISA, tcgen05.mma with cta_group::2). Without it a B200 could not reach the 0.776 of its peak that is measured,
for want of L2 bandwidth."""

GPU_SUSTAINED = 0.98
"""Ordinary data draw more power than the best case of `matmul_efficiency`, and the clock gives way: 8192^3 with
normally distributed operands is 258 TFLOP/s on an A100 (thonking.ai, "Strangely, matrix multiplications on GPUs run
faster when given predictable data", 2024), 263 by the tiles below without this factor."""

GPU_FILL_STEPS = 3 * 32
"""Depth in k of the software pipeline (3 stages of 32) that a tile loads before its first multiply-add."""


def matmul_seconds(hardware: Hardware, dtype: str, bytes_per_element: float, m, n, k, count=1.0):
    """Seconds of `count` independent (m, k) x (k, n) matmuls on one device, without the launch. Arrays broadcast.

    >>> from autotune.meshes.hardware import load_hardware
    >>> seconds = matmul_seconds(load_hardware("tpu7x"), "bfloat16", 2, 4096, 4096, 4096)
    >>> round(float(2 * 4096**3 / seconds / 1e12))  # published: 893
    903
    """
    m, n, k, count = (np.asarray(value, dtype=np.float64) for value in (m, n, k, count))
    peak = hardware.peak(dtype)
    byte_seconds = bytes_per_element * count * (m * k + k * n + m * n)
    byte_seconds = byte_seconds / (hardware.hbm_bytes_per_second * hardware.hbm_efficiency)
    if hardware.platform == "tpu":
        busy = 2.0 * count * m * n * k / (peak * _tpu_ceiling(hardware))
        exposed = hardware.matmul_exposed_bytes / (hardware.hbm_bytes_per_second * hardware.hbm_efficiency)
        start = hardware.matmul_start_cycles / hardware.clock_hz if hardware.clock_hz else 0.0
        return np.maximum(busy, byte_seconds - exposed) + start + np.minimum(byte_seconds, exposed)
    if hardware.platform == "cuda":
        return np.maximum(_gpu_seconds(hardware, peak, bytes_per_element, m, n, k, count), byte_seconds)
    return np.maximum(2.0 * count * m * n * k / (peak * hardware.matmul_efficiency), byte_seconds)


def _tpu_ceiling(hardware: Hardware) -> float:
    """Share of the peak that the largest matmuls reach."""
    return hardware.matmul_efficiency


def _gpu_seconds(hardware: Hardware, peak: float, width: float, m, n, k, count):
    """The fastest of the tile shapes: waves x (fill + k steps + writing the tile)."""
    assert hardware.l2_bytes_per_cycle is not None, "every GPU has one"
    cores = float(str(hardware.compile_fields["core_count"]))
    clock = 1e9 * float(str(hardware.compile_fields["clock_rate_ghz"]))
    per_core = peak / cores
    hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
    paired = float(str(hardware.compile_fields["cuda_compute_capability"])) >= GPU_PAIRED
    best = None
    for rows, columns in GPU_TILES:
        step = 2.0 * rows * columns / (per_core * hardware.matmul_efficiency * GPU_SUSTAINED)
        loaded = rows + columns - (max(rows, columns) / 2 if paired else 0.0)
        feed = width * loaded / (hardware.l2_bytes_per_cycle * clock)
        waves = np.ceil(count * np.ceil(m / rows) * np.ceil(n / columns) / cores)
        drain = width * rows * columns * cores / hbm
        seconds = waves * ((k + GPU_FILL_STEPS) * max(step, feed) + drain)
        best = seconds if best is None else np.minimum(best, seconds)
    return best
