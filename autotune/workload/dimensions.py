"""Which dimensions of a traced step are one and the same: the logical axes of a model that names none.

Every dimension of every array starts as an axis of its own; each operation then says which of them must be the same
(`x + y` makes them equal one by one, a matmul makes its two contracted ones equal). What is left over are the axes:
the residual stream, each hidden width, heads, vocabulary, batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax.extend.core as jex


@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """One matmul: the axes it sums over, those of its result, and what it costs (whole mesh, all trips)."""

    summed: tuple[int, ...]
    result: tuple[int, ...]
    result_elements: float
    flops: float


@dataclass(slots=True)
class Dimensions:
    """Axes as classes of dimensions. `axis(d)` names the class of a dimension; `contractions` hold dimensions.

    `stacked`: dimensions that a loop goes through, with its number of turns. `parts`: (dimension, its extent, the
    dimension of a slice of it, its extent), where a slice is not the whole. `indexed`: dimensions of which a loop takes
    one entry a turn, with their extent. `outputs`: the dimensions of each output.
    `constraints`: the sharding constraints, each with the dimensions of its array."""

    parent: list[int] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    stacked: dict[int, int] = field(default_factory=dict)
    parts: list[tuple[int, int, int, int]] = field(default_factory=list)
    indexed: dict[int, int] = field(default_factory=dict)
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    constraints: list[tuple[Any, tuple[int, ...]]] = field(default_factory=list)

    def fresh(self, rank: int) -> tuple[int, ...]:
        """Dimensions of a new array."""
        start = len(self.parent)
        self.parent.extend(range(start, start + rank))
        return tuple(range(start, start + rank))

    def axis(self, dimension: int) -> int:
        """The axis a dimension belongs to."""
        while self.parent[dimension] != dimension:
            self.parent[dimension] = self.parent[self.parent[dimension]]
            dimension = self.parent[dimension]
        return dimension

    def looped(self) -> set[tuple[int, int]]:
        """(axis, extent) of every dimension that a loop goes through, or of which it goes through a slice."""
        found = {(self.axis(one), turns) for one, turns in (*self.stacked.items(), *self.indexed.items())}
        while True:
            more = {(self.axis(whole), extent) for whole, extent, part, length in self.parts
                    if (self.axis(part), length) in found} - found  # fmt: skip
            if not more:
                return found
            found |= more

    def same(self, one: int, other: int) -> None:
        """These two are one axis."""
        self.parent[self.axis(one)] = self.axis(other)


def dimensions_of(jaxpr: Any) -> tuple[Dimensions, list[tuple[int, ...]]]:
    """The axes of a jaxpr, and the dimensions of each of its inputs."""
    found = Dimensions()
    inputs = [found.fresh(len(var.aval.shape)) for var in jaxpr.invars]
    found.outputs = _walk(found, jaxpr, inputs, 1)
    return found, inputs


def _walk(found: Dimensions, jaxpr: Any, inputs: list[tuple[int, ...]], trips: int) -> list[tuple[int, ...]]:
    known: dict[Any, tuple[int, ...]] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> tuple[int, ...]:
        if not isinstance(var, jex.Var):
            return found.fresh(_rank(var))
        if var not in known:
            known[var] = found.fresh(_rank(var))
        return known[var]

    for equation in jaxpr.eqns:
        ins = [read(var) for var in equation.invars]
        outs = [found.fresh(_rank(var)) for var in equation.outvars]
        _relate(found, equation, ins, outs, trips)
        if equation.primitive.name == "sharding_constraint":
            found.constraints.append((equation, outs[0]))
        known.update(zip(equation.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _relate(found: Dimensions, equation: Any, ins, outs, trips: int) -> None:
    """Say which dimensions of one operation's inputs and outputs are the same."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        _matmul(found, equation, ins, outs[0], trips)
    elif name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        found.same(ins[0][numbers.lhs_spec[0]], outs[0][numbers.out_spec[0]])
        found.same(ins[1][numbers.rhs_spec[0]], outs[0][numbers.out_spec[1]])
        if params["feature_group_count"] == 1:
            found.same(ins[0][numbers.lhs_spec[1]], ins[1][numbers.rhs_spec[1]])
    elif name == "transpose":
        _pairs(found, ((ins[0][source], outs[0][index]) for index, source in enumerate(params["permutation"])))
    elif name == "broadcast_in_dim":
        shape = equation.invars[0].aval.shape
        _pairs(
            found,
            ((ins[0][index], outs[0][target]) for index, target in enumerate(params["broadcast_dimensions"])
             if shape[index] == params["shape"][target]),
        )  # fmt: skip
    elif name == "reshape":
        _reshape(found, equation.invars[0].aval.shape, equation.outvars[0].aval.shape, ins[0], outs[0])
    elif name == "squeeze":
        kept = [index for index in range(len(ins[0])) if index not in params["dimensions"]]
        _pairs(found, zip((ins[0][index] for index in kept), outs[0], strict=True))
    elif name.startswith(("reduce_", "arg")) and "axes" in params and len(ins[0]) != len(outs[0]):
        kept = [index for index in range(len(ins[0])) if index not in params["axes"]]
        for given, result in zip(ins, outs, strict=False):
            _pairs(found, zip((given[index] for index in kept), result, strict=True))
    elif name == "gather":
        _gather(found, equation, ins, outs[0])
    elif name.startswith("scatter"):
        _pairs(found, zip(ins[0], outs[0], strict=True))
        numbers = params["dimension_numbers"]
        inserted = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        windows = [index for index in range(len(ins[0])) if index not in inserted]
        _pairs(found, ((ins[2][update], ins[0][window])
                       for update, window in zip(numbers.update_window_dims, windows, strict=True)))  # fmt: skip
    elif name == "scan":
        _scan(found, equation, ins, outs, trips)
    elif name == "while":
        skipped = params["cond_nconsts"]
        body = params["body_jaxpr"].jaxpr
        results = _walk(found, body, ins[skipped:], trips)
        carried = ins[skipped + params["body_nconsts"] :]
        for one, other, result in zip(carried, results, outs, strict=True):
            _pairs(found, zip(one, other, strict=True))
            _pairs(found, zip(one, result, strict=True))
    elif name == "cond":
        for branch in params["branches"]:
            for one, other in zip(_walk(found, branch.jaxpr, ins[1:], trips), outs, strict=True):
                _pairs(found, zip(one, other, strict=True))
    elif (inner := _called(equation)) is not None and len(inner.invars) == len(ins):
        for one, other in zip(_walk(found, inner, ins, trips), outs, strict=True):
            _pairs(found, zip(one, other, strict=True))
    else:
        _by_position(found, equation, ins, outs)
        if name in ("slice", "dynamic_slice"):
            _slice(found, equation, ins[0], outs[0], in_loop=trips > 1)


