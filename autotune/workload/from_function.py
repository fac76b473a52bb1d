"""From a user's step, state and batch to the fields of a Workload: names of all dimensions, trace, what was guessed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax
from jax.sharding import NamedSharding

from autotune.meshes.layout import AXES
from autotune.partition import BATCH_AXES, LOGICAL_AXIS_RULES, MESH_NAMES, Leaf, Name, Partition, expanded, extra_name
from autotune.workload.adapt import Adapted, Builder, adapt, traced
from autotune.workload.batch import batch_dimensions, tokens_of
from autotune.workload.devices_asked import devices_asked, notes_on
from autotune.workload.dimensions import dimensions_of
from autotune.workload.explicit_axes import axes_that_fail, pairs_that_fail
from autotune.workload.flow import flow_of
from autotune.workload.guess import describe, guess_names, kind_of, rule_for
from autotune.workload.handover import hand_over
from autotune.workload.leaves import annotated, leaves_of, match_rules
from autotune.workload.logical_names import Held, constraints_of, explain_names, held_away, names_heard, rules_asked
from autotune.workload.mapped_state import beside, cut_by_maps, told
from autotune.workload.pinned import mapped, own_meshes
from autotune.workload.roles import roles_of, size_text, twins_of
from autotune.workload.same_program import operations
from autotune.workload.shared_axes import with_sizes
from autotune.workload.trace import (
    Traced,
    activation_bytes,
    constants,
    dots,
    mesh_axis_names,
    named_parts,
    names_of,
    nbytes,
    notes,
)
from autotune.workload.tracing import first_that_traces

FIXED = {"remat": "none", "accumulate": "1", "reduce": "pass", "stage": "1", "sequence_parallel": "1",
         "context_attention": "gather", "offload": "none"}  # fmt: skip
"""What a step that was not built from the layout cannot change."""

WHOLE_BYTES_SHARE = 0.05
"""Arrays that stay whole on every device are worth a word when they hold more of the state than this."""

LARGEST_WHOLE = 3
"""Kinds of such arrays for which a rule is shown."""

REPLICAS = ("replica", "replicate")
"""Mesh axes along which a codebase that has a `data` axis beside them keeps its weights whole."""

UNTOLD_BYTES_SHARE = 0.01
"""Arrays without annotation are worth a word when they hold more of the parameters than this."""


def plain_fields(
    step: Callable[..., Any],
    state: Any,
    batch: Any,
    *,
    rules: Sequence[tuple[str, Any]] = (),
    logical_rules: Any = (),
    mesh_axes: Mapping[str, str] | None = None,
    parameters: Callable[[Any], Any] | None = None,
    explicit: bool = False,
    batch_axes: Mapping[str, int | None] | None = None,
    name: str | None = None,
    mesh: Any = None,
) -> dict[str, Any]:
    """Everything `Workload.of` wants, from what the user has; `mesh`: the one for which the step was built, if any."""
    own, pinned = _own_axes(mesh_axes)
    adapted = adapt(step, state, batch, explicit)
    with devices_asked() as asked, rules_asked() as looked:
        found = first_that_traces(lambda: traced(adapted), (explicit,), tuple(own), (adapted.state, adapted.batch))
    fields = fields_of(
        adapted,
        name or name_of(step),
        rules=rules,
        logical_rules=logical_rules,
        own=own,
        pinned=pinned,
        parameters=parameters,
        explicit=explicit,
        mesh_context=found.context,
        only_axes=found.only,
        batch_axes=batch_axes or {},
        batch=None,
        closed=found.made,
        mesh=mesh,
        logical=looked(),
    )
    return fields | {"guesses": (*found.notes(), *fields["guesses"], *notes_on(asked, step))}


def call_fields(
    step: Callable[..., Any],
    arguments: Sequence[Any] | Callable[[], Sequence[Any]],
    named: Mapping[str, Any],
    batch: Any,
    *,
    rules: Sequence[tuple[str, Any]] = (),
    logical_rules: Any = (),
    mesh_axes: Mapping[str, str] | None = None,
    parameters: Callable[[Any], Any] | None = None,
    explicit: bool | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """The same from one call of the step as its own loop makes it."""
    own, pinned = _own_axes(mesh_axes)
    with devices_asked() as asked, rules_asked() as looked:
        handed = hand_over(step, arguments, named, batch, explicit, tuple(own))
    fields = fields_of(
        handed.adapted,
        name or name_of(step),
        rules=rules,
        logical_rules=logical_rules,
        own=own,
        pinned=pinned,
        parameters=parameters,
        explicit=handed.explicit,
        mesh_context=handed.context,
        only_axes=handed.only_axes,
        batch_axes=batch_axes or {},
        batch=handed.batch,
        closed=handed.closed,
        mesh=None,
        logical=looked(),
    )
    return fields | {"guesses": (*handed.notes, *fields["guesses"], *notes_on(asked, step))}


def name_of(step: Callable[..., Any]) -> str:
    """What a step is called."""
    return str(getattr(step, "__name__", type(step).__name__))


def _own_axes(mesh_axes: Mapping[str, str] | None) -> tuple[dict[str, str], dict[str, int]]:
    """(own mesh axis -> ours, own mesh axis -> the size of it that the user says: "tensor=4")."""
    own: dict[str, str] = {}
    pinned: dict[str, int] = {}
    for one, said in (mesh_axes or {}).items():
        ours, equals, size = said.partition("=") if isinstance(said, str) else (said, "", "")
        if ours not in AXES:
            raise ValueError(f"mesh_axes: {one!r} is given as {said!r}, which is not one of {', '.join(AXES)}")
        if equals and not (size.isdecimal() and int(size) > 0):
            raise ValueError(f"mesh_axes: {one!r} is given as {said!r}; a size is a whole number: {ours}=4")
        own[one] = ours
        if equals:
            pinned[one] = int(size)
    for one in pinned:
        if list(own.values()).count(own[one]) == 1:
            raise ValueError(
                f"mesh_axes: {one!r} is given a size, but no other axis is {own[one]}; pin it with fix=('{own[one]}="
                f"{pinned[one]}',) of tune"
            )
    return own, pinned


def fields_of(
    adapted: Adapted,
    name: str,
    *,
    rules: Sequence[tuple[str, Any]],
    logical_rules: Any,
    own: dict[str, str],
    pinned: Mapping[str, int],
    parameters: Callable[[Any], Any] | None,
    explicit: bool,
    mesh_context: str,
    only_axes: tuple[str, ...],
    batch_axes: Mapping[str, int | None],
    batch: str | None,
    closed: Any,
    mesh: Any,
    logical: bool,
) -> dict[str, Any]:
    """Everything `Workload.of` wants, of a step in our shape.

    `batch`: the name of the argument that is the batch, if one is. `closed`: the step's jaxpr, traced with the mesh in
    `mesh_context`, which has `only_axes` (() where it may have any). `mesh`: the one that the step was built for; any
    other in it is the user's own. `logical`: whether
    Flax asked for the meaning of logical names in that trace.
    """
    leaves = leaves_of(adapted.state)
    flow = flow_of(closed.jaxpr)
    roles, said_of_roles = roles_of(flow, adapted.state, leaves, parameters)
    said = match_rules(rules, leaves)
    for path, (node, array) in leaves.items():
        names = annotated(node, array)
        if path not in said and names is not None:
            said[path] = names
    shapes = {path: tuple(array.shape) for path, (_, array) in leaves.items()}
    by_maps, several = cut_by_maps(closed.jaxpr, tuple(leaves), shapes)
    by_maps = {path: one for path, one in by_maps.items() if path not in said}
    said |= {path: one.names for path, one in by_maps.items()}
    said_of_batch = leaves_of(adapted.batch)
    of_batch = [annotated(node, array) or () for node, array in said_of_batch.values()]
    parts = [part for names in (*said.values(), *of_batch) for name in names for part in names_of(name)]
    naming = Naming(own, logical_rules, {*parts, *mesh_axis_names(closed.jaxpr)})
    named = {path: tuple(naming.own(one) for one in names) for path, names in said.items()}
    named = naming.settle(named, roles, mesh_axis_names(closed.jaxpr))
    in_part = {path: named.pop(path) for path, one in by_maps.items() if not one.every}
    axes = dimensions_of(closed.jaxpr)
    dimensions, notes_of_batch = batch_dimensions(
        {path: array for path, (_, array) in said_of_batch.items()}, batch_axes, axes, len(leaves), batch
    )
    rows = {len(leaves) + index: axis for index, axis in enumerate(dimensions.values()) if axis is not None}
    heard_on_more = logical and not only_axes  # the second trace is on a mesh with an axis for each name
    constraining, heard = (
        names_heard(adapted, explicit, tuple(own), mesh_context) if heard_on_more else (closed, {})
    )  # fmt: skip
    held = constraints_of(constraining, heard, rows)
    naming.explain(held, tuple(heard))
    guesses = [*own_meshes(closed.jaxpr, mesh), *said_of_roles, *naming.notes, *told(by_maps, several, shapes),
               *notes_of_batch]  # fmt: skip
    if logical and not heard_on_more:
        guesses.append("the step counts the axes of its mesh, so the logical names of its constraints are not looked "
                       "up: each one that logical_rules= does not name leaves its dimension whole")  # fmt: skip
    guessed: dict[str, tuple[Name, ...]] = {}
    mine = [path for path, role in roles.items() if role in ("parameters", "frozen")]
    twins = twins_of(flow, leaves, roles)
    order = {path: index for index, path in enumerate(leaves)}
    moving = {path: order[path] for path, role in roles.items()
              if role == "mutable" and path not in named and not twins.get(path)}  # fmt: skip
    bare = not any(path in named for path in mine)
    if bare or moving or in_part:
        guessed = guess_names(axes, shapes, {path: order[path] for path in mine if bare}, rows, moving)
        guessed |= {path: beside(names, guessed.get(path)) for path, names in in_part.items()}
        guesses += describe(guessed, shapes)
        if naming.extra:
            guessed = {
                path: tuple(_whole_kind(name, naming.extra) for name in names) for path, names in guessed.items()
            }
    untold = [] if bare else _untold(mine, named, leaves)
    state_leaves = {}
    for path, role in roles.items():
        names = named.get(path)
        twin: str | None = path
        if names is None and role in ("optimizer", "mutable"):
            twin = _twin(path, twins.get(path, ()), shapes, mine, named | guessed)
        if names is None and twin is not None:
            names = named.get(twin, guessed.get(twin))
        if names is None and path in guessed:
            names, twin = guessed[path], path
        state_leaves[path] = Leaf(
            names=names or (None,) * len(shapes[path]), shape=shapes[path], role=role, guessed=twin in guessed
        )
    context = "context" in naming.used
    rows_named = _rows_named(closed.jaxpr, naming) if explicit else "batch"
    before = len(naming.notes)
    batch_leaves = {
        path: _batch_leaf(node, array, naming, context, dimensions[path], path in batch_axes, rows_named)
        for path, (node, array) in said_of_batch.items()
    }
    guesses += naming.notes[before:]
    partition = Partition(
        state=state_leaves, batch=batch_leaves, rules=naming.rules, mesh_names=naming.mesh_names(), explicit=explicit,
        mesh_context=mesh_context, extra_axes=naming.extra, only_axes=only_axes,
    )  # fmt: skip
    absent = {axis: f"the mesh of the step has the axes {', '.join(only_axes)} alone"
              for axis in AXES if not any(map(partition.on_mesh, partition.own_axes(axis)))}  # fmt: skip
    partition = dataclasses.replace(partition, unusable=absent)
    partition, said_of_sizes = with_sizes(partition, closed.jaxpr, adapted, pinned, tuple(own))
    guesses += said_of_sizes
    if explicit:
        alone: dict[str, str] = {}
        if isinstance(rows_named, tuple):
            said_rows = ", ".join(part for part in rows_named if part in BATCH_AXES)
            alone = {axis: f"the step itself cuts the batch over {said_rows} alone"
                     for axis in BATCH_AXES if axis in partition.axes() and axis not in rows_named}  # fmt: skip
        partition = dataclasses.replace(partition, unusable=absent | alone)
        failing = axes_that_fail(adapted, partition, tuple(own))
        partition = dataclasses.replace(partition, unusable=absent | alone | failing)
        partition = dataclasses.replace(partition, apart=pairs_that_fail(adapted, partition, tuple(own)))
        guesses += [f"{axis} is left out of the search: {why}" for axis, why in (alone | failing).items()]
        guesses += [f"layouts with {pair.replace(',', ' and ')} are left out of the search: {why}"
                    for pair, why in partition.apart.items()]  # fmt: skip
    guesses += [*closed_over(closed, leaves), *(stay_whole(partition, leaves) or untold)]
    if not explicit:
        guesses += held_away(held, naming.axes_of, _rows_cut(partition))
    guesses += mapped(closed.jaxpr, partition)
    figures = summarise(closed.jaxpr, leaves, roles, adapted)
    sequences, seq = tokens_of([(array, dimensions[path]) for path, (_, array) in said_of_batch.items()])
    builder = Builder(adapted=adapted, partition=partition, mesh_axes=tuple(own), operations=operations(closed))
    return {
        "name": name,
        "build": builder,
        "sequences": sequences,
        "seq": seq,
        "dtype": figures.dtype or "float32",
        "axes": partition.axes(),
        # What changes NNX objects in place cannot be told where to leave them: ZeRO's parameters would drift.
        "fixed": FIXED | ({"zero": "0"} if adapted.in_place else {}),
        "fingerprint": fingerprint(closed, adapted, partition),
        "guesses": (*guesses, *figures.notes),
        "traced": figures,
        "partition": partition,
    }


class Naming:
    """What the user's names mean: logical axes by rules, mesh axes by the names of other codebases.

    `spoken`: the names that stand in annotations and constraints.
    """

    def __init__(self, mesh_axes: Mapping[str, str], logical_rules: Any, spoken: Set[Any]) -> None:
        self.notes: list[str] = []
        pairs = logical_rules.items() if isinstance(logical_rules, Mapping) else logical_rules
        listed_rules: list[tuple[str, tuple[str, ...]]] = []
        for pair in pairs or ():
            try:
                logical, axes = pair
            except (TypeError, ValueError):
                raise ValueError(f"logical_rules: {pair!r} must be a pair (logical axis, mesh axes)") from None
            listed_rules.append((logical, () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)))
        told = {logical for logical, _ in listed_rules}
        named = (spoken - told) | {axis for _, listed in listed_rules for axis in listed}
        self.mesh_axes = mesh_axes = {**mesh_axes, **self._data_beside_replicas(named, mesh_axes)}
        first = {ours: own for own, ours in reversed(list(mesh_axes.items()))}
        self.extra = {own: ours for own, ours in mesh_axes.items() if first[ours] != own}
        self.used: dict[str, str] = {}
        given: list[tuple[str, tuple[str, ...]]] = []
        for logical, listed in listed_rules:
            for axis in listed:
                if axis not in mesh_axes and axis not in MESH_NAMES:
                    raise ValueError(
                        f"logical_rules: {logical!r} rides {axis!r}, a mesh axis we do not know; "
                        f"say what it is with mesh_axes={{{axis!r}: 'fsdp'}} (one of {', '.join(AXES)})"
                    )
            if logical not in dict(given):
                given.append((logical, tuple(self._mesh(axis) for axis in listed)))
        self.told = dict(given)
        usual = ((one, expanded(axes, self.extra)) for one, axes in LOGICAL_AXIS_RULES if one not in self.told)
        self.rules = (*given, *usual)

    def _data_beside_replicas(self, named: Set[Any], mesh_axes: Mapping[str, str]) -> dict[str, str]:
        """What `data` and `replica` mean where a step has both, and no axis that is fsdp: its weights are cut along
        `data` and whole along `replica`."""
        replica = next((name for name in REPLICAS if name in named), None)
        said = {"data", *REPLICAS} & mesh_axes.keys() or "fsdp" in mesh_axes.values()
        if replica is None or "data" not in named or said or any(MESH_NAMES.get(name) == "fsdp" for name in named):
            return {}
        self.notes.append(
            f"beside the mesh axis {replica!r}, which was taken for data, 'data' was taken for fsdp; pin it with "
            f"mesh_axes={{'data': 'fsdp', {replica!r}: 'data'}}"
        )
        return {"data": "fsdp", replica: "data"}

    def _mesh(self, name: str) -> str:
        """Our word for the user's mesh axis, remembered; a further axis of a kind keeps its name."""
        if name in self.extra:
            return extra_name(name)
        ours = self.mesh_axes.get(name) or MESH_NAMES[name]
        other = next((said for said, axis in self.used.items() if axis == ours and said != name), None)
        if other is not None:
            raise ValueError(
                f"mesh axes {other!r} and {name!r} would both be {ours!r}; say which is which with "
                f"mesh_axes={{{other!r}: ..., {name!r}: ...}} (each one of {', '.join(AXES)}; both may be {ours})"
            )
        self.used[name] = ours
        return ours

    def own(self, name: Name) -> Name:
        """A name as partitions have it: a logical axis as it is, a mesh axis in our word, None where nobody knows."""
        if name is None:
            return None
        if isinstance(name, tuple):
            return tuple(one for one in (self.own(part) for part in name) if isinstance(one, str)) or None
        if not isinstance(name, str):
            raise ValueError(f"sharding: {name!r} names a dimension; it must be a text, a tuple of them, or None")
        logical = dict(self.rules)
        if name in self.told or (name in logical and name not in self.mesh_axes):
            return name
        if name in self.mesh_axes or name in MESH_NAMES:
            return self._mesh(name)
        pin = f"pin it with logical_rules={{{name!r}: 'tensor'}}"
        note = f"logical axis {name!r} has no rule: nothing is cut along it; {pin}"
        if note not in self.notes:
            self.notes.append(note)
        return None

    def knows_none(self, name: Name) -> bool:
        """Whether a dimension is named, by nothing that has a meaning."""
        known = (*dict(self.rules), *self.mesh_axes, *MESH_NAMES)
        return bool(names_of(name)) and not any(part in known for part in names_of(name))

    def rows_of(self, names: tuple[str, ...]) -> None:
        """Remember to say that names of a dimension of the batch were taken for the batch."""
        pin = ", ".join(f"{name!r}: 'data'" for name in names)
        words = ", ".join(map(repr, names))
        note = (
            f"the batch lives on a mesh of your own, cut along {words}, which was taken for the batch's axes; pin it "
            f"with mesh_axes={{{pin}}}"
        )
        if note not in self.notes:
            self.notes.append(note)

    def settle(
        self, named: dict[str, tuple[Name, ...]], roles: Mapping[str, str], constrained: Sequence[str]
    ) -> dict[str, tuple[Name, ...]]:
        """Learn the mesh axes that the step's own constraints name; a `data` that cuts parameters is our `fsdp`."""
        for name in (*self.mesh_axes, *constrained):
            if name in self.mesh_axes or name in MESH_NAMES:
                self._mesh(name)
        cutting = {
            part
            for path, names in named.items()
            if roles[path] in ("parameters", "frozen")
            for name in names
            for part in (name if isinstance(name, tuple) else (name,))
        }
        said = next((said for said, ours in self.used.items() if ours == "data"), None)
        if "data" not in cutting or "fsdp" in self.used.values() or said in self.mesh_axes:
            return named
        assert said is not None
        self.used[said] = "fsdp"
        self.notes.append(
            f"mesh axis {said!r} cuts parameters, so it was taken for fsdp; pin it with mesh_axes={{{said!r}: 'data'}}"
        )

        def moved(name: Name) -> Name:
            if isinstance(name, tuple):
                return tuple(str(moved(part)) for part in name)
            return "fsdp" if name == "data" else name

        self.rules = tuple((one, tuple("fsdp" if axis == "data" and one in self.told else axis for axis in axes))
                           for one, axes in self.rules)  # fmt: skip
        return {path: tuple(moved(name) for name in names) for path, names in named.items()}

    def explain(self, held: Sequence[Held], names: Sequence[str]) -> None:
        """Rules for logical names of constraints that stand for the batch; a note on every one that no rule knows."""
        made, notes = explain_names(held, names, dict(self.rules))
        self.rules = (*self.rules, *made.items())
        self.notes += [note for note in notes if note not in self.notes]

    def axes_of(self, name: str) -> tuple[str, ...]:
        """Our mesh axes of a name in a constraint: a logical axis, or a mesh axis in the user's words."""
        rules = dict(self.rules)
        ours = self.mesh_axes.get(name) or next((axis for said, axis in self.used.items() if said == name), None)
        if ours is None and name not in rules:
            ours = MESH_NAMES.get(name)
        return (ours,) if ours is not None else rules.get(name, ())

    def mesh_names(self) -> dict[str, str]:
        """Our axis -> the step's own name, where that differs; an unused word of ours that it took is moved aside."""
        names = {ours: said for said, ours in self.used.items()}
        taken = {*names.values(), *self.extra}
        for word in AXES:
            if word not in names and word in taken:
                names[word] = f"{word}_"
        return {ours: said for ours, said in names.items() if ours != said}


