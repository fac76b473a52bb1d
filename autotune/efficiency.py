"""Seconds of one matmul on one device, by shape and dtype: how much of the peak a shape can reach, and why. NumPy only.

TPU: the time at the best rate, plus a start that no size avoids, plus the part of the traffic that nothing hides
(filling the first tiles, draining the last); both are in the hardware file. The form is that of the published size
curve of a TPU7x core (AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood, bfloat16, m=n=k from 128 to 32768).

GPU: whole tiles in whole waves over the multiprocessors, each tile at the rate that the L2 cache can feed, plus the
filling and emptying of each wave. Nothing fitted: tile sizes are cuBLAS's (NVIDIA, "Matrix multiplication background"),
the ceiling is the largest rate measured (`Hardware.matmul_efficiency`). Where the card's power has been measured, the
tiles run at the highest clock, and no matmul is faster than the power that the step leaves to it (`sustained_share`).

CPU: the measured rate of `Hardware`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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

TYPICAL_STEP = {"matmul": 0.70, "attention": 0.08, "passes": 0.22, "waits": 0.0}
"""Shares of a step that it is taken to spend so where nobody counts them and power decides the clock. Assumed: those of
a dense transformer of 8 to 70 billion parameters at 4096 tokens; the price of a transformer and a replay count."""

GPU_FILL_STEPS = 3 * 32
"""Depth in k of the software pipeline (3 stages of 32) that a tile loads before its first multiply-add."""


def matmul_seconds(
    hardware: Hardware, dtype: str, bytes_per_element: float, m, n, k, count=1.0, *, result_bytes: float | None = None
):
    """Seconds of `count` independent (m, k) x (k, n) matmuls on one device, without the launch. Arrays broadcast.

    `result_bytes`: of an element of the result; None: as of the operands. `dtype`: of the operands. Assumed: a matmul
    in 8 bits reaches the share of its peak that one in bfloat16 of the same shape does.

    >>> from autotune.meshes.hardware import load_hardware
    >>> seconds = matmul_seconds(load_hardware("tpu7x"), "bfloat16", 2, 4096, 4096, 4096)
    >>> round(float(2 * 4096**3 / seconds / 1e12))  # published: 893
    903
    """
    m, n, k, count = (np.asarray(value, dtype=np.float64) for value in (m, n, k, count))
    peak = hardware.peak(dtype)
    result_bytes = bytes_per_element if result_bytes is None else result_bytes
    byte_seconds = count * (bytes_per_element * (m * k + k * n) + result_bytes * (m * n))
    byte_seconds = byte_seconds / (hardware.hbm_bytes_per_second * hardware.hbm_efficiency)
    if hardware.platform == "tpu":
        busy = 2.0 * count * m * n * k / (peak * _tpu_ceiling(hardware))
        exposed = hardware.matmul_exposed_bytes / (hardware.hbm_bytes_per_second * hardware.hbm_efficiency)
        start = hardware.matmul_start_cycles / hardware.clock_hz if hardware.clock_hz else 0.0
        return np.maximum(busy, byte_seconds - exposed) + start + np.minimum(byte_seconds, exposed)
    if hardware.platform == "cuda":
        return np.maximum(_gpu_seconds(hardware, peak, bytes_per_element, result_bytes, m, n, k, count), byte_seconds)
    return np.maximum(2.0 * count * m * n * k / (peak * hardware.matmul_efficiency), byte_seconds)


def _tpu_ceiling(hardware: Hardware) -> float:
    """Share of the peak that the largest matmuls reach."""
    return hardware.matmul_efficiency


def _gpu_seconds(hardware: Hardware, peak: float, width: float, result_width: float, m, n, k, count) -> Any:
    """The fastest of the tile shapes: waves x (fill + k steps + writing the tile)."""
    assert hardware.l2_bytes_per_cycle is not None, "every GPU has one"
    cores = float(str(hardware.compile_fields["core_count"]))
    clock = 1e9 * float(str(hardware.compile_fields["clock_rate_ghz"]))
    per_core = peak / cores
    hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
    paired = float(str(hardware.compile_fields["cuda_compute_capability"])) >= GPU_PAIRED
    best: Any = None
    ceiling = hardware.matmul_ceiling or hardware.matmul_efficiency * GPU_SUSTAINED
    for rows, columns in GPU_TILES:
        step = 2.0 * rows * columns / (per_core * ceiling)
        loaded = rows + columns - (max(rows, columns) / 2 if paired else 0.0)
        feed = width * loaded / (hardware.l2_bytes_per_cycle * clock)
        waves = np.ceil(count * np.ceil(m / rows) * np.ceil(n / columns) / cores)
        drain = result_width * rows * columns * cores / hbm
        seconds = waves * ((k + GPU_FILL_STEPS) * max(step, feed) + drain)
        best = seconds if best is None else np.minimum(best, seconds)
    share = hardware.sustained_share
    if share is None:
        share = sustained_share(hardware, TYPICAL_STEP)
    return best if share is None else np.maximum(best, 2.0 * count * m * n * k / (peak * share))


def sustained_share(hardware: Hardware, spent: Mapping[str, Any]) -> Any:
    """Share of the peak that the power of a GPU leaves to large matmuls; None where its power is not known.

    The card holds the average of what it draws at its cap, by its clock: what passes over memory and waits leave of it
    speeds up the matmuls. `spent`: seconds of a step (or shares of it) in "matmul", "attention", "passes" and "waits",
    numbers or arrays.

    >>> from autotune.meshes.hardware import load_hardware
    >>> h100 = load_hardware("h100")
    >>> alone, half = ({"matmul": 1.0, "attention": 0.0, "passes": passes, "waits": 0.0} for passes in (0.0, 1.0))
    >>> [round(float(sustained_share(h100, spent)), 2) for spent in (alone, half)]
    [0.7, 0.82]
    """
    watts = hardware.power_watts
    if not watts:
        return None
    left: Any = sum(seconds * watts["cap"] for seconds in spent.values())
    left = left - sum(spent[name] * watts[name] for name in ("attention", "passes", "waits"))
    mean = left / np.maximum(spent["matmul"], 1e-30)
    known, shares = zip(*hardware.matmul_share_at_watts, strict=True)
    slope = (shares[-1] - shares[-2]) / (known[-1] - known[-2])
    # Where less is left than the least that was measured, the rate falls with it; above the most, it is the ceiling
    # that ends its rise.
    below = shares[0] * np.clip(mean / known[0], 0.1, 1.0)
    above = shares[-1] + slope * np.maximum(mean - known[-1], 0.0)
    found = np.where(mean < known[0], below, np.where(mean > known[-1], above, np.interp(mean, known, shares)))
    return np.minimum(found, hardware.matmul_ceiling or 1.0)


def at_sustained_share(hardware: Hardware, spent: Mapping[str, Any]) -> Hardware:
    """The hardware with the `sustained_share` of a step that spends its seconds so; where its power is not known, the
    same hardware."""
    if not hardware.power_watts:
        return hardware
    return dataclasses.replace(hardware, sustained_share=sustained_share(hardware, spent))


def fused_share(hardware: Hardware, way: str, head_dim: float, seen: float) -> float:
    """Share of the peak that a GPU's fused attention kernel reaches, "forward" or "backward" (`way`).

    `seen`: keys that a query sees on average: half of a causal sequence. Between the lengths and the widths of heads
    that were measured, the time of a score is taken to change evenly: with one over the length, and with the width.
    Heads narrower than any measured take as long as these, wider ones as the widest.

    >>> from autotune.meshes.hardware import load_hardware
    >>> [round(fused_share(load_hardware("h100"), "forward", width, 1024), 2) for width in (64, 96, 128, 32)]
    [0.35, 0.38, 0.42, 0.17]
    """
    curves = hardware.attention_shares_by_keys
    if not curves:
        return hardware.attention_shares[way]
    widths = sorted(int(name.rpartition("_")[2]) for name in curves if name.startswith(f"{way}_"))
    keys, asked = np.array(curves["keys"]), min(max(2.0 * seen, 1.0), curves["keys"][-1])
    inverse = 1.0 / keys[::-1]
    # Shorter than any: along the line of the two shortest.
    slowness = []
    for width in widths:
        known = 1.0 / np.array(curves[f"{way}_{width}"])[::-1]
        slope = (known[-1] - known[-2]) / (inverse[-1] - inverse[-2])
        beyond = max(1.0 / asked - inverse[-1], 0.0) * max(slope, 0.0)
        slowness.append(float(np.interp(1.0 / asked, inverse, known)) + beyond)
    if head_dim < widths[0]:
        return float(head_dim / widths[0] / slowness[0])
    return float(1.0 / np.interp(head_dim, widths, slowness))
