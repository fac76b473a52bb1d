"""Walks the scheduled computations of one module and makes the instructions of a Program."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

from autotune.hlo.bytes import Needs, bytes_read, bytes_written, op_bytes
from autotune.hlo.collectives import KIND_OF_OPCODE, base_opcode, read_collective, read_megascale
from autotune.hlo.cpu_work import cpu_work
from autotune.hlo.flops import op_work
from autotune.hlo.groups import DeviceGrid
from autotune.hlo.kernels import FREE_CALLS, target_of, tile_visits
from autotune.hlo.loops import Values, loop_invariants, trip_count
from autotune.hlo.op_flops import OpWork
from autotune.hlo.opcodes import FREE, KNOWN
from autotune.hlo.shape import HBM, HOST, MEMORIES, dtype_name, read_shapes, tuple_parts
from autotune.hlo.text import Computation, Module, Op
from autotune.hlo.tokens import Tokens, channel_token, rendezvous
from autotune.hlo.unread import Reached
from autotune.hlo.unreadable import UnreadableProgram
from autotune.program import (
    Collective,
    Compute,
    Copy,
    CopyStart,
    Done,
    Instruction,
    Loop,
    Start,
    WorkStart,
    walk,
)

UNKNOWN_CYCLES = 2**63 - 1

MOST_TRIPS = 10**9
"""No loop of one step runs more often."""

COPIES = ("copy", "slice", "dynamic-slice")
"""Opcodes whose asynchronous form only moves bytes; any other started so is work."""

MOVES = (*COPIES, "dynamic-update-slice")
"""Opcodes that only move bytes: between a device and its host they cost the core nothing."""

SPARSE_CORE = "sparsecore"
"""The thread of a TPU's SparseCores: `async_execution_thread="sparsecore"`."""

