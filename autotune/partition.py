"""How every array of a user's train step is cut, for any layout: names of dimensions, and what the names mean.

Plain data without JAX, so that a plan can carry it home as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.meshes.layout import AXES, Layout

BOTH, OLD, NEW, NONE = "both", "old", "new", "none"

CONTEXTS = (BOTH, OLD, NEW, NONE)
"""Where a step finds its mesh, in the order in which it is tried: in both contexts, in that of the deprecated
`with mesh:` alone, in that of `jax.set_mesh` alone, or nowhere. A step that maps over a mesh of its own
(`jax.shard_map(..., mesh=own)`) refuses another one in the new context."""

Name = str | tuple[str, ...] | None
"""Of one dimension: a logical axis ("embed"), one or several mesh axes ("fsdp"), or None: never cut."""

BATCH_AXES = ("data", "fsdp", "expert")

LOGICAL_AXIS_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((name, BATCH_AXES) for name in ("batch", "activation_batch")),
    *((name, ("context",)) for name in ("length", "sequence", "seq", "activation_length")),
    *((name, ("expert",)) for name in ("experts", "expert", "exp", "activation_exp")),
    *((name, ("tensor",)) for name in ("vocab", "mlp", "heads", "q_heads", "kv_heads", "joined_kv", "qkv")),
    *((f"activation_{name}", ("tensor",)) for name in ("vocab", "mlp", "heads", "kv_heads")),
    *((name, ("fsdp",)) for name in ("embed", "embedding", "d_model", "model_dim")),
    *((name, ()) for name in ("activation_embed", "activation_kv", "layers", "layer", "stack")),
    *((name, ()) for name in ("kv", "head_dim", "norm")),
)
"""Logical axes as the Flax community names them (T5X, MaxText) and the mesh axes they ride, in order of precedence: of
two dimensions of an array that want the same mesh axis, the one named earlier here has it, as in Flax's own rules."""

