"""One call of a user's step, as its own loop makes it, as a pure function of the arrays in it.

Arrays, NNX objects and plain numbers may stand anywhere among the arguments. All else is static: config objects,
functions, texts. NNX objects are split into their arrays; what the step changes in place is given back beside what it
returns. Plain numbers are traced, as `jax.jit` does it, unless the step can only take them as they are.

    step(model, {"tokens": tokens}, 0.1, "adam")
    skeleton   (hole, {"tokens": hole}, hole, "adam")
    parts      [nnx.State of model, tokens, 0.1]        what a trace takes in place of the arguments
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.user_code import UserCodeError, user_code
from autotune.workload.leaves import is_array, path_of

NUMBERS = (bool, int, float, complex)

STATIC_NUMBERS: tuple[tuple[type, ...], ...] = ((), (bool, int), NUMBERS)
"""Which plain numbers are static, in the order in which it is tried: a step that branches on a number, or makes a shape
of it, can only take it as it is."""


class _Hole:
    """Stands where an array or an NNX object was. A leaf, unlike None, which an argument may hold itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Argument:
    """Stands where a step returns one of the NNX objects that it was given."""

    which: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """Stands where a step returns another NNX object."""

    graph: Any


_MARKS = (_Hole, _Argument, _Made)


def _marked(leaf: Any, known: Mapping[int, int], static: tuple[type, ...]) -> Any:
    """A leaf of what a step returns, with a mark in place of an array or an NNX object. `known`: id of each of the
    call's own objects -> which it is."""
    if is_object(leaf):
        return _Argument(which=known[id(leaf)]) if id(leaf) in known else _Made(graph=nnx.split(leaf)[0])
    return _Hole() if _is_traced(leaf, static) else leaf


def _traced_part(leaf: Any, known: Mapping[int, int], static: tuple[type, ...]) -> Any:
    """The arrays of that leaf; None where it has none, or where they are those of one of the call's own objects."""
    if is_object(leaf):
        return None if id(leaf) in known else nnx.split(leaf)[1]
    return leaf if _is_traced(leaf, static) else None


def _is_traced(leaf: Any, static: tuple[type, ...]) -> bool:
    """Whether a call takes or gives a leaf as an array; a number of a `static` type stays the number that it is."""
    return is_array(leaf) and type(leaf) not in static


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class PureCall:
    """A call with a hole in place of each array and NNX object; calling it with what fills the holes runs the step."""

    step: Callable[..., Any]
    """The user's function."""
    skeleton: Any
    """(arguments, keywords) with holes."""
    objects: tuple[int | None, ...]
    """For each hole, which of the NNX objects stands there; None for an array."""
    graph: Any
    """What the NNX objects are beside their arrays."""
    bound_axes: tuple[str, ...]
    """Names of the axes of pmap that one replica is bound to."""
    static: tuple[type, ...] = ()
    """Types of plain numbers that are no arrays."""
    returned: list[Any] = field(default_factory=list)
    """What the last trace returned, with holes for its arrays."""

    def __call__(self, parts: list[Any]) -> tuple[Any, list[Any]]:
        """(the arrays that the step returns, for each hole the arrays of its NNX object after the call or None).

        What it returns beside arrays is kept in `returned`; an NNX object that it returns and that was no argument is
        given as its `nnx.State`.
        `parts`: for each hole the array, the `nnx.State` of the object that stands there first, or None where an object
        stands again.
        """
        objects = self._merged(parts)
        arguments, named = self._whole(parts, objects)
        with user_code("the step"):
            result = self._bound()(*arguments, **named)
        states = nnx.state(tuple(objects)) if objects else {}
        first = _first(self.objects)
        after = [
            _substate(states, which) if which is not None and index in first else None
            for index, which in enumerate(self.objects)
        ]
        known = {id(one): which for which, one in enumerate(objects)}
        self.returned[:] = [jax.tree.map(lambda leaf: _marked(leaf, known, self.static), result, is_leaf=is_object)]
        return jax.tree.map(lambda leaf: _traced_part(leaf, known, self.static), result, is_leaf=is_object), after

    def arguments(self, parts: list[Any]) -> tuple[Any, ...]:
        """The arguments by position, with these parts in the holes and NNX objects made of theirs."""
        return tuple(self._whole(parts, self._merged(parts))[0])

    def _whole(self, parts: list[Any], objects: list[Any]) -> Any:
        """(arguments, keywords) with these parts and NNX objects in the holes."""
        given = iter(zip(self.objects, parts, strict=True))

        def fill(leaf: Any) -> Any:
            if not isinstance(leaf, _Hole):
                return leaf
            which, part = next(given)
            return part if which is None else objects[which]

        return jax.tree.map(fill, self.skeleton)

    def result(self, arrays: Any, made: tuple[Any, ...]) -> Any:
        """What the step returns, from the arrays of it; `made`: the user's own objects."""

        def whole(kept: Any, part: Any) -> Any:
            if isinstance(kept, _Hole):
                return part
            if isinstance(kept, _Argument):
                return made[kept.which]
            return nnx.merge(kept.graph, part) if isinstance(kept, _Made) else kept

        return jax.tree.map(whole, self.returned[0], arrays, is_leaf=lambda one: isinstance(one, _MARKS))

    def parts_of(self, filled: Any) -> list[Any]:
        """What stands in the holes of (arguments, keywords) that `Split.filled` made."""
        parts: list[Any] = []
        jax.tree.map(lambda leaf, part: parts.append(part) if isinstance(leaf, _Hole) else None, self.skeleton, filled)
        return parts

    def _merged(self, parts: list[Any]) -> list[Any]:
        if self.graph is None:
            return []
        states = {
            which: part
            for which, part in zip(self.objects, parts, strict=True)
            if which is not None and part is not None and jax.tree.leaves(part)
        }
        return list(nnx.merge(self.graph, nnx.State(states)))

    def _bound(self) -> Callable[..., Any]:
        """The step with the axes of pmap bound: one replica that holds the whole batch."""
        step = self.step
        for name in self.bound_axes:
            step = partial(_one_replica, step, name)
        return step