def _slice(found: Dimensions, equation: Any, whole: tuple[int, ...], part: tuple[int, ...], in_loop: bool) -> None:
    """What is cut out of each dimension. A loop that takes one entry at a place of its own a turn goes through it."""
    shapes = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    for dimension, extent, result, length in zip(whole, shapes[0], part, shapes[1], strict=True):
        if length != extent:
            found.parts.append((dimension, extent, result, length))
            if in_loop and length == 1 and equation.primitive.name == "dynamic_slice":
                found.indexed[dimension] = extent


def _pairs(found: Dimensions, pairs) -> None:
    for one, other in pairs:
        found.same(one, other)


def _called(equation: Any) -> Any | None:
    """The jaxpr that an equation simply calls (jit, remat, custom derivatives)."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        value = equation.params.get(key)
        if isinstance(value, jex.ClosedJaxpr):
            return value.jaxpr
        if isinstance(value, jex.Jaxpr) and equation.primitive.name != "pallas_call":
            return value
    return None


def _by_position(found: Dimensions, equation: Any, ins, outs) -> None:
    """Element-wise operations, slices, concatenation: dimensions of equal size in equal position."""
    for var, result in zip(equation.outvars, outs, strict=True):
        shape = getattr(var.aval, "shape", ())
        for source, given in zip(equation.invars, ins, strict=True):
            other = getattr(source.aval, "shape", ())
            if len(other) == len(shape):
                _pairs(found, ((given[index], result[index]) for index in range(len(shape))
                               if shape[index] == other[index]))  # fmt: skip


def _matmul(found: Dimensions, equation: Any, ins, out, trips: int) -> None:
    (left_contract, right_contract), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = ins
    _pairs(found, ((left[i], right[j]) for i, j in zip(left_contract, right_contract, strict=True)))
    _pairs(found, ((left[i], right[j]) for i, j in zip(left_batch, right_batch, strict=True)))
    result = [left[index] for index in left_batch]
    result += [left[index] for index in range(len(left)) if index not in (*left_batch, *left_contract)]
    result += [right[index] for index in range(len(right)) if index not in (*right_batch, *right_contract)]
    _pairs(found, zip(result, out, strict=True))
    elements = float(math.prod(equation.outvars[0].aval.shape)) * trips
    depth = math.prod(equation.invars[0].aval.shape[index] for index in left_contract)
    found.contractions.append(
        Contraction(
            summed=tuple(left[index] for index in left_contract),
            result=tuple(out),
            result_elements=elements,
            flops=2.0 * elements * depth,
        )
    )


def _reshape(found: Dimensions, before, after, ins, outs) -> None:
    """Groups of dimensions with equal products; of a split or merged group the slowest varying ones are the same. An
    array without elements has no such groups."""
    if 0 in (*before, *after):
        return
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        products = [before[i], after[j]]
        i, j = i + 1, j + 1
        while products[0] != products[1]:
            if products[0] < products[1]:
                products[0] *= before[i]
                left.append(i)
                i += 1
            else:
                products[1] *= after[j]
                right.append(j)
                j += 1
        left = [index for index in left if before[index] > 1] or left
        right = [index for index in right if after[index] > 1] or right
        found.same(ins[left[0]], outs[right[0]])


def _gather(found: Dimensions, equation: Any, ins, out) -> None:
    """A table looked up by index: what is taken whole keeps its axis; the indices' dimensions become the result's."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand = equation.invars[0].aval.shape
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [index for index in range(len(operand)) if index not in dropped]
    for target, source in zip(numbers.offset_dims, windows, strict=True):
        if sizes[source] == operand[source]:
            found.same(ins[0][source], out[target])
    batch = [index for index in range(len(out)) if index not in numbers.offset_dims]
    _pairs(found, zip(ins[1], (out[index] for index in batch), strict=False))


def _scan(found: Dimensions, equation: Any, ins, outs, trips: int) -> None:
    body = equation.params["jaxpr"].jaxpr
    # What is scanned over loses a dimension inside; how jax counts constants and carries depends on its version.
    stacked = sum(_rank(outer) > _rank(inner) for outer, inner in zip(equation.invars, body.invars, strict=True))
    carries = sum(_rank(outer) == _rank(inner) for outer, inner in zip(equation.outvars, body.outvars, strict=True))
    constants = len(ins) - stacked - carries
    stacks = ins[constants + carries :]
    turns = equation.params["length"]
    found.stacked |= {stack[0]: turns for stack in stacks}
    inside = [*ins[: constants + carries], *(stack[1:] for stack in stacks)]
    results = _walk(found, body, inside, trips * turns)
    for index, result in enumerate(results):
        if index < carries:
            _pairs(found, zip(result, ins[constants + index], strict=True))
            _pairs(found, zip(result, outs[index], strict=True))
        else:
            found.stacked[outs[index][0]] = turns
            _pairs(found, zip(result, outs[index][1:], strict=True))


def _rank(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))
