"""Arrays that a step pins to a mesh of its own, which no plan can change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh, NamedSharding

from autotune.workload.same_program import LISTED, listed_places, source
from autotune.workload.trace import equations
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
