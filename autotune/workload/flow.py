"""Which inputs of a traced step feed which outputs, and which values come out of the backward pass.

The graph has one node for each value of the jaxpr. Calls are written out (jit, remat, custom derivatives, the branches
of a cond, one turn of a loop), so an array that is passed on untouched is one node from the input to the output. JAX
marks the equations of a gradient in their name stack: `jvp(...)` is the forward pass of something that is
differentiated, `transpose(jvp(...))` its backward pass. The marks of a call hold for everything inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.extend.core as jex
import numpy as np

FORWARD, BACKWARD = "jvp(", "transpose("

PASSED_ON = (
    "copy",
    "copy_p",
    "sharding_constraint",
    "optimization_barrier",
    "reshard",
    "mesh_cast",
    "name",
    "pvary",
    "pcast",
    "reduce_precision",
)
"""Operations that give back the value they take."""

ZERO_STAYS = (
    "convert_element_type",
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "neg",
    "transpose",
    "mul",
    "div",
    "copy",
)
"""Operations of which the result is zero where their first operand is (`mul`: any operand)."""


@dataclass(slots=True)
class Flow:
    """The dataflow of a jaxpr.

    `sources[node]`: the nodes it is computed from. `forward`, `backward`: nodes made inside a differentiated function,
    and inside its backward pass. `truth`: nodes of truth values, which say whether and not by how much something
    changes. `inputs`, `outputs`: the nodes of the jaxpr's own inputs and outputs; one that is in both is untouched.
    `shapes`: of the outputs.
    """

    sources: list[tuple[int, ...]] = field(default_factory=list)
    forward: set[int] = field(default_factory=set)
    backward: set[int] = field(default_factory=set)
    truth: set[int] = field(default_factory=set)
    zero: set[int] = field(default_factory=set)
    views: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    def node(self, aval: Any, sources: Iterable[int], forward: bool = False, backward: bool = False) -> int:
        """A new value."""
        made = len(self.sources)
        self.sources.append(tuple(sources))
        if forward:
            self.forward.add(made)
        if backward:
            self.backward.add(made)
        if getattr(aval, "dtype", None) == np.bool_:
            self.truth.add(made)
        return made

    def above(self, nodes: Iterable[int], stops: Container[int] = ()) -> set[int]:
        """These nodes and all that they are computed from; nothing is followed past one of `stops`."""
        found = set(nodes)
        waiting = list(found)
        while waiting:
            node = waiting.pop()
            for source in self.sources[node] if node not in stops else ():
                if source not in found:
                    found.add(source)
                    waiting.append(source)
        return found

    def by_gradient(self, stops: set[int]) -> list[bool]:
        """Of every node, whether it is computed from values of a backward pass; what goes through one of `stops` or
        through a truth value does not count."""
        found: list[bool] = []
        for node, sources in enumerate(self.sources):  # a node is made after those that it is computed from
            found.append(
                node in self.backward
                or any(found[one] and one not in stops and one not in self.truth for one in sources)
            )
        return found


def flow_of(jaxpr: Any) -> Flow:
    """The dataflow of a jaxpr; loops are followed through one turn."""
    flow = Flow()
    flow.inputs = tuple(flow.node(var.aval, ()) for var in jaxpr.invars)
    flow.outputs = tuple(_walk(flow, jaxpr, flow.inputs, False, False))
    flow.shapes = tuple(tuple(getattr(var.aval, "shape", ())) for var in jaxpr.outvars)
    return flow


def _walk(flow: Flow, jaxpr: Any, inputs: Sequence[int], forward: bool, backward: bool) -> list[int]:
    known: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> int:
        if not isinstance(var, jex.Var):
            node = flow.node(var.aval, ())
            if np.size(var.val) == 1 and not np.issubdtype(np.asarray(var.val).dtype, np.bool_) and var.val == 0:
                flow.zero.add(node)
            return node
        if var not in known:
            known[var] = flow.node(var.aval, ())
        return known[var]

    for equation in jaxpr.eqns:
        stack = str(equation.source_info.name_stack)
        ins = [read(var) for var in equation.invars]
        outs = _apply(flow, equation, ins, forward or FORWARD in stack, backward or BACKWARD in stack)
        known.update(zip(equation.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _apply(flow: Flow, equation: Any, ins: list[int], forward: bool, backward: bool) -> list[int]:
    """The nodes of what one equation makes."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(flow, equation, ins, forward, backward)
    if name == "while":
        skipped, constants = params["cond_nconsts"], params["body_nconsts"]
        body, given = params["body_jaxpr"].jaxpr, ins[params["cond_nconsts"] :]
        results = _walk(flow, body, given, forward, backward)
        test = ins[:skipped]
        return [
            given[constants + index] if result == given[constants + index]
            else flow.node(var.aval, (result, *test), forward, backward)
            for index, (var, result) in enumerate(zip(equation.outvars, results, strict=True))
        ]  # fmt: skip
    if name == "cond":
        branches = [_walk(flow, one.jaxpr, ins[1:], forward, backward) for one in params["branches"]]
        return [
            parts[0] if len(set(parts)) == 1 else flow.node(var.aval, (ins[0], *parts), forward, backward)
            for var, *parts in zip(equation.outvars, *branches, strict=True)
        ]
    inner = called(equation)
    if inner is not None and len(inner.invars) == len(ins) and len(inner.outvars) == len(equation.outvars):
        return _walk(flow, inner, ins, forward, backward)
    same = _same(flow, equation, ins)
    if same is not None:
        return same
    outs = [flow.node(var.aval, ins, forward, backward) for var in equation.outvars]
    if len(outs) == 1 and _is_zero(flow, name, ins):
        flow.zero.add(outs[0])
        flow.sources[outs[0]] = ()
    if name in ("broadcast_in_dim", "reshape", "squeeze") and _size(equation.invars[0]) == _size(equation.outvars[0]):
        flow.views[outs[0]] = flow.views.get(ins[0], (ins[0], tuple(equation.invars[0].aval.shape)))
    return outs


