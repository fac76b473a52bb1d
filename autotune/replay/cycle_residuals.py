"""What a TPU really takes beside the compiler's `estimated_cycles`, by class of work, from published microbenchmarks.

A residual is measured seconds / (cycles / clock) of the same operation, compiled for the same chip. The hardware files
have them with their rows: the cycles of a pass over memory are about twice what is measured (the compiler reckons 0.4
of the HBM peak where 0.83 to 0.87 is reached); those of large matmuls are right within their own spread. A chip of
which no row is published inherits the middle of the other chips' rows, and all of their spread as the interval.
"""

from __future__ import annotations

from autotune.meshes.hardware import CycleResidual, Hardware

EXACT = CycleResidual(expected=1.0, low=1.0, high=1.0)

PASSES = ("fusion", "copy", "gather")


def credible_seconds(kernel: str, hardware: Hardware, told: float, plain: float, bound: str) -> float:
    """Seconds of an op whose cycles come to `told`; `bound` is "expected", "low" or "high".

    `plain`: what its FLOPs alone take at the achieved matmul rate. A matmul told to be slower than that has
    element-wise work fused to it, and the excess is as far off as the cycles of such work are; where the chip's own
    matmuls are measured, their residual holds for the whole.

    >>> from autotune.meshes.hardware import load_hardware
    >>> v5e = load_hardware("v5e")
    >>> round(credible_seconds("matmul", v5e, told=3.0, plain=2.0, bound="expected"), 2)  # 2 + 0.47 x 1
    2.47
    """
    if kernel == "matmul" and "matmul" not in hardware.cycle_residuals:
        alone = hardware.cycle_residuals.get("matmul_alone", EXACT)
        excess = max(told - plain, 0.0) * getattr(residual_of("fusion", hardware), bound)
        return min(told, plain) * getattr(alone, bound) + excess
    return told * getattr(residual_of(kernel, hardware), bound)


def residual_of(kernel: str, hardware: Hardware) -> CycleResidual:
    """The residual of one class of work (`autotune.program.KERNELS`) on one chip.

    >>> from autotune.meshes.hardware import load_hardware
    >>> residual_of("copy", load_hardware("v5e")).expected
    0.47
    """
    known = hardware.cycle_residuals
    if kernel == "matmul":
        return known.get("matmul", known.get("matmul_alone", EXACT))
    if kernel in PASSES:
        return known.get("pass", EXACT)
    return EXACT
