"""Steps that build themselves from the layout."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.meshes.layout import AXES, OUTERMOST_FIRST, Layout
from autotune.meshes.step import Step
from autotune.partition import MESH_NAMES
from autotune.system.code_owner import owner_of
from autotune.user_code import UserCodeError, user_code
from autotune.workload.adapt import adapt, trace
from autotune.workload.from_function import FIXED, plain_fields
from autotune.workload.same_program import AnotherProgram, Operation

PIPELINE = ("stage", "microbatches", "schedule", "virtual_stages")


def builder_fields(
    builder: Callable[..., Any], axes: tuple[str, ...] | None, name: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Everything `Workload.of` wants: of the builder's step for one device, and of what it read from the layout."""
    for axis in axes or ():
        if axis not in AXES:
            raise ValueError(f"axes: {axis!r} is not a mesh axis; axes: {', '.join(AXES)}")
    with_mesh = takes_mesh(builder)
    layout = _Watched()
    if with_mesh:
        fields = _step_fields(_call(builder, layout, _one_device()))
    else:
        fields = _fields(_call(builder, layout), options)
    read = layout.read & _depended(builder, options, with_mesh, layout.read)
    if "stage" in read:
        read = read | (set(PIPELINE) if with_mesh else _read_with_stages(builder, options))
    if axes is None:
        axes = tuple(word for word in AXES if word in fields["axes"] or (word in read and word == "stage"))
    fixed = {word: value for word, value in FIXED.items() if word not in read and word not in (axes or ())}
    if "stage" in axes and not read & {"schedule", "virtual_stages"}:
        fixed["virtual_stages"] = "1"  # else circular schedules would be priced that the step does not run
    traced: tuple[Operation, ...] = fields["build"].operations
    build: _MeshBuilder | _LayoutBuilder = (
        _MeshBuilder(builder=builder, operations=traced)
        if with_mesh
        else _LayoutBuilder(builder=builder, options=options, operations=traced)
    )
    return fields | {
        "name": name or getattr(builder, "__name__", "step"),
        "build": build,
        "axes": axes,
        "fixed": fixed,
        "fingerprint": hashlib.sha256((fields["fingerprint"] + _sources(builder)).encode()).hexdigest()[:32],
    }


STAGES_OF_TWO = {name: 2 for name, axis in MESH_NAMES.items() if axis == "stage"}


def takes_mesh(builder: Callable[..., Any]) -> bool:
    """Whether it is `builder(layout, mesh)`; ValueError when it takes anything else than (layout) or that."""
    try:
        given = list(inspect.signature(builder).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [one for one in given if one.default is inspect.Parameter.empty and one.kind != one.VAR_KEYWORD]
    if len(needed) not in (1, 2):
        raise ValueError(f"from_builder: the builder takes {len(needed)} arguments, not (layout) or (layout, mesh)")
    return len(needed) == 2


OTHER_WORDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "remat": ({}, {"remat": "full"}),
    "accumulate": ({}, {"accumulate": 2}),
    "reduce": ({"data": 2, "accumulate": 2}, {"data": 2, "accumulate": 2, "reduce": "step"}),
    "offload": ({}, {"offload": "optimizer"}),
    "stage": ({}, {"stage": 2, "microbatches": 2, "schedule": "gpipe"}),
    "sequence_parallel": ({"tensor": 2, "sequence_parallel": False}, {"tensor": 2, "sequence_parallel": True}),
    "context_attention": (
        {"context": 2, "context_attention": "gather"},
        {"context": 2, "context_attention": "ring"},
    ),
}
"""For a word, two layouts that differ in it alone (or in what it cannot do without): does the step differ?"""


def _depended(builder: Callable[..., Any], options: dict[str, Any], with_mesh: bool, read: set[str]) -> set[str]:
    """The words of `read` on which the step depends: its traces differ where that word does.

    Reading alone says little: a builder that prints its layout reads every word. A layout that the builder refuses
    counts as another step; so does a word without a pair of layouts to compare.
    """
    found: dict[str, str | None] = {}

    def traced(words: dict[str, Any]) -> str | None:
        layout = Layout(**words)
        if str(words) not in found:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # it has said once what it prints
                    fields = (
                        _step_fields(_call(builder, layout, _one_device()))
                        if with_mesh
                        else _fields(_call(builder, layout), options)
                    )
                found[str(words)] = fields["fingerprint"]
            except (UserCodeError, ValueError, NameError):  # of the user's code: an axis that one device does not have
                found[str(words)] = None
        return found[str(words)]

    kept = set(read)
    for word, (one, other) in OTHER_WORDS.items():
        # A finished Step says where its arrays live in their shardings, which its trace does not show.
        if word in read and not (with_mesh and word == "offload"):
            first, second = traced(one), traced(other)
            if first is not None and first == second:
                kept.remove(word)
    return kept