def _same(flow: Flow, equation: Any, ins: list[int]) -> list[int] | None:
    """The nodes that an equation passes on: of a copy, of a sum with zero, of a shape that is changed back."""
    name = equation.primitive.name
    if name in PASSED_ON and len(ins) >= len(equation.outvars):
        return ins[: len(equation.outvars)] if name != "reduce_precision" or _same_type(equation, 0) else None
    if name == "convert_element_type" and _same_type(equation, 0):
        return ins[:1]
    if name in ("add", "add_any", "sub"):
        for index in (0, 1) if name != "sub" else (0,):
            if ins[1 - index] in flow.zero and _same_type(equation, index):
                return [ins[index]]
    if name in ("broadcast_in_dim", "reshape", "squeeze") and ins[0] in flow.views:
        viewed, shape = flow.views[ins[0]]
        if shape == tuple(equation.outvars[0].aval.shape) and _size(equation.invars[0]) == _size(equation.outvars[0]):
            return [viewed]
    return None


def _same_type(equation: Any, index: int) -> bool:
    given, made = equation.invars[index].aval, equation.outvars[0].aval
    return (given.shape, given.dtype) == (made.shape, made.dtype)


def _is_zero(flow: Flow, name: str, ins: list[int]) -> bool:
    if name not in ZERO_STAYS or not ins:
        return False
    return ins[0] in flow.zero or (name == "mul" and ins[1] in flow.zero)


def _scan(flow: Flow, equation: Any, ins: list[int], forward: bool, backward: bool) -> list[int]:
    """One turn of a loop. A carry that it passes on, and a stack that it gives back slice by slice, are untouched."""
    body = equation.params["jaxpr"].jaxpr
    # What is scanned over loses a dimension inside; how jax counts constants and carries depends on its version.
    stacked = [_rank(outer) > _rank(inner) for outer, inner in zip(equation.invars, body.invars, strict=True)]
    inside = [
        flow.node(inner.aval, (node,), forward, backward) if cut else node
        for node, inner, cut in zip(ins, body.invars, stacked, strict=True)
    ]
    results = _walk(flow, body, inside, forward, backward)
    whole = {inner: node for inner, node, cut in zip(inside, ins, stacked, strict=True) if cut}
    carries = sum(_rank(outer) == _rank(inner) for outer, inner in zip(equation.outvars, body.outvars, strict=True))
    constants = len(ins) - sum(stacked) - carries
    outs = []
    for index, (var, result) in enumerate(zip(equation.outvars, results, strict=True)):
        if index < carries and result == ins[constants + index]:
            outs.append(result)
        elif index >= carries and result in whole:
            outs.append(whole[result])
        else:
            outs.append(flow.node(var.aval, (result,), forward, backward))
    return outs


def fed_by(flow: Flow, within_loss: bool = False) -> Callable[[int], set[int]]:
    """For an output of the flow: the inputs from which it is computed otherwise than through the loss; `within_loss`:
    inside the loss too, but not through its gradient."""
    places = {node: index for index, node in enumerate(flow.inputs)}
    marked = flow.backward if within_loss else flow.forward | flow.backward
    known: dict[int, set[int]] = {}

    def fed(output: int) -> set[int]:
        if output not in known:
            above = flow.above([flow.outputs[output]], marked)
            known[output] = {places[node] for node in above if node in places}
        return known[output]

    return fed


def called(equation: Any) -> Any | None:
    """The jaxpr that an equation simply calls (jit, remat, custom derivatives, shard_map)."""
    if equation.primitive.name == "pallas_call":
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        value = equation.params.get(key)
        if isinstance(value, jex.ClosedJaxpr):
            return value.jaxpr
        if isinstance(value, jex.Jaxpr):
            return value
    return None


def _rank(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))


def _size(var: Any) -> int:
    return int(np.prod(getattr(var.aval, "shape", ()), dtype=np.int64))