def _one_replica(step: Callable[..., Any], name: str, *arguments: Any, **named: Any) -> Any:
    """The step under one name of a pmap axis of size 1; its results without the axis."""
    statics: list[Any] = []

    def arrays_only(*arguments: Any, **named: Any) -> Any:
        found, structure = jax.tree.flatten(step(*arguments, **named))
        statics[:] = [structure, [None if is_array(leaf) else leaf for leaf in found]]
        return [leaf if is_array(leaf) else jnp.zeros(()) for leaf in found]

    stacked = jax.vmap(
        lambda: arrays_only(*arguments, **named), in_axes=(), out_axes=0, axis_name=name, axis_size=1
    )()  # fmt: skip
    structure, kept = statics
    leaves = [jnp.squeeze(leaf, 0) if one is None else one for leaf, one in zip(stacked, kept, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def _first(objects: tuple[int | None, ...]) -> set[int]:
    """The holes in which an object stands for the first time."""
    seen: set[int] = set()
    found = set()
    for index, which in enumerate(objects):
        if which is not None and which not in seen:
            seen.add(which)
            found.add(index)
    return found


def _substate(states: Any, which: int) -> Any:
    return states[which] if which in states else nnx.State({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A call taken apart: the pure call, what fills its holes (`parts`), and the NNX objects themselves (`made`)."""

    call: PureCall
    parts: list[Any]
    made: tuple[Any, ...]

    def filled(self, parts: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(arguments, keywords) with these parts in the holes and None in place of what is static."""
        given = iter(parts)
        return jax.tree.map(lambda leaf: next(given) if isinstance(leaf, _Hole) else None, self.call.skeleton)

    def update(self, after: list[Any]) -> None:
        """Give the user's own objects what the call made of them."""
        for which, state in zip(self.call.objects, after, strict=True):
            if which is not None and state is not None and jax.tree.leaves(state):
                nnx.update(self.made[which], state)


def is_hole(leaf: Any) -> bool:
    """Whether an array or an NNX object stood here."""
    return isinstance(leaf, _Hole)


def is_object(node: Any) -> bool:
    """Whether it is an NNX object: a module, an optimizer, a stream of random keys, a metric."""
    return isinstance(node, nnx.Pytree)


def split_call(
    step: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    *,
    static: tuple[type, ...] = (),
    static_arguments: frozenset[int | str] = frozenset(),
    traced_numbers: frozenset[int | str] = frozenset(),
    bound_axes: tuple[str, ...] = (),
) -> Split:
    """Take a call apart. `static`: types of plain numbers that stay as they are, but for those in the arguments
    `traced_numbers`; `static_arguments`: positions and keywords of whole arguments that do."""
    places: dict[int, int] = {}
    made: list[Any] = []
    objects: list[int | None] = []
    parts: list[Any] = []

    def hole(leaf: Any, static: tuple[type, ...]) -> Any:
        if is_object(leaf):
            again = id(leaf) in places
            which = places.setdefault(id(leaf), len(made))
            if not again:
                made.append(leaf)
            objects.append(which)
            parts.append(None if again else which)
            return _Hole()
        if not _is_traced(leaf, static):
            return leaf
        objects.append(None)
        parts.append(leaf)
        return _Hole()

    def taken(key: int | str, argument: Any) -> Any:
        if key in static_arguments:
            return argument
        types = () if key in traced_numbers else static
        return jax.tree.map(lambda leaf: hole(leaf, types), argument, is_leaf=is_object)

    skeleton = (
        tuple(taken(index, one) for index, one in enumerate(arguments)),
        {name: taken(name, named[name]) for name in sorted(named)},  # as JAX walks a dict: holes are counted so
    )
    graph = None
    if made:
        with nnx.use_eager_sharding(False):
            graph, states = nnx.split(tuple(made))
        first = _first(tuple(objects))
        parts = [
            part if which is None else _substate(states, which) if index in first else None
            for index, (which, part) in enumerate(zip(objects, parts, strict=True))
        ]
    call = PureCall(
        step=step, skeleton=skeleton, objects=tuple(objects), graph=graph, bound_axes=bound_axes, static=static
    )
    return Split(call=call, parts=parts, made=tuple(made))


def abstract_arguments(step: Callable[..., Any], make: Callable[[], Any]) -> tuple[Any, ...]:
    """The arguments that `make()` returns as a tuple, with shapes in place of arrays, in NNX objects too: nothing is
    computed. ValueError where it returns no tuple."""
    made: list[Any] = []

    def pure() -> list[Any]:
        # Without a mesh of the user's own to live on, an annotated NNX variable must not ask for one when it is made.
        with nnx.use_eager_sharding(False):
            arguments = make()
        if not isinstance(arguments, (tuple, list)):
            made[:] = [arguments]
            return []
        made[:] = [split_call(step, tuple(arguments), {}, static=NUMBERS)]
        return list(made[0].parts)

    with user_code("making the arguments"):
        parts = jax.eval_shape(pure)
    if not isinstance(made[0], Split):
        kind = "an array" if is_array(made[0]) else type(made[0]).__name__
        raise ValueError(f"of_call: args() returns {kind}; it must return a tuple of the step's arguments")
    return made[0].call.arguments(parts)


@dataclass(slots=True)
class Fit:
    """How a step has to be called so that it can be traced, found by trying: `step` (the user's own, or the function
    inside its `jax.jit`), the plain numbers that are static, the pmap axes that are bound, and what to say of it.

    `static`: types of numbers that are static. `traced_numbers`: arguments whose numbers are traced in any case."""

    step: Callable[..., Any]
    static: tuple[type, ...] = ()
    static_arguments: frozenset[int | str] = frozenset()
    traced_numbers: frozenset[int | str] = frozenset()
    bound_axes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def split(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Split:
        """The call taken apart in this way."""
        return split_call(
            self.step, arguments, named, static=self.static, static_arguments=self.static_arguments,
            traced_numbers=self.traced_numbers, bound_axes=self.bound_axes,
        )  # fmt: skip

    def trace(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Split, Any, Any]:
        """The call taken apart, its jaxpr, and the shapes that it returns; UserCodeError where it cannot be traced."""
        split = self.split(arguments, named)
        return split, *jax.make_jaxpr(split.call, return_shape=True)(abstract_parts(split.parts))


def fit_call(
    step: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    static_arguments: frozenset[int | str] = frozenset(),
) -> tuple[Fit, Split, Any, Any]:
    """The first way in which the step can be traced, the call taken apart so, its jaxpr, and the shapes it returns.

    Tried in this order: plain numbers traced, then whole numbers and truth values static, then all numbers (but only in
    the arguments that need it: a state's count of its steps stays traced); for a step that is jitted already and fails
    so, or that says itself where its arguments live, the function inside the jit. An axis name of pmap that is not
    bound is bound to one replica. The first error is raised where nothing helps.
    """
    first: UserCodeError | None = None
    notes: tuple[str, ...] = ()
    inner = inside_jit(step)
    for function in dict.fromkeys((inner if is_pmap(step) else step, inner)):
        for static in _tries(arguments, named):
            bound: tuple[str, ...] = ()
            while True:
                fit = Fit(step=function, static=static, static_arguments=static_arguments, bound_axes=bound)
                try:
                    split, closed, shapes = fit.trace(arguments, named)
                except UserCodeError as error:
                    first = first or error
                    name = _unbound(error)
                    if name is None or name in bound:
                        break
                    bound = (*bound, name)
                    continue
                if function is not inner and _says_where(closed.jaxpr):
                    said = _says_where(closed.jaxpr)
                    notes = (f"the {said} of the step's own jax.jit are left out: a plan says where arrays live",)
                    break
                if static:
                    fit, split, closed, shapes = _fewest_static(fit, arguments, named, (split, closed, shapes))
                fit.notes = [*notes, *_notes(fit, arguments, named)]
                return fit, split, closed, shapes
            if notes and function is not inner:
                break
    assert first is not None, "a step without an error is returned"
    raise first


def _fewest_static(
    fit: Fit, arguments: tuple[Any, ...], named: Mapping[str, Any], made: tuple[Split, Any, Any]
) -> tuple[Fit, Split, Any, Any]:
    """The fit with the numbers traced in each argument that does not need them static, and what it then makes.

    Numbers beside arrays come first and together, because they change from step to step: the `step=0` of a new
    `TrainState` would make each step another program.
    """
    every: list[tuple[int | str, Any]] = [*enumerate(arguments), *named.items()]
    leaves = {key: jax.tree.leaves(one, is_leaf=is_object) for key, one in every}
    holding = [
        key for key, found in leaves.items()
        if key not in fit.static_arguments and any(type(leaf) in fit.static for leaf in found)
    ]  # fmt: skip
    states = {key for key in holding if any(_is_traced(leaf, NUMBERS) or is_object(leaf) for leaf in leaves[key])}
    waiting = [states, *({key} for key in holding if key not in states)]
    while waiting:
        group = waiting.pop(0)
        wider = dataclasses.replace(fit, traced_numbers=fit.traced_numbers | group)
        try:
            if group and wider.traced_numbers != set(holding):  # all of them were tried before
                made, fit = wider.trace(arguments, named), wider
                continue
        except UserCodeError:
            pass  # what is tried here need not work: `fit` does
        waiting = [{key} for key in holding if key in group and len(group) > 1] + waiting
    return fit, *made


def abstract_parts(parts: list[Any]) -> list[Any]:
    """Shapes in place of arrays, without their places: to be traced on any mesh."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, NUMBERS):
            return jax.eval_shape(lambda: jnp.asarray(leaf))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))

    return jax.tree.map(shape, parts)


def _tries(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> list[tuple[type, ...]]:
    """Which plain numbers to leave static, in turn; only what makes a difference for these arguments."""
    there = {type(leaf) for leaf in jax.tree.leaves((arguments, dict(named)), is_leaf=is_object)} & set(NUMBERS)
    return list({frozenset(set(types) & there): types for types in reversed(STATIC_NUMBERS)}.values())[::-1]


def _says_where(jaxpr: Any) -> str:
    """Which of `in_shardings` and `out_shardings` a jit at the top of a jaxpr has, "" for neither."""
    return " and ".join(
        word
        for word in ("in_shardings", "out_shardings")
        if any(
            hasattr(one, "spec") or hasattr(one, "device_set")
            for equation in jaxpr.eqns
            for one in equation.params.get(word, ())
        )
    )


def donated(jaxpr: Any) -> set[int]:
    """The inputs of a jaxpr that a jit at its top takes over (`donate_argnums`)."""
    found = set()
    for equation in jaxpr.eqns:
        flags = equation.params.get("donated_invars", ())
        given = {var for var, flag in zip(equation.invars, flags, strict=False) if flag and hasattr(var, "count")}
        found |= {index for index, var in enumerate(jaxpr.invars) if var in given}
    return found


def _notes(fit: Fit, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> list[str]:
    notes = [
        f"the step names the axis {name!r} of jax.pmap: it was bound to one replica that holds the whole batch "
        "(jax.vmap(step, axis_name=..., axis_size=1)), so give the state of one replica and the global batch; what a "
        "replica computes of its own rows alone (batch statistics, keys by jax.lax.axis_index) is computed of all rows"
        for name in fit.bound_axes
    ]
    given = names_of(fit.step, arguments, named)
    numbers = [
        f"{'/'.join(part for part in (name, path_of(path)) if part)}={value!r}"
        for name, place in places_of(fit.step, arguments, named).items()
        if place not in fit.traced_numbers
        for path, value in jax.tree_util.tree_flatten_with_path(given[name])[0]
        if fit.static and isinstance(value, NUMBERS) and type(value) in fit.static
    ]
    if numbers:
        shown = ", ".join(numbers[:4]) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
        notes.append(f"the step takes {shown} only as plain numbers: another value is another program")
    return notes


def _unbound(error: UserCodeError) -> str | None:
    """The axis name that the step asks for and nothing binds."""
    cause = error.__cause__
    found = re.search(r"unbound axis name: ([\w.]+)", str(cause)) if isinstance(cause, NameError) else None
    return found[1].rstrip(".") if found else None


def inside_jit(step: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function without the `jax.jit`, `nnx.jit` or `jax.pmap` around it; also of a bound method and of a
    `functools.partial`."""
    if isinstance(step, types.MethodType):
        inner = inside_jit(step.__func__)
        return step if inner is step.__func__ else types.MethodType(inner, step.__self__)
    if isinstance(step, partial):
        inner = inside_jit(step.func)
        return step if inner is step.func else partial(inner, *step.args, **step.keywords)
    if is_jit(step) or is_pmap(step):
        return inside_jit(step.__wrapped__)  # type: ignore[attr-defined]
    return step


def is_jit(step: Any) -> bool:
    """Whether it is what `jax.jit` or `nnx.jit` made of a function."""
    return hasattr(step, "__wrapped__") and not inspect.isfunction(step) and hasattr(step, "lower")


def is_pmap(step: Any) -> bool:
    """Whether it is what `jax.pmap` made of a function: a plain function that can be lowered."""
    return inspect.isfunction(step) and hasattr(step, "__wrapped__") and hasattr(step, "lower")


def names_of(step: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names that the step gives them; ValueError where the step takes no such call."""
    return {name: arguments[place] if isinstance(place, int) else named[place]
            for name, place in places_of(step, arguments, named).items()}  # fmt: skip


def places_of(step: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, int | str]:
    """Name -> position or keyword of each argument of a call; without a signature positions are names."""
    try:
        signature = inspect.signature(inside_jit(step))
    except (TypeError, ValueError):
        return {str(index): index for index in range(len(arguments))} | {name: name for name in named}
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise ValueError(
            f"of_call: the step cannot be called with {len(arguments)} arguments"
            + (f" and {', '.join(named)}" if named else "")
            + f": {error}; it is {getattr(step, '__name__', 'step')}{signature}"
        ) from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [name for name, one in signature.parameters.items() if one.kind in kinds]
    rest = next((name for name, one in signature.parameters.items() if one.kind == one.VAR_POSITIONAL), "rest")
    found: dict[str, int | str] = {}
    for index in range(len(arguments)):
        found[positional[index] if index < len(positional) else f"{rest}{index - len(positional)}"] = index
    return found | {name: name for name in named}
