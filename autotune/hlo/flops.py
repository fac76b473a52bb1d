"""Floating point operations of one instruction: dots, convolutions and the matmul and attention kernels it calls."""

from __future__ import annotations

import math
import re

from autotune.hlo.kernels import kernel_work, target_of
from autotune.hlo.op_flops import OpWork, dot_shape
from autotune.hlo.shape import Shape
from autotune.hlo.text import Computation, Module, Op
from autotune.hlo.unreadable import UnreadableProgram

MOST_PLACES = 1_000_000
"""A window of more places is that of a damaged text; counting them would take for ever."""

_DIMS = {
    name: re.compile(name + r"=\{([\d,]*)\}")
    for name in ("dimensions", "lhs_batch_dims", "lhs_contracting_dims", "rhs_batch_dims", "rhs_contracting_dims")
}
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_GROUPS = re.compile(r"(feature|batch)_group_count=(\d+)")


def op_work(module: Module, computation: Computation, op: Op, known: dict[str, OpWork]) -> OpWork:
    """The work of one instruction with everything it calls, loops apart. `known`: computation -> its work, if found."""
    if op.opcode == "dot":
        return _dot(computation, op)
    if op.opcode == "convolution":
        left, right = (computation.operand(op, index).shapes[0] for index in (0, 1))
        return _convolution(op, left, right, op.shapes[0])
    if op.opcode == "custom-call":
        if target_of(op).startswith("__cudnn$conv"):
            return _cudnn_convolution(computation, op)
        return kernel_work(computation, op)
    if op.opcode in ("fusion", "call", "async-start"):
        return sum((computation_work(module, name, known) for name in op.called()), OpWork())
    return OpWork()


def computation_work(module: Module, name: str, known: dict[str, OpWork]) -> OpWork:
    """The work of one execution of a whole computation."""
    if name not in known:
        inner = module.computations[name]
        known[name] = sum((op_work(module, inner, op, known) for op in inner.ops), OpWork())
    return known[name]


def dims_of(op: Op, name: str) -> tuple[int, ...]:
    """The dimension numbers of one attribute of a dot."""
    match = _DIMS[name].search(op.attributes)
    return tuple(int(dim) for dim in match[1].split(",") if dim) if match else ()


def _dot(computation: Computation, op: Op) -> OpWork:
    left, right = (computation.operand(op, index).shapes[0] for index in (0, 1))
    matmul = dot_shape(
        left.dims,
        right.dims,
        (dims_of(op, "lhs_batch_dims"), dims_of(op, "rhs_batch_dims")),
        (dims_of(op, "lhs_contracting_dims"), dims_of(op, "rhs_contracting_dims")),
    )
    return OpWork(flops=2.0 * math.prod(matmul), matmul=matmul, dtype=_multiplied(left, right))


def _multiplied(left: Shape, right: Shape) -> str:
    """The dtype that a matmul multiplies in: of a one-hot comparison with a table, the table's."""
    return right.dtype if left.dtype == "pred" else left.dtype


def _cudnn_convolution(computation: Computation, op: Op) -> OpWork:
    """A call of cuDNN: window and labels are of the forward convolution, whichever of its three arrays is made."""
    one, other = (computation.operand(op, index).shapes[0] for index in (0, 1))
    target, made = target_of(op), op.shapes[0]
    if "BackwardInput" in target:
        return _convolution(op, made, other, one)
    if "BackwardFilter" in target:
        return _convolution(op, one, made, other)
    return _convolution(op, one, other, made)


def _convolution(op: Op, left: Shape, right: Shape, output: Shape) -> OpWork:
    """Multiply-adds that touch real input: padding and dilation holes cost nothing.

    TPU writes matmuls as convolutions, batch dimensions as spatial ones with dilation; every spatial dimension has some
    number of valid (output position, window position) pairs, and the FLOPs are 2 x batch x features in x features out
    x the product of those numbers (as in XLA's HloCostAnalysis::HandleConvolution).
    """
    labels = _LABELS.search(op.attributes)
    if not labels:
        raise UnreadableProgram(f"hlo: convolution {op.name} has no dim_labels")
    groups = {name: int(count) for name, count in _GROUPS.findall(op.attributes)}
    window = _window(op, sum(label.isdigit() for label in labels[1]))
    k = right.dims[labels[2].index("i")]
    n = right.dims[labels[2].index("o")]
    m = left.dims[labels[1].index("b")] // groups.get("batch", 1)
    batch, partial = 1, 1.0
    for spatial, (size, stride, low, left_dilation, right_dilation) in enumerate(window):
        have = left.dims[labels[1].index(str(spatial))]
        give = output.dims[labels[3].index(str(spatial))]
        pairs = _valid_pairs(have, give, size, stride, low, left_dilation, right_dilation)
        if give == 1:
            k *= pairs
        elif size == 1:
            m *= pairs
        elif have == 1:
            n *= pairs
        elif have == give == pairs:
            batch *= pairs
        else:
            m, partial = m * give, partial * pairs / give
    flops = 2.0 * batch * m * n * k * partial
    return OpWork(flops=flops, matmul=(batch, m, n, max(round(k * partial), 1)), dtype=_multiplied(left, right))


def _window(op: Op, dimensions: int) -> list[tuple[int, int, int, int, int]]:
    """(size, stride, low padding, input dilation, window dilation) of each spatial dimension."""
    match = _WINDOW.search(op.attributes)
    fields = dict(part.split("=") for part in match[1].split()) if match else {}

    def numbers(name: str) -> list[int]:
        return [int(number.split("_")[0]) for number in fields[name].split("x")] if name in fields else []

    def at(values: list[int], default: int) -> list[int]:
        return values or [default] * dimensions

    rows = (
        at(numbers("size"), 1),
        at(numbers("stride"), 1),
        at(numbers("pad"), 0),
        at(numbers("lhs_dilate"), 1),
        at(numbers("rhs_dilate"), 1),
    )
    return list(zip(*rows, strict=True))


def _valid_pairs(have: int, give: int, size: int, stride: int, low: int, dilation: int, window_dilation: int) -> int:
    """(output, window) position pairs that fall on an input element."""
    if size == 1 and stride == dilation == 1 and low == 0:
        return min(have, give)
    if give > size:  # the same pairs, counted along the shorter of the two
        give, size, stride, window_dilation = size, give, window_dilation, stride
    if give > MOST_PLACES:
        raise UnreadableProgram(f"hlo: a convolution slides a window of {size} to {give} places")
    # At each output position, the taps count that fall inside the input, [0, dilation x have), and on a multiple of its
    # dilation.
    common = math.gcd(window_dilation, dilation)
    every = dilation // common
    inverse = pow(window_dilation // common, -1, every)
    step = every * window_dilation
    pairs = 0
    for position in range(give):
        start = position * stride - low
        first = -start // common * inverse % every
        if start % common or first >= size:
            continue
        at, taps = start + first * window_dilation, -(-(size - first) // every)
        below = min(max(-(at // step), 0), taps)
        inside = min(max(-(-(dilation * have - at) // step), 0), taps)
        pairs += max(inside - below, 0)
    return pairs
