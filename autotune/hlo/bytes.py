"""Bytes an instruction reads and writes in device memory (HBM), per device and execution.

Counted without the padding that TPU tiles add. A fusion touches only what its result needs: a slice of a stacked
parameter costs the slice, an update in place costs the update. Values in a TPU's vector memory (`S(1)`) or on the host
(`S(5)`) cost no HBM traffic, and bytes in the host's memory are counted apart; bitcasts, tuples and parameters cost
nothing anywhere.
"""

from __future__ import annotations

from autotune.hlo.kernels import rows_filled
from autotune.hlo.shape import HBM
from autotune.hlo.text import Computation, Module, Op

SLICES = ("slice", "dynamic-slice", "gather")

Needs = tuple[float, ...]
"""Elements that one execution reads of each parameter of a computation."""


def op_bytes(module: Module, computation: Computation, op: Op, known: dict[str, Needs]) -> float:
    """HBM bytes of one instruction of a scheduled computation. `known` keeps the needs found per fused computation."""
    moved = bytes_read(module, computation, op, known) + bytes_written(module, computation, op)
    filled = rows_filled(op)
    if filled == 1.0:
        return moved
    # Of a grouped matmul, arrays of two dimensions are buffers of rows; matrices have one for each group.
    arrays = [shape for name in op.operands for shape in computation.by_name[name].shapes] + list(op.shapes)
    return moved - (1.0 - filled) * sum(one.bytes for one in arrays if len(one.dims) == 2 and one.space == HBM)


def bytes_read(module: Module, computation: Computation, op: Op, known: dict[str, Needs], space: int = HBM) -> float:
    """Bytes that one instruction reads in the memory `space`."""
    total = 0.0
    for index, name in enumerate(op.operands):
        source = computation.by_name[name]
        shapes = source.shapes
        if any(shape.space != space for shape in shapes) or not source.bytes:
            continue
        elements = sum(shape.elements for shape in shapes)
        total += source.bytes * min(_read(module, op, computation, index, known) / max(elements, 1), 1.0)
    return total


def _read(module: Module, op: Op, computation: Computation, index: int, known: dict[str, Needs]) -> float:
    """Elements of operand `index` that `op` reads."""
    if op.opcode == "fusion":
        return parameter_needs(module, op.called()[0], known)[index]
    return operand_need(computation, op, index, float(op.shapes[0].elements) if op.shapes else 0.0)


def operand_need(computation: Computation, op: Op, index: int, needed: float) -> float:
    """Elements of operand `index` read so that `op` yields `needed` elements of its result."""
    operand = computation.operand(op, index)
    size = float(sum(shape.elements for shape in operand.shapes))
    produced = float(op.shapes[0].elements) if op.shapes else 0.0
    if op.opcode in SLICES and index == 0:
        return min(needed, size)
    if op.opcode == "dynamic-update-slice" and index == 0:
        return 0.0
    if op.opcode == "scatter":
        # The target is updated in place: as many of its elements are read as there are updates.
        updates = float(computation.operand(op, len(op.operands) - 1).shapes[0].elements)
        return min(updates, size) if index == 0 else size
    if op.opcode in ("pad", "concatenate", "dynamic-update-slice"):
        return min(size, size * needed / produced if produced else size)
    if op.opcode == "broadcast":
        return min(size, needed)
    return size * min(needed / produced, 1.0) if produced else size


def parameter_needs(module: Module, name: str, known: dict[str, Needs]) -> Needs:
    """Elements read of each parameter of a fused computation, found from its root backwards."""
    if name in known:
        return known[name]
    computation = module.computations[name]
    need: dict[str, float] = {}
    root = computation.root
    need[root.name] = float(root.shapes[0].elements) if root.shapes else 0.0
    if root.opcode == "tuple":
        for index in range(len(root.operands)):
            leaf = computation.operand(root, index)
            need[leaf.name] = float(sum(shape.elements for shape in leaf.shapes))
    for op in reversed(computation.ops):
        needed = need.get(op.name)
        if needed is None or op.opcode in ("tuple", "parameter"):
            continue
        nested = parameter_needs(module, op.called()[0], known) if op.opcode == "fusion" else None
        produced = float(op.shapes[0].elements) if op.shapes else 0.0
        for index, operand in enumerate(op.operands):
            if operand not in computation.by_name:
                continue
            if nested is not None:
                share = nested[index] * (min(needed / produced, 1.0) if produced else 1.0)
            else:
                share = operand_need(computation, op, index, needed)
            size = sum(shape.elements for shape in computation.by_name[operand].shapes)
            need[operand] = min(need.get(operand, 0.0) + share, float(size))
    known[name] = tuple(need.get(parameter.name, 0.0) for parameter in computation.parameters())
    return known[name]


def bytes_written(module: Module, computation: Computation, op: Op, space: int = HBM) -> float:
    """Bytes of the result that go to the memory `space`; of an update in place only the update."""
    if op.opcode == "fusion":
        inner = module.computations[op.called()[0]]
        leaves = _leaves(module, inner, inner.root)
    else:
        leaves = [_update(module, computation, op)]
    if len(leaves) != len(op.shapes):
        return float(sum(shape.bytes for shape in op.shapes if shape.space == space))
    total = 0.0
    for shape, leaf in zip(op.shapes, leaves, strict=True):
        if shape.space == space and leaf is not False:
            total += shape.bytes if leaf is None else min(float(leaf), shape.bytes)
    return total


def _leaves(module: Module, computation: Computation, root: Op) -> list[int | None | bool]:
    """For each array of a result: bytes of its update in place; None: all of it is written, False: none of it."""
    if root.opcode == "tuple":
        return [
            leaf
            for index in range(len(root.operands))
            for leaf in _leaves(module, computation, computation.operand(root, index))
        ]
    if root.opcode == "parameter":
        return [False] * max(len(root.shapes), 1)
    return [_update(module, computation, root)] * max(len(root.shapes), 1)


def _update(module: Module, computation: Computation, op: Op) -> int | None:
    """Bytes written by an op that updates its operand in place; None where it writes all of its result."""
    while op.opcode in ("bitcast", "reshape") and op.operands:
        op = computation.operand(op, 0)
    if op.opcode == "dynamic-update-slice":
        return computation.operand(op, 1).bytes
    if op.opcode == "scatter":
        return computation.operand(op, len(op.operands) - 1).bytes
    if op.opcode == "fusion":
        inner = module.computations[op.called()[0]]
        return _update(module, inner, inner.root)
    return None
