"""What the traced train step says before any compiler sees it: matmuls with loop trips, bytes, names of mesh axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One matmul or convolution of the trace, whole mesh: (batch, m, k) x (batch, k, n), `trips` times a step."""

    batch: int
    m: int
    n: int
    k: int
    trips: int
    dtype: str
    recomputed: bool

    @property
    def flops(self) -> float:
        """2 per multiply-add, all trips."""
        return 2.0 * self.batch * self.m * self.n * self.k * self.trips


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The step before sharding; everything is of the whole mesh and of one step.

    `parameter_bytes`, `frozen_bytes`, `mutable_bytes` and `optimizer_bytes` are of the state's leaves of that role
    (`autotune.workload.roles`), `batch_bytes` of the batch's. `parameters` counts those that are trained.
    `activation_bytes`: the most that is alive at once between inputs and outputs if nothing were fused: an upper bound.
    `notes`: what could not be counted.
    """

    dots: tuple[Dot, ...]
    parameters: int
    parameter_bytes: int
    frozen_bytes: int
    mutable_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    activation_bytes: int
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of the model: forward and backward, without what rematerialisation runs a second time."""
        return sum(dot.flops for dot in self.dots if not dot.recomputed)

    @property
    def dtype(self) -> str | None:
        """The dtype most of the FLOPs are done in; None without matmuls."""
        share: dict[str, float] = {}
        for dot in self.dots:
            share[dot.dtype] = share.get(dot.dtype, 0.0) + dot.flops
        return max(share, key=lambda name: share[name], default=None)

    @property
    def recompute_flops(self) -> float:
        """What rematerialisation runs a second time."""
        return sum(dot.flops for dot in self.dots if dot.recomputed)


def inner_jaxprs(equation: Any) -> Iterator[tuple[Any, int]]:
    """The jaxprs inside one equation, each with how often it runs (a while loop of unknown length: once)."""
    name = equation.primitive.name
    trips = equation.params["length"] if name == "scan" else 1
    if name == "cond":
        yield max((branch.jaxpr for branch in equation.params["branches"]), key=lambda one: _flops(one)), 1
        return
    if name == "pallas_call":
        trips = math.prod(extent for extent in equation.params["grid_mapping"].grid if isinstance(extent, int))
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, jex.ClosedJaxpr):
                yield part.jaxpr, trips
            elif isinstance(part, jex.Jaxpr):
                yield part, trips
    # custom_vjp and custom_jvp keep their rules as functions, not as jaxprs: only the primal is found above.


def dots(jaxpr: Any, trips: int = 1, recomputed: bool = False) -> Iterator[Dot]:
    """Every matmul and convolution under a jaxpr, loop trips multiplied."""
    for equation in jaxpr.eqns:
        again = recomputed or "rematted_computation" in str(equation.source_info.name_stack)
        if equation.primitive.name == "dot_general":
            yield _dot(equation, trips, again)
        elif equation.primitive.name == "conv_general_dilated":
            yield _convolution(equation, trips, again)
        else:
            for inner, times in inner_jaxprs(equation):
                yield from dots(inner, trips * times, again)


def activation_bytes(jaxpr: Any) -> int:
    """The most bytes alive at once inside a jaxpr, its arguments not counted, running in the traced order."""
    last: dict[Any, int] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for var in equation.invars:
            if isinstance(var, jex.Var):
                last[var] = index
    for var in jaxpr.outvars:
        if isinstance(var, jex.Var):
            last[var] = len(jaxpr.eqns)
    alive: dict[Any, int] = {}
    total = peak = 0
    for index, equation in enumerate(jaxpr.eqns):
        made = {var: nbytes(var.aval) for var in equation.outvars if var in last}
        inside = max((activation_bytes(inner) for inner, _ in inner_jaxprs(equation)), default=0)
        peak = max(peak, total + max(inside, sum(made.values())))
        alive |= made
        total += sum(made.values())
        for var in {var for var in equation.invars if isinstance(var, jex.Var)}:
            if last[var] == index and var in alive:
                total -= alive.pop(var)
    return peak


