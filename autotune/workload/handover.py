"""A call of the user's step as a workload: which arguments are the batch, and where the new state is returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from autotune.workload.adapt import Adapted, abstract
from autotune.workload.call import (
    Fit,
    PureCall,
    Split,
    abstract_arguments,
    abstract_parts,
    fit_call,
    names_of,
    places_of,
)
from autotune.workload.dimensions import dimensions_of
from autotune.workload.flow import fed_by, flow_of
from autotune.workload.leaves import path_of, same_structure
from autotune.workload.replicas import refuse_replicas
from autotune.workload.returned import find_returned
from autotune.workload.tracing import first_that_traces, tracing


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class CallStep:
    """The call as `function(state, batch) -> (state, metrics)`.

    `places`: name -> position or keyword of each argument. `batch`: the names of the arguments that are the batch.
    `returned`: for each leaf of the state, which leaf of what the call gives is its new value; None where the call
    leaves it as it is.
    """

    call: PureCall
    places: Mapping[str, int | str]
    batch: tuple[str, ...]
    returned: tuple[int | None, ...]

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        given = state | ({self.batch[0]: batch} if len(self.batch) == 1 else batch)
        arguments = tuple(given[name] for name, place in self.places.items() if isinstance(place, int))
        named = {place: given[name] for name, place in self.places.items() if isinstance(place, str)}
        made = self.call(self.call.parts_of((arguments, named)))
        leaves = jax.tree.leaves(made)
        old, structure = jax.tree.flatten(state)
        new = [leaf if place is None else leaves[place] for leaf, place in zip(old, self.returned, strict=True)]
        taken = {place for place in self.returned if place is not None}
        return jax.tree.unflatten(structure, new), [leaf for index, leaf in enumerate(leaves) if index not in taken]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallJaxpr:
    """The jaxpr of a call with its inputs as (state, batch) and its outputs as (state, metrics): a second trace of
    `CallStep` would say the same. It has what `jax.extend.core.ClosedJaxpr` has for a reader."""

    closed: Any
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]

    @property
    def jaxpr(self) -> CallJaxpr:
        return self

    @property
    def eqns(self) -> Any:
        return self.closed.jaxpr.eqns

    @property
    def consts(self) -> Any:
        return self.closed.consts

    def __str__(self) -> str:
        places = {var: index for index, var in enumerate(self.closed.jaxpr.invars)}
        order = [places[var] for var in self.invars]
        made = {id(var): index for index, var in enumerate(self.closed.jaxpr.outvars)}
        new = [made.get(id(var), "as it was") for var in self.outvars]
        return f"{self.closed}\n{order} -> {new}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """A call in the tuner's shape, its trace, whether its mesh axes are Explicit, where it finds its mesh
    (`autotune.partition.CONTEXTS`), the axes of that mesh where it has no others, what is to be said of it, and the
    name of the argument that is the batch (None where several are)."""

    adapted: Adapted
    closed: CallJaxpr
    explicit: bool
    context: str
    only_axes: tuple[str, ...]
    notes: tuple[str, ...]
    batch: str | None


def hand_over(
    step: Callable[..., Any],
    arguments: Sequence[Any] | Callable[[], Sequence[Any]],
    named: Mapping[str, Any],
    batch: Any,
    explicit: bool | None,
    mesh_axes: tuple[str, ...],
) -> HandedOver:
    """Read one call of the step as its own loop makes it; ValueError in one line for what cannot be one."""
    if not callable(step):
        raise ValueError(f"of_call: step={step!r} must be a function")
    make = arguments if callable(arguments) else None
    if make is not None:
        with tracing(False, mesh_axes):
            arguments = abstract_arguments(step, make)
    if not isinstance(arguments, (tuple, list)):
        raise ValueError(
            f"of_call: args={type(arguments).__name__} must be a tuple of the step's arguments, or a function that "
            "makes it"
        )
    if not isinstance(named, Mapping):
        raise ValueError(f"of_call: kwargs={type(named).__name__} must be a dict of the step's keyword arguments")
    given, said = tuple(arguments), explicit
    places = places_of(step, given, named)
    chosen = batch_names(batch, places, names_of(step, given, named))
    refuse_replicas(step, given, named, chosen)
    kinds = (False, True) if explicit is None else (explicit,)
    found = first_that_traces(
        lambda: fit_call(step, given, named), kinds, mesh_axes, (given, named),
        bound=lambda made: made[0].bound_axes, closed=lambda made: made[2],
    )  # fmt: skip
    (fit, split, closed, shapes), explicit = found.made, found.explicit
    trees = _by_name(split, places, abstract_parts(split.parts))
    data = {name: trees[name] for name in chosen}
    for name, tree in data.items():
        if not jax.tree.leaves(tree):
            raise ValueError(f"of_call: batch={name!r} holds no arrays; arguments: {', '.join(places)}")
    state = {name: tree for name, tree in trees.items() if name not in chosen}
    returned, inputs = _returned(split, places, state, data, closed, shapes)
    made = closed.jaxpr.outvars
    read = [closed.jaxpr.invars[index] for index in jax.tree.leaves({name: inputs[name] for name in state})]
    new = [var if place is None else made[place] for var, place in zip(read, returned, strict=True)]
    metrics = [var for index, var in enumerate(made) if index not in set(returned)]
    data_inputs = inputs[chosen[0]] if len(chosen) == 1 else {name: inputs[name] for name in chosen}
    rows = [closed.jaxpr.invars[index] for index in jax.tree.leaves(data_inputs)]
    placed = _by_name(split, places, abstract(split.parts))
    whole_batch = {name: placed[name] for name in chosen}
    adapted = Adapted(
        function=CallStep(call=split.call, places=places, batch=chosen, returned=returned),
        state={name: placed[name] for name in state},
        batch=whole_batch[chosen[0]] if len(chosen) == 1 else whole_batch,
        initialise=None
        if make is None
        else _Initialise(make=make, fit=fit, named=named, places=places, of=tuple(state)),
        in_place=False,
        again=None if make is None else partial(_adapted_again, step, make, named, chosen, explicit, mesh_axes),
    )
    if not jax.tree.leaves(adapted.state):
        raise ValueError(
            "of_call: no argument beside the batch holds arrays; the step has no state. Where one argument holds both, "
            "hand over a function that takes its parts one by one"
        )
    notes = [*found.notes(), *fit.notes]
    if explicit and said is None:
        notes.append(
            "the step is traced with Explicit mesh axes: with Auto axes its trace fails; pin it with explicit=True"
        )
    ordered = CallJaxpr(closed=closed, invars=(*read, *rows), outvars=(*new, *metrics))
    return HandedOver(
        adapted=adapted, closed=ordered, explicit=explicit, context=found.context, only_axes=found.only,
        notes=tuple(notes), batch=chosen[0] if len(chosen) == 1 else None,
    )  # fmt: skip


def _adapted_again(*given: Any) -> Adapted:
    return hand_over(*given).adapted


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class _Initialise:
    """Makes the real state, by the names of the arguments `of`, from the user's own function that makes them."""

    make: Callable[[], Sequence[Any]]
    fit: Fit
    named: Mapping[str, Any]
    places: Mapping[str, int | str]
    of: tuple[str, ...]

    def __call__(self) -> dict[str, Any]:
        with nnx.use_eager_sharding(False):
            split = self.fit.split(tuple(self.make()), self.named)
        trees = _by_name(split, self.places, split.parts)
        return {name: trees[name] for name in self.of}


