"""Does the code still do what its plan was made for? Recompiles, and says what grew and which lines brought it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.analysis.analyse import predict, program_of
from autotune.compile.compilation import COMPILE_SECONDS, Candidate, CompileFailure
from autotune.compile.compile import compile_all
from autotune.hlo.unreadable import UnreadableProgram
from autotune.meshes.target import Target
from autotune.plan.figures import axis_bytes_of, collectives_of
from autotune.plan.plan import Plan
from autotune.program import Program, Start, walk
from autotune.replay.replay import axis_name
from autotune.store import Store
from autotune.workload.workload import Workload

TOLERANCE = 0.02
"""Growth that passes: compilers of one version differ by less, a new collective or matmul by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One figure that grew beyond the tolerance, per device and step.

    `figure`: "flops", "peak_bytes", "bytes fsdp@ici", "collectives all_gather fsdp@ici". `before` is 0 for what was not
    there. `sources`: lines of the user's code that issue such collectives now, most first; empty for other figures.
    """

    figure: str
    before: float
    now: float
    sources: tuple[str, ...]

    def __str__(self) -> str:
        grown = f"+{100 * (self.now / self.before - 1):.1f} %" if self.before else "new"
        lines = f", from {', '.join(self.sources)}" if self.sources else ""
        return f"{self.figure}: {self.before:.6g} in the plan, {self.now:.6g} now ({grown}){lines}"


class CheckFailed(Exception):
    """The plan's layout no longer compiles, or compiles to a program that cannot be read."""


def check_plan(
    plan: Plan,
    workload: Workload,
    *,
    target: Target | None = None,
    tolerance: float = TOLERANCE,
    store: Store | None = None,
    timeout_seconds: float = COMPILE_SECONDS,
) -> tuple[Growth, ...]:
    """What grew since the plan was made; () when it holds. Raises CheckFailed when it does not compile any more.

    `target`: the machine, where the plan's own cannot be built from its name (a hardware file of one's own).
    ValueError when the plan was made without compiling: there is nothing to compare.
    """
    if plan.figures.flops is None:
        raise ValueError(
            f"check: the plan's layout {plan.layout} was never compiled; tune again with --compile 1 or more"
        )
    if not tolerance >= 0:
        raise ValueError(f"check: tolerance={tolerance} must be 0 or more")
    machine = target or plan.machine()
    job = Candidate(workload=workload, layout=plan.layout, target=machine)
    ((_, outcome),) = compile_all([job], workers=1, timeout_seconds=timeout_seconds, store=store, retry=True)
    if isinstance(outcome, CompileFailure):
        raise CheckFailed(f"{plan.layout} does not compile any more: {outcome.reason} (log: {outcome.log_path})")
    try:
        program = program_of(outcome, plan.layout, machine)
    except UnreadableProgram as error:
        raise CheckFailed(f"{plan.layout} compiles, and its program cannot be read: {error}") from None
    return compare(plan, program, machine, tolerance)


def compare(plan: Plan, program: Program, target: Target, tolerance: float) -> tuple[Growth, ...]:
    """The figures of a fresh program against the plan's."""
    ledger = predict(program, plan.layout, target, target.hardware).ledger
    found = [
        *_grown({"flops": plan.figures.flops or 0.0}, {"flops": program.flops()}, tolerance),
        *_grown({"peak_bytes": plan.figures.peak_bytes or 0.0}, {"peak_bytes": program.memory.peak_bytes}, tolerance),
        *_grown(plan.figures.axis_bytes or {}, axis_bytes_of(ledger), tolerance, prefix="bytes "),
    ]
    for growth in _grown(plan.figures.collectives or {}, collectives_of(ledger), tolerance):
        kind, place = growth.figure.split()
        lines = source_lines(program, kind, place.partition("@")[0])
        found.append(Growth(figure=f"collectives {growth.figure}", before=growth.before, now=growth.now, sources=lines))
    return tuple(found)


def source_lines(program: Program, kind: str, axes: str) -> tuple[str, ...]:
    """Lines of the user's code that issue collectives of that kind along those axes, most executed first."""
    counts: dict[str, int] = {}
    for instruction, trips in walk(program.instructions):
        if isinstance(instruction, Start):
            collective = instruction.collective
            if collective.kind == kind and axis_name(collective) == axes:
                where = collective.source or "unknown line"
                counts[where] = counts.get(where, 0) + trips
    return tuple(sorted(counts, key=lambda where: (-counts[where], where)))


def _grown(before: Mapping[str, float], now: Mapping[str, float], tolerance: float, prefix: str = "") -> list[Growth]:
    return [
        Growth(figure=prefix + name, before=before.get(name, 0.0), now=value, sources=())
        for name, value in now.items()
        if value > before.get(name, 0.0) * (1 + tolerance)
    ]
