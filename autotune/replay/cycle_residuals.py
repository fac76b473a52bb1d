"""What a TPU really takes beside the compiler's `estimated_cycles`, by class of work, from published microbenchmarks.

The table is measured seconds / (cycles / clock) of the same operation, compiled for the same chip with libtpu
0.0.42.1 (2026-11-21). Rows: AI-Hypercomputer/tpu-recipes, microbenchmarks.

    chip    work                            measured     compiler   ratio
    v6e     matmul 8192^3 bf16              1328.8 us    1701.6 us  0.78
    tpu7x   matmul 1024^3 bf16              349.7 TF/s   337.4      0.96
    tpu7x   matmul 2048^3 bf16              679.3 TF/s   826.2      1.22
    tpu7x   matmul 4096^3 bf16              892.9 TF/s   955.9      1.07
    tpu7x   matmul 16384^3 bf16             950.1 TF/s   978.6      1.03
    v6e     copy 33.5 MB bf16               49.4 us      101.7 us   0.49
    tpu7x   copy 33.5 MB bf16 (a device)    3010 GB/s    1384       0.46
    tpu7x   copy 1.07 GB bf16 (a device)    3198 GB/s    1394       0.44

So the cycles of a pass over memory are about twice what is measured (the compiler reckons 0.4 of the HBM peak where
0.83 to 0.87 is reached); those of large matmuls are right within their own spread. No row is published for v4, v5e and
v5p: they take the middle of the other chips' rows, and all of their spread as the interval.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """Measured / compiler seconds: what is expected, and the least and the most that is credible."""

    expected: float
    low: float
    high: float


EXACT = Residual(expected=1.0, low=1.0, high=1.0)

MATMUL = {
    "v6e": Residual(expected=0.78, low=0.78, high=1.0),
    "tpu7x": Residual(expected=1.05, low=0.96, high=1.22),
}
"""v6e: its one row, up to the compiler's word. tpu7x: median, least and most of its four rows."""

MATMUL_ELSEWHERE = Residual(expected=1.0, low=0.78, high=1.07)
"""No row of the chip: the compiler's word; interval: the rows of 4096^3 and more on the other chips."""

PASS = {
    "v6e": Residual(expected=0.49, low=0.49, high=1.0),
    "tpu7x": Residual(expected=0.45, low=0.44, high=1.0),
}
"""Element-wise work, copies, gathers. Up to the compiler's word: the rows are copies, and a fusion that computes much
may be as slow as it says."""

PASS_ELSEWHERE = Residual(expected=0.47, low=0.44, high=1.0)

PASSES = ("fusion", "copy", "gather")


def credible_seconds(kernel: str, chip: str, told: float, plain: float, bound: str) -> float:
    """Seconds of an op whose cycles come to `told`; `bound` is "expected", "low" or "high".

    `plain`: what its FLOPs alone take at the achieved matmul rate. A matmul told to be slower than that has
    element-wise work fused to it, and the excess is as far off as the cycles of such work are; where the chip's own
    matmuls are measured, their residual holds for the whole.

    >>> round(credible_seconds("matmul", "v5e", told=3.0, plain=2.0, bound="expected"), 2)  # 2 + 0.47 x 1
    2.47
    """
    if kernel == "matmul" and chip not in MATMUL:
        excess = max(told - plain, 0.0) * getattr(residual_of("fusion", chip), bound)
        return min(told, plain) * getattr(MATMUL_ELSEWHERE, bound) + excess
    return told * getattr(residual_of(kernel, chip), bound)


def residual_of(kernel: str, chip: str) -> Residual:
    """The residual of one class of work (`autotune.program.KERNELS`) on one chip.

    >>> residual_of("copy", "v5e").expected
    0.47
    """
    if kernel == "matmul":
        return MATMUL.get(chip, MATMUL_ELSEWHERE)
    if kernel in PASSES:
        return PASS.get(chip, PASS_ELSEWHERE)
    return EXACT
