"""The logical axis names that Flax's constraints inside a step use, and which dimensions they stand for.

Without rules `with_logical_constraint` does nothing, so a plain trace does not show it. A second trace, made only where
Flax asked for rules, gives each name a mesh axis of its own, and the constraints then show which names they hold.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax.core.spmd import get_logical_axis_rules, logical_axis_rules

from autotune.partition import BATCH_AXES
from autotune.workload.adapt import Adapted, traced
from autotune.workload.dimensions import dimensions_of
from autotune.workload.same_program import listed_places, source
from autotune.workload.trace import names_of
from autotune.workload.tracing import is_traced_mesh, tracing

MOST_NAMES = 32
"""Names for which the second trace has axes; of more, the later ones are not seen."""

SPARE = tuple(f"logical_{index}" for index in range(MOST_NAMES))

BATCH_WORD = re.compile(r"(^|_)batch(_|$)")
"""A logical name that says itself that it is the batch."""


class _Asked(list):  # type: ignore[type-arg]
    """Rules that are empty and know whether someone looked: then a step has logical constraints, or may have."""

    looked = False

    def __bool__(self) -> bool:
        self.looked = True
        return False

    def __len__(self) -> int:
        self.looked = True
        return 0


@contextlib.contextmanager
def rules_asked() -> Iterator[Callable[[], bool]]:
    """Inside, Flax finds no rules; the result says whether it looked for some. Rules that the user has set stay."""
    asked = _Asked()
    if get_logical_axis_rules():
        yield lambda: False
        return
    with logical_axis_rules(asked):  # type: ignore[arg-type]
        yield lambda: asked.looked


class _Heard(str):
    """A rule's name that is compared with every name of a constraint, remembers them, and is none of them."""

    names: dict[str, str]

    def __new__(cls, names: dict[str, str]) -> _Heard:
        made = super().__new__(cls, "")
        made.names = names
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and other not in self.names and len(self.names) < MOST_NAMES:
            self.names[str(other)] = SPARE[len(self.names)]
        return False

    def __hash__(self) -> int:
        return id(self)


class _Rules(list):  # type: ignore[type-arg]
    """Rules of names that are not known before a constraint is looked up: its names come first, then their axes."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__([(_Heard(names), None)])
        self.names = names

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield (_Heard(self.names), None)
        yield from list(self.names.items())


def names_heard(adapted: Adapted, explicit: bool, own: Sequence[str], context: str) -> tuple[Any, dict[str, str]]:
    """(a ClosedJaxpr of the step in which every logical name has a mesh axis of its own, name -> that axis)."""
    names: dict[str, str] = {}
    with tracing(explicit, own, context=context, spare=SPARE), logical_axis_rules(_Rules(names)):  # type: ignore[arg-type]
        return traced(adapted), names


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One sharding constraint: what holds each dimension (a logical name, a mesh axis in the user's words, a tuple of
    these, None: whole, False: unconstrained). `rows`: the dimension that is the batch, None where none is. `at`:
    file and line."""

    parts: tuple[Any, ...]
    shape: tuple[int, ...]
    rows: int | None
    at: str


def constraints_of(closed: Any, names: Mapping[str, str], batch: Mapping[int, int]) -> list[Held]:
    """The sharding constraints of a trace on the mesh that is set.

    `names`: logical name -> its axis in the trace. `batch`: input of the jaxpr -> its dimension that is the batch.
    """
    found, inputs = dimensions_of(closed.jaxpr)
    rows = {found.axis(inputs[index][at]) for index, at in batch.items()}
    logical = {axis: name for name, axis in names.items()}
    held = []
    for equation, dimensions in found.constraints:
        sharding = equation.params.get("sharding")
        spec = getattr(sharding, "spec", None)
        if spec is None or not is_traced_mesh(sharding.mesh):
            continue
        shape = tuple(equation.outvars[0].aval.shape)
        free = equation.params.get("unconstrained_dims") or ()
        parts = [spec[index] if index < len(spec) else None for index in range(len(shape))]
        held.append(
            Held(
                parts=tuple(False if index in free else _said(part, logical) for index, part in enumerate(parts)),
                shape=shape,
                rows=next((index for index, one in enumerate(dimensions) if found.axis(one) in rows), None),
                at=source(equation) or "a library",
            )
        )
    return held


def _said(part: Any, logical: Mapping[str, str]) -> Any:
    if isinstance(part, tuple):
        return tuple(logical.get(one, one) for one in part)
    return logical.get(part, part) if isinstance(part, str) else None


def explain_names(
    held: Sequence[Held], names: Sequence[str], rules: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """(rules for the names that stand for the batch, what is to be said of every name that no rule explains).

    A name stands for the batch where a constraint gives it to the batch's dimension, or where it says so itself.
    """
    made: dict[str, tuple[str, ...]] = {}
    notes = []
    rows = rules.get("batch", BATCH_AXES)
    for name in names:
        if name in rules:
            continue
        places = [one for one in held if any(name in names_of(part) for part in one.parts)]
        at = f" ({places[0].at})" if places else ""
        on_rows = any(one.rows is not None and name in names_of(one.parts[one.rows]) for one in places)
        if on_rows or BATCH_WORD.search(name):
            made[name] = rows
            notes.append(
                f"logical axis {name!r} of a constraint{at} was taken for the batch; pin it with "
                f"logical_rules={{{name!r}: {rows!r}}}"
            )
        else:
            notes.append(
                f"logical axis {name!r} of a constraint{at} has no rule, so that dimension is held whole on every "
                f"device; pin it with logical_rules={{{name!r}: 'tensor'}}, or None to leave it whole"
            )
    return made, notes


def held_away(held: Sequence[Held], axes_of: Callable[[str], tuple[str, ...]], cut: Sequence[str]) -> list[str]:
    """A line on the constraints that hold the batch away from mesh axes along which the batch is cut.

    `axes_of`: our mesh axes of a name in a constraint; `cut`: those along which the batch can be cut.
    """
    places: dict[str, str] = {}
    missing: dict[str, None] = {}
    for one in held:
        if one.rows is None or one.parts[one.rows] is False or one.shape[one.rows] == 1:
            continue
        here = {axis for name in names_of(one.parts[one.rows]) for axis in axes_of(name)}
        elsewhere = {
            axis for index, part in enumerate(one.parts) if index != one.rows for name in names_of(part)
            for axis in axes_of(name)
        }  # fmt: skip
        away = [axis for axis in cut if axis not in here | elsewhere]
        if away:
            missing |= dict.fromkeys(away)
            words = " and ".join(away)
            places.setdefault(one.at, f"dimension {one.rows} of {list(one.shape)} away from {words}")
    if not places:
        return []
    return [
        f"constraints of the step hold the batch away from {' and '.join(missing)}, along which the batch is cut: with "
        f"such a layout every device works on rows of others ({listed_places(places)}); name all of "
        f"{', '.join(cut)} there, or give the search fewer axes"
    ]
