"""How long an attention kernel takes, whose cycles the program's text does not tell.

The TPU compiler does schedule the kernel: with `LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true"` it
writes the bundles of one tile of scores. Those of splash attention (jax 0.10.2, libtpu 0.0.42.1, tiles of 1024 x 1024
scores, head_dim 128, causal) are below, one bundle a cycle. On v5e the matmuls alone would take 4096, 6144 and 8192
cycles: forward the softmax is not hidden (0.64 of the matmul rate), backward it is.

    seconds = (scores / 1024^2) x (cycles of a tile) / (cores x clock)

Not counted: filling the first tile from HBM, and steps of the grid over masked tiles. No device measurement of the
kernel is published for any of these chips.
"""

from __future__ import annotations

import math

from autotune.meshes.hardware import Hardware
from autotune.program import Compute

TILE_SCORES = 1024 * 1024

TILE_CYCLES = {
    "v5e": {"fwd": 6416, "dq": 6123, "dkv": 8049},
    "v5p": {"fwd": 6588, "dq": 6252, "dkv": 8437},
    "v6e": {"fwd": 4073, "dq": 3897, "dkv": 4999},
    "tpu7x": {"fwd": 4157, "dq": 4066, "dkv": 4834},
}
"""Chip -> scheduled bundles of one tile on one core."""

SAME_CORE = {"v4": "v5p"}
"""Chips with the matrix and vector units of another (four 128 x 128 and 8 x 128 x 4 a core)."""

GPU_SHARES = (0.60, 0.50)
"""Share of the peak that a fused kernel achieves on a GPU, (forward, backward).

Assumed, below the best that is published: FlashAttention-2 on A100, head dim 128, causal, reaches up to 73 % forward
and 63 % backward (Dao 2023), at the longest sequences; those of training are shorter, and the kernel here is cuDNN's.
`scripts/gpu_microbench.py` times cuDNN's kernel over sequence lengths."""

CORES = {"v4": 2, "v5p": 2}
"""Cores that one JAX device joins (megacore); one elsewhere."""

MATMULS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Matmuls over the scores: both backward kernels make the scores again."""


def attention_cycles(op: Compute, hardware: Hardware) -> float | None:
    """Cycles of one execution on one device; None where this chip's schedule or the kernel's shape is not known.

    >>> from autotune.meshes.hardware import load_hardware
    >>> op = Compute(name="splash_mha_fwd", kernel="attention", flops=4.0 * 1024 * 1024 * 128, dtype="bfloat16",
    ...              matmul=(1, 1024, 1024, 128), hbm_bytes=0.0, cycles=None, source=None, scope=None)
    >>> attention_cycles(op, load_hardware("v5e"))
    6416.0
    """
    tiles = TILE_CYCLES.get(SAME_CORE.get(hardware.name, hardware.name))
    if tiles is None or op.matmul is None or "splash" not in op.name:
        return None
    part = next((part for part in ("dkv", "dq") if part in op.name), "fwd")
    head_dim = op.matmul[3]
    scores = op.flops / (2 * head_dim * MATMULS[part])
    # A head of up to 128 fills one pass of the matrix unit; a larger one takes several.
    return scores / TILE_SCORES * tiles[part] * math.ceil(head_dim / 128) / CORES.get(hardware.name, 1)


def attention_share(op: Compute) -> float:
    """Share of the peak that a fused kernel achieves on a GPU: forward two matmuls over the scores, backward five.

    >>> op = Compute(name="fmha", kernel="attention", flops=5.0 * 2 * 16 * 2048 * 2048 * 128 / 2, dtype="bfloat16",
    ...              matmul=(16, 2048, 2048, 128), hbm_bytes=0.0, cycles=None, source=None, scope=None)
    >>> attention_share(op)
    0.5
    """
    assert op.matmul is not None, "a fused kernel's scores are known"
    matmuls = op.flops / (2.0 * math.prod(op.matmul))  # half as many of a causal one: 1 or 2 forward, 2.5 or 5 backward
    return GPU_SHARES[1 if matmuls > 2.25 else 0]


def kernel_shares(hardware: Hardware) -> tuple[float, float] | None:
    """Share of the peak that the kernel reaches on whole tiles of head_dim 128, (forward, backward); None where this
    chip's schedule is not known.

    >>> from autotune.meshes.hardware import load_hardware
    >>> [round(share, 2) for share in kernel_shares(load_hardware("v5e"))]
    [0.64, 1.01]
    """
    tiles = TILE_CYCLES.get(SAME_CORE.get(hardware.name, hardware.name))
    if tiles is None or hardware.clock_hz is None:
        return None
    # Of the chip as it is: where it is asked what faster matmuls would do, the kernel gets faster with them.
    peak = hardware.peak("bfloat16") / hardware.faster.get("matmul", 1.0)
    rate = hardware.clock_hz * CORES.get(hardware.name, 1) / peak

    def share(*parts: str) -> float:
        matmuls = sum(MATMULS[part] for part in parts)
        return 2.0 * matmuls * TILE_SCORES * 128 * rate / sum(tiles[part] for part in parts)

    return share("fwd"), share("dq", "dkv")