_CORES = re.compile(r'"core_ids":\[([^\]]*)\]')

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
        self.not_read: Counter[str] = Counter()
        self.warned_of: Counter[str] = Counter()
        self.reached = Reached(module)
        self.parts: dict[str, tuple[str, ...]] = {}
        self.works: dict[str, OpWork] = {}
        self.needs: dict[str, Needs] = {}

    def all_warnings(self) -> tuple[str, ...]:
        """Everything that was not read for certain, each said once."""
        opcodes = [f"opcode {name} is not known: {count} read as work on the core by its bytes"
                   for name, count in sorted(self.unknown_opcodes.items())]  # fmt: skip
        calls = [f"custom call {name} has no known FLOPs: {count} counted by bytes alone"
                 for name, count in sorted(self.unknown_calls.items())]  # fmt: skip
        unread = [f"{name}: {count} in the program's text, in no line of its ledger"
                  for name, count in sorted((self.not_read + self.reached.unread()).items())]  # fmt: skip
        return tuple(dict.fromkeys(self.warnings + opcodes + calls + unread))

    def not_understood(self) -> dict[str, int]:
        """What the instructions may lack, with how often the text has it; {} where everything was read."""
        found = self.not_read + self.warned_of + self.reached.unread()
        found.update({f"opcode {name}": count for name, count in self.unknown_opcodes.items()})
        found.update({f"custom call {name}": count for name, count in self.unknown_calls.items()})
        return dict(sorted(found.items()))

    def computation(self, computation: Computation, values: Values) -> tuple[Instruction, ...]:
        """The instructions of a scheduled computation; `values`: what its tuple parameter is known to hold."""
        self.reached.walked(computation)
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
        if opcode in ("send", "recv", "send-done", "recv-done"):
            return self.transfer(computation, op)
        if opcode.endswith("-start"):
            copies = self.is_copy(op, base)
            return self.copy(computation, op, base) if copies else self.started(computation, op, base)
        if opcode.endswith("-update"):
            return []
        if opcode.endswith("-done"):
            return self.ends(computation, op)
        if opcode == "fusion":
            return self.fusion(computation, op)
        if opcode not in KNOWN:
            self.unknown_opcodes[opcode] += 1
        return self.compute(computation, op)

    def loop(self, computation: Computation, op: Op, values: Values) -> Loop:
        trips = trip_count(self.module, op, computation, values)
        if trips is None:
            self.warnings.append(f"{op.name}: its trip count cannot be read; counted once")
            self.warned_of["loop of unknown trips"] += 1
            trips = 1
        if trips > MOST_TRIPS:
            raise UnreadableProgram(f"hlo: {op.name} is said to run {trips} times")
        body = self.module.computations[op.callee("body") or ""]
        kept = loop_invariants(self.module, op, computation, values)
        instructions = self.computation(body, kept)
        # A condition is a comparison, which costs nothing to speak of, unless devices must agree on it.
        asked = self.computation(self.module.computations[op.callee("condition") or ""], kept)
        if any(isinstance(part, (Start, CopyStart, WorkStart)) for part in asked):
            instructions = (*asked, *instructions)
        if self.platform == "cpu":
            instructions = (*instructions, _loop_trip(op.name))
        return Loop(name=op.name, trips=trips, body=instructions)

    def conditional(self, op: Op) -> list[Instruction]:
        """The branch with the most FLOPs, then bytes. Branches of as many FLOPs are shares of one work, of which each
        device does one (autotune.models.gathered): nothing is in doubt."""
        branches = [self.computation(self.module.computations[name], lambda index: None) for name in op.called()]
        flops = {_cost(branch)[0] for branch in branches}
        if flops == {0.0} or len(flops) > 1:
            self.warnings.append(f"{op.name}: of {len(branches)} branches the costliest is counted")
        return list(max(branches, key=_cost, default=()))

    def collective(self, computation: Computation, op: Op) -> list[Instruction]:
        if op.opcode.endswith("-done"):
            return self.ends(computation, op)
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

    def ends(self, computation: Computation, op: Op) -> list[Instruction]:
        """The ends of all that the start of this `-done` began."""
        begun = self.tokens.ended_by(computation, op)
        return [Done(token=part) for token in begun for part in self.parts.get(token, (token,))]

    def read(self, computation: Computation, op: Op) -> Collective | None:
        self.reached.collective(computation, op)
        collective = read_collective(self.module, computation, op, self.grid, self.warnings)
        if collective is None:
            self.tokens.empty.add(self.tokens.of(op.name))
        elif collective.source is None:
            source, scope = self.place(computation, op)
            collective = dataclasses.replace(collective, source=source, scope=scope)
        return collective

    def transfer(self, computation: Computation, op: Op) -> list[Instruction]:
        """Megascale send and receive: in flight from the send to the end of the receive."""
        if op.opcode == "send-done" or op.opcode == "recv":
            return []
        if op.opcode == "recv-done":
            return [Done(token=token) for token in self.tokens.ended_by(computation, op)]
        meeting = rendezvous(op)
        self.reached.send(meeting, op)
        receive = next(
            (o for o in computation.ops if o.opcode == "recv" and meeting and rendezvous(o) == meeting), None
        )
        collective = read_megascale(self.module, op, receive, self.grid, self.warnings)
        if collective is None or meeting is None:
            self.tokens.empty.add(self.tokens.of(meeting or op.name))
            self.warnings.append(f"{op.name}: a send that is no transfer between slices is not counted")
            self.warned_of["send that is no transfer between slices"] += 1
            return []
        source, scope = self.place(computation, op)
        collective = dataclasses.replace(collective, source=source, scope=scope)
        return [Start(token=self.tokens.of(meeting), collective=collective)]

    def started(self, computation: Computation, op: Op, base: str) -> list[Instruction]:
        """Anything handed to another stream, thread or core: `async-start`, `call-start`, `fusion-start` and the like.

        What it calls is read as any computation is. Collectives and copies in there are in flight until its `-done`,
        and so is the work of a TPU's SparseCores. Other work is counted in full where it starts: on an H100 copies into
        stacked arrays (`fusion-start`, jax 0.11) took as long beside matmuls as alone, since they share the memory and
        the multiprocessors.
        """
        thread = op.word("async_execution_thread")
        if thread == "host":
            self.not_read["work on the host's processor"] += 1
        if base in ("async", "call"):
            inside = list(self.computation(self.module.computations[op.called()[0]], lambda index: None))
        else:
            parts = tuple_parts(op.type)
            if base == "fusion":
                result = self.module.computations[op.called()[0]].root.type
            else:
                result = parts[1] if parts and len(parts) > 1 else op.type
            synchronous = dataclasses.replace(op, opcode=base, type=result)
            inside = self.instruction(computation, synchronous, lambda index: None)
        return self.in_flight(computation, op, inside, _sparse_cores(op) if thread == SPARSE_CORE else ())

    def in_flight(
        self, computation: Computation, op: Op, inside: list[Instruction], cores: tuple[str, ...]
    ) -> list[Instruction]:
        """What `op` starts, under tokens that its `-done` ends; `cores`: the SparseCores that run it."""
        token = self.tokens.of(op.name)
        tokens: list[str] = []
        found: list[Instruction] = []
        for one in inside:
            name = f"{token}/{len(tokens)}" if tokens else token
            if isinstance(one, Start):
                collective = one.collective
                if collective.source is None and collective.scope is None:
                    source, scope = self.place(computation, op)
                    collective = dataclasses.replace(collective, source=source, scope=scope)
                found.append(Start(token=name, collective=collective, cores=cores or one.cores))
            elif isinstance(one, CopyStart):
                found.append(CopyStart(token=name, copy=one.copy))
            elif isinstance(one, WorkStart) or (cores and isinstance(one, Compute)):
                work, held = (one.work, one.cores) if isinstance(one, WorkStart) else (one, cores)
                found.append(WorkStart(token=name, work=work, cores=cores or held))
            elif isinstance(one, Done):
                continue  # what starts inside ends where the whole does
            else:
                found.append(one)
                continue
            tokens.append(name)
        if not tokens:
            self.tokens.empty.add(token)
        elif len(tokens) >= len(self.parts.get(token, ())):
            self.parts[token] = tuple(tokens)
        return found

    def is_copy(self, op: Op, base: str) -> bool:
        """Whether a copy engine does what `op` starts: a copy, a slice, on a TPU or to a host an update in place."""
        if base == "dynamic-update-slice":
            return self.platform == "tpu" or any(shape.space == HOST for shape in op.shapes)
        return base in COPIES

    def copy(self, computation: Computation, op: Op, base: str) -> list[Instruction]:
        """An asynchronous copy, slice or update in place.

        Its type is `(target, source, flag)` of a copy, `((operands), target, flag)` of the others; of an update only
        its second operand is moved.
        """
        parts = tuple_parts(op.type) or (op.type,)
        target = read_shapes(parts[0] if base == "copy" or len(parts) < 2 else parts[1])[0]
        moved = computation.operand(op, 1 if base == "dynamic-update-slice" else 0).shapes[0]
        token = self.tokens.of(op.name)
        copies = self.copies(computation, op, float(min(moved.bytes, target.bytes)), moved.space, target.space)
        if not copies:
            self.tokens.empty.add(token)
        return [CopyStart(token=token, copy=copy) for copy in copies]

    def copies(self, computation: Computation, op: Op, size: float, source: int, target: int) -> list[Copy]:
        """The copy of `size` bytes from one memory space to another; none inside a core or of flags."""
        ends = [MEMORIES.get(space) for space in (source, target)]
        if ends[0] is None or ends[1] is None or ends == ["vmem", "vmem"]:
            if HOST in (source, target):
                self.not_read[f"{op.opcode} between the host and memory space S({source + target - HOST})"] += 1
            return []
        place, scope = self.place(computation, op)
        return [Copy(name=op.name, bytes=size, from_memory=ends[0], to_memory=ends[1], source=place, scope=scope)]

    def with_the_host(self, computation: Computation, op: Op) -> list[Instruction]:
        """What an instruction of the core itself reads from its host's memory and writes there: the core waits."""
        if self.platform == "cpu":
            return []
        read = bytes_read(self.module, computation, op, self.needs, HOST)
        written = bytes_written(self.module, computation, op, HOST)
        if op.opcode == "dynamic-update-slice":
            read = min(read, computation.operand(op, 1).bytes)
        if op.opcode in MOVES and read and written:  # inside the host's memory
            copies = self.copies(computation, op, min(read, written), HOST, HOST)
        else:
            copies = self.copies(computation, op, read, HOST, HBM) if read else []
            copies += self.copies(computation, op, written, HBM, HOST) if written else []
        found: list[Instruction] = []
        for number, copy in enumerate(copies):
            token = f"{op.name}/host/{number}"
            found += [CopyStart(token=token, copy=copy), Done(token=token)]
        return found

    def fusion(self, computation: Computation, op: Op) -> list[Instruction]:
        """A fusion; on TPU it may hold a collective, its start, its end, or a piece of one already in flight."""
        inner = self.module.computations[op.called()[0]]
        self.reached.worked(op)
        held = [(place, found) for place, found in _nested(self.module, inner) if base_opcode(found) in KIND_OF_OPCODE]
        if not held:
            return self.compute(computation, op)
        marks = {target_of(found) for _, found in _nested(self.module, inner) if found.opcode == "custom-call"}
        place, found = held[0]
        token = channel_token(found)
        chain = "AsyncCollectiveDone" in marks or inner.name.startswith("async_collective_fusion")
        if chain or "AsyncCollectiveStart" in marks or "chain_id" in found.attributes:
            for where, piece in held:  # each fusion of the chain shows it
                if channel_token(piece) == token:
                    self.reached.collective(where, piece)
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
        self.reached.worked(op)
        over_the_host = self.with_the_host(computation, op)
        if over_the_host and op.opcode in MOVES:
            return over_the_host
        moved = op_bytes(self.module, computation, op, self.needs)
        cycles = op.number("estimated_cycles")
        if cycles is not None and not 0 <= cycles < UNKNOWN_CYCLES:
            cycles = None
        if self.platform == "tpu" and not work.flops and not moved and not cycles:
            return over_the_host
        source, scope = self.place(computation, op)
        return [
            *over_the_host,
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
                visits=tile_visits(computation, op),
                cpu_work=cpu_work(self.module, computation, op, work, moved) if self.platform == "cpu" else (),
            ),
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


def _sparse_cores(op: Op) -> tuple[str, ...]:
    """The SparseCores that run a call: `"core_ids":["0","1"]`; the first where the call names none."""
    match = _CORES.search(op.attributes)
    numbers = re.findall(r"\d+", match[1]) if match else []
    return tuple(f"{SPARSE_CORE} {number}" for number in numbers or ["0"])


def _loop_trip(name: str) -> Compute:
    """What XLA's CPU runtime does for a trip of a loop beside its instructions."""
    return Compute(
        name=name, kernel="fusion", flops=0.0, dtype=None, matmul=None, hbm_bytes=0.0, cycles=None, source=None,
        scope=None, cpu_work=(("loop", 1.0),),
    )  # fmt: skip


def _kernel(op: Op, work: OpWork) -> str:
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
