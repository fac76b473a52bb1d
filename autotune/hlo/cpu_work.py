"""What one instruction asks of XLA's CPU runtime, by class of work: amounts that a calibration has seconds for.

The CPU compiler makes three kinds of code. Matmuls and reductions go to a library (fusions of kind `__ynn_fusion`, some
products to Eigen as plain `dot`s); everything else becomes a scalar or vectorised loop over the elements of the result.
Such a loop runs at the speed of memory while it reads in the order it writes. Where it transposes, it reads with a
stride: nothing is vectorised then, and each read may miss every cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autotune.hlo.flops import dims_of
from autotune.hlo.op_flops import OpWork
from autotune.hlo.text import Computation, Module, Op

CLASSES = {
    "launch": "an instruction",
    "loop": "a trip of a loop",
    "bytes": "a byte read or written, element by element in order",
    "moved_bytes": "the same by an instruction that also cuts, joins or rearranges arrays",
    "far_bytes": "the same by any instruction of more than CACHE_BYTES",
    "arithmetic": "an operation on one element, in a loop over elements",
    "transcendental": "an exponential, logarithm or the like, vectorised",
    "transcendental_strided": "the same in a loop that transposes",
    "strided": "an element read with a stride, in a loop that transposes",
    "strided_slice": "an element of the result of a loop that transposes a slice of a stack and merges dimensions",
    "strided_slice_long": "the same where one run of its reads fills the first cache",
    "library_flops": "a floating point operation of a matmul in the library",
    "library_bytes": "a byte of its operands and result",
    "library_arithmetic": "an operation on one element, fused to such a matmul",
    "reduced": "the same in a reduction by the library",
    "library_transcendental": "an exponential there",
    "eigen_flops": "a floating point operation of a matmul by Eigen",
    "eigen_bytes": "a byte of its operands and result",
    "scattered": "an element gathered, scattered, or of a running sum",
    "rendezvous": "a wait of one host's devices for each other, in calibration's loops; a step's are collectives",
}
"""name -> of what the amount counts one. All per device and execution."""

CACHE_BYTES = 1 << 25
"""The last cache of a server's core complex (AMD EPYC 7003 and 9004: 32 MiB); what does not fit comes from memory."""
LINE_BYTES, L1_BYTES = 64, 1 << 15
"""A cache line and the first cache of a core (AMD EPYC 7003 and 9004: 32 KiB)."""
TRANSCENDENTAL = frozenset(
    "exponential exponential-minus-one log log-plus-one logistic tanh tan sine cosine power erf cbrt atan2".split()
)
MOVES = frozenset(
    "parameter constant bitcast broadcast reshape copy transpose iota slice dynamic-slice dynamic-update-slice "
    "concatenate pad reverse tuple get-tuple-element fusion dot".split()
)
"""Inside a fusion: names and moves of elements, no arithmetic."""
REARRANGES = frozenset("copy transpose slice dynamic-slice dynamic-update-slice concatenate pad reverse".split())
SCATTERED = frozenset("gather scatter reduce-window sort select-and-scatter".split())
LIBRARY = '"kind":"__ynn_fusion"'


def cpu_work(
    module: Module, computation: Computation, op: Op, work: OpWork, moved: float
) -> tuple[tuple[str, float], ...]:
    """(class, amount) of one instruction on one device; classes as in CLASSES. `moved`: bytes read and written."""
    amounts: dict[str, float] = dict.fromkeys(CLASSES, 0.0) | {"launch": 1.0}
    inside = list(_inside(module, computation, op))
    done = _elementwise(inside)
    if op.opcode == "dot":
        amounts.update(eigen_flops=work.flops, eigen_bytes=moved)
    elif LIBRARY in op.attributes:
        amounts.update(
            library_flops=work.flops,
            library_bytes=moved,
            **{"library_arithmetic" if work.flops else "reduced": done["arithmetic"]},
            library_transcendental=done["transcendental"],
        )
    else:
        rearranges = any(one.opcode in REARRANGES for _, one in inside)
        amounts["far_bytes" if moved > CACHE_BYTES else "moved_bytes" if rearranges else "bytes"] += moved
        amounts["eigen_flops"] += work.flops
        amounts["arithmetic"] += done["arithmetic"]
        amounts["scattered"] += done["scattered"]
        name, strided = _strided(inside, fused=op.opcode == "fusion")
        amounts[name] += strided
        amounts["transcendental_strided" if strided else "transcendental"] += done["transcendental"]
    return tuple((name, float(amounts[name])) for name in CLASSES if amounts[name] > 0)