def _whole_kind(name: Name, extra_axes: Mapping[str, str]) -> Name:
    """A guessed name with all of the step's own axes of its kind."""
    if not isinstance(name, str) or name not in AXES:
        return name
    every = expanded((name,), extra_axes)
    return every if len(every) > 1 else name


def _twin(
    path: str,
    twins: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Sequence[str],
    names: Mapping[str, tuple[Name, ...]],
) -> str | None:
    """The parameter like which an array of the optimizer is cut: the one that the trace shows, or of several the one
    that the paths show, or any where all are cut alike."""
    if len(twins) == 1:
        return twins[0]
    by_path = parameter_of(path, shapes, parameters)
    if by_path is None and twins and len({names.get(one) for one in twins}) == 1:
        return twins[0]
    return by_path


def parameter_of(path: str, shapes: Mapping[str, tuple[int, ...]], parameters: Sequence[str]) -> str | None:
    """The parameter that an optimizer's array belongs to: the longest ending of its path that is the end of one's."""
    parts = path.split("/")
    for start in range(len(parts)):
        ending = "/".join(parts[start:])
        alike = [one for one in parameters if shapes[one] == shapes[path]]
        found = [one for one in alike if one == ending or one.endswith("/" + ending)]
        if len(found) == 1:
            return found[0]
    return None


