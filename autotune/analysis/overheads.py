"""What a compiled step spends for nothing: repeated work, arrays held whole, idle stages; each by name and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.compile.compilation import Argument, Compilation
from autotune.hlo.warnings import UNKNOWN_SOURCE, readable_warnings
from autotune.meshes.hardware import Hardware
from autotune.meshes.layout import Layout
from autotune.program import Compute, Instruction, Loop, Program, Start, walk
from autotune.replay.op_seconds import core_seconds

OVERHEAD_KINDS = ("redundant", "bubble", "resharded", "replicated")

NOTABLE = 0.01
"""Share of a step's FLOPs, or of the state's bytes, from which one line or one array is worth a mention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """One thing lost, per device and step.

    `kind`: "redundant" (FLOPs that several devices repeat, with the seconds they take), "replicated" (an array of the
    state that every device holds whole; `bytes` is what sharding it evenly over all devices would free), "bubble"
    (ticks in which a stage computes on what nobody reads), "resharded" (an array that the partitioner gathers whole,
    for want of a way between two shardings). `seconds` or `bytes` is None where it is not known or costs none.
    `source`: "file.py:line".
    """

    kind: str
    what: str
    seconds: float | None
    bytes: int | None
    source: str | None

    def __post_init__(self) -> None:
        if self.kind not in OVERHEAD_KINDS:
            raise ValueError(f"Loss: kind={self.kind!r} must be one of {', '.join(OVERHEAD_KINDS)}")


def overheads_of(
    program: Program, compilation: Compilation, layout: Layout, hardware: Hardware
) -> tuple[Overhead, ...]:
    """All losses of a compiled step: those in seconds first, then those in bytes, the largest first."""
    found = [
        *redundant(program, compilation.traced_flops, layout.devices, hardware),
        *bubble(program, layout, hardware),
        *resharded(compilation),
        *replicated(compilation.arguments, layout.devices),
    ]
    return tuple(sorted(found, key=lambda loss: (loss.seconds is None, -(loss.seconds or 0.0), -(loss.bytes or 0))))


def redundant(
    program: Program, traced_flops: Mapping[str, float] | None, devices: int, hardware: Hardware
) -> list[Overhead]:
    """Lines of source whose matmuls run more often than the step asks for.

    Of one line: compiled FLOPs x devices beside the traced ones of the whole mesh; the excess is repeated work, and
    takes the same share of the line's seconds. Attention kernels are left out: their FLOPs are no plain count.
    The compiler can give a matmul to another line than the trace (a loop's, say): the lines' excess is scaled down to
    that of the whole step, so that a step which repeats nothing has none.
    """
    if not traced_flops:
        return []
    flops: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for op, trips in walk(program.instructions):
        if isinstance(op, Compute) and op.flops and op.kernel != "attention" and op.source is not None:
            flops[op.source] = flops.get(op.source, 0.0) + trips * op.flops
            spent = trips * sum(value for _, value in core_seconds(op, hardware))
            seconds[op.source] = seconds.get(op.source, 0.0) + spent
    total = sum(flops.values())
    excess = {line: flops[line] - traced_flops.get(line, 0.0) / devices for line in flops}
    over = {line: extra for line, extra in excess.items() if extra > NOTABLE * total}
    if not over:
        return []
    whole = total - sum(traced_flops.values()) / devices
    scale = min(1.0, max(0.0, whole) / sum(over.values()))
    return [
        Overhead(
            kind="redundant",
            what=_times_repeated(flops[line], traced_flops.get(line, 0.0), devices),
            seconds=scale * seconds[line] * extra / flops[line],
            bytes=None,
            source=line,
        )
        for line, extra in over.items()
        if scale * extra > NOTABLE * total
    ]


def _times_repeated(flops: float, traced: float, devices: int) -> str:
    if not traced:
        return f"matmul of {flops:.3g} FLOPs that the traced step does not have"
    return f"matmul done {flops * devices / traced:.3g} times over the {devices} devices"


def bubble(program: Program, layout: Layout, hardware: Hardware) -> list[Overhead]:
    """The pipeline's idle ticks.

    A loop of M microbatches, V virtual stages and S stages has MV + S - 1 ticks, of which each stage computes S - 1 on
    what nobody reads (`autotune.models.pipeline`). Its loops are those that send along `stage`; each costs a tick's
    seconds on the core times S - 1.
    """
    if layout.stage == 1:
        return []
    idle = layout.stage - 1
    ticks = layout.microbatches * layout.virtual_stages + idle
    seconds = sum(
        times * idle * _core_seconds(loop.body, hardware)
        for loop, times in _loops(program.instructions)
        # the compiler may run the first or the last tick outside
        if ticks - 2 <= loop.trips <= ticks and _sends_along_stage(loop.body)
    )
    if not seconds:
        return []
    what = f"{idle} of {ticks} ticks of the pipeline, {100 * idle / ticks:.1f} %"
    return [Overhead(kind="bubble", what=what, seconds=seconds, bytes=None, source=None)]


def _loops(instructions: tuple[Instruction, ...], times: int = 1):
    for instruction in instructions:
        if isinstance(instruction, Loop):
            yield instruction, times
            yield from _loops(instruction.body, times * instruction.trips)


def _sends_along_stage(body: tuple[Instruction, ...]) -> bool:
    return any(
        isinstance(op, Start) and op.collective.kind == "permute" and op.collective.axes == ("stage",) for op in body
    )


def _core_seconds(body: tuple[Instruction, ...], hardware: Hardware) -> float:
    return sum(
        trips * sum(seconds for _, seconds in core_seconds(op, hardware))
        for op, trips in walk(body)
        if isinstance(op, Compute)
    )


def resharded(compilation: Compilation) -> list[Overhead]:
    """Arrays of which the partitioner says that it gathers them whole (its "involuntary full rematerialization")."""
    found = []
    for warning in readable_warnings(compilation):
        where, whole, what = warning.partition(": ")
        if whole and "is gathered whole" in what:
            source = where.split(" (")[0]
            known = source if source != UNKNOWN_SOURCE else None
            found.append(Overhead(kind="resharded", what=what, seconds=None, bytes=None, source=known))
    return found


def replicated(arguments: tuple[Argument, ...], devices: int) -> list[Overhead]:
    """Large parameters and optimizer state that every device holds whole."""
    held = ("parameters", "frozen", "optimizer_state")
    state = [one for one in arguments if one.category in held and one.memory_kind is None]
    least = NOTABLE * sum(one.bytes for one in state)
    return [
        Overhead(
            kind="replicated",
            what=f"{one.name} {one.dtype}[{','.join(str(extent) for extent in one.shape)}] is whole on every device",
            seconds=None,
            bytes=one.bytes - one.bytes // devices,
            source=None,
        )
        for one in state
        if devices > 1 and one.shape == one.global_shape and one.bytes > least
    ]
