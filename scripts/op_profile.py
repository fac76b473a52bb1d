"""Seconds of each instruction of a step as a device's profiler saw them, beside what the replay takes it to last.

    with recorded(folder): ...run `steps` steps...
    rows = compare_ops(program, hardware, profiled_ops(folder), steps=steps)

The profiler names the HLO instruction of every kernel (`hlo_op`). Instructions of a program that it names, and kernels
that no instruction of the program has, both stay in the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.meshes.hardware import Hardware
from autotune.program import Compute, Program, walk
from autotune.replay.op_seconds import core_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One HLO instruction of one device; seconds are totals of one step."""

    name: str
    kernel: str
    """Class of work (`autotune.program.KERNELS`), or "unmatched": the program has no such instruction."""
    count: float
    """Executions in one step, as the program says; of unmatched ones as the profiler counted them."""
    predicted: float | None
    measured: float | None
    matmul: tuple[int, int, int, int] | None
    flops: float
    hbm_bytes: float
    scope: str | None


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Records a JAX profile of what runs inside into `folder`."""
    import jax

    jax.profiler.start_trace(str(folder))
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def profiled_ops(folder: Path) -> dict[str, tuple[int, float]]:
    """HLO instruction -> (kernel executions, total seconds) of the first device in the newest profile of `folder`.

    Kernels that name no instruction are kept under "kernel:<name>". Host planes are read where there is no device's.
    """
    from jax.profiler import ProfileData

    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    planes = list(ProfileData.from_file(str(newest)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU:0")]
    found: dict[str, tuple[int, float]] = {}
    for plane in devices or [plane for plane in planes if plane.name.startswith("/host:CPU")]:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = {str(key): value for key, value in event.stats if key is not None}
                name = str(stats["hlo_op"]) if "hlo_op" in stats else f"kernel:{event.name}" if devices else None
                if name is not None:
                    count, seconds = found.get(name, (0, 0.0))
                    found[name] = (count + 1, seconds + event.duration_ns * 1e-9)
    return found


def compare_ops(
    program: Program, hardware: Hardware, profiled: Mapping[str, tuple[int, float]], *, steps: int
) -> list[OpRow]:
    """Every instruction on the core, and every profiled name, longest measured first."""
    rows, seen = [], set()
    for op, trips in walk(program.instructions):
        if isinstance(op, Compute):
            seen.add(op.name)
            count_seconds = profiled.get(op.name)
            rows.append(
                OpRow(
                    name=op.name,
                    kernel=op.kernel,
                    count=trips,
                    predicted=trips * sum(seconds for _, seconds in core_seconds(op, hardware)),
                    measured=None if count_seconds is None else count_seconds[1] / steps,
                    matmul=op.matmul,
                    flops=trips * op.flops,
                    hbm_bytes=trips * op.hbm_bytes,
                    scope=op.scope,
                )
            )
    rows += [
        OpRow(
            name=name, kernel="unmatched", count=count / steps, predicted=None, measured=seconds / steps,
            matmul=None, flops=0.0, hbm_bytes=0.0, scope=None,
        )
        for name, (count, seconds) in profiled.items()
        if name not in seen
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -max(row.measured or 0.0, row.predicted or 0.0))


def by_kernel_lines(rows: Sequence[OpRow]) -> list[str]:
    """Predicted and measured milliseconds of each class of work, as text."""
    lines = []
    for kernel in dict.fromkeys(row.kernel for row in rows):
        of_kernel = [row for row in rows if row.kernel == kernel]
        predicted = sum(row.predicted or 0.0 for row in of_kernel)
        measured = sum(row.measured or 0.0 for row in of_kernel)
        silent = sum(row.predicted or 0.0 for row in of_kernel if row.measured is None)
        lines.append(
            f"    {kernel:12s} predicted {predicted * 1e3:9.3f} ms, measured {measured * 1e3:9.3f} ms"
            f" ({silent * 1e3:.3f} ms predicted for instructions that the profile does not name)"
        )
    return lines