def summarise(jaxpr: Any, leaves: Mapping[str, tuple[Any, Any]], roles: Mapping[str, str], adapted: Adapted) -> Traced:
    """The trace in figures."""

    def held(wanted: str) -> int:
        return sum(nbytes(leaves[path][1]) for path, role in roles.items() if role == wanted)

    return Traced(
        dots=tuple(dots(jaxpr)),
        parameters=sum(math.prod(leaves[path][1].shape) for path, role in roles.items() if role == "parameters"),
        parameter_bytes=held("parameters"),
        frozen_bytes=held("frozen"),
        mutable_bytes=held("mutable"),
        optimizer_bytes=held("optimizer"),
        batch_bytes=sum(nbytes(leaf) for leaf in jax.tree.leaves(adapted.batch)),
        activation_bytes=activation_bytes(jaxpr),
        notes=notes(jaxpr),
    )


def fingerprint(closed: Any, adapted: Adapted, partition: Partition) -> str:
    """Of the traced program, its shapes and the names of their dimensions; the same on every machine."""
    # Functions print with their address in this process. What was stored before a worker compared its trace with this
    # one may be another program: hence the first words.
    text = "compared in the worker: " + re.sub(r"0x[0-9a-f]+", "", str(closed))
    constants = [(str(one.dtype), one.shape) for one in closed.consts if hasattr(one, "dtype")]
    shapes = [(str(leaf.dtype), leaf.shape) for leaf in jax.tree.leaves((adapted.state, adapted.batch))]
    rest = json.dumps([constants, shapes, partition.to_json()], sort_keys=True, default=str)
    return hashlib.sha256((text + rest).encode()).hexdigest()[:32]


