"""The text of a compiled HLO module as computations of instructions; nothing is interpreted here.

An instruction can span lines (Pallas kernels embed text with newlines and braces), so a computation ends at a line `}`
only where the braces of the instruction before it are closed.

Text that was cut short or damaged must not be read as a smaller program. So each computation must end and have a root,
and each instruction may name only what stands before it. That also rules out cycles, in which a reader would never end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from autotune.hlo.shape import Shape, read_shapes
from autotune.hlo.unreadable import Named, UnreadableProgram, reading
from autotune.system.code_owner import owner_of, short_name

_START = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^{}]*)\}")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_QUOTE_ENDS = re.compile(r'(?:[^"\\]|\\.)*"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_SOURCE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')
_SCOPE = re.compile(r'op_name="([^"]*)"')
MOST_INSTRUCTIONS = 5_000_000
"""A program with more is not read: calls that call twice each, thirty deep, would take for ever."""

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One instruction as written. `attributes` is all the text behind the operands."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of the result, a tuple's leaves in order."""
        return read_shapes(self.type)

    @property
    def bytes(self) -> int:
        """Bytes of the whole result on one device, in whatever memory."""
        return sum(shape.bytes for shape in self.shapes)

    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls, in the order written."""
        names = _CALLS.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += _OPERAND.findall(branches) or [name.strip() for name in branches.split(",")]
        return tuple(names)

    def callee(self, attribute: str) -> str | None:
        """The computation named by one attribute: calls, to_apply, body, condition."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    def number(self, key: str) -> int | None:
        """A quoted or bare whole number of the backend config: `"estimated_cycles":"48"`."""
        match = re.search(rf'"{key}": ?"?(-?\d+)"?', self.attributes)
        return int(match[1]) if match else None

    def word(self, key: str) -> str | None:
        """A quoted attribute: `custom_call_target="..."`, or a key of the backend config: `"mask_type": "CAUSAL"`."""
        match = re.search(rf'"?\b{re.escape(key)}"?(?:=|: ?)"((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1] if match else None


@dataclass(slots=True, kw_only=True)
class Computation:
    """Instructions in scheduled order."""

    name: str
    ops: list[Op]
    by_name: dict[str, Op] = field(default_factory=lambda: Named("instruction"))

    @property
    def root(self) -> Op:
        return next((op for op in reversed(self.ops) if op.root), self.ops[-1])

    def operand(self, op: Op, index: int) -> Op:
        return self.by_name[op.operands[index]]

    def parameters(self) -> list[Op]:
        """Its parameters by number."""
        found = [op for op in self.ops if op.opcode == "parameter"]
        return sorted(found, key=lambda op: int(op.arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A compiled module: its header line, computations by name, and the tables that source lines are looked up in."""

    header: str
    computations: dict[str, Computation]
    entry: str
    locations: dict[int, tuple[str, int]]
    frames: dict[int, tuple[int, int]]

    @property
    def partitions(self) -> int:
        """Devices it is partitioned over; on several TPU slices those of one slice."""
        match = re.search(r"num_partitions=(\d+)", self.header)
        return int(match[1]) if match else 1

    def source(self, op: Op) -> str | None:
        """ "file.py:line" of the innermost frame outside libraries, else of the innermost frame."""
        frame = _FRAME.search(op.attributes)
        if not frame:
            written = _SOURCE.search(op.attributes)
            return f"{written[1]}:{written[2] or 0}" if written else None
        innermost = None
        number, seen = int(frame[1]), set()
        while number in self.frames and number not in seen:
            seen.add(number)
            location, number = self.frames[number]
            if location in self.locations:
                file, line = self.locations[location]
                place = f"{short_name(file)}:{line}"
                if owner_of(file) in ("user", "reference model"):
                    return place
                innermost = innermost or place
        return innermost

    def scope(self, op: Op) -> str | None:
        """The op_name path that JAX gave it."""
        match = _SCOPE.search(op.attributes)
        return match[1] if match else None


def read_module(text: str) -> Module:
    """Split the text of a scheduled module. UnreadableProgram where it is none, or does not end whole."""
    with reading("the text is no compiled module"):
        return _read_module(text)


def _read_module(text: str) -> Module:
    if not text.startswith("HloModule"):
        raise UnreadableProgram("hlo: the text must begin with HloModule")
    header, _, body = text.partition("\n")
    if "is_scheduled=true" not in header:
        raise UnreadableProgram("hlo: the module must be a compiled, scheduled one (is_scheduled=true)")
    computations: dict[str, Computation] = Named("computation")
    tables: dict[str, list[str]] = {}
    entry = ""
    current: Computation | None = None
    table: list[str] | None = None
    pending: list[str] = []
    braces = _Braces()

    def finish() -> None:
        if pending and current is not None:
            _add(current, _op("\n".join(pending)), computations)
        pending.clear()

    for line in body.split("\n"):
        if current is None:
            if table is not None and line:
                table.append(line)
            elif line in _TABLES:
                table = tables.setdefault(line, [])
            elif line and (match := _HEADER.match(line)):
                if match[2] in computations:
                    raise UnreadableProgram(f"hlo: there are two computations {match[2]!r}")
                current = Computation(name=match[2], ops=[])
                entry = match[2] if match[1] else entry
            elif line and _START.match(line):
                raise UnreadableProgram(f"hlo: an instruction outside of a computation: {line[:120]!r}")
            if not line:
                table = None
        elif pending and not braces.closed:
            pending.append(line)
            braces.read(line)
        elif line == "}" or line.startswith("}, "):
            finish()
            if not any(op.root for op in current.ops):
                raise UnreadableProgram(f"hlo: the computation {current.name} has no root")
            computations[current.name] = current
            current = None
        else:
            finish()
            pending.append(line)
            braces = _Braces()
            braces.read(line)
    if current is not None:
        raise UnreadableProgram(f"hlo: the text ends in the middle of the computation {current.name}")
    if entry not in computations:
        raise UnreadableProgram("hlo: the module has no ENTRY computation")
    _check_size(computations, entry)
    return Module(
        header=header,
        computations=computations,
        entry=entry,
        locations=_locations(tables),
        frames=_frames(tables),
    )


def _add(computation: Computation, op: Op, computations: dict[str, Computation]) -> None:
    """Append an instruction whose operands and callees have been read."""
    if op.name in computation.by_name:
        raise UnreadableProgram(f"hlo: there are two instructions {op.name!r} in {computation.name}")
    for name in op.operands:
        if name not in computation.by_name:
            raise UnreadableProgram(f"hlo: {op.name} takes {name!r}, and {computation.name} has none before it")
    for callee in _callees(op):
        if callee not in computations:
            raise UnreadableProgram(f"hlo: {op.name} calls {callee!r}, and there is no such computation before it")
    computation.ops.append(op)
    computation.by_name[op.name] = op


def _callees(op: Op) -> tuple[str, ...]:
    """The computations that an instruction runs as they are written; reducers and the like are left out."""
    if op.opcode == "while":
        return (op.callee("body") or "", op.callee("condition") or "")
    if op.opcode == "conditional":
        return op.called() or ("",)
    if op.opcode in ("fusion", "call", "async-start"):
        return op.called()[:1] or ("",)
    return ()


def _check_size(computations: dict[str, Computation], entry: str) -> None:
    """Refuse a program that would be endless once its calls are written out."""
    sizes: dict[str, int] = {}
    for computation in computations.values():
        called = (name for op in computation.ops if op.opcode != "fusion" for name in _callees(op))
        sizes[computation.name] = len(computation.ops) + sum(sizes[name] for name in called)
    if sizes[entry] > MOST_INSTRUCTIONS:
        raise UnreadableProgram(f"hlo: the program runs {sizes[entry]} instructions once its calls are written out")


class _Braces:
    """Whether every brace of the lines read so far is closed, quoted text apart. Each line is looked at once."""

    def __init__(self) -> None:
        self.open = 0
        self.quoted = False
        self.first = True

    @property
    def closed(self) -> bool:
        return self.open <= 0 and not self.quoted

    def read(self, line: str) -> None:
        """Count the braces of one more line."""
        first, self.first = self.first, False
        if first and line.count("{") == line.count("}") and line.count('"') % 2 == 0:
            return
        if self.quoted:
            end = _QUOTE_ENDS.match(line)
            if not end:
                return
            line, self.quoted = line[end.end() :], False
        bare = _QUOTED.sub("", line)
        quote = bare.find('"')
        if quote >= 0:
            bare, self.quoted = bare[:quote], True
        self.open += bare.count("{") - bare.count("}")


def _op(text: str) -> Op:
    match = _START.match(text)
    if not match:
        raise UnreadableProgram(f"hlo: cannot read the instruction {text[:120]!r}")
    start = match.end()
    end = _closing(text, start)
    arguments = text[start:end]
    opcode = match[4]
    named = opcode not in ("constant", "parameter", "iota")
    return Op(
        name=match[2],
        opcode=opcode,
        type=match[3],
        operands=tuple(_OPERAND.findall(arguments)) if named else (),
        arguments=arguments,
        attributes=text[end + 1 :],
        root=match[1] is not None,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis opened before `start` closes."""
    end = text.index(")", start)
    depth = text.count("(", start, end)
    while depth:
        following = text.index(")", end + 1)
        depth += text.count("(", end + 1, following) - 1
        end = following
    return end


def _locations(tables: dict[str, list[str]]) -> dict[int, tuple[str, int]]:
    files = {}
    for row in tables.get("FileNames", ()):
        number, _, name = row.partition(" ")
        files[int(number)] = name.strip('"')
    locations = {}
    for row in tables.get("FileLocations", ()):
        values = _fields(row)
        locations[int(row.split(" ", 1)[0])] = (files.get(values.get("file_name_id", 0), "?"), values.get("line", 0))
    return locations


def _frames(tables: dict[str, list[str]]) -> dict[int, tuple[int, int]]:
    """Frame -> (location, parent frame); 0 is no parent. XLA writes parents one too high."""
    frames = {}
    for row in tables.get("StackFrames", ()):
        number, values = int(row.split(" ", 1)[0]), _fields(row)
        frames[number] = (values.get("file_location_id", 0), values.get("parent_frame_id", 1) - 1)
    return frames


@cache
def _fields(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(-?\d+)", row)}
