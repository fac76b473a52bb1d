"""How long one compiled step takes: its schedule replayed, instruction by instruction, on the machine's lanes.

The core is one lane. Others are every physical set of links that a collective rides, each of a TPU's SparseCores, the
copy engine ("dma"), and the link to the host's memory in each direction ("host in", "host out"). Lanes serve in program
order, so every finishing time is a maximum of sums of durations (max-plus): a faster part can never make the whole
slower.

Each finishing time carries along the durations it is the sum of, by term; where two paths meet, the later one is kept.
On a tie the core's own path wins, then the lane whose name sorts first. The terms of the last finishing time therefore
add up to the step time, and a term's share is the elasticity of the step time to it (this is the same as one backward
pass over the critical path, done forwards).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from autotune.meshes.collectives import Leg
from autotune.meshes.hardware import Hardware
from autotune.program import (
    Collective,
    Compute,
    Copy,
    CopyStart,
    Done,
    Instruction,
    Loop,
    Program,
    Start,
    WorkStart,
)
from autotune.replay.op_seconds import core_seconds
from autotune.replay.timeline import Recorder

Term = tuple[str, str]
"""(resource, detail): ("matmul", "dot"), ("network:fsdp@ici", "all_gather"), ("latency", "fsdp@ici/all_gather")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTotal:
    """One kind of collective on one mesh axis and tier, per device and step."""

    axis: str
    """Mesh axes joined by "+"."""
    tier: str
    kind: str
    count: int
    """Executions in a step."""
    payload_bytes: float
    """Of the full arrays moved."""
    wire_bytes: float
    """That one device sends."""
    seconds: float
    """Bytes and latency on this tier alone."""
    exposed_seconds: float
    """What of `seconds` lies on the critical path."""
    hidden_seconds: float = 0.0
    """What of `seconds` passes while a slower tier moves the same collective: the seconds of all its tiers, less these,
    are what the collective takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds of one step on one device, replayed from its compiled program."""

    step_seconds: float
    low_seconds: float
    """Every lane perfectly overlapped (the busiest lane alone), work on the core at the fast end of what its
    microbenchmarks leave open."""
    high_seconds: float
    """Nothing overlapped, work on the core at the slow end."""
    critical: Mapping[Term, float]
    """Term -> its seconds on the critical path; they add up to `step_seconds`."""
    busy: Mapping[str, float]
    """Lane -> seconds that it works."""
    ledger: tuple[CollectiveTotal, ...]
    losses: Mapping[str, float]
    """Of `step_seconds`: "recompute", by the program's own marks, and, where there are several slices, "waiting" for
    the slowest."""

    def by_resource(self) -> dict[str, float]:
        """Critical-path seconds of each resource, largest first."""
        seconds: dict[str, float] = {}
        for (resource, _), value in self.critical.items():
            seconds[resource] = seconds.get(resource, 0.0) + value
        return dict(sorted(seconds.items(), key=lambda item: (-item[1], item[0])))


@dataclass(slots=True)
class _Point:
    """A finishing time and the durations on the path that led to it."""

    seconds: float
    terms: np.ndarray

    def plus(self, seconds: float, terms: np.ndarray) -> _Point:
        return _Point(self.seconds + seconds, self.terms + terms)


@dataclass(frozen=True, slots=True)
class _Leg:
    """One leg of a collective: the lanes it holds, for how long, and that duration by term."""

    lanes: tuple[str, ...]
    seconds: float
    terms: np.ndarray


@dataclass(frozen=True, slots=True)
class _Work:
    """Instructions between two synchronisations, folded into one duration on the core."""

    seconds: float
    terms: np.ndarray
    ops: tuple[Compute, ...]


@dataclass(frozen=True, slots=True)
class _Send:
    token: str
    legs: tuple[_Leg, ...]
    instruction: Start | CopyStart | WorkStart


@dataclass(frozen=True, slots=True)
class _Wait:
    token: str


@dataclass(frozen=True, slots=True)
class _Repeat:
    name: str
    trips: int
    body: tuple[object, ...]


@dataclass(slots=True)
class _State:
    core: _Point
    lanes: dict[str, _Point]
    tokens: dict[str, _Point] = field(default_factory=dict)
    recorder: Recorder | None = None


