"""How long one instruction keeps the core busy, and which of its resources is to blame."""

from __future__ import annotations

import math

from autotune.efficiency import DTYPE_BYTES, matmul_seconds
from autotune.meshes.hardware import Hardware
from autotune.program import Compute
from autotune.replay.attention_cost import attention_cycles, attention_share
from autotune.replay.cycle_residuals import PASSES, credible_seconds

CORE_MARGIN = 1.5
"""When the time exceeds both FLOPs/peak and bytes/bandwidth by this factor, it belongs to `core`: vector work, layout
changes, waiting inside the op. A good matmul sits near 1.2 (84 % of peak)."""

RESOURCES = {
    "launch": ("latency", "launch"),
    "loop": ("latency", "launch"),
    "bytes": ("hbm", ""),
    "moved_bytes": ("hbm", ""),
    "far_bytes": ("hbm", ""),
    "library_bytes": ("hbm", ""),
    "eigen_bytes": ("hbm", ""),
    "library_flops": ("matmul", ""),
    "eigen_flops": ("matmul", ""),
}
"""Class of CPU work -> resource and detail ("": the op's kernel); any other belongs to `core`."""

KIN = {
    "transcendental_strided": "transcendental",
    "strided_slice": "strided_slice_long",
    "strided_slice_long": "strided_slice",
}
"""Class that a hardware file has no seconds for -> the one to take instead."""


def core_seconds(op: Compute, hardware: Hardware, bound: str = "expected") -> tuple[tuple[tuple[str, str], float], ...]:
    """((resource, detail), seconds) pairs of one execution on one device; they add up to its time.

    With the compiler's cycles (of attention kernels: its schedule's): cycles / clock x what such work was measured to
    take beside them; a pass over memory not less than its bytes take at the achieved bandwidth. Without: the longer of
    FLOPs at the rate that a matmul of its shape or an attention kernel achieves (`_flop_seconds`) and bytes at the
    achieved memory bandwidth (the hardware file says what that is achieved from). A launch is added where kernels are
    launched one by one (GPU, CPU thunks).
    Programs for a CPU: see `_from_classes`, where the hardware file has seconds for every class of the op's work.
    `bound`: "expected", or the "low" or "high" end of what the microbenchmarks leave open.
    """
    if op.cpu_work and all(_seconds_of(name, hardware) is not None for name, _ in op.cpu_work):
        return _from_classes(op, hardware)
    flop_seconds = op.flops * op.visits / hardware.peak(op.dtype) if op.flops and op.dtype else 0.0
    byte_seconds = op.hbm_bytes / hardware.hbm_bytes_per_second
    parts: tuple[tuple[tuple[str, str], float], ...] = ()
    cycles = op.cycles
    if cycles is None and op.kernel == "attention" and hardware.platform == "tpu":
        cycles = attention_cycles(op, hardware)
    if cycles is not None and hardware.clock_hz is not None:
        plain = flop_seconds * hardware.faster.get("matmul", 1.0) / hardware.matmul_efficiency
        told = credible_seconds(op.kernel, hardware, cycles / hardware.clock_hz, plain, bound)
        parts = _from_cycles(op, hardware, told, flop_seconds, byte_seconds)
    elif flop_seconds or byte_seconds:
        flop_seconds = _flop_seconds(op, hardware, flop_seconds)
        byte_seconds /= hardware.hbm_efficiency
        parts = (((_longer(flop_seconds, byte_seconds), op.kernel), max(flop_seconds, byte_seconds)),)
    if hardware.launch_seconds:
        parts += ((("latency", "launch"), hardware.launch_seconds),)
    return parts


def _flop_seconds(op: Compute, hardware: Hardware, at_peak: float) -> float:
    """Seconds of an op's FLOPs, of which the compiler says nothing. On a GPU a matmul takes what its shape does
    (`efficiency.matmul_seconds`, as often as its largest dot goes into its FLOPs) and a fused attention kernel what it
    achieves; elsewhere all run at the achieved matmul rate."""
    if hardware.platform != "cuda" or op.matmul is None or op.dtype is None:
        return at_peak / hardware.matmul_efficiency
    if op.kernel == "attention":
        return at_peak / attention_share(op, hardware)
    batch, m, n, k = op.matmul
    each = matmul_seconds(hardware, op.dtype, DTYPE_BYTES.get(op.dtype, 1.0), m, n, k, batch)
    return float(each) * op.flops / (2.0 * math.prod(op.matmul))


def _from_cycles(
    op: Compute, hardware: Hardware, told: float, flop_seconds: float, byte_seconds: float
) -> tuple[tuple[tuple[str, str], float], ...]:
    """The cycles are the compiler's, so is the blame: on hardware made faster by `scale`, judge at the old rates."""
    asked_flops = flop_seconds * hardware.faster.get("matmul", 1.0)
    asked_bytes = byte_seconds * hardware.faster.get("hbm", 1.0)
    seconds = max(told, asked_flops, asked_bytes / hardware.hbm_efficiency if op.kernel in PASSES else 0.0)
    if not seconds:
        return ()
    core = seconds > CORE_MARGIN * max(asked_flops, asked_bytes)
    resource = "core" if core else _longer(asked_flops, asked_bytes)
    seconds = max(seconds / hardware.faster.get(resource, 1.0), min(seconds, max(flop_seconds, byte_seconds)))
    return (((resource, op.kernel), seconds),)


def _from_classes(op: Compute, hardware: Hardware) -> tuple[tuple[tuple[str, str], float], ...]:
    """The sum over classes of amount x seconds; products in another dtype than float32 at the ratio of the peaks."""
    parts = []
    for name, amount in op.cpu_work:
        each = _seconds_of(name, hardware)
        assert each is not None, name
        resource, detail = RESOURCES.get(name, ("core", op.kernel))
        seconds = amount * each / hardware.faster.get(resource, 1.0)
        if resource == "matmul" and op.dtype is not None:
            # `scale` has made the peaks faster alike: their ratio stays.
            seconds *= hardware.peak("float32") / hardware.peak(op.dtype)
        if seconds:
            parts.append(((resource, detail or op.kernel), seconds))
    return tuple(parts)


def _seconds_of(name: str, hardware: Hardware) -> float | None:
    """Of one unit of a class of CPU work, or of its kin; None where the hardware file knows neither."""
    return hardware.op_seconds.get(name, hardware.op_seconds.get(KIN.get(name, name)))


def _longer(flop_seconds: float, byte_seconds: float) -> str:
    return "matmul" if flop_seconds >= byte_seconds else "hbm"