def _inside(module: Module, computation: Computation, op: Op) -> Iterable[tuple[Computation, Op]]:
    """The instruction itself, or all that its fusion holds."""
    if op.opcode != "fusion":
        yield computation, op
        return
    inner = module.computations[op.called()[0]]
    for one in inner.ops:
        yield from _inside(module, inner, one)


def _elementwise(inside: Iterable[tuple[Computation, Op]]) -> dict[str, float]:
    """Elements of the arithmetic, transcendental and scattered operations among these."""
    done = {"arithmetic": 0.0, "transcendental": 0.0, "scattered": 0.0}
    for computation, op in inside:
        if op.opcode in MOVES or not op.shapes:
            continue
        elements = float(op.shapes[0].elements)
        if op.opcode in SCATTERED:
            operand = computation.operand(op, len(op.operands) - 1 if op.opcode == "scatter" else 0)
            done["scattered"] += elements if op.opcode == "gather" else max(elements, operand.shapes[0].elements)
        elif op.opcode == "reduce":
            done["arithmetic"] += sum(
                float(computation.operand(op, index).shapes[0].elements) for index in range(len(op.operands) // 2)
            )
        else:
            done["transcendental" if op.opcode in TRANSCENDENTAL else "arithmetic"] += elements
    return done


def _strided(inside: Sequence[tuple[Computation, Op]], *, fused: bool) -> tuple[str, float]:
    """The class, and the elements read with a stride in one execution."""
    reads = elements = 0.0
    run = 1
    for computation, op in inside:
        if op.opcode in ("copy", "transpose") and transposed_run(computation, op) > 1:
            reads += op.shapes[0].elements * (_sources(computation, op) if fused else 1)
            elements += op.shapes[0].elements
            run = max(run, transposed_run(computation, op))
    # Such a loop is not vectorised; where a run of its reads fills the first cache, each is a miss. Seen in the times
    # of single instructions, then measured by itself.
    merges = fused and inside[-1][1].opcode == "bitcast" and len(inside[-1][1].shapes[0].dims) < _rank(inside)
    sliced = merges and any(op.opcode == "dynamic-slice" for _, op in inside)
    if sliced:
        return ("strided_slice_long" if run * LINE_BYTES >= L1_BYTES else "strided_slice"), elements
    return "strided", reads


def _rank(inside: Sequence[tuple[Computation, Op]]) -> int:
    """Dimensions longer than 1 of what the last instruction is a bitcast of."""
    computation, op = inside[-1]
    return sum(size > 1 for size in computation.operand(op, 0).shapes[0].dims)


def transposed_run(computation: Computation, op: Op) -> int:
    """Elements a copy or transpose reads, each a stride from the last, before one next to the first; 1: in order."""
    source, result = computation.operand(op, 0), op
    if len(source.shapes) != 1 or len(result.shapes) != 1:
        return 1
    dims = result.shapes[0].dims
    mapping = dims_of(op, "dimensions") if op.opcode == "transpose" else tuple(range(len(dims)))
    written = [dim for dim in result.shapes[0].minor_to_major if dims[dim] > 1]
    read = [dim for dim in (mapping.index(dim) for dim in source.shapes[0].minor_to_major) if dims[dim] > 1]
    return math.prod(dims[dim] for dim in written[: written.index(read[0])]) if read else 1


def _sources(computation: Computation, op: Op) -> int:
    """Arrays of the fusion's parameters that are read for every element of `op`."""
    found, seen, queue = 0, set(), [op]
    while queue:
        at = queue.pop()
        for name in at.operands:
            if name in seen or name not in computation.by_name:
                continue
            seen.add(name)
            operand = computation.by_name[name]
            if operand.opcode == "parameter":
                found += bool(operand.shapes) and operand.shapes[0].elements >= op.shapes[0].elements
            elif operand.opcode != "broadcast":
                queue.append(operand)
    return max(found, 1)