def replay(
    program: Program,
    legs: Callable[[Collective], tuple[Leg, ...]],
    hardware: Hardware,
    recorder: Recorder | None = None,
) -> Prediction:
    """Replay `program` on `hardware`; `legs` says which links a collective rides and how long each takes.

    `recorder` is told when each instruction begins and ends on each lane.
    """
    terms: dict[Term, int] = {}
    _number_terms(program.instructions, legs, hardware, terms)
    schedule = _schedule_of(program.instructions, legs, hardware, terms)
    zero = np.zeros(len(terms))
    state = _State(core=_Point(0.0, zero), lanes={}, recorder=recorder)
    _run(schedule, state, zero)
    # A transfer nobody waits for still has to end before the step does.
    end = _latest(state.core, (state.lanes[name] for name in sorted(state.lanes)))
    if recorder is not None:
        recorder.wait(None, state.core.seconds, end.seconds)
    critical = {term: float(end.terms[index]) for term, index in terms.items() if end.terms[index] > 0}
    busy = _busy(program, legs, hardware)
    return Prediction(
        step_seconds=end.seconds,
        low_seconds=min(end.seconds, max(_busy(program, legs, hardware, "low").values(), default=0.0)),
        high_seconds=max(end.seconds, _serial_seconds(program, legs, hardware)),
        critical=critical,
        busy=busy,
        ledger=_ledger(program, legs, critical),
        losses=_losses(program, hardware),
    )


def _number_terms(instructions, legs, hardware, terms: dict[Term, int]) -> None:
    """Number every term the program can have."""
    for instruction in instructions:
        if isinstance(instruction, Loop):
            _number_terms(instruction.body, legs, hardware, terms)
        elif isinstance(instruction, Compute):
            for term, _ in core_seconds(instruction, hardware):
                terms.setdefault(term, len(terms))
        elif isinstance(instruction, Start):
            for leg in legs(instruction.collective):
                for term, _ in _leg_terms(instruction.collective, leg):
                    terms.setdefault(term, len(terms))
        elif isinstance(instruction, CopyStart):
            _, (term, _) = copy_seconds(instruction.copy, hardware)
            terms.setdefault(term, len(terms))
        elif isinstance(instruction, WorkStart):
            for term, _ in core_seconds(instruction.work, hardware):
                terms.setdefault(term, len(terms))


def _leg_terms(collective: Collective, leg: Leg) -> tuple[tuple[Term, float], ...]:
    where = f"{axis_name(collective)}@{leg.tier}"
    return (
        ((f"network:{where}", collective.kind), leg.bytes_seconds),
        (("latency", f"{where}/{collective.kind}"), leg.latency_seconds),
    )


def copy_seconds(copy: Copy, hardware: Hardware) -> tuple[tuple[str, ...], tuple[Term, float]]:
    """The lanes of an asynchronous copy, and its seconds by term: at HBM's rate, or the host link's one way.

    The link to the host carries both directions at once. A copy inside the host's memory holds both.
    """
    ends = (copy.from_memory, copy.to_memory)
    if "host" in ends:
        ways = tuple(way for way, end in zip(("host in", "host out"), ends, strict=True) if end == "host")
        return ways, (("host", "async_copy"), copy.bytes / hardware.host_bytes_per_second)
    rate = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
    return ("dma",), (("hbm", "async_copy"), copy.bytes * max(ends.count("hbm"), 1) / rate)


def work_lanes(start: WorkStart) -> tuple[str, ...]:
    """The lanes of work beside the core: its own cores, and the memory that all asynchronous copies share."""
    return (*start.cores, "dma")


def axis_name(collective: Collective) -> str:
    """The mesh axes of a collective as one word: "fsdp", "data+fsdp"; "unmapped" when its groups follow no axes."""
    return "+".join(collective.axes) or "unmapped"


def _vector(parts: Iterable[tuple[Term, float]], terms: dict[Term, int]) -> tuple[float, np.ndarray]:
    vector = np.zeros(len(terms))
    for term, seconds in parts:
        vector[terms[term]] += seconds
    return float(vector.sum()), vector


