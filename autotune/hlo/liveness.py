"""Which buffers of a scheduled module live when, from its text: buffers that must share memory counted as one.

Loop bodies are laid out in time once, inside their loop; what a loop carries is one buffer from its first value on.
Two things are approximate: a buffer's offset is not known (no fragmentation), and where the compiler may write a
result over an operand that dies there, it is taken to have done so only for in-place updates, element-wise work and
all-reduces of equal size.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autotune.hlo.shape import bits, read_shapes, tuple_parts
from autotune.hlo.text import Computation, Module, Op

Tree = Any
"""A value's buffers: a number for an array, a list of Trees for a tuple."""

HOST_SPACE = 5
NAMING = ("get-tuple-element", "tuple", "bitcast")
"""Give a value another name and read nothing."""
ALIASES = ("bitcast", "opt-barrier", "optimization-barrier", "domain", "add-dependency", "async-update")
MOVEMENT = set(
    "parameter constant tuple get-tuple-element bitcast reshape transpose copy copy-start copy-done convert slice "
    "slice-start slice-done dynamic-slice concatenate pad broadcast all-gather all-gather-start all-gather-done "
    "collective-permute collective-permute-start collective-permute-done partition-id add fusion".split()
)
"""Opcodes that only move or cast an array ("add" of an index, and fusions of the others, beside them)."""

UPDATES = ("dynamic-update-slice", "scatter")
ELEMENTWISE = ("all-reduce", "add", "multiply", "subtract", "select", "maximum", "convert")
MOVES_ELEMENTS = set(
    "transpose copy broadcast reduce reduce-window dot convolution slice dynamic-slice gather concatenate pad reverse "
    "sort iota constant custom-call".split()
)
"""What puts elements elsewhere: a result behind one of these cannot be written over what lies before it."""

_ALIASED = re.compile(r"\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::((?:T\([\d,]+\)|\([\d,]+\))*)(.*))?\})?")


@dataclass(slots=True, kw_only=True)
class LiveBuffer:
    """One piece of device memory and the moments it is taken, both inclusive.

    `bytes` with the tile's padding. `shape` of its largest value, as HLO writes it without the layout. `argument`: the
    entry parameter it belongs to, None for the program's own. `makers` write it, `readers` read it, in order.
    `copies`: the buffer that it is a mere copy, cast or gathered form of (itself if none).
    """

    bytes: int
    shape: str
    dims: tuple[int, ...]
    begin: int
    end: int
    argument: int | None
    makers: list[Op]
    readers: list[Op]
    copies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Every buffer, and the instructions by moment."""

    buffers: tuple[LiveBuffer, ...]
    moments: tuple[Op, ...]

    def peak_moment(self) -> int:
        """When the program's own buffers take most (its arguments are there all the time)."""
        changes = [0] * (len(self.moments) + 2)
        for buffer in self.buffers:
            if buffer.argument is None:
                changes[buffer.begin] += buffer.bytes
                changes[buffer.end + 1] -= buffer.bytes
        best = total = moment = 0
        for index, change in enumerate(changes):
            total += change
            if total > best:
                best, moment = total, index
        return moment


def liveness(module: Module, platform: str) -> Liveness:
    """The live ranges of a module compiled for "tpu", "cuda" or "cpu"."""
    return _Walk(module, platform).run()


