"""How often a while loop runs.

CPU and GPU text says `known_trip_count`; TPU text does not. There the trips follow from the condition (a comparison of
a counter with a constant), the counter's initial value and its step, each traced through the text. Compilers peel
and pipeline loops, so a trip count is the loop's own, not the model's number of layers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from autotune.hlo.text import Computation, Module, Op

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_DIRECTION = re.compile(r"direction=(\w+)")
_INDEX = re.compile(r"index=(\d+)")
_COMPARE = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "NE": operator.ne, "EQ": operator.eq,
}  # fmt: skip
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
_SAME = ("copy", "bitcast", "convert", "reshape", "opt-barrier", "copy-done", "broadcast")

Values = Callable[[int], "int | None"]
"""What element `index` of the computation's tuple parameter holds; None where it is not known."""

MOST_EVALUATED = 10_000
"""An expression of more instructions than that is not followed: where each uses the one before twice, it would never
end."""

MOST_STEPS = 100_000
"""A counter that is no straight line is followed for at most so many iterations."""


def trip_count(module: Module, loop: Op, outside: Computation, outer: Values) -> int | None:
    """Iterations of one execution of `loop`, an op of `outside`; None where the text does not tell.

    `outer`: values of the parameter of `outside` that do not change while it runs.
    """
    known = _KNOWN.search(loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.callee("condition") or ""]
    body = module.computations[loop.callee("body") or ""]
    counters = _counters(module, condition)
    start = {index: initial_value(module, loop, outside, outer, index) for index in counters}
    fixed = loop_invariants(module, loop, outside, outer)
    moving = {index for index in counters if fixed(index) is None}
    state = {index: start[index] for index in moving}
    trips = 0
    while trips <= MOST_STEPS:

        def values(index: int, state: dict[int, int | None] = state) -> int | None:
            return state[index] if index in state else fixed(index)

        goes_on = evaluate(module, condition, condition.root, values)
        if goes_on is None:
            return None
        if not goes_on:
            return trips
        root = body.root
        following = {index: evaluate(module, body, body.operand(root, index), values) for index in moving}
        if following == state:
            return None
        state = following
        trips += 1
    return None


def initial_value(module: Module, loop: Op, outside: Computation, outer: Values, index: int) -> int | None:
    """The value of tuple element `index` before the loop."""
    initial = outside.operand(loop, 0)
    if initial.opcode == "tuple":
        return evaluate(module, outside, outside.operand(initial, index), outer)
    return outer(index) if initial.opcode == "parameter" else None


def loop_invariants(module: Module, loop: Op, outside: Computation, outer: Values) -> Values:
    """Values of the body's tuple elements that every iteration hands on unchanged."""
    body = module.computations[loop.callee("body") or ""]
    root = body.root

    def value(index: int) -> int | None:
        if root.opcode != "tuple":
            return None
        kept = body.operand(root, index)
        while kept.opcode in ("copy", "bitcast"):
            kept = body.operand(kept, 0)
        match = _INDEX.search(kept.attributes) if kept.opcode == "get-tuple-element" else None
        if not match or int(match[1]) != index or body.operand(kept, 0).opcode != "parameter":
            return None
        return initial_value(module, loop, outside, outer, index)

    return value


def _counters(module: Module, condition: Computation) -> list[int]:
    """Tuple elements that the condition reads."""
    found = []
    for op in condition.ops:
        match = _INDEX.search(op.attributes) if op.opcode == "get-tuple-element" else None
        if match and condition.operand(op, 0).opcode == "parameter":
            found.append(int(match[1]))
    return found


def evaluate(module: Module, computation: Computation, op: Op, values: Values, arguments: tuple = ()) -> int | None:
    """The whole number a scalar op holds; None where it depends on what is not known.

    `values`: elements of the one tuple parameter. `arguments`: values of the parameters of a fused computation.
    """
    return _evaluate(module, computation, op, values, arguments, [MOST_EVALUATED])


def _evaluate(
    module: Module, computation: Computation, op: Op, values: Values, arguments: tuple, budget: list[int]
) -> int | None:
    """As `evaluate`; `budget` holds how many instructions may still be followed."""
    budget[0] -= 1
    if budget[0] < 0:
        return None

    def of(index: int) -> int | None:
        return _evaluate(module, computation, computation.operand(op, index), values, arguments, budget)

    if op.opcode == "constant":
        text = op.arguments.strip("{} ")
        if text in ("true", "false"):
            return int(text == "true")
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    if op.opcode == "parameter":
        number = int(op.arguments)
        return arguments[number] if number < len(arguments) else None
    if op.opcode == "get-tuple-element":
        source = computation.operand(op, 0)
        index = int(_INDEX.search(op.attributes)[1])  # type: ignore[index]
        if source.opcode == "parameter":
            return values(index)
        if source.opcode == "tuple":
            return _evaluate(module, computation, computation.operand(source, index), values, arguments, budget)
        return None
    if op.opcode in _SAME:
        return of(0)
    if op.opcode == "copy-start":
        return of(0)
    if op.opcode in _ARITHMETIC:
        first, second = of(0), of(1)
        return None if first is None or second is None else _ARITHMETIC[op.opcode](first, second)
    if op.opcode == "not":
        inner = of(0)
        return None if inner is None else int(not inner)
    if op.opcode == "compare":
        first, second = of(0), of(1)
        direction = _DIRECTION.search(op.attributes)
        if first is None or second is None or not direction:
            return None
        return int(_COMPARE[direction[1]](first, second))
    if op.opcode in ("fusion", "call"):
        callee = module.computations[op.called()[0]]
        given = tuple(of(index) for index in range(len(op.operands)))
        return _evaluate(module, callee, callee.root, values, given, budget)
    return None
