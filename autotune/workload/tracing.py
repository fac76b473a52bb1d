"""The mesh under which a step is traced, without devices: it has every axis name that a step may use, or, for a step
that counts the axes of its mesh, the step's own alone."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from autotune.mesh_context import CONTEXT_WORDS, mesh_set
from autotune.meshes.layout import AXES, OUTERMOST_FIRST
from autotune.partition import BOTH, CONTEXTS, MESH_NAMES, NONE
from autotune.user_code import UserCodeError
from autotune.workload.same_program import operations
from autotune.workload.trace import equations, mesh_axis_names, names_of

Made = TypeVar("Made")

UNKNOWN_AXIS = re.compile(
    r"Resource axis: (\w+) of .* is not found in mesh"
    r"|(?:in|out)_specs\S* refers to '(\w+)'"
    r"|axis_names=frozenset\(\{'(\w+)'.*to be a subset of mesh.axis_names"
)
"""How JAX says that the mesh has no axis of that name."""

UNBOUND_AXIS = re.compile(r"unbound axis name: (\w+)")
"""How JAX says that no mesh and no map binds a name."""

NO_OWN = "own_axes_of_the_step"
"""The axis of a mesh on which it is found out which axes a step names first."""


@dataclass(frozen=True, slots=True)
class TracedDevice:
    """Stands where a device would, in the mesh that the old context asks for: a trace needs no backend."""

    id: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "traced"

    @property
    def client(self) -> TracedDevice:
        """What devices of one backend have in common."""
        return self


@contextlib.contextmanager
def tracing(
    explicit: bool,
    names: Sequence[str] = (),
    sizes: Mapping[str, int] | None = None,
    context: str = BOTH,
    spare: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Iterator[None]:
    """A mesh of every axis name that a step may use, `names` among them, each of size 1 but for `sizes`.

    `spare`: further axes, which only the new context has: NumPy, and so a mesh of devices, ends at 32 dimensions.
    `only`: the axes of the mesh of a step that counts them; it then has no others.
    """
    every = tuple(only) or tuple(dict.fromkeys((*OUTERMOST_FIRST, *MESH_NAMES, *names)))
    kind = AxisType.Explicit if explicit else AxisType.Auto
    shape = tuple((sizes or {}).get(name, 1) for name in every)
    devices = np.array([TracedDevice(index) for index in range(math.prod(shape))], dtype=object).reshape(shape)
    mesh = Mesh(devices, every, axis_types=(kind,) * len(every))
    wide = (*every, *spare)
    abstract = AbstractMesh((*shape, *(1 for _ in spare)), wide, axis_types=(kind,) * len(wide))
    # A step that hands the old context's mesh to jax.shard_map says the mesh that is set: on devices the two are one.
    vars(mesh)["abstract_mesh"] = abstract
    with mesh_set(mesh, context, abstract=abstract):
        yield


def is_traced_mesh(mesh: Any) -> bool:
    """Whether it is the mesh of `tracing`, or says nothing of devices."""
    return not isinstance(mesh, Mesh) or any(isinstance(one, TracedDevice) for one in mesh.devices.flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[Made]):
    """What the first trace that works made: under Explicit axes or not, with its mesh in `context`, and why not under
    the ones tried before (None where the first works). `only`: the axes of its mesh, where it works with no others, or
    where it is another program with others, which `differs` then says."""

    made: Made
    explicit: bool
    context: str
    failed: UserCodeError | None
    only: tuple[str, ...] = ()
    differs: str = ""

    def notes(self) -> list[str]:
        """What is to be said where a mesh is not set in the usual way."""
        if self.only:
            names = ", ".join(map(repr, self.only))
            why = self.differs or f"its trace fails: {self.failed.summary if self.failed else ''}"
            return [
                f"the step counts the axes of its mesh: it is traced, compiled and run on a mesh with the axes {names} "
                f"alone, and no layout has another axis, because on a mesh with further axes {why}"
            ]
        if self.context == BOTH or self.failed is None:
            return []
        return [
            f"the step is traced, compiled and run with {CONTEXT_WORDS[self.context]}, because otherwise its trace "
            f"fails: {self.failed.summary}"
        ]


def first_that_traces(
    attempt: Callable[[], Made],
    kinds: Sequence[bool],
    names: Sequence[str],
    given: Any = (),
    bound: Callable[[Made], tuple[str, ...]] = lambda made: (),
    closed: Callable[[Made], Any] = lambda made: made,
) -> Found[Made]:
    """Call `attempt` under one mesh after another until it does not raise UserCodeError.

    `kinds`: whether axes are Explicit, in the order in which it is tried; `names`: the user's own mesh axes. `given`:
    the arguments of the step, whose arrays may live on the user's own mesh. `bound`: the axis names that `attempt` took
    for those of jax.pmap, because no mesh has them. `closed`: the ClosedJaxpr of what it made.
    A step may count the axes of its mesh. One that works under no mesh with every axis is tried on a mesh of its own
    axes alone before it goes without one, and one that maps over the mesh is compared there.
    The first error is raised where nothing helps; ValueError names mesh axes of the step that nobody explained.
    """
    theirs = _axes_of_meshes(given)
    tried: list[UserCodeError] = []
    for context in CONTEXTS:
        for explicit in kinds if context != NONE else kinds[:1]:
            made = _on_every_axis(attempt, explicit, names, context)
            failed = tried[0] if tried else None
            if not isinstance(made, UserCodeError):
                whole = Found(made=made, explicit=explicit, context=context, failed=failed)
                if context != NONE:
                    mapped = _mapped_axes(closed(made))
                    own = tuple(theirs) or (*names, *sorted(set(mapped) - set(names), key=_depth))
                    return (_where_it_differs(attempt, whole, own, closed) if mapped else None) or whole
                return _on_own_axes(attempt, kinds, names, theirs, bound, failed) or whole
            tried.append(made)
    first, last = tried[0], tried[-1]
    # What fails alike without a mesh does not fail because of one.
    counted = None if first.summary == last.summary else _on_own_axes(attempt, kinds, names, theirs, bound, first)
    if counted is None:
        raise first
    return counted


def _on_every_axis(
    attempt: Callable[[], Made], explicit: bool, names: Sequence[str], context: str
) -> Made | UserCodeError:
    """What `attempt` makes, or raises, on a mesh of every axis; ValueError where that takes names that nobody knows."""
    unknown: tuple[str, ...] = ()
    while True:
        try:
            with tracing(explicit, (*names, *unknown), context=context):
                made = attempt()
        except UserCodeError as error:
            name = _unknown_axis(error)
            if name is None or name in (*names, *unknown):
                return error
            unknown += (name,)
            continue
        if unknown:
            raise ValueError(explain_axes(unknown))
        return made


def _on_own_axes(
    attempt: Callable[[], Made],
    kinds: Sequence[bool],
    names: Sequence[str],
    theirs: Sequence[str],
    bound: Callable[[Made], tuple[str, ...]],
    first: UserCodeError | None,
) -> Found[Made] | None:
    """The trace on a mesh of the step's own axes alone, None where it fails there too.

    They are those of the user's own mesh (`theirs`), else the names that the user explains and those that the step
    asks for, one error after another.
    """
    for start in ([tuple(theirs)] if theirs else []) + [tuple(names)]:
        for context, explicit in ((context, kind) for context in CONTEXTS if context != NONE for kind in kinds):
            axes = start
            while True:
                made: Made | None = None
                try:
                    with tracing(explicit, context=context, only=axes or (NO_OWN,)):
                        made = attempt()
                    missing = next((name for name in bound(made) if name not in axes), None)
                except UserCodeError as error:
                    missing = _unknown_axis(error) or _unbound_axis(error)
                if missing is not None and missing not in axes:
                    axes = (*start, *sorted((*axes[len(start) :], missing), key=_depth))
                    continue
                break
            if made is None or not axes:
                continue
            unknown = [name for name in axes if name not in names and name not in (*MESH_NAMES, *AXES)]
            if unknown:
                raise ValueError(explain_axes(unknown))
            return Found(made=made, explicit=explicit, context=context, failed=first, only=axes)
    return None


def _depth(name: str) -> int:
    """Where an axis stands in a mesh of ours, outermost first; what we do not know last."""
    kind = MESH_NAMES.get(name, name)
    return OUTERMOST_FIRST.index(kind) if kind in OUTERMOST_FIRST else len(OUTERMOST_FIRST)


def _mapped_axes(closed: Any) -> list[str]:
    """The axes that a step names which maps over the mesh that is set; [] of any other."""
    specs = [
        spec
        for equation in equations(closed.jaxpr)
        if equation.primitive.name == "shard_map" and is_traced_mesh(equation.params.get("mesh"))
        for word in ("in_specs", "out_specs")
        for spec in equation.params.get(word, ())
    ]
    named = [name for spec in specs for part in spec for name in names_of(part)]
    return list(dict.fromkeys((*named, *(mesh_axis_names(closed.jaxpr) if named else ()))))


def _where_it_differs(
    attempt: Callable[[], Made], whole: Found[Made], own: tuple[str, ...], closed: Callable[[Made], Any]
) -> Found[Made] | None:
    """The trace on a mesh of the axes `own` alone, where it is another program than that on every axis: the step counts
    the axes inside its map. None where it is the same, and where the trace fails."""
    try:
        with tracing(whole.explicit, context=whole.context, only=own):
            made = attempt()
    except UserCodeError:
        return None  # it asks for a further axis: its own mesh has more than these
    texts = [[one.text for one in operations(closed(found))] for found in (whole.made, made)]
    if texts[0] == texts[1]:
        return None
    pairs = itertools.zip_longest(*texts, fillvalue="the end of the step")
    place, (more, alone) = next((index, pair) for index, pair in enumerate(pairs) if pair[0] != pair[1])
    differs = f"operation {place + 1} is {more}, and {alone} on its own"
    return Found(
        made=made, explicit=whole.explicit, context=whole.context, failed=whole.failed, only=own, differs=differs
    )


def _axes_of_meshes(given: Any) -> tuple[str, ...]:
    """The axes of the mesh that the user's program has set, or on which arrays of the arguments live; () for none."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        return mesh.axis_names
    placed = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(given))
    return next((tuple(one.mesh.axis_names) for one in placed if isinstance(one, NamedSharding)), ())


def explain_axes(unknown: Sequence[str]) -> str:
    """The line that asks what mesh axes of the step are."""
    listed = ", ".join(repr(name) for name in unknown)
    example = ", ".join(f"{name!r}: ..." for name in unknown)
    return (
        f"the step names the mesh ax{'i' if len(unknown) == 1 else 'e'}s {listed}, which we do not know; say what "
        f"{'it is' if len(unknown) == 1 else 'each is'} with mesh_axes={{{example}}} (one of {', '.join(AXES)}; two of "
        "yours may be one of ours)"
    )


def _unknown_axis(error: UserCodeError) -> str | None:
    found = UNKNOWN_AXIS.search(str(error.__cause__))
    return next(filter(None, found.groups())) if found else None


def _unbound_axis(error: UserCodeError) -> str | None:
    """The axis that a map over the mesh, or the mesh's own dict of sizes, does not have."""
    cause = error.__cause__
    if isinstance(cause, KeyError) and cause.args and cause.args[0] in MESH_NAMES:
        return str(cause.args[0])
    found = UNBOUND_AXIS.search(str(cause)) if isinstance(cause, NameError) else None
    return found[1] if found else None
