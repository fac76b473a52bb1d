"""Which start a done waits for.

Software-pipelined loops start a collective in one iteration and end it in the next, so a done's start may lie in the
loop's prologue and in its body at once; all starts that can reach one done get the same token.
"""

from __future__ import annotations

import re

from autotune.hlo.text import Computation, Module, Op

_INDEX = re.compile(r"index=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_PASSED_ON = ("bitcast", "copy", "opt-barrier", "optimization-barrier", "async-update", "add-dependency")


def channel_token(op: Op) -> str:
    """The token of a TPU collective that is spread over fusions: every piece has its channel."""
    match = _CHANNEL.search(op.attributes)
    return f"channel {match[1]}" if match else op.name


def rendezvous(op: Op) -> str | None:
    """The name under which a megascale send and receive meet."""
    return op.word("_xla_host_transfer_rendezvous")


class Tokens:
    """Tokens of one module. `empty`: those of collectives that move nothing, which nobody waits for."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._parent: dict[str, str] = {}
        self.empty: set[str] = set()
        self._loop_of = {
            op.callee("body"): (computation, op)
            for computation in module.computations.values()
            for op in computation.ops
            if op.opcode == "while"
        }
        for computation in module.computations.values():
            for op in computation.ops:
                if op.opcode.endswith("-done"):
                    starts = sorted(self._starts(computation, op.operands[0], set()))
                    for start in starts[1:]:
                        self._join(starts[0], start)

    def of(self, start: str) -> str:
        """The token of a start, by its name."""
        while start in self._parent:
            start = self._parent[start]
        return start

    def _join(self, one: str, other: str) -> None:
        kept, joined = self.of(one), self.of(other)
        if kept != joined:
            self._parent[joined] = kept

    def ended_by(self, computation: Computation, done: Op) -> list[str]:
        """Tokens that `done` waits for: one, or none where its collective moves nothing."""
        found = {self.of(start) for start in self._starts(computation, done.operands[0], set())}
        return sorted(found - self.empty)

    def _starts(self, computation: Computation, name: str, seen: set[tuple[str, str]]) -> set[str]:
        """Names of the starts whose value `name` can be."""
        if (computation.name, name) in seen or name not in computation.by_name:
            return set()
        seen.add((computation.name, name))
        op = computation.by_name[name]
        if op.opcode in _PASSED_ON:
            return self._starts(computation, op.operands[0], seen)
        if op.opcode == "get-tuple-element":
            match = _INDEX.search(op.attributes)
            return self._element(computation, computation.operand(op, 0), int(match[1]) if match else 0, seen)
        if op.opcode == "recv":
            meeting = rendezvous(op)
            return {meeting} if meeting else set()
        if op.opcode.endswith("-start"):
            return {op.name}
        return set()

    def _element(self, computation: Computation, source: Op, index: int, seen: set[tuple[str, str]]) -> set[str]:
        if source.opcode == "tuple":
            return self._starts(computation, source.operands[index], seen)
        if source.opcode == "while":
            body = self._module.computations[source.callee("body") or ""]
            found = self._element(body, body.root, index, seen)
            initial = computation.operand(source, 0)
            return found | (self._element(computation, initial, index, seen) if initial.opcode == "tuple" else set())
        if source.opcode == "parameter" and computation.name in self._loop_of:
            outside, loop = self._loop_of[computation.name]
            found = self._element(outside, outside.operand(loop, 0), index, seen)
            root = computation.root
            return found | (self._element(computation, root, index, seen) if root.opcode == "tuple" else set())
        return set()
