"""Walks the scheduled computations of one module and makes the instructions of a Program."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from autotune.hlo.bytes import Needs, op_bytes
from autotune.hlo.collectives import KIND_OF_OPCODE, base_opcode, read_collective, read_megascale
from autotune.hlo.cpu_work import cpu_work
from autotune.hlo.flops import op_work
from autotune.hlo.groups import DeviceGrid
from autotune.hlo.kernels import FREE_CALLS, target_of
from autotune.hlo.loops import Values, loop_invariants, trip_count
from autotune.hlo.opcodes import FREE, KNOWN
from autotune.hlo.shape import MEMORIES, dtype_name
from autotune.hlo.text import Computation, Module, Op
from autotune.hlo.tokens import Tokens, channel_token, rendezvous
from autotune.hlo.unreadable import UnreadableProgram
from autotune.hlo.work import Work
from autotune.program import (
    Collective,
    Compute,
    Copy,
    CopyStart,
    Done,
    Instruction,
    Loop,
    Start,
    walk,
)

UNKNOWN_CYCLES = 2**63 - 1

MOST_TRIPS = 10**9
"""No loop of one step runs more often."""

COPIES = ("copy", "slice", "dynamic-slice")
"""Opcodes whose asynchronous form only moves bytes; any other started so is work."""

SYNCHRONOUS = '"is_sync":true'
"""GPU collectives that are written as start and done but run on the main stream."""


class Reader:
    """Walks the scheduled computations of one module."""

    def __init__(self, module: Module, grid: DeviceGrid, platform: str) -> None:
        self.module = module
        self.grid = grid
        self.platform = platform
        self.tokens = Tokens(module)
        self.warnings: list[str] = []
        self.unknown_opcodes: Counter[str] = Counter()
        self.unknown_calls: Counter[str] = Counter()
        self.works: dict[str, Work] = {}
        self.needs: dict[str, Needs] = {}

    def all_warnings(self) -> tuple[str, ...]:
        """Everything that was not read for certain, each said once."""
        opcodes = [f"opcode {name} is not known: {count} read as work on the core by its bytes"
                   for name, count in sorted(self.unknown_opcodes.items())]  # fmt: skip
        calls = [f"custom call {name} has no known FLOPs: {count} counted by bytes alone"
                 for name, count in sorted(self.unknown_calls.items())]  # fmt: skip
        return tuple(dict.fromkeys(self.warnings + opcodes + calls))

    def computation(self, computation: Computation, values: Values) -> tuple[Instruction, ...]:
        """The instructions of a scheduled computation; `values`: what its tuple parameter is known to hold."""
        found: list[Instruction] = []
        for op in computation.ops:
            found += self.instruction(computation, op, values)
        return tuple(found)

    def instruction(self, computation: Computation, op: Op, values: Values) -> list[Instruction]:
        opcode, base = op.opcode, base_opcode(op)
        if opcode in FREE or (opcode == "custom-call" and target_of(op) in FREE_CALLS):
            return []
        if opcode == "while":
            return [self.loop(computation, op, values)]
        if opcode == "conditional":
            return self.conditional(op)
        if opcode == "call":
            return list(self.computation(self.module.computations[op.called()[0]], lambda index: None))
        if base in KIND_OF_OPCODE:
            return self.collective(computation, op)
        if base == "async":
            return self.asynchronous(computation, op)
        if opcode in ("send", "recv", "send-done", "recv-done"):
            return self.transfer(computation, op)
        if opcode.endswith("-start") and base in KNOWN:
            return self.copy(computation, op) if base in COPIES else self.started(computation, op, base)
        if opcode.endswith("-done") and base in KNOWN:
            return [Done(token=token) for token in self.tokens.ended_by(computation, op)]
        if opcode == "fusion":
            return self.fusion(computation, op)
        if opcode not in KNOWN:
            self.unknown_opcodes[opcode] += 1
        return self.compute(computation, op)

    def loop(self, computation: Computation, op: Op, values: Values) -> Loop:
        trips = trip_count(self.module, op, computation, values)
        if trips is None:
            self.warnings.append(f"{op.name}: its trip count cannot be read; counted once")
            trips = 1
        if trips > MOST_TRIPS:
            raise UnreadableProgram(f"hlo: {op.name} is said to run {trips} times")
        body = self.module.computations[op.callee("body") or ""]
        kept = loop_invariants(self.module, op, computation, values)
        instructions = self.computation(body, kept)
        if self.platform == "cpu":
            instructions = (*instructions, _loop_trip(op.name))
        return Loop(name=op.name, trips=trips, body=instructions)

    def conditional(self, op: Op) -> list[Instruction]:
        """The branch with the most FLOPs, then bytes."""
        branches = [self.computation(self.module.computations[name], lambda index: None) for name in op.called()]
        self.warnings.append(f"{op.name}: of {len(branches)} branches the costliest is counted")
        return list(max(branches, key=_cost, default=()))

    def collective(self, computation: Computation, op: Op) -> list[Instruction]:
        if op.opcode.endswith("-done"):
            return [Done(token=token) for token in self.tokens.ended_by(computation, op)]
        collective = self.read(computation, op)
        if collective is None:
            return []
        start = Start(token=self.tokens.of(op.name), collective=collective)
        if op.opcode.endswith("-start") and SYNCHRONOUS not in op.attributes:
            return [start]
        self.tokens.empty.add(start.token)
        if self.platform == "cpu":
            return _one_by_one(start, [computation.operand(op, index).bytes for index in range(len(op.operands))])
        return [start, Done(token=start.token)]

    def read(self, computation: Computation, op: Op) -> Collective | None:
        collective = read_collective(self.module, computation, op, self.grid, self.warnings)
        if collective is None:
            self.tokens.empty.add(self.tokens.of(op.name))
        elif collective.source is None:
            source, scope = self.place(computation, op)
            collective = dataclasses.replace(collective, source=source, scope=scope)
        return collective

    def asynchronous(self, computation: Computation, op: Op) -> list[Instruction]:
        """async-start, -update, -done around a computation: a collective in flight, or work counted where it starts."""
        if op.opcode == "async-update":
            return []
        if op.opcode == "async-done":
            return [Done(token=token) for token in self.tokens.ended_by(computation, op)]
        token = self.tokens.of(op.name)
        inner = self.module.computations[op.called()[0]]
        held = [found for found in inner.ops if found.opcode in KIND_OF_OPCODE]
        collectives = [found for found in (self.read(inner, at) for at in held) if found is not None]
        if len(collectives) > 1:
            self.warnings.append(f"{op.name}: of its {len(collectives)} collectives the largest is counted")
        if collectives:
            largest = max(collectives, key=lambda collective: collective.wire_bytes)
            return [Start(token=token, collective=largest)]
        self.tokens.empty.add(token)
        return list(self.computation(inner, lambda index: None)) if not held else []

    def transfer(self, computation: Computation, op: Op) -> list[Instruction]:
        """Megascale send and receive: in flight from the send to the end of the receive."""
        if op.opcode == "send-done" or op.opcode == "recv":
            return []
        if op.opcode == "recv-done":
            return [Done(token=token) for token in self.tokens.ended_by(computation, op)]
        meeting = rendezvous(op)
        receive = next(
            (o for o in computation.ops if o.opcode == "recv" and meeting and rendezvous(o) == meeting), None
        )
        collective = read_megascale(self.module, op, receive, self.grid, self.warnings)
        if collective is None or meeting is None:
            self.tokens.empty.add(self.tokens.of(meeting or op.name))
            self.warnings.append(f"{op.name}: a send that is no transfer between slices is not counted")
            return []
        source, scope = self.place(computation, op)
        collective = dataclasses.replace(collective, source=source, scope=scope)
        return [Start(token=self.tokens.of(meeting), collective=collective)]

    def started(self, computation: Computation, op: Op, opcode: str) -> list[Instruction]:
        """Work handed to another stream (`fusion-start`, jax 0.11 on GPUs), counted in full where it starts.

        Its result is the root of what it calls; its own type also lists its operands. On an H100 such copies into
        stacked arrays took as long beside matmuls as alone: they share the memory and the multiprocessors.
        """
        self.tokens.empty.add(self.tokens.of(op.name))
        result = self.module.computations[op.called()[0]].root.type if op.called() else op.type
        return self.instruction(computation, dataclasses.replace(op, opcode=opcode, type=result), lambda index: None)

    def copy(self, computation: Computation, op: Op) -> list[Instruction]:
        """An asynchronous copy or slice: `(target, source, flag)`, a slice `((source), target, flag)`."""
        arrays = op.shapes
        source, target = (arrays[0], arrays[-2]) if op.opcode != "copy-start" else (arrays[1], arrays[0])
        memories = [MEMORIES.get(shape.space) for shape in (source, target)]
        token = self.tokens.of(op.name)
        if memories[0] is None or memories[1] is None or memories == ["vmem", "vmem"]:
            self.tokens.empty.add(token)
            return []
        place, scope = self.place(computation, op)
        copy = Copy(
            name=op.name,
            bytes=float(min(source.bytes, target.bytes)),
            from_memory=memories[0],
            to_memory=memories[1],
            source=place,
            scope=scope,
        )
        return [CopyStart(token=token, copy=copy)]

    def fusion(self, computation: Computation, op: Op) -> list[Instruction]:
        """A fusion; on TPU it may hold a collective, its start, its end, or a piece of one already in flight."""
        inner = self.module.computations[op.called()[0]]
        held = [(place, found) for place, found in _nested(self.module, inner) if base_opcode(found) in KIND_OF_OPCODE]
        if not held:
            return self.compute(computation, op)
        marks = {target_of(found) for _, found in _nested(self.module, inner) if found.opcode == "custom-call"}
        place, found = held[0]
        token = channel_token(found)
        if "AsyncCollectiveDone" in marks:
            return [Done(token=token)] if token not in self.tokens.empty else []
        if "AsyncCollectiveStart" in marks:
            collective = self.read(place, found)
            if collective is None:
                self.tokens.empty.add(token)
                return []
            return [Start(token=token, collective=collective)]
        if inner.name.startswith("async_collective_fusion") or "chain_id" in found.attributes:
            return self.compute(computation, op)
        together: list[Instruction] = []
        for place, found in held:
            collective = self.read(place, found)
            if collective is None:
                continue
            if collective.kind == "all_reduce" and op.bytes * 2 <= found.bytes:
                # Only a slice of the sum leaves the fusion: TPU's reduce-scatter.
                half = collective.wire_bytes / 2
                collective = dataclasses.replace(collective, kind="reduce_scatter", wire_bytes=half)
            if collective.source is None:
                source, scope = self.place(computation, op)
                collective = dataclasses.replace(collective, source=source, scope=scope)
            together.append(Start(token=found.name, collective=collective))
        ends = [Done(token=start.token) for start in together if isinstance(start, Start)]
        work = self.compute(computation, op)
        # A fusion of nothing but a collective and its slice moves its bytes as part of the collective.
        busy = any(isinstance(part, Compute) and (part.flops or part.cycles) for part in work)
        return together + (work if busy or not together else []) + ends

    def compute(self, computation: Computation, op: Op) -> list[Instruction]:
        work = op_work(self.module, computation, op, self.works)
        self.unknown_calls.update(work.unknown)
        moved = op_bytes(self.module, computation, op, self.needs)
        cycles = op.number("estimated_cycles")
        if cycles is not None and not 0 <= cycles < UNKNOWN_CYCLES:
            cycles = None
        if self.platform == "tpu" and not work.flops and not moved and not cycles:
            return []
        source, scope = self.place(computation, op)
        return [
            Compute(
                name=op.name,
                kernel=_kernel(op, work),
                flops=work.flops,
                dtype=dtype_name(work.dtype) if work.dtype else None,
                matmul=work.matmul,
                hbm_bytes=moved,
                cycles=None if cycles is None else float(cycles),
                source=source,
                scope=scope,
                cpu_work=cpu_work(self.module, computation, op, work, moved) if self.platform == "cpu" else (),
            )
        ]

    def place(self, computation: Computation, op: Op) -> tuple[str | None, str | None]:
        """Source line and scope of an op; where it has none, of what it wraps, else of what feeds it."""
        queue, looked = [(computation, op)], 0
        while queue and looked < 12:
            where, at = queue.pop(0)
            looked += 1
            source, scope = self.module.source(at), self.module.scope(at)
            if source or scope:
                return source, scope
            if at.opcode == "fusion":
                inner = self.module.computations[at.called()[0]]
                queue.append((inner, inner.root))
            if at.opcode not in ("parameter", "constant"):
                queue += [(where, where.by_name[name]) for name in at.operands if name in where.by_name]
        return None, None


def _one_by_one(start: Start, sizes: list[int]) -> list[Instruction]:
    """XLA's CPU runtime sends the arrays of a combined collective one after another, each by itself."""
    found: list[Instruction] = []
    for index, size in enumerate(sizes):
        share = size / max(sum(sizes), 1)
        one = dataclasses.replace(
            start.collective,
            payload_bytes=start.collective.payload_bytes * share,
            wire_bytes=start.collective.wire_bytes * share,
        )
        token = f"{start.token}/{index}" if index else start.token
        found += [Start(token=token, collective=one), Done(token=token)]
    return found


