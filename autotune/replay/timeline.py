"""When each instruction of a replayed step begins and ends on each lane: what a profiler would draw, but predicted.

The first turn of a loop is drawn, and the last one that the replay ran: the steady one, whose advance all later turns
repeat. What lies between and after is one span a lane, which says how many turns it stands for and how long they work.

    sum of `busy_seconds` of a lane's spans = seconds the lane works in one step (`Prediction.busy`)
    sum of `seconds` of the core's spans    = the step (the core either works or waits)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.meshes.hardware import Hardware
from autotune.program import Compute, CopyStart, Start, WorkStart
from autotune.replay.op_seconds import core_seconds

CORE = "core"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One instruction on one lane, or turns of a loop that are not drawn one by one. Per device, seconds in a step.

    `what`: "work", "collective", "copy", "wait" or "turns". `resource`: what the time is spent on, as a limit is named
    ("matmul", "hbm", "network:fsdp@ici"; "wait"; "turns"). `busy_seconds`: how long the lane works in it: `seconds` of
    work and transfers, 0 of a wait, the sum over all its turns of "turns". `bytes`: in device memory of work, the full
    array moved of a collective, the copy's; None where there are none. `flops`: of work. `axis`: mesh axes of a
    collective ("data+fsdp"). `turn`: the loops around it, outermost first: ("while.3 1 of 32",).
    """

    lane: str
    name: str
    what: str
    resource: str
    start_seconds: float
    seconds: float
    busy_seconds: float
    bytes: float | None = None
    flops: float | None = None
    axis: str | None = None
    source: str | None = None
    scope: str | None = None
    turn: tuple[str, ...] = ()

    @property
    def end_seconds(self) -> float:
        return self.start_seconds + self.seconds


@dataclass(slots=True)
class Recorder:
    """Collects spans while `replay` runs a program on `hardware`."""

    hardware: Hardware
    spans: list[Span] = field(default_factory=list)
    turn: tuple[str, ...] = ()
    senders: dict[str, str] = field(default_factory=dict)

    def work(self, ops: Sequence[Compute], start: float) -> None:
        """Instructions on the core, one after another from `start` on."""
        for op in ops:
            parts = core_seconds(op, self.hardware)
            seconds = sum(part for _, part in parts)
            if seconds:
                self._work(op, parts, CORE, start, seconds)
                start += seconds

    def sent(
        self, instruction: Start | CopyStart | WorkStart, lanes: Sequence[str], start: float, seconds: float
    ) -> None:
        """A leg of what runs beside the core, on all the lanes that it holds."""
        name = _name(instruction)
        self.senders[instruction.token] = name
        if not seconds:
            return
        for lane in lanes:
            if isinstance(instruction, WorkStart):
                self._work(instruction.work, core_seconds(instruction.work, self.hardware), lane, start, seconds)
                continue
            if isinstance(instruction, Start):
                moved = instruction.collective
                axis = "+".join(moved.axes) or "unmapped"
                self._add(
                    lane=lane, name=f"{moved.kind} {axis}: {name}", what="collective", resource=f"network:{axis}",
                    start_seconds=start, seconds=seconds, busy_seconds=seconds, bytes=moved.payload_bytes, axis=axis,
                    source=moved.source, scope=moved.scope,
                )  # fmt: skip
                continue
            copy = instruction.copy
            self._add(
                lane=lane, name=f"copy {copy.from_memory} to {copy.to_memory}: {name}", what="copy",
                resource="host" if "host" in (copy.from_memory, copy.to_memory) else "hbm", start_seconds=start,
                seconds=seconds, busy_seconds=seconds, bytes=copy.bytes, source=copy.source, scope=copy.scope,
            )  # fmt: skip

    def wait(self, token: str | None, start: float, end: float, name: str | None = None) -> None:
        """The core waits from `start` to `end` for what `token` names; None: for the last transfers of the step."""
        if end <= start:
            return
        if name is None:
            name = f"wait for {self.senders[token] if token is not None else 'the last transfers'}"
        self._add(
            lane=CORE, name=name, what="wait", resource="wait", start_seconds=start, seconds=end - start,
            busy_seconds=0.0,
        )  # fmt: skip

    def loop(self, name: str, trips: int) -> Turns:
        """Say of a loop's turns when they begin and end."""
        return Turns(recorder=self, name=name, trips=trips, outside=self.turn)

    def _work(
        self, op: Compute, parts: Sequence[tuple[tuple[str, str], float]], lane: str, start: float, seconds: float
    ) -> None:
        """`parts`: the seconds of the instruction by what they are spent on, as `core_seconds` gives them."""
        (resource, _), _ = max(parts, key=lambda part: part[1])
        self._add(
            lane=lane, name=op.name, what="work", resource=resource, start_seconds=start, seconds=seconds,
            busy_seconds=seconds, bytes=op.hbm_bytes, flops=op.flops or None, source=op.source, scope=op.scope,
        )  # fmt: skip

    def _add(self, **values) -> None:
        self.spans.append(Span(turn=self.turn, **values))