def _read_with_stages(builder: Callable[..., Any], options: dict[str, Any]) -> set[str]:
    """The words that a step of two stages reads; all of the pipeline's where such a step cannot be traced here."""
    layout = _Watched(stage=2, microbatches=2, schedule="gpipe")
    explicit = bool(options.get("explicit"))
    try:
        step, state, batch = builder(layout)
        trace(adapt(step, state, batch, explicit), explicit, tuple(options.get("mesh_axes") or ()), STAGES_OF_TWO)
    except Exception:  # of the user's code: it may want more devices than a trace has, or more microbatches
        return set(PIPELINE)
    return layout.read


class _Watched(Layout):
    """A layout (of one device where nothing is said) that remembers which of its words were read."""

    read: set[str]

    def __init__(self, **words: Any) -> None:
        object.__setattr__(self, "read", set())
        super().__init__(**words)
        self.read.clear()

    def __getattribute__(self, name: str) -> Any:
        if name in _WORDS:
            object.__getattribute__(self, "read").add(name)
        return object.__getattribute__(self, name)


_WORDS = frozenset(field.name for field in dataclasses.fields(Layout))


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayoutBuilder:
    builder: Callable[[Layout], Any]
    options: dict[str, Any]
    operations: tuple[Operation, ...]

    def check(self) -> None:
        """As `Builder.check`, of the step for one device."""
        _same(_fields(_call(self.builder, Layout()), self.options), self.operations)

    def __call__(self, layout: Layout, mesh: Any) -> Step:
        return _fields(_call(self.builder, layout), self.options)["build"](layout, mesh)


@dataclass(frozen=True, slots=True, kw_only=True)
class _MeshBuilder:
    builder: Callable[[Layout, Any], Step]
    operations: tuple[Operation, ...]

    def check(self) -> None:
        """As `Builder.check`, of the step for one device."""
        _same(_step_fields(_call(self.builder, Layout(), _one_device())), self.operations)

    def __call__(self, layout: Layout, mesh: Any) -> Step:
        return _checked(_call(self.builder, layout, mesh))


def _same(fields: dict[str, Any], expected: tuple[Operation, ...]) -> None:
    build = fields["build"]
    if build.operations != expected:
        dataclasses.replace(build, operations=expected).check()
        raise AnotherProgram("the worker process traces another program each time the step is traced")


def _call(builder: Callable[..., Any], *arguments: Any) -> Any:
    with user_code("building the step"):
        return builder(*arguments)


def _fields(made: Any, options: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"from_builder: the builder returned {type(made).__name__}, not (step, state, batch)")
    return plain_fields(*made, **options)


def _checked(step: Any) -> Step:
    if not isinstance(step, Step):
        raise ValueError(f"from_builder: builder(layout, mesh) returned {type(step).__name__}; it must return a Step")
    return step


def _step_fields(step: Step) -> dict[str, Any]:
    """Of a finished Step, as if its function, state and batch had been given."""
    step = _checked(step)
    return plain_fields(step.function, step.state, step.batch, parameters=step.parameters, mesh=step.mesh)


def _one_device() -> Any:
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    return Mesh(
        np.array(jax.devices()[:1]).reshape((1,) * len(OUTERMOST_FIRST)),
        OUTERMOST_FIRST,
        axis_types=(AxisType.Auto,) * len(OUTERMOST_FIRST),
    )


def _sources(builder: Callable[..., Any]) -> str:
    """A digest of the user's own loaded sources: what the builder does for other layouts is not in the trace of one."""
    digest = hashlib.sha256()
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    for path in sorted(Path(one).resolve() for one in files if one and one.endswith(".py")):
        if owner_of(str(path)) == "user" and path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()
