"""Arrays that a step pins: to a mesh of its own, or by the specs of a `jax.shard_map`, which no plan can change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh, NamedSharding

from autotune.partition import Partition
from autotune.workload.same_program import LISTED, listed_places, source
from autotune.workload.trace import equations, names_of
from autotune.workload.tracing import is_traced_mesh


def own_meshes(jaxpr: Any, mesh: Any) -> list[str]:
    """A line on the places where the step says a mesh of its own, with what to write there instead; [] where none does.

    `mesh`: the mesh that the step was built for, if any; another one on the same devices is the user's own.
    """
    places: dict[str, str] = {}
    meshes: dict[Any, None] = {}
    for equation in equations(jaxpr):
        for own, instead in _said(equation):
            if own == mesh or is_traced_mesh(own):
                continue
            meshes[own] = None
            places.setdefault(source(equation) or "a library", instead)
    if not places:
        return []
    shapes = " and ".join(
        " x ".join(f"{name}={size}" for name, size in own.shape.items()) for own in list(meshes)[:LISTED]
    )
    return [
        f"the step pins arrays to a mesh of its own ({shapes}), so no layout changes how they are cut, and on other "
        f"devices it does not compile. Write instead, so that the mesh which is set is used: {listed_places(places)}"
    ]


def _said(equation: Any) -> Iterator[tuple[Mesh, str]]:
    """The meshes that an equation names, each with what says the same of the mesh that is set."""
    name, params = equation.primitive.name, equation.params
    if name == "shard_map" and isinstance(params.get("mesh"), Mesh):
        yield params["mesh"], "jax.shard_map without mesh="
    for word in ("sharding", "dst_sharding", "in_shardings", "out_shardings", "devices", "srcs"):
        value = params.get(word)
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, NamedSharding) and isinstance(one.mesh, Mesh):
                spec = ", ".join(repr(part) for part in one.spec)
                yield one.mesh, f"PartitionSpec({spec}) in place of the NamedSharding"


def mapped(jaxpr: Any, partition: Partition) -> list[str]:
    """A line on every kind of `jax.shard_map` over the mesh that is set whose specs fix the cut of its arrays, with
    what to write instead; [] where all axes that the search varies are left to the compiler.

    Over the axes of the map that no spec names, each device does the same work again.
    """
    places: dict[str, str] = {}
    varied = [own for axis in partition.axes() if axis != "stage" for own in partition.own_axes(axis)]
    for equation in equations(jaxpr):
        mesh, manual = equation.params.get("mesh"), equation.params.get("manual_axes")
        manual = equation.params.get("newly_manual_axes") if manual is None else manual
        if equation.primitive.name != "shard_map" or manual is None or not is_traced_mesh(mesh):
            continue
        specs = [spec for spec in equation.params.get("in_specs", ()) if any(names_of(part) for part in spec)]
        named = [axis for axis in varied if any(axis in names_of(part) for spec in specs for part in spec)]
        taken = [axis for axis in varied if axis in manual]
        if not taken or not specs:
            continue
        said = f"in_specs {', '.join(dict.fromkeys(map(_words, specs)))} fix the cut along {', '.join(named) or 'none'}"
        repeated = [axis for axis in taken if axis not in named]
        if repeated:
            kept = ", ".join(repr(axis) for axis in named) or "..."
            said += (
                f", and along {', '.join(repeated)} every device does the same work again: write "
                f"jax.shard_map(..., axis_names={{{kept}}}), which leaves the other axes to the compiler, or name them "
                "in the specs"
            )
        else:
            said += ": write jax.lax.with_sharding_constraint, or nothing, where the map has no collectives of its own"
        places.setdefault(source(equation) or "a library", said)
    if not places:
        return []
    return [f"jax.shard_map cuts its arrays by its own specs, whatever the rules and the layout say: "
            f"{listed_places(places)}"]  # fmt: skip


def _words(spec: Any) -> str:
    return f"P({', '.join(repr(part) for part in spec)})"