def _rows_cut(partition: Partition) -> tuple[str, ...]:
    """The mesh axes of the search along which the batch is cut."""
    rules = dict(partition.rules)
    named = {one for leaf in partition.batch.values() for name in leaf.names
             for one in (name if isinstance(name, tuple) else (name,)) if one is not None}  # fmt: skip
    cut = {axis for name in named for axis in rules.get(name, (name,))}
    return tuple(axis for axis in partition.axes() if axis in cut and axis in BATCH_AXES)


def _rows_named(jaxpr: Any, naming: Naming) -> Name:
    """What the batch's dimension is called: the mesh axes that a step with Explicit axes names together for it, all
    of which are then in its type; "batch" where it names none together."""
    for part in named_parts(jaxpr):
        if isinstance(part, tuple) and len(part) > 1:
            ours = [naming.own(one) for one in part]
            if all(kind in BATCH_AXES or own in naming.extra for kind, own in zip(ours, part, strict=True)):
                return tuple(str(one) for one in ours)
    return "batch"


def _batch_leaf(
    node: Any, array: Any, naming: Naming, context: bool, axis: int | None, told: bool, rows_named: Name
) -> Leaf:
    names = None if told else annotated(node, array)
    shape = tuple(array.shape)
    if names is None:
        named: list[Name] = [None] * len(shape)
        if axis is not None:
            named[axis] = rows_named
            if context and axis + 1 < len(shape):
                named[axis + 1] = "length"
        return Leaf(names=tuple(named), shape=shape, role="batch", guessed=False)
    own = [
        rows_named if index == axis and naming.knows_none(name) else naming.own(name)
        for index, name in enumerate(names)
    ]  # fmt: skip
    if axis is not None and naming.knows_none(names[axis]):
        naming.rows_of(names_of(names[axis]))
    return Leaf(names=tuple(own), shape=shape, role="batch", guessed=False)


