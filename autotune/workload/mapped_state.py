"""How a step's own `jax.shard_map` says that arrays of the state are cut: by the specs with which they enter it, or
with which their new values leave it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex

from autotune.partition import Name
from autotune.workload.flow import PASSED_ON, called
from autotune.workload.guess import kind_of, rule_for
from autotune.workload.leaves import whole
from autotune.workload.same_program import source
from autotune.workload.trace import names_of
from autotune.workload.tracing import is_traced_mesh

LISTED = 4
"""Kinds of arrays said one by one; the rest is counted."""

CAST = (*PASSED_ON, "convert_element_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The names that a map gives the dimensions of an array, and its file and line. `every`: the map is over all axes
    of the mesh; one over some of them leaves the array's cut along the others to the compiler."""

    names: tuple[Name, ...]
    at: str
    every: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Of:
    """What an array of the trace is: an input of the step (`input`), each dimension of the array being one of the
    input's (`dimensions`); or what a map made (`said`)."""

    input: int = -1
    dimensions: tuple[int, ...] = ()
    said: Said | None = None


def cut_by_maps(
    jaxpr: Any, state: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Said], dict[str, tuple[Said, ...]]]:
    """(path -> how the maps cut that array of the state, path -> what they say where they say several things).

    `state`: the paths of the first inputs of the jaxpr; its first outputs are their new values. A spec that names no
    axis (`P()`) is not heard: the map then takes the array whole, however it lives outside. The specs of inputs go
    before those of outputs, and of several the first.
    """
    entered: dict[int, list[Said]] = {}
    start = [_Of(input=index, dimensions=tuple(range(len(var.aval.shape)))) for index, var in enumerate(jaxpr.invars)]
    made = _walk(jaxpr, start, entered, {index: shapes[path] for index, path in enumerate(state)})
    for index, one in enumerate(made[: len(state)]):
        if one is not None and one.said is not None and len(one.said.names) == len(shapes[state[index]]):
            entered.setdefault(index, [one.said])
    cut = {state[index]: found[0] for index, found in sorted(entered.items())}
    several = {state[index]: tuple(found) for index, found in sorted(entered.items())
               if len({one.names for one in found}) > 1}  # fmt: skip
    return cut, several


def _walk(
    jaxpr: Any, inputs: Sequence[_Of | None], entered: dict[int, list[Said]], ranks: Mapping[int, tuple[int, ...]]
) -> list[_Of | None]:
    known: dict[Any, _Of | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var: Any) -> _Of | None:
        return known.get(var) if isinstance(var, jex.Var) else None

    for equation in jaxpr.eqns:
        ins = [read(var) for var in equation.invars]
        outs: Sequence[_Of | None] = [None] * len(equation.outvars)
        name, inner = equation.primitive.name, called(equation)
        if name == "shard_map":
            outs = _mapped(equation, ins, entered, ranks)
        elif name in CAST:
            outs = ins[: len(outs)]
        elif name == "transpose" and ins[0] is not None and ins[0].said is None:
            order = equation.params["permutation"]
            outs = [_Of(input=ins[0].input, dimensions=tuple(ins[0].dimensions[index] for index in order))]
        elif name == "scan":
            inside = [
                _Of(input=one.input, dimensions=one.dimensions[1:])
                if one is not None and one.said is None and len(outer.aval.shape) > len(body.aval.shape)
                else one
                for one, outer, body in zip(ins, equation.invars, equation.params["jaxpr"].jaxpr.invars, strict=True)
            ]
            _walk(equation.params["jaxpr"].jaxpr, inside, entered, ranks)
        elif name == "cond":
            for branch in equation.params["branches"]:
                _walk(branch.jaxpr, ins[1:], entered, ranks)
        elif name == "while":
            _walk(equation.params["body_jaxpr"].jaxpr, ins[equation.params["cond_nconsts"] :], entered, ranks)
        elif inner is not None and len(inner.invars) == len(ins) and len(inner.outvars) == len(outs):
            outs = _walk(inner, ins, entered, ranks)
        known.update(zip(equation.outvars, outs, strict=False))
    return [read(var) for var in jaxpr.outvars]


def _mapped(
    equation: Any, ins: Sequence[_Of | None], entered: dict[int, list[Said]], ranks: Mapping[int, tuple[int, ...]]
) -> list[_Of | None]:
    """Note what a map says of the inputs that enter it; what it says of the values that leave it."""
    params, at = equation.params, source(equation) or "a library"
    if not is_traced_mesh(params["mesh"]):
        return [None] * len(equation.outvars)
    manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
    every = set(params["mesh"].axis_names) <= set(manual)
    for one, spec in zip(ins, params["in_specs"], strict=True):
        if one is None or one.said is not None or one.input not in ranks or not any(names_of(part) for part in spec):
            continue
        names: list[Name] = [None] * len(ranks[one.input])
        for dimension, part in zip(one.dimensions, spec, strict=False):
            names[dimension] = part
        entered.setdefault(one.input, []).append(Said(names=tuple(names), at=at, every=every))
    return [
        _Of(said=Said(names=whole(spec, len(var.aval.shape)), at=at, every=every))
        if any(names_of(part) for part in spec)
        else None
        for var, spec in zip(equation.outvars, params["out_specs"], strict=True)
    ]


def beside(names: tuple[Name, ...], guess: tuple[Name, ...] | None) -> tuple[Name, ...]:
    """The names that a map gives, and for the dimensions that it leaves to the compiler those of a guess which they do
    not meet.

    >>> beside(("tensor", None, None), ("fsdp", "tensor", None)), beside((None, "tensor"), ("fsdp", None))
    (('tensor', None, None), ('fsdp', 'tensor'))
    """
    taken = {one for name in names for one in names_of(name)}
    return tuple(
        name if name is not None else None if taken & set(names_of(other)) else other
        for name, other in zip(names, guess or (None,) * len(names), strict=True)
    )


def told(
    cut: Mapping[str, Said], several: Mapping[str, tuple[Said, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """What was read out of the specs, with the line that pins it: arrays alike are one line. An array of which a part
    of the cut is left to the compiler is among the guesses."""
    alike: dict[tuple[str, Said], list[str]] = {}
    for path, said in cut.items():
        if said.every:
            alike.setdefault((kind_of(path), said), []).append(path)
    ranked = list(alike.values())
    for paths in ranked[:LISTED]:
        first = cut[paths[0]]
        more = f" and {len(paths) - 1} like it" if len(paths) > 1 else ""
        pin = f"pin it with rules=[(r'{rule_for(paths, shapes)}$', {first.names!r})]"
        others = [one for one in several.get(paths[0], ()) if one.names != first.names]
        also = f", the first of its specs ({others[0].at} has {_words(others[0].names)})" if others else ""
        yield (
            f"{paths[0]}{more}, {list(shapes[paths[0]])}, is cut as jax.shard_map at {first.at} takes it, "
            f"{_words(first.names)}{also}; {pin}"
        )
    if len(ranked) > LISTED:
        rest = sum(map(len, ranked[LISTED:]))
        yield f"{rest} more arrays are cut as jax.shard_map takes them; workload.partition lists them all"


def _words(names: Sequence[Name]) -> str:
    return f"P({', '.join(repr(part) for part in names)})"