MESH_NAMES = {
    "data": "data", "dp": "data", "replica": "data", "replicate": "data",
    "fsdp": "fsdp", "dp_fsdp": "fsdp", "shard": "fsdp", "zero": "fsdp",
    "tensor": "tensor", "tp": "tensor", "mp": "tensor", "model": "tensor",
    "stage": "stage", "pp": "stage", "pipe": "stage", "pipeline": "stage",
    "context": "context", "cp": "context", "sp": "context",
    "expert": "expert", "ep": "expert",
}  # fmt: skip
"""What other codebases call the mesh axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One array: a name for each dimension, its global shape, and what it is.

    `role`: "batch", or one of `autotune.workload.roles`: "parameters" (trained), "frozen", "mutable", "optimizer",
    "other". `guessed`: nobody named its dimensions, so an axis that does
    not divide is left out instead of refused.
    """

    names: tuple[Name, ...]
    shape: tuple[int, ...]
    role: str
    guessed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Every array of the state and of the batch by its path, and the meaning of the logical names.

    `rules`: logical name -> mesh axes, in order of precedence. `mesh_names`: our mesh axis -> what the step itself
    calls it ("tensor" -> "tp"), where that differs. `explicit`: the step is written for Explicit mesh axes.
    `mesh_context`: where the step finds the mesh that is set (`CONTEXTS`).
    `extra_axes`: the step's own name of a further axis of one of our kinds -> that kind; it stands in `Leaf.names` and
    in `rules` as `extra_name` of it, and shares the size of its kind (`own_sizes`). `limits`: the step's own name of
    such an axis, or of the first of its kind -> the most of the kind's size that it has.
    `only_axes`: the step's own names of all axes that its mesh has, where the step counts them; () for any.
    `unusable`: our mesh axis -> why the step cannot be cut along it.
    `apart`: two of our mesh axes ("data,tensor") -> why the step cannot be cut along both, though it can along each.
    """

    state: Mapping[str, Leaf]
    batch: Mapping[str, Leaf]
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    mesh_names: Mapping[str, str]
    explicit: bool
    mesh_context: str = "both"
    extra_axes: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    only_axes: tuple[str, ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, str] = field(default_factory=dict)

    def find(self, path: str, shape: tuple[int, ...]) -> Leaf | None:
        """The state's array at that path, or at a path that ends so (a tree that is a part of the state)."""
        if path in self.state and self.state[path].shape == shape:
            return self.state[path]
        found = [leaf for full, leaf in self.state.items() if full.endswith("/" + path) and leaf.shape == shape]
        first = [leaf for leaf in found if leaf.role in ("parameters", "frozen")] or found
        return first[0] if first and all(leaf.names == first[0].names for leaf in first) else None

    def own_axes(self, axis: str) -> tuple[str, ...]:
        """The step's own names of all its axes that are one of ours, the first first."""
        return (self.mesh_names.get(axis, axis), *(own for own, kind in self.extra_axes.items() if kind == axis))

    def own_sizes(self, axis: str, total: int) -> dict[str, int]:
        """Own name -> size, of all the step's axes that are one of ours, which has this size in all.

        Each axis with a limit has the greatest common divisor of it and of what is left, the first axis without one has
        the rest, and any other has size 1; where all have limits, the last has what is left.
        """
        own, left = self.own_axes(axis), total
        sizes = dict.fromkeys(own, 1)
        for name in own:
            if name in self.limits:
                sizes[name] = math.gcd(left, self.limits[name])
                left //= sizes[name]
        rest = next((name for name in own if name not in self.limits), own[-1])
        sizes[rest] *= left
        return sizes

    def own_shape(self, shape: Mapping[str, int]) -> dict[str, int]:
        """The step's own names and sizes of a mesh of our axes, outermost first; without those of size 1 that the mesh
        of the step must not have.

        Axes of one kind stand beside each other, the first outermost.
        """
        return {own: size for axis, total in shape.items() for own, size in self.own_sizes(axis, total).items()
                if size > 1 or self.on_mesh(own)}  # fmt: skip

    def on_mesh(self, own: str) -> bool:
        """Whether the mesh of the step may have an axis, by the step's own name."""
        return not self.only_axes or own in self.only_axes

    def own_name(self, axis: str) -> str:
        """The step's own name of an axis as it stands among the names of a dimension."""
        return axis.removeprefix(EXTRA) if axis.startswith(EXTRA) else self.mesh_names.get(axis, axis)

    def kind(self, axis: str) -> str:
        """Our mesh axis of one that stands among the names of a dimension."""
        return self.extra_axes[axis.removeprefix(EXTRA)] if axis.startswith(EXTRA) else axis

    def expanded(self, axes: Sequence[str]) -> tuple[str, ...]:
        """Our mesh axes with all further axes of the step of their kinds beside them."""
        return expanded(axes, self.extra_axes)

    def sizes(self, layout: Layout) -> dict[str, int]:
        """Axis as it stands among the names of dimensions -> its size: of an axis of ours that several of the step's
        own share, the part of the first."""
        sizes = layout.axes
        for axis in dict.fromkeys(self.extra_axes.values()):
            first, *more = self.own_sizes(axis, sizes[axis]).items()
            sizes[axis] = first[1]
            sizes |= {extra_name(own): size for own, size in more}
        return sizes

    def meanings(self, layout: Layout) -> dict[str, tuple[str, ...]]:
        """Logical name -> its axes under that layout, in order of precedence."""
        told = {name: self.expanded(axes) for name, axes in layout.rules}
        return told | {name: axes for name, axes in self.rules if name not in told}

    def meant(self, name: Name, layout: Layout) -> tuple[str, ...]:
        """The axes, of any size, that a name of a dimension means under that layout."""
        return _axes(name, self.meanings(layout))

    def cut(self, leaf: Leaf, layout: Layout) -> tuple[tuple[str, ...], ...]:
        """The mesh axes (larger than 1, as `sizes` has them) of each dimension of that array."""
        rules = self.meanings(layout)
        order = list(rules)
        sizes = self.sizes(layout)
        cut: list[tuple[str, ...]] = [()] * len(leaf.names)
        taken: set[str] = set()
        ranked = sorted(range(len(cut)), key=lambda index: _rank(leaf.names[index], order))
        for index in ranked:
            if leaf.shape[index] == 1:
                continue
            axes = tuple(axis for axis in _axes(leaf.names[index], rules) if sizes[axis] > 1)
            if leaf.guessed:
                axes = _dividing(axes, leaf.shape[index], sizes)
            # As Flax does it: a dimension gets all of its mesh axes or, when one is taken, none.
            if axes and not taken & set(axes):
                cut[index] = axes
                taken |= set(axes)
        rows = tuple(axis for axis in self.expanded(("data",)) if sizes[axis] > 1)
        if leaf.role == "optimizer" and layout.zero >= 1 and layout.data > 1 and not taken & set(rows):
            whole = [math.prod(sizes[axis] for axis in axes) for axes in cut]
            for index in sorted(range(len(cut)), key=lambda index: (bool(cut[index]), -leaf.shape[index])):
                if leaf.shape[index] % (whole[index] * layout.data) == 0:
                    cut[index] = (*cut[index], *rows)
                    break
        return tuple(cut)

    def can_cut(self, leaf: Leaf) -> bool:
        """Whether some axis cuts that array."""
        rules = dict(self.rules)
        return any(_axes(name, rules) and extent > 1 for name, extent in zip(leaf.names, leaf.shape, strict=True))

    def problem(self, layout: Layout) -> str | None:
        """Why that layout cannot be: two axes of it that the step refuses together, or the first dimension that its
        axes do not divide; None if all divide."""
        for pair, why in self.apart.items():
            if all(layout.axes[axis] > 1 for axis in pair.split(",")):
                return f"{' x '.join(f'{axis}={layout.axes[axis]}' for axis in pair.split(','))}: {why}"
        seen: set[Leaf] = set()
        sizes = self.sizes(layout)
        for where, leaves in (("batch", self.batch), ("state", self.state)):
            for path, leaf in leaves.items():
                if leaf in seen:
                    continue
                seen.add(leaf)
                for index, axes in enumerate(self.cut(leaf, layout)):
                    size = math.prod(sizes[axis] for axis in axes)
                    if leaf.shape[index] % size:
                        words = " x ".join(f"{self._word(axis)}={sizes[axis]}" for axis in axes)
                        name = leaf.names[index]
                        called = f" ({name})" if isinstance(name, str) and name not in AXES else ""
                        return f"{words} does not divide dimension {index}{called} of {where} {path}, {leaf.shape}"
        return None

    def _word(self, axis: str) -> str:
        """What an error calls an axis: one that shares its kind with others by the step's own name."""
        return self.own_name(axis) if axis.startswith(EXTRA) or axis in self.extra_axes.values() else axis

    def axes(self) -> tuple[str, ...]:
        """The mesh axes that some array can be cut along."""
        rules = dict(self.rules)
        used = {self.kind(axis) for leaf in (*self.state.values(), *self.batch.values()) for name in leaf.names
                for axis in _axes(name, rules)}  # fmt: skip
        used -= set(self.unusable)
        rows = {name for leaf in self.batch.values() for name in leaf.names}
        held = {axis for leaf in self.state.values() for name in leaf.names
                if leaf.role != "mutable" or name not in rows
                for axis in map(self.kind, _axes(name, rules))}  # fmt: skip
        # A batch cut over `expert` or `fsdp` alone would be data parallelism by another name.
        same_as_data = {"expert"} | ({"fsdp"} if "data" in used else set())
        return tuple(name for name in AXES if name in used and (name in held or name not in same_as_data))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which `autotune.plan.read` reads."""
        return {
            "rules": [[name, list(axes)] for name, axes in self.rules],
            "mesh_names": dict(self.mesh_names),
            "explicit": self.explicit,
            **({"mesh_context": self.mesh_context} if self.mesh_context != "both" else {}),
            **({"extra_axes": dict(self.extra_axes)} if self.extra_axes else {}),
            **({"limits": dict(self.limits)} if self.limits else {}),
            **({"only_axes": list(self.only_axes)} if self.only_axes else {}),
            **({"unusable": dict(self.unusable)} if self.unusable else {}),
            **({"apart": dict(self.apart)} if self.apart else {}),
            "state": {path: _leaf_json(leaf) for path, leaf in self.state.items()},
            "batch": {path: _leaf_json(leaf) for path, leaf in self.batch.items()},
        }


EXTRA = "axis:"


def extra_name(own: str) -> str:
    """How a further axis of one of our kinds stands among the names of a dimension, whatever else is called so.

    >>> extra_name("expert")
    'axis:expert'
    """
    return EXTRA + own


def expanded(axes: Sequence[str], extra_axes: Mapping[str, str]) -> tuple[str, ...]:
    """Our mesh axes with all further axes of their kinds beside them; `extra_axes` as in `Partition`.

    >>> expanded(("data", "tensor"), {"z": "tensor"})
    ('data', 'tensor', 'axis:z')
    """
    return tuple(
        one for axis in axes for one in (axis, *(extra_name(own) for own, kind in extra_axes.items() if kind == axis))
    )


def _leaf_json(leaf: Leaf) -> dict[str, Any]:
    names = [list(name) if isinstance(name, tuple) else name for name in leaf.names]
    return {"names": names, "shape": list(leaf.shape), "role": leaf.role, "guessed": leaf.guessed}


def _axes(name: Name, rules: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if name is None:
        return ()
    if isinstance(name, tuple):
        return tuple(axis for part in name for axis in _axes(part, rules))
    if name in rules:
        return rules[name]
    return (name,) if name in AXES or name.startswith(EXTRA) else ()


def _rank(name: Name, order: list[str]) -> int:
    """Mesh axes named outright come first, then logical names in the order of their rules."""
    return order.index(name) if isinstance(name, str) and name in order else -1


def _dividing(axes: tuple[str, ...], extent: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    kept: tuple[str, ...] = ()
    for axis in axes:
        if extent % math.prod(sizes[one] for one in (*kept, axis)) == 0:
            kept = (*kept, axis)
    return kept