@dataclass(slots=True)
class Turns:
    """The turns of one loop: the first and the last that runs are kept as spans, those between are folded."""

    recorder: Recorder
    name: str
    trips: int
    outside: tuple[str, ...]
    second: int = 0
    last: int = 0
    done: int = 0

    def begin(self, turn: int) -> None:
        spans = self.recorder.spans
        if turn == 2:
            self.second = len(spans)
        elif turn > 2:
            which = "turn 2" if turn == 3 else f"turns 2 to {turn - 1}"
            spans[self.second :] = _folded(spans[self.second :], f"{which} of {self.label}", self.outside)
        self.last, self.done = len(spans), turn
        self.recorder.turn = (*self.outside, f"{self.name} {turn} of {self.trips}")

    def end(self) -> None:
        self.recorder.turn = self.outside

    def skip(self, turns: int, clocks: Mapping[str, float], advances: Mapping[str, float]) -> None:
        """`turns` more like the last one: every lane's clock advances from `clocks` by `advances` for each."""
        if not turns:
            return
        steady = self.recorder.spans[self.last :]
        for lane, busy in _busy(steady).items():
            self.recorder.spans.append(
                Span(
                    lane=lane,
                    name=f"{turns} more turns of {self.label}, each as turn {self.done}",
                    what="turns",
                    resource="turns",
                    start_seconds=clocks[lane],
                    seconds=turns * advances[lane],
                    busy_seconds=turns * busy,
                    turn=self.outside,
                )  # fmt: skip
            )

    @property
    def label(self) -> str:
        return f"{self.name} ({self.trips} turns)"


def _busy(spans: Sequence[Span]) -> dict[str, float]:
    busy: dict[str, float] = {}
    for span in spans:
        busy[span.lane] = busy.get(span.lane, 0.0) + span.busy_seconds
    return busy


def _folded(spans: Sequence[Span], name: str, turn: tuple[str, ...]) -> list[Span]:
    """One span a lane, over all of its spans."""
    folded = []
    for lane, busy in _busy(spans).items():
        start = min(span.start_seconds for span in spans if span.lane == lane)
        end = max(span.end_seconds for span in spans if span.lane == lane)
        folded.append(
            Span(
                lane=lane,
                name=name,
                what="turns",
                resource="turns",
                start_seconds=start,
                seconds=end - start,
                busy_seconds=busy,
                turn=turn,
            )  # fmt: skip
        )
    return folded


def _name(instruction: Start | CopyStart | WorkStart) -> str:
    if isinstance(instruction, Start):
        return instruction.collective.name
    return instruction.copy.name if isinstance(instruction, CopyStart) else instruction.work.name


def merged(spans: Sequence[Span], most: int) -> tuple[Span, ...]:
    """About `most` spans or fewer: neighbours on one lane that are too short to be seen become one, with their count.

    Spans shorter than a threshold, with gaps shorter than it, are joined; the threshold doubles until few enough are
    left, or one a lane. The busy seconds of each lane stay as they are.
    """
    total = max((span.end_seconds for span in spans), default=0.0)
    threshold = total * 2e-6
    found = tuple(spans)
    while len(found) > most and threshold < 4 * total:
        found, threshold = _joined(spans, threshold), 2 * threshold
    return found


def _joined(spans: Sequence[Span], threshold: float) -> tuple[Span, ...]:
    by_lane: dict[str, list[list[Span]]] = {}
    for span in sorted(spans, key=lambda one: one.start_seconds):
        groups = by_lane.setdefault(span.lane, [])
        last = groups[-1][-1] if groups else None
        alike = last is not None and max(span.seconds, last.seconds) < threshold
        if last is not None and alike and span.start_seconds - last.end_seconds < threshold:
            groups[-1].append(span)
        else:
            groups.append([span])
    return tuple(_one(group) for groups in by_lane.values() for group in groups)


def _one(group: Sequence[Span]) -> Span:
    if len(group) == 1:
        return group[0]
    longest = max(group, key=lambda span: span.busy_seconds)
    return Span(
        lane=longest.lane, name=f"{len(group)} short ones, the longest: {longest.name}", what="several",
        resource=longest.resource, start_seconds=group[0].start_seconds,
        seconds=group[-1].end_seconds - group[0].start_seconds,
        busy_seconds=sum(span.busy_seconds for span in group), source=longest.source, turn=longest.turn,
    )  # fmt: skip