def _loop_trip(name: str) -> Compute:
    """What XLA's CPU runtime does for a trip of a loop beside its instructions."""
    return Compute(
        name=name, kernel="fusion", flops=0.0, dtype=None, matmul=None, hbm_bytes=0.0, cycles=None, source=None,
        scope=None, cpu_work=(("loop", 1.0),),
    )  # fmt: skip


def _kernel(op: Op, work: Work) -> str:
    """The class of an op: matmul, attention, custom_call, copy, gather (and scatter), fusion (all other work)."""
    if work.attention:
        return "attention"
    if work.flops:
        return "matmul"
    if op.opcode == "custom-call":
        return "custom_call"
    if op.opcode in ("copy", "transpose") or op.name.startswith(("copy", "transpose", "bitcast_copy")):
        return "copy"
    if op.opcode in ("gather", "scatter") or "gather" in op.name or "scatter" in op.name:
        return "gather"
    return "fusion"


def _nested(module: Module, computation: Computation) -> list[tuple[Computation, Op]]:
    """Every op of a fused computation and of the fusions within."""
    found = []
    for op in computation.ops:
        found.append((computation, op))
        if op.opcode == "fusion":
            found += _nested(module, module.computations[op.called()[0]])
    return found


def _cost(instructions: Iterable[Instruction]) -> tuple[float, float]:
    ops = [(op, trips) for op, trips in walk(tuple(instructions)) if isinstance(op, Compute)]
    return sum(op.flops * trips for op, trips in ops), sum(op.hbm_bytes * trips for op, trips in ops)
