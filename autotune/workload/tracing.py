"""The mesh under which a step is traced, without devices: it has every axis name that a step may use."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from autotune.mesh_context import CONTEXT_WORDS, mesh_set
from autotune.meshes.layout import AXES, OUTERMOST_FIRST
from autotune.partition import BOTH, CONTEXTS, MESH_NAMES, NONE
from autotune.user_code import UserCodeError

Made = TypeVar("Made")

UNKNOWN_AXIS = re.compile(r"Resource axis: (\w+) of .* is not found in mesh")
"""How JAX says that the mesh has no axis of that name."""


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
) -> Iterator[None]:
    """A mesh of every axis name that a step may use, `names` among them, each of size 1 but for `sizes`.

    `spare`: further axes, which only the new context has: NumPy, and so a mesh of devices, ends at 32 dimensions.
    """
    every = tuple(dict.fromkeys((*OUTERMOST_FIRST, *MESH_NAMES, *names)))
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
    the ones tried before (None where the first works)."""

    made: Made
    explicit: bool
    context: str
    failed: UserCodeError | None

    def notes(self) -> list[str]:
        """What is to be said where a mesh is not set in the usual way."""
        if self.context == BOTH or self.failed is None:
            return []
        return [
            f"the step is traced, compiled and run with {CONTEXT_WORDS[self.context]}, because otherwise its trace "
            f"fails: {self.failed.summary}"
        ]


def first_that_traces(attempt: Callable[[], Made], kinds: Sequence[bool], names: Sequence[str]) -> Found[Made]:
    """Call `attempt` under one mesh after another until it does not raise UserCodeError.

    `kinds`: whether axes are Explicit, in the order in which it is tried; `names`: the user's own mesh axes.
    The first error is raised where nothing helps; ValueError names mesh axes of the step that nobody explained.
    """
    first: UserCodeError | None = None
    for context in CONTEXTS:
        for explicit in kinds if context != NONE else kinds[:1]:
            unknown: tuple[str, ...] = ()
            while True:
                try:
                    with tracing(explicit, (*names, *unknown), context=context):
                        made = attempt()
                except UserCodeError as error:
                    name = _unknown_axis(error)
                    if name is not None and name not in (*names, *unknown):
                        unknown += (name,)
                        continue
                    first = first or error
                    break
                if unknown:
                    raise ValueError(explain_axes(unknown))
                return Found(made=made, explicit=explicit, context=context, failed=first)
    assert first is not None, "some context is tried"
    raise first


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
    return found[1] if found else None
