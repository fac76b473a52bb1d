"""How long one instruction keeps the core busy, and which of its resources is to blame."""

from __future__ import annotations

from autotune.meshes.hardware import Hardware
from autotune.program import Compute

CORE_MARGIN = 1.5
"""When the compiler's cycles exceed both FLOPs/peak and bytes/bandwidth by this factor, the time belongs to `core`:
vector work, layout changes, waiting inside the op. A good matmul sits near 1.2 (84 % of peak)."""


def core_seconds(op: Compute, hardware: Hardware) -> tuple[tuple[tuple[str, str], float], ...]:
    """((resource, detail), seconds) pairs of one execution on one device; they add up to its time.

    With the compiler's cycles: cycles / clock. Without: the longer of FLOPs at the achieved matmul rate and bytes at
    the achieved memory bandwidth (the hardware file says what each is achieved from). A launch is added where kernels
    are launched one by one (GPU, CPU thunks).
    """
    flop_seconds = op.flops / hardware.peak(op.dtype) if op.flops else 0.0
    byte_seconds = op.hbm_bytes / hardware.hbm_bytes_per_second
    if op.cycles is not None and hardware.clock_hz is not None:
        # The cycles are the compiler's, so is the blame: on hardware made faster by `scale`, judge at the old rates.
        seconds = op.cycles / hardware.clock_hz
        asked_flops = flop_seconds * hardware.faster.get("matmul", 1.0)
        asked_bytes = byte_seconds * hardware.faster.get("hbm", 1.0)
        core = seconds > CORE_MARGIN * max(asked_flops, asked_bytes)
        resource = "core" if core else _longer(asked_flops, asked_bytes)
        seconds = max(seconds / hardware.faster.get(resource, 1.0), min(seconds, max(flop_seconds, byte_seconds)))
    else:
        flop_seconds /= hardware.matmul_efficiency
        byte_seconds /= hardware.hbm_efficiency
        seconds = max(flop_seconds, byte_seconds)
        resource = _longer(flop_seconds, byte_seconds)
    parts = (((resource, op.kernel), seconds),) if seconds else ()
    if hardware.launch_seconds:
        parts += ((("latency", "launch"), hardware.launch_seconds),)
    return parts


def _longer(flop_seconds: float, byte_seconds: float) -> str:
    return "matmul" if flop_seconds >= byte_seconds else "hbm"