def stay_whole(partition: Partition, leaves: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A word about arrays of the state that no axis cuts, where they hold more of it than `WHOLE_BYTES_SHARE`, with the
    rules that would cut the largest along their longest dimension."""
    size = {path: nbytes(array) for path, (_, array) in leaves.items()}
    whole = [path for path, leaf in partition.state.items() if not partition.can_cut(leaf)]
    share = sum(size[path] for path in whole) / max(sum(size.values()), 1)
    if share <= WHOLE_BYTES_SHARE:
        return []
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for path in whole:
        alike.setdefault((kind_of(path), partition.state[path].shape), []).append(path)
    ranked = sorted(alike.values(), key=lambda paths: -sum(size[path] for path in paths))
    rules = []
    for paths in ranked[:LARGEST_WHOLE]:
        shape = partition.state[paths[0]].shape
        if len(shape) and max(shape) > 1:
            names = tuple("fsdp" if index == shape.index(max(shape)) else None for index in range(len(shape)))
            rules.append(f"(r'{rule_for(paths, partition.state)}$', {names!r})")
    first = ranked[0][0]
    held = size_text(sum(size[path] for path in whole))
    largest = f"{first or 'the state'} {list(partition.state[first].shape)} ({partition.state[first].role})"
    placed = [path for path in whole if _is_placed(*leaves[path])]
    why = ""
    if placed:
        rest = [axis for axis in ("fsdp", "tensor") if axis not in partition.axes()]
        why = (
            f"; {len(placed)} of them because the arrays that were handed over lie whole on a mesh of your own (P())"
            + (f", so {' and '.join(rest)} {'is' if len(rest) == 1 else 'are'} not searched" if rest else "")
            + ": hand over shapes, jax.eval_shape(lambda: state), to have their cuts guessed"
        )
    return [
        f"{len(whole)} array{'s' * (len(whole) > 1)} of the state stay whole on every device: {held}, "
        f"{100 * share:.0f} % of its bytes, the largest {largest}; cut them with rules=[{', '.join(rules)}]{why}"
    ]


def _is_placed(node: Any, array: Any) -> bool:
    """Whether the cut of an array is the one with which it was handed over, and not that of its metadata."""
    return node is array and isinstance(getattr(array, "sharding", None), NamedSharding)


def closed_over(closed: Any, leaves: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A word about the arrays that the step takes from its surroundings and not as arguments, where they hold more
    than `WHOLE_BYTES_SHARE` of the state with them."""
    arrays = constants(closed)
    held = sum(nbytes(one) for one in arrays)
    if held <= WHOLE_BYTES_SHARE * (held + sum(nbytes(array) for _, array in leaves.values())):
        return []
    largest = max(arrays, key=nbytes)
    return [
        f"the step closes over {len(arrays)} array{'s' * (len(arrays) > 1)}, {size_text(held)}, the largest "
        f"{largest.dtype}{list(largest.shape)}: they are constants of the program, whole on every device, and in no "
        "role and no price of the state; hand them to the step as an argument"
    ]


def _untold(mine: list[str], named: Mapping[str, Any], leaves: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A word about parameters that no annotation reaches, when they weigh something."""
    bare = [path for path in mine if path not in named]
    weight = {path: nbytes(leaves[path][1]) for path in mine}
    total = sum(weight.values())
    share = sum(weight[path] for path in bare) / max(total, 1)
    if share < UNTOLD_BYTES_SHARE:
        return []
    largest = max(bare, key=lambda path: weight[path])
    return [
        f"{len(bare)} parameters have no annotation and stay whole on every device ({100 * share:.0f} % of the bytes, "
        f"the largest {largest} {list(leaves[largest][1].shape)}); pin them with rules=[(r'{largest}$', (...))]"
    ]
