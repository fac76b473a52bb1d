"""How long a TPU attention kernel takes, whose cycles no compiler tells: its matmuls, then its vector work.

One tile of scores goes through the matrix unit (q k), the vector unit (softmax) and the matrix unit again; each waits
for the one before, and the kernel (Pallas splash attention) does not start the next tile meanwhile. So

    seconds = FLOPs / (peak x achieved share) + scores x VECTOR_OPS / (vector operations per second)

with scores = FLOPs / (2 x head_dim x matmuls). At head_dim 128 on v5e the second term is a third of the first: the
kernel reaches two thirds of the matmul rate forward. The interval: softmax hidden behind the matmuls ... as above.
"""

from __future__ import annotations

from autotune.meshes.hardware import Hardware
from autotune.program import Compute

VECTOR_OPS = 8
"""Vector instructions a score passes through, counted in jax.experimental.pallas.ops.tpu.splash_attention (jax 0.10.2).
Forward: compare and select (mask), max, subtract, scale to base 2, sum, rescale, cast; backward: compare and select,
subtract, scale, subtract, multiply, two casts. The exponential has a unit of its own and overlaps."""

VECTOR_LANES = 8 * 128 * 4
"""float32 operations a core issues in a cycle: 8 x 128 lanes, four ALUs each (jax-ml/scaling-book, tpus.md)."""

CORES = {"v4": 2, "v5p": 2}
"""Cores that one JAX device joins (megacore); one elsewhere."""

MATMULS = (("dkv", 4), ("dq", 3))
"""Part of a kernel's name -> matmuls over the scores: the backward pass makes the scores again in both kernels."""

FORWARD_MATMULS = 2


def vector_seconds(op: Compute, hardware: Hardware) -> float:
    """Seconds of the softmax in one execution; 0 where the shape of the kernel or the clock is not known.

    >>> from autotune.meshes.hardware import load_hardware
    >>> op = Compute(name="splash_mha_fwd", kernel="attention", flops=4.0 * 1024 * 1024 * 128, dtype="bfloat16",
    ...              matmul=(1, 1024, 1024, 128), hbm_bytes=0.0, cycles=None, source=None, scope=None)
    >>> round(vector_seconds(op, load_hardware("v5e")) * 1.5e9)  # cycles: 1024 x 1024 scores x 8 / 4096
    2048
    """
    if op.matmul is None or hardware.clock_hz is None:
        return 0.0
    matmuls = next((count for part, count in MATMULS if part in op.name), FORWARD_MATMULS)
    scores = op.flops / (2 * op.matmul[3] * matmuls)
    return scores * VECTOR_OPS / (VECTOR_LANES * CORES.get(hardware.name, 1) * hardware.clock_hz)