class _Walk:
    def __init__(self, module: Module, platform: str) -> None:
        self.module = module
        self.on_chip = platform == "tpu"  # elsewhere every space but the host's is device memory
        self.parent: list[int] = []
        self.found: list[LiveBuffer] = []
        self.moments: list[Op] = []
        self.reuses: list[tuple[int, int, int]] = []
        self.moving: dict[str, bool] = {}
        self.fused: dict[str, list[list[int]]] = {}

    def run(self) -> Liveness:
        entry = self.module.computations[self.module.entry]
        root = self.walk(entry, [])
        arguments = {buffer.argument: index for index, buffer in enumerate(self.found) if buffer.argument is not None}
        header = self.module.header
        aliases = header[header.find("input_output_alias") :].split("entry_computation_layout")[0]
        for output, parameter, _ in _ALIASED.findall(aliases):
            leaf = _at(root, output)
            if isinstance(leaf, int) and int(parameter) in arguments:
                self.union(arguments[int(parameter)], leaf)
        last = len(self.moments)
        for leaf in _leaves(root):
            self.touch(leaf, last)
        for moment, result, operand in self.reuses:
            first, second = self.root(operand), self.root(result)
            before, after = self.found[first], self.found[second]
            if first != second and before.end == moment == after.begin and before.bytes == after.bytes:
                if before.argument is None and after.argument is None:
                    self.union(first, second)
        roots = sorted({self.root(index) for index in range(len(self.found))})
        renumbered = {old: new for new, old in enumerate(roots)}
        for old in roots:
            self.found[old].copies = renumbered[self.root(self.found[old].copies)]
        return Liveness(buffers=tuple(self.found[old] for old in roots), moments=tuple(self.moments))

    # -- buffers ----------------------------------------------------------------------------------------------------

    def new(self, array: str, op: Op, argument: int | None = None) -> int:
        size, dims, space = padded(array)
        on_device = space == 0 or (space != HOST_SPACE and not self.on_chip)
        now, index = len(self.moments) - 1, len(self.found)
        self.parent.append(index)
        self.found.append(
            LiveBuffer(
                bytes=size if on_device and op.opcode != "constant" else 0,
                shape=array.split("{")[0],
                dims=dims,
                begin=now,
                end=now,
                argument=argument,
                makers=[op],
                readers=[],
                copies=index,
            )
        )
        return index

    def root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]
            index = self.parent[index]
        return index

    def touch(self, index: int, moment: int) -> None:
        buffer = self.found[self.root(index)]
        buffer.end = max(buffer.end, moment)
        if moment < len(self.moments):
            buffer.readers.append(self.moments[moment])

    def union(self, first: int, second: int) -> None:
        keep, drop = self.root(first), self.root(second)
        if keep == drop:
            return
        one, other = self.found[keep], self.found[drop]
        self.parent[drop] = keep
        if other.bytes > one.bytes:
            one.shape, one.dims = other.shape, other.dims
        one.bytes = max(one.bytes, other.bytes)
        one.begin, one.end = min(one.begin, other.begin), max(one.end, other.end)
        one.argument = other.argument if one.argument is None else one.argument
        one.makers += other.makers
        one.readers += other.readers

    def union_trees(self, first: Tree, second: Tree) -> None:
        for one, other in zip(_leaves(first), _leaves(second), strict=False):
            self.union(one, other)

    # -- instructions -----------------------------------------------------------------------------------------------

    def walk(self, computation: Computation, given: list[Tree]) -> Tree:
        """Lay the computation out in time; its parameters are the given values. The value of its root."""
        values: dict[str, Tree] = {}
        for op in computation.ops:
            now = len(self.moments)
            self.moments.append(op)
            operands = [values[name] for name in op.operands if name in values]
            if op.opcode not in NAMING:
                for leaf in _leaves(operands):
                    self.touch(leaf, now)
            values[op.name] = self.value(op, operands, given, now)
        return values[computation.root.name]

    def value(self, op: Op, operands: list[Tree], given: list[Tree], now: int) -> Tree:
        opcode = op.opcode
        if opcode == "parameter":
            number = int(op.arguments)
            return given[number] if given else self.fresh(op.type, op, argument=number)
        if opcode == "tuple":
            return list(operands)
        if opcode == "get-tuple-element":
            return _at(operands[0], op.attributes.split("index=")[1].split(",")[0])
        if opcode in ALIASES and operands:
            return operands[0]
        if opcode == "while":
            return self.loop(op, operands[0])
        if opcode in ("call", "conditional"):
            return self.branches(op, operands)
        if opcode.endswith("-start"):
            return self.start(op, operands)
        if opcode.endswith("-done"):
            return self.done(op, operands)
        if opcode == "send":
            return [operands[0], *self.fresh(op.type, op)[1:]]
        return self.plain(op, operands, now)

    def fresh(self, type_text: str, op: Op, argument: int | None = None) -> Tree:
        parts = tuple_parts(type_text)
        if parts is None:
            return self.new(type_text, op, argument)
        return [self.fresh(part, op, argument) for part in parts]

    def plain(self, op: Op, operands: list[Tree], now: int) -> Tree:
        result = self.fresh(op.type, op)
        declared = op.attributes.find("output_to_operand_aliasing=")
        if declared >= 0:
            for output, operand, inside in _ALIASED.findall(op.attributes[declared:].split("}}")[0] + "}"):
                self.union_trees(_at(operands[int(operand)], inside), _at(result, output))
            return result
        leaves = _leaves(result)
        self.note_copies(op, operands, leaves)
        for leaf, positions in zip(leaves, self.overwrites(op, len(leaves)), strict=False):
            for position in positions:
                self.reuses += [(now, leaf, target) for target in _leaves(operands[position])]
        return result

    def overwrites(self, op: Op, results: int) -> list[list[int]]:
        """Of each result, the operands that it may be written over, should they die there."""
        if op.opcode in UPDATES:
            return [[0]]
        if op.opcode in ELEMENTWISE:
            return [list(range(len(op.operands)))] * results
        computation = self.module.computations.get(op.callee("calls") or "") if op.opcode == "fusion" else None
        if computation is None or "kind=kOutput" in op.attributes:  # a matmul's result is never seen over an operand
            return []
        if computation.name not in self.fused:
            root = computation.root
            roots = [computation.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
            self.fused[computation.name] = [sorted(_in_place(computation, one)) for one in roots]
        return self.fused[computation.name]

    def note_copies(self, op: Op, operands: list[Tree], leaves: list[int]) -> None:
        """A result that only moves its largest operand is a copy of what that is a copy of."""
        if len(leaves) != 1 or not operands or not self.moves(op):
            return
        sources = _leaves(operands)
        if sources:
            largest = max(sources, key=lambda leaf: self.found[self.root(leaf)].bytes)
            self.found[leaves[0]].copies = self.found[self.root(largest)].copies

    def moves(self, op: Op) -> bool:
        if op.opcode == "custom-call":
            return op.word("custom_call_target") == "ConcatBitcast"
        if op.opcode != "fusion":
            return op.opcode in MOVEMENT and op.opcode not in ("add", "parameter", "constant")
        callee = op.callee("calls") or ""
        if callee not in self.moving:
            computation = self.module.computations.get(callee)
            self.moving[callee] = computation is not None and all(
                inner.opcode in MOVEMENT and (inner.opcode != "add" or not inner.shapes[0].dims)
                for inner in computation.ops
            )
        return self.moving[callee]

    def loop(self, op: Op, carried: Tree) -> Tree:
        for name in ("condition", "body"):
            computation = self.module.computations[op.callee(name) or ""]
            result = self.walk(computation, [carried])
            if name == "body":
                self.union_trees(carried, result)
        self.moments.append(op)
        for leaf in _leaves(carried):
            self.touch(leaf, len(self.moments) - 1)
        return carried

    def branches(self, op: Op, operands: list[Tree]) -> Tree:
        given = [[operand] for operand in operands[1:]] if op.opcode == "conditional" else [operands]
        results = [
            self.walk(self.module.computations[name], arguments)
            for name, arguments in zip(op.called(), given, strict=False)
        ]
        if not results:
            return self.fresh(op.type, op)
        for other in results[1:]:
            self.union_trees(results[0], other)
        return results[0]

    def start(self, op: Op, operands: list[Tree]) -> Tree:
        """(operands, results, context), but copy-start (result, operand, context) and all-reduce-start (results)."""
        result = self.fresh(op.type, op)
        if not isinstance(result, list) or op.opcode == "all-reduce-start" or not operands:
            return result
        place = 1 if op.opcode == "copy-start" else 0
        given = operands if isinstance(result[place], list) and len(operands) == len(result[place]) else operands[0]
        self.union_trees(given, result[place])
        result[place] = given
        if op.opcode in MOVEMENT:
            self.note_copies(op, operands, _leaves(result[1 - place]))
        return result

    def done(self, op: Op, operands: list[Tree]) -> Tree:
        begun = operands[0] if operands else None
        if op.opcode == "copy-done" and isinstance(begun, list):
            return begun[0]
        if op.opcode in ("send-done", "recv-done"):
            fresh = self.fresh(op.type, op)
            return [begun[0], *fresh[1:]] if isinstance(begun, list) and isinstance(fresh, list) else fresh
        if op.opcode == "all-reduce-done" or not isinstance(begun, list):
            return begun if begun is not None else self.fresh(op.type, op)
        return begun[1]


def _in_place(computation: Computation, result: Op) -> set[int]:
    """The parameters of a fusion whose elements a result has in the same places: updates, and element-wise paths."""
    found, seen, waiting = set(), set(), [result]
    while waiting:
        op = waiting.pop()
        if op.name in seen or op.opcode in MOVES_ELEMENTS:
            continue
        seen.add(op.name)
        if op.opcode == "parameter":
            found.add(int(op.arguments))
        names = op.operands[:1] if op.opcode in UPDATES else op.operands
        waiting += [computation.by_name[name] for name in names if name in computation.by_name]
    return found


def _leaves(tree: Tree) -> list[int]:
    if not isinstance(tree, list):
        return [] if tree is None else [tree]
    return [leaf for part in tree for leaf in _leaves(part)]


def _at(tree: Tree, path: str) -> Tree:
    """The part of a value that an index path such as "1, 0" names."""
    for step in path.replace(" ", "").split(","):
        if step:
            tree = tree[int(step)]
    return tree


@lru_cache(maxsize=65536)
def padded(array: str) -> tuple[int, tuple[int, ...], int]:
    """(bytes with the first tile's padding, dims, memory space) of an array type.

    `bf16[20,100]{1,0:T(8,128)(2,1)}`: its two minor dimensions are rounded up to 24 x 128.

    >>> padded("bf16[20,100]{1,0:T(8,128)(2,1)}")
    (6144, (20, 100), 0)
    """
    match = _ARRAY.match(array)
    shapes = read_shapes(array)
    if not match or not shapes:
        return 0, (), 0
    shape = shapes[0]
    tiles = re.findall(r"\(([\d,]+)\)", match[4] or "")
    if not tiles or not shape.dims:
        return shape.bytes, shape.dims, shape.space
    tile = [int(size) for size in tiles[0].split(",")]
    minor_first = [int(index) for index in match[3].split(",") if index]
    sizes = [shape.dims[index] for index in minor_first]
    for position, size in enumerate(reversed(tile)):
        if position < len(sizes):
            sizes[position] = -(-sizes[position] // size) * size
    return (math.prod(sizes) * bits(shape.dtype) + 7) // 8, shape.dims, shape.space