def _schedule_of(instructions: tuple[Instruction, ...], legs, hardware, terms) -> tuple[object, ...]:
    """The program with durations in place of instructions, neighbouring work on the core added up."""
    folded: list[object] = []
    pending: list[tuple[Term, float]] = []
    ops: list[Compute] = []

    def flush() -> None:
        if pending:
            folded.append(_Work(*_vector(pending, terms), tuple(ops)))
        pending.clear()
        ops.clear()

    for instruction in instructions:
        if isinstance(instruction, Compute):
            pending.extend(core_seconds(instruction, hardware))
            ops.append(instruction)
            continue
        flush()
        if isinstance(instruction, Loop):
            folded.append(
                _Repeat(instruction.name, instruction.trips, _schedule_of(instruction.body, legs, hardware, terms))
            )
        elif isinstance(instruction, Start):
            held = tuple(
                _Leg((*leg.lanes, *instruction.cores), *_vector(_leg_terms(instruction.collective, leg), terms))
                for leg in legs(instruction.collective)
            )
            folded.append(_Send(instruction.token, held, instruction))
        elif isinstance(instruction, CopyStart):
            lanes, part = copy_seconds(instruction.copy, hardware)
            folded.append(_Send(instruction.token, (_Leg(lanes, *_vector([part], terms)),), instruction))
        elif isinstance(instruction, WorkStart):
            leg_of_work = _Leg(work_lanes(instruction), *_vector(core_seconds(instruction.work, hardware), terms))
            folded.append(_Send(instruction.token, (leg_of_work,), instruction))
        else:
            folded.append(_Wait(instruction.token))
    flush()
    return tuple(folded)


def _latest(first: _Point, others: Iterable[_Point]) -> _Point:
    """The latest of the points; the earliest named wins a tie."""
    latest = first
    for point in others:
        if point.seconds > latest.seconds:
            latest = point
    return latest


def _run(schedule: tuple[object, ...], state: _State, zero: np.ndarray) -> None:
    recorder = state.recorder
    for item in schedule:
        if isinstance(item, _Work):
            if recorder is not None:
                recorder.work(item.ops, state.core.seconds)
            state.core = state.core.plus(item.seconds, item.terms)
        elif isinstance(item, _Send):
            point = state.core
            for leg in item.legs:
                held = (state.lanes[lane] for lane in sorted(leg.lanes) if lane in state.lanes)
                point = _latest(point, held).plus(leg.seconds, leg.terms)
                if recorder is not None:
                    recorder.sent(item.instruction, leg.lanes, point.seconds - leg.seconds, leg.seconds)
                for lane in leg.lanes:
                    state.lanes[lane] = point
            state.tokens[item.token] = point
        elif isinstance(item, _Wait):
            # A Done in a first iteration may await a transfer that the loop's prologue started under another name;
            # without a Start there is nothing to wait for.
            if item.token in state.tokens:
                if recorder is not None:
                    recorder.wait(item.token, state.core.seconds, state.tokens[item.token].seconds)
                state.core = _latest(state.core, (state.tokens.pop(item.token),))
        elif isinstance(item, _Repeat):
            _repeat(item, state, zero)


def _repeat(loop: _Repeat, state: _State, zero: np.ndarray) -> None:
    """Run the loop until two iterations advance every time alike, then add the rest at once.

    A max-plus recurrence becomes periodic; iterations that changed every clock by the same amounts as the one before
    go on doing so, because only differences between clocks decide which path is the later.
    """
    before: dict[str, _Point] | None = None
    advance: dict[str, np.ndarray] | None = None
    recorder = state.recorder
    turns = recorder.loop(loop.name, loop.trips) if recorder is not None else None
    for done in range(1, loop.trips + 1):
        start = before if before is not None else _clocks(state)
        if turns is not None:
            turns.begin(done)
        _run(loop.body, state, zero)
        if turns is not None:
            turns.end()
        after = _clocks(state)
        if after.keys() == start.keys():
            step = {name: np.append(after[name].terms - start[name].terms, after[name].seconds - start[name].seconds)
                    for name in after}  # fmt: skip
            if advance is not None and step.keys() == advance.keys() and _alike(step, advance):
                if turns is not None:
                    clocks = {name.removeprefix("lane "): point.seconds for name, point in after.items()}
                    advances = {name.removeprefix("lane "): float(moved[-1]) for name, moved in step.items()}
                    turns.skip(loop.trips - done, clocks, advances)
                _skip(state, step, loop.trips - done)
                return
            advance = step
        else:
            advance = None
        before = after


def _clocks(state: _State) -> dict[str, _Point]:
    clocks = {"core": state.core}
    clocks |= {f"lane {name}": point for name, point in state.lanes.items()}
    clocks |= {f"token {name}": point for name, point in state.tokens.items()}
    return clocks


def _alike(step: dict[str, np.ndarray], previous: dict[str, np.ndarray]) -> bool:
    """Both iterations moved every clock by the same terms, and all moving clocks by the same time."""
    scale = max(abs(step["core"][-1]), 1e-30)
    moving = [advance[-1] for advance in step.values() if abs(advance[-1]) > 1e-9 * scale]
    if moving and max(moving) - min(moving) > 1e-9 * scale:
        return False
    return all(np.allclose(step[name], previous[name], rtol=1e-9, atol=1e-9 * scale) for name in step)


