"""What the compiler made of one step: scheduled instructions of one device, loops with trip counts, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

KERNELS = ("matmul", "attention", "fusion", "copy", "gather", "custom_call")
"""Classes of work on the core: matmuls with what is fused to them; attention kernels; fused and unfused elementwise
work and reductions; layout changes; gathers and scatters; custom calls of unknown FLOPs."""

COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """One instruction on the core, per device and execution.

    `flops`: of its dots, convolutions and attention kernels (2 per multiply-add), done in `dtype`; 0 if it has none.
    `matmul`: (batch, m, n, k) of the largest dot inside, per device; None without one.
    `hbm_bytes`: read and written in device memory. `cycles`: the compiler's own estimate; None where it gives none.
    `kernel`: the class of its work, one of KERNELS. `dtype`: NumPy's name ("bfloat16"), or "float8".
    `source`: "file.py:line" of the user's code; `scope`: the op_name path (jit(step)/transpose(...)/layer/...).
    `visits`: how often a grouped matmul computes a tile of rows, in the mean: those of two groups are computed twice.
    `cpu_work`: (class, amount) as `autotune.hlo.cpu_work` reads them; () of programs for other devices.
    """

    name: str
    kernel: str
    flops: float
    dtype: str | None
    matmul: tuple[int, int, int, int] | None
    hbm_bytes: float
    cycles: float | None
    source: str | None
    scope: str | None
    visits: float = 1.0
    cpu_work: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective, per device and execution.

    `axes`: the mesh axes its groups run along, outermost first; () if the groups follow no axes.
    `group_size`: devices in one group; fewer than the axes have where it runs along a part of them (inside one TPU
    slice, or across slices only). `payload_bytes`: the full array moved: gathered size, unreduced size of one
    device for reductions, what one device holds before an all-to-all or permute.
    `wire_bytes`: what one device sends with a bandwidth-optimal algorithm.
    `crosses_groups`: outer domains (slices, NVLink domains, hosts) that one group spans; 1 is inside one.
    `dtype` of the largest array, a NumPy name. `shift`: of a permute by which every device sends to the one that many
    places further along its one axis (around the end, the shorter way); None otherwise.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    group_size: int
    crosses_groups: int
    payload_bytes: float
    wire_bytes: float
    dtype: str
    source: str | None
    scope: str | None
    shift: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The collective is handed to the network; `token` names it until its Done.

    `cores`: the cores beside the main one that carry it out ("sparsecore 0"); () where the network needs none.
    """

    token: str
    collective: Collective
    cores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkStart:
    """Work is handed to `cores` beside the main one (a TPU's "sparsecore 0"); `token` names it until its Done."""

    token: str
    work: Compute
    cores: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One asynchronous copy between memories of a device: "hbm", "vmem" (a TPU core's own) and "host"."""

    name: str
    bytes: float
    from_memory: str
    to_memory: str
    source: str | None
    scope: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyStart:
    """The copy is handed to the copy engine; `token` names it until its Done."""

    token: str
    copy: Copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The core waits for the collective, copy or work of that token; for nothing, if none of that token has started."""

    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A while loop: `body` runs `trips` times. Tokens may cross iterations (software pipelining)."""

    name: str
    trips: int
    body: tuple[Instruction, ...]


Instruction = Compute | Start | CopyStart | WorkStart | Done | Loop
"""A synchronous collective is a Start directly followed by its Done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """One large live value at the moment of peak memory, bytes per device."""

    bytes: int
    shape: str
    category: str
    source: str | None
    scope: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes per device while the program runs.

    `peak_bytes`: the backend's own reading (which one depends on the backend; see `autotune.hlo.memory_by_category`).
    `by_category`: parameters, optimizer_state, gradients, activations, logits, workspace: adds up to the peak.
    """

    peak_bytes: int
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    alias_bytes: int
    host_bytes: int
    by_category: Mapping[str, int]
    largest: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What one class of instructions adds up to in one step on one device, loop trips counted.

    `bytes`: HBM bytes of work on the core, payload bytes of collectives. `cycles`: the compiler's, of those that have
    them; `uncounted`: executions that have none.
    """

    count: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    cycles: float = 0.0
    uncounted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One compiled step, as one device runs it.

    `warnings`: what could not be read for certain, one line each.
    `not_understood`: what the text holds and the instructions may lack, each with how often the text has it:
    collectives that no walk through the program meets, custom calls of unknown FLOPs, loops of unknown trips.
    """

    platform: str
    mesh_shape: Mapping[str, int]
    instructions: tuple[Instruction, ...]
    memory: Memory
    warnings: tuple[str, ...]
    not_understood: Mapping[str, int] = field(default_factory=dict)

    def flops(self) -> float:
        """FLOPs of one step on one device, loop trips counted."""
        return sum(trips * work.flops for work, trips in _work(self.instructions))

    def hbm_bytes(self) -> float:
        """Bytes one step reads and writes in the memory of one device, asynchronous copies included."""
        total = sum(trips * work.hbm_bytes for work, trips in _work(self.instructions))
        for op, trips in walk(self.instructions):
            if isinstance(op, CopyStart):
                ends = (op.copy.from_memory, op.copy.to_memory)
                total += trips * op.copy.bytes * ends.count("hbm")
        return total


def host_traffic(program: Program) -> tuple[float, float]:
    """Bytes that one step copies from its host's memory to a device, and back."""
    moved = [0.0, 0.0]
    for op, trips in walk(program.instructions):
        if isinstance(op, CopyStart):
            for way, end in enumerate((op.copy.from_memory, op.copy.to_memory)):
                moved[way] += trips * op.copy.bytes * (end == "host")
    return moved[0], moved[1]


def by_kernel(program: Program) -> dict[str, Total]:
    """Work by class, on whatever core, in the order of KERNELS; classes without work are left out."""
    totals: dict[str, Total] = {}
    for op, trips in _work(program.instructions):
        sofar = totals.get(op.kernel, Total())
        totals[op.kernel] = Total(
            count=sofar.count + trips,
            flops=sofar.flops + trips * op.flops,
            bytes=sofar.bytes + trips * op.hbm_bytes,
            cycles=sofar.cycles + trips * (op.cycles or 0.0),
            uncounted=sofar.uncounted + trips * (op.cycles is None),
        )
    return {kernel: totals[kernel] for kernel in KERNELS if kernel in totals}


def by_collective(program: Program) -> dict[tuple[str, tuple[str, ...]], Total]:
    """Collectives by (kind, mesh axes), most bytes first."""
    totals: dict[tuple[str, tuple[str, ...]], Total] = {}
    for op, trips in walk(program.instructions):
        if isinstance(op, Start):
            key = (op.collective.kind, op.collective.axes)
            sofar = totals.get(key, Total())
            totals[key] = Total(count=sofar.count + trips, bytes=sofar.bytes + trips * op.collective.payload_bytes)
    return dict(sorted(totals.items(), key=lambda item: (-item[1].bytes, item[0])))


def _work(instructions: tuple[Instruction, ...]) -> Iterator[tuple[Compute, int]]:
    """The work of a program, on the main core and on others, with how often one step executes it."""
    for op, trips in walk(instructions):
        if isinstance(op, Compute):
            yield op, trips
        elif isinstance(op, WorkStart):
            yield op.work, trips


def walk(instructions: tuple[Instruction, ...], trips: int = 1):
    """Every instruction but loops, in program order, with how often one step executes it."""
    for instruction in instructions:
        if isinstance(instruction, Loop):
            yield from walk(instruction.body, trips * instruction.trips)
        else:
            yield instruction, trips