def notes(jaxpr: Any) -> tuple[str, ...]:
    """What the counts above cannot know."""
    names = {equation.primitive.name for equation in equations(jaxpr)}
    found = []
    if "while" in names:
        found.append("the step has a while loop of unknown length: its matmuls are counted once")
    if "pallas_call" in names:
        found.append("the step has Pallas kernels: their matmuls are counted as if no block were skipped")
    opaque = sorted(name for name in names if "ffi_call" in name or name.startswith("dot_product"))
    if opaque:
        found.append(f"matmuls inside {', '.join(opaque)} are not counted")
    return tuple(found)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner, _ in inner_jaxprs(equation):
            yield from equations(inner)


def constants(closed: Any) -> list[Any]:
    """The arrays that a ClosedJaxpr holds itself, those of its inner programs too, each once; numbers are none."""
    found = {id(one): one for one in closed.consts}
    for equation in equations(closed.jaxpr):
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(part, jex.ClosedJaxpr):
                    found |= {id(one): one for one in part.consts}
        found |= {id(one.val): one.val for one in equation.invars if isinstance(one, jex.Literal)}
    return [one for one in found.values() if math.prod(getattr(one, "shape", ())) > 1]


def mesh_axis_names(jaxpr: Any) -> list[str]:
    """Mesh axes that the step's own sharding constraints name, in the order of their first use."""
    found: dict[str, None] = {}
    for part in named_parts(jaxpr):
        found |= dict.fromkeys(name for name in names_of(part) if isinstance(name, str))
    return list(found)


def names_of(part: Any) -> tuple[Any, ...]:
    """What a constraint says of one dimension as a tuple of names; () where it names nothing."""
    return part if isinstance(part, tuple) else (part,) if isinstance(part, str) else ()


def named_parts(jaxpr: Any) -> Iterator[Any]:
    """What the step's own constraints say of each dimension: a mesh axis, a tuple of them, or None."""
    for equation in equations(jaxpr):
        for spec in specs_of(equation):
            yield from spec


def specs_of(equation: Any) -> Iterator[Any]:
    """The partition specs that an equation itself holds for what it makes."""
    for word in ("sharding", "out_sharding", "dst_sharding"):
        value = equation.params.get(word)
        for one in value if isinstance(value, (tuple, list)) else (value,):
            yield getattr(one, "spec", None) or ()


def nbytes(leaf: Any) -> int:
    """Bytes of an abstract array; 0 for what has no fixed size."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return 0
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(leaf.shape)
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _flops(jaxpr: Any) -> float:
    return sum(dot.flops for dot in dots(jaxpr))


def _dot(equation: Any, trips: int, recomputed: bool) -> Dot:
    (left_contract, right_contract), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = (var.aval.shape for var in equation.invars)

    def size(shape, dimensions) -> int:
        return math.prod(shape[index] for index in dimensions)

    batch, k = size(left, left_batch), size(left, left_contract)
    free_left = [index for index in range(len(left)) if index not in (*left_batch, *left_contract)]
    free_right = [index for index in range(len(right)) if index not in (*right_batch, *right_contract)]
    return Dot(
        batch=batch,
        m=size(left, free_left),
        n=size(right, free_right),
        k=k,
        trips=trips,
        dtype=str(equation.invars[0].aval.dtype),
        recomputed=recomputed,
    )


def _convolution(equation: Any, trips: int, recomputed: bool) -> Dot:
    """As the matmul it is: every output pixel times the kernel's window."""
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    out = equation.outvars[0].aval.shape
    features = out[numbers.out_spec[1]]
    window = math.prod(kernel[index] for index in numbers.rhs_spec[1:])
    m = math.prod(out) // features
    dtype = str(equation.invars[0].aval.dtype)
    return Dot(batch=1, m=m, n=features, k=window, trips=trips, dtype=dtype, recomputed=recomputed)