def _skip(state: _State, step: dict[str, np.ndarray], trips: int) -> None:
    def moved(name: str, point: _Point) -> _Point:
        return point.plus(trips * float(step[name][-1]), trips * step[name][:-1])

    state.core = moved("core", state.core)
    state.lanes = {name: moved(f"lane {name}", point) for name, point in state.lanes.items()}
    state.tokens = {name: moved(f"token {name}", point) for name, point in state.tokens.items()}


def _executions(instructions: tuple[Instruction, ...], trips: int = 1):
    for instruction in instructions:
        if isinstance(instruction, Loop):
            yield from _executions(instruction.body, trips * instruction.trips)
        elif not isinstance(instruction, Done):
            yield instruction, trips


def _busy(program: Program, legs, hardware: Hardware, bound: str = "expected") -> dict[str, float]:
    """Seconds each lane works in one step; a lane held by several collectives adds them up."""
    busy: dict[str, float] = {"core": 0.0}
    for instruction, trips in _executions(program.instructions):
        if isinstance(instruction, Compute):
            busy["core"] += trips * sum(seconds for _, seconds in core_seconds(instruction, hardware, bound))
        elif isinstance(instruction, CopyStart):
            lanes, (_, seconds) = copy_seconds(instruction.copy, hardware)
            for lane in lanes:
                busy[lane] = busy.get(lane, 0.0) + trips * seconds
        elif isinstance(instruction, WorkStart):
            seconds = sum(part for _, part in core_seconds(instruction.work, hardware, bound))
            for lane in work_lanes(instruction):
                busy[lane] = busy.get(lane, 0.0) + trips * seconds
        else:
            for leg in legs(instruction.collective):
                for lane in (*leg.lanes, *instruction.cores):
                    busy[lane] = busy.get(lane, 0.0) + trips * (leg.bytes_seconds + leg.latency_seconds)
    return busy


def _serial_seconds(program: Program, legs, hardware: Hardware) -> float:
    """Seconds of one step with nothing overlapped: every duration at its longest, one after another."""
    total = 0.0
    for instruction, trips in _executions(program.instructions):
        if isinstance(instruction, Compute):
            total += trips * sum(seconds for _, seconds in core_seconds(instruction, hardware, "high"))
        elif isinstance(instruction, CopyStart):
            total += trips * copy_seconds(instruction.copy, hardware)[1][1]
        elif isinstance(instruction, WorkStart):
            total += trips * sum(seconds for _, seconds in core_seconds(instruction.work, hardware, "high"))
        else:
            total += trips * sum(leg.bytes_seconds + leg.latency_seconds for leg in legs(instruction.collective))
    return total


def _ledger(program: Program, legs, critical: Mapping[Term, float]) -> tuple[CollectiveTotal, ...]:
    rows: dict[tuple[str, str, str], list[float]] = {}
    for instruction, trips in _executions(program.instructions):
        if not isinstance(instruction, Start):
            continue
        collective = instruction.collective
        for leg in legs(collective):
            key = (axis_name(collective), leg.tier, collective.kind)
            row = rows.setdefault(key, [0, 0.0, 0.0, 0.0, 0.0])
            row[0] += trips
            row[1] += trips * collective.payload_bytes
            row[2] += trips * leg.wire_bytes
            row[3] += trips * (leg.bytes_seconds + leg.latency_seconds + leg.hidden_seconds)
            row[4] += trips * leg.hidden_seconds
    return tuple(
        CollectiveTotal(
            axis=axis,
            tier=tier,
            kind=kind,
            count=int(count),
            payload_bytes=payload,
            wire_bytes=wire,
            seconds=seconds,
            exposed_seconds=critical.get((f"network:{axis}@{tier}", kind), 0.0)
            + critical.get(("latency", f"{axis}@{tier}/{kind}"), 0.0),
            hidden_seconds=hidden,
        )
        for (axis, tier, kind), (count, payload, wire, seconds, hidden) in sorted(
            rows.items(), key=lambda row: -row[1][3]
        )
    )


def _losses(program: Program, hardware: Hardware) -> dict[str, float]:
    """Seconds on the core spent on recomputation (JAX marks it `rematted_computation`)."""
    recompute = sum(
        trips * sum(seconds for _, seconds in core_seconds(instruction, hardware))
        for instruction, trips in _executions(program.instructions)
        if isinstance(instruction, Compute) and "rematted_computation" in (instruction.scope or "")
    )
    return {"recompute": recompute}
