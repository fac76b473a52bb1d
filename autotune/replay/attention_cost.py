"""How long an attention kernel takes, whose cycles the program's text does not tell.

The TPU compiler does schedule the kernel: with `LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true"` it
writes the bundles of one tile of scores. Those of splash attention (tiles of 1024 x 1024 scores, head_dim 128, causal)
are in the hardware files, one bundle a cycle. On v5e the matmuls alone would take 4096, 6144 and 8192 cycles: forward
the softmax is not hidden (0.64 of the matmul rate), backward it is.

    seconds = (scores / 1024^2) x (cycles of a tile) / (cores x clock)

Not counted: filling the first tile from HBM, and steps of the grid over masked tiles. No device measurement of the
kernel is published for any of these chips. On a GPU the kernel's share of the peak is the hardware file's: by length of
the sequence and width of the heads where `scripts/gpu_microbench.py` has timed it, else one for all shapes.
"""

from __future__ import annotations

import math

from autotune.efficiency import fused_share
from autotune.meshes.hardware import Hardware
from autotune.program import Compute

TILE_SCORES = 1024 * 1024

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
    tiles = hardware.attention_tile_cycles
    if not tiles or op.matmul is None or "splash" not in op.name:
        return None
    part = next((part for part in ("dkv", "dq") if part in op.name), "fwd")
    head_dim = op.matmul[3]
    scores = op.flops / (2 * head_dim * MATMULS[part])
    # A head of up to 128 fills one pass of the matrix unit; a larger one takes several.
    return scores / TILE_SCORES * tiles[part] * math.ceil(head_dim / 128) / hardware.cores_per_device


def attention_share(op: Compute, hardware: Hardware) -> float:
    """Share of the peak that a fused kernel achieves on a GPU: forward two matmuls over the scores, backward five.

    >>> from autotune.meshes.hardware import load_hardware
    >>> op = Compute(name="fmha", kernel="attention", flops=5.0 * 2 * 16 * 2048 * 2048 * 128 / 2, dtype="bfloat16",
    ...              matmul=(16, 2048, 2048, 128), hbm_bytes=0.0, cycles=None, source=None, scope=None)
    >>> round(attention_share(op, load_hardware("h100")), 2)
    0.33
    """
    assert op.matmul is not None, "a fused kernel's scores are known"
    matmuls = op.flops / (2.0 * math.prod(op.matmul))  # half as many of a causal one: 1 or 2 forward, 2.5 or 5 backward
    backward = matmuls > 2.25 or "bwd" in op.name
    _, _, keys, head_dim = op.matmul
    seen = keys * matmuls / (5.0 if backward else 2.0)
    return fused_share(hardware, "backward" if backward else "forward", head_dim, seen)


def kernel_shares(hardware: Hardware) -> tuple[float, float] | None:
    """Share of the peak that the kernel reaches on whole tiles of head_dim 128, (forward, backward); None where this
    chip's schedule is not known.

    >>> from autotune.meshes.hardware import load_hardware
    >>> [round(share, 2) for share in kernel_shares(load_hardware("v5e"))]
    [0.64, 1.01]
    """
    tiles = hardware.attention_tile_cycles
    if not tiles or hardware.clock_hz is None:
        return None
    # Of the chip as it is: where it is asked what faster matmuls would do, the kernel gets faster with them.
    peak = hardware.peak("bfloat16") / hardware.faster.get("matmul", 1.0)
    rate = hardware.clock_hz * hardware.cores_per_device / peak

    def share(*parts: str) -> float:
        matmuls = sum(MATMULS[part] for part in parts)
        return 2.0 * matmuls * TILE_SCORES * 128 * rate / sum(tiles[part] for part in parts)

    return share("fwd"), share("dq", "dkv")
