"""What a module's text holds against what the reader met: nothing that moves data may go unseen.

The text is searched whole, computation by computation, whatever calls them: a call in a spelling that the reader does
not know would otherwise take everything inside it out of the ledger.
"""

from __future__ import annotations

from collections import Counter

from autotune.hlo.collectives import KIND_OF_OPCODE, base_opcode
from autotune.hlo.kernels import FREE_CALLS, target_of
from autotune.hlo.shape import HOST
from autotune.hlo.text import Computation, Module, Op
from autotune.hlo.tokens import rendezvous

NAMES_A_VALUE = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "call", "conditional", "opt-barrier")
"""Opcodes whose result may lie in the host's memory without a byte moved."""


class Reached:
    """What the reader has met of one module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._computations: set[str] = set()
        self._collectives: set[tuple[str, str]] = set()
        self._meetings: set[str | None] = set()

    def walked(self, computation: Computation) -> None:
        """Every instruction of this computation is read one by one."""
        self._computations.add(computation.name)

    def worked(self, op: Op) -> None:
        """The cost of `op` was read, and with it what it calls but for collectives."""
        for name in op.called():
            if name in self._module.computations and name not in self._computations:
                self._computations.add(name)
                for inner in self._module.computations[name].ops:
                    self.worked(inner)

    def collective(self, computation: Computation, op: Op) -> None:
        """The collective `op` of this computation was read, or is a piece of one that was."""
        self._collectives.add((computation.name, op.name))

    def send(self, meeting: str | None, op: Op) -> None:
        """A send and its receive were read, or said not to be."""
        self._meetings.add(meeting or op.name)

    def unread(self) -> Counter[str]:
        """Opcode or custom call -> how many in the text were not met."""
        found: Counter[str] = Counter()
        for computation in self._module.computations.values():
            for op in computation.ops:
                name = self._unread(computation, op)
                if name is not None:
                    found[name] += 1
        return found

    def _unread(self, computation: Computation, op: Op) -> str | None:
        base = base_opcode(op)
        if op.opcode.endswith(("-done", "-update")):
            return None
        if base in KIND_OF_OPCODE:
            return None if (computation.name, op.name) in self._collectives else base
        if base in ("send", "recv"):
            return None if (rendezvous(op) or op.name) in self._meetings else base
        if computation.name in self._computations:
            return None
        if base == "custom-call" and target_of(op) not in FREE_CALLS:
            return f"custom call {target_of(op)}"
        if base not in NAMES_A_VALUE and base != "custom-call" and any(shape.space == HOST for shape in op.shapes):
            return f"{base} in the host's memory"
        return None