def batch_names(batch: Any, places: Mapping[str, int | str], given: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arguments that are the batch, said by position, keyword or the object itself, or several of
    them in a tuple."""
    same = [name for name, argument in given.items() if argument is batch]
    if same and not isinstance(batch, (bool, int, str)):
        return tuple(same[:1])
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise ValueError("of_call: batch=() names no argument")
        return tuple(dict.fromkeys(name for one in batch for name in batch_names(one, places, given)))
    known = ", ".join(f"{name} ({place})" if isinstance(place, int) else name for name, place in places.items())
    if isinstance(batch, bool) or not isinstance(batch, (int, str)):
        raise ValueError(
            f"of_call: batch={type(batch).__name__} is none of the arguments; "
            f"give its position, its name or the object: {known}"
        )
    at = len([place for place in places.values() if isinstance(place, int)])
    wanted = batch + at if isinstance(batch, int) and batch < 0 else batch
    for name, place in places.items():
        if wanted in (name, place):
            return (name,)
    raise ValueError(f"of_call: batch={batch!r} is none of the arguments: {known}")


def _by_name(split: Split, places: Mapping[str, int | str], parts: list[Any]) -> dict[str, Any]:
    arguments, named = split.filled(parts)
    return {name: arguments[place] if isinstance(place, int) else named[place] for name, place in places.items()}


def _returned(
    split: Split,
    places: Mapping[str, int | str],
    state: Mapping[str, Any],
    data: Mapping[str, Any],
    closed: Any,
    shapes: Any,
) -> tuple[tuple[int | None, ...], dict[str, Any]]:
    """(for each leaf of the state, in JAX's own order, the output of the call that is its new value; the arguments by
    name with the number of its input in place of each array).

    What NNX objects hold is where the call left it; the rest is looked for in what the step returns.
    """
    result, after = shapes
    numbers = iter(range(len(jax.tree.leaves(split.parts))))
    inputs = _by_name(split, places, jax.tree.map(lambda leaf: next(numbers), split.parts))
    order = [index for name in state for index in jax.tree.leaves(inputs[name])]
    place_of = {index: place for place, index in enumerate(order)}
    in_place: dict[int, int] = {}
    output = len(jax.tree.leaves(result))
    first = 0
    for part, new in zip(split.parts, after, strict=True):
        count = len(jax.tree.leaves(part))
        if new is not None:
            if not same_structure(part, new):
                raise ValueError(f"of_call: {_changed(part, new)}")
            for (path, old), now in zip(
                jax.tree_util.tree_flatten_with_path(part)[0], jax.tree.leaves(new), strict=True
            ):
                if np.shape(old) != now.shape or getattr(old, "dtype", now.dtype) != now.dtype:
                    raise ValueError(
                        f"of_call: the step turns {path_of(path)} from {old.dtype}{list(old.shape)} into "
                        f"{now.dtype}{list(now.shape)}; a state must keep its shapes"
                    )
            in_place |= {first + index: output + index for index in range(count)}
            output += count
        first += count
    flow = flow_of(closed.jaxpr)
    fed, within = fed_by(flow), fed_by(flow, within_loss=True)
    rows = _RowsAgree(closed.jaxpr, [index for name in data for index in jax.tree.leaves(inputs[name])])
    objects = {place_of[index] for index in in_place if index in place_of}
    found = find_returned(
        {name: tree for name, tree in state.items()},
        result,
        lambda leaf: {place_of[index] for index in fed(leaf) if index in place_of} - objects,
        lambda leaf: {place_of[index] for index in within(leaf) if index in place_of} - objects,
        lambda place, leaf: rows(order[place], leaf),
    )
    new_of = {order[place]: leaf for place, leaf in found.items()} | in_place
    return tuple(new_of.get(index) for index in jax.tree.leaves({name: inputs[name] for name in state})), inputs


class _RowsAgree:
    """Whether an input of a jaxpr and an output have the batch in the same dimensions: predictions have it and
    parameters of their shape do not. The first dimensions of the `batch` inputs are the batch."""

    def __init__(self, jaxpr: Any, batch: Sequence[int]) -> None:
        self.found, self.inputs = dimensions_of(jaxpr)
        self.rows = {self.found.axis(self.inputs[index][0]) for index in batch if self.inputs[index]}

    def __call__(self, old: int, new: int) -> bool:
        return self._of(self.inputs[old]) == self._of(self.found.outputs[new])

    def _of(self, dimensions: tuple[int, ...]) -> list[bool]:
        return [self.found.axis(one) in self.rows for one in dimensions]


def _changed(before: Any, after: Any) -> str:
    """What the step adds to an NNX object, or takes away."""
    old, new = ({path_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(one)[0]} for one in (before, after))
    added, gone = sorted(new - old), sorted(old - new)
    words = [f"adds {', '.join(added[:3])}" if added else "", f"removes {', '.join(gone[:3])}" if gone else ""]
    said = " and ".join(word for word in words if word) or "changes its structure"
    return f"the step {said} in an NNX object: make all variables before the step (nnx.pop what it only records)"
