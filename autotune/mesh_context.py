"""The one place where a mesh is set, in the new way and the old."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from autotune.partition import BOTH, CONTEXTS, NEW, NONE, OLD

CONTEXT_WORDS = {
    BOTH: "a mesh set",
    OLD: "a mesh set by `with mesh:` and not by jax.set_mesh",
    NEW: "a mesh set by jax.set_mesh and not by `with mesh:`",
    NONE: "no mesh set",
}

NO_MESH = Mesh(np.empty((), dtype=object), ())
"""What is set where no mesh is."""


@contextlib.contextmanager
def mesh_set(mesh: Mesh, context: str = BOTH, abstract: AbstractMesh | None = None) -> Iterator[Mesh]:
    """`mesh` set by `jax.set_mesh` and, where this jax still has it, by the deprecated `with mesh:`, as `context` says.

    Many codebases ask the old context which mesh there is, and leave all their sharding constraints out where it has
    none. A jax version that refuses the old context gets `jax.set_mesh` alone, with a warning that says so.
    `abstract` stands in for the mesh in the new context, for a trace that needs no devices. A mesh that the user's
    program has set already (`jax.set_mesh` at the top of a script) gives way inside.
    """
    if context not in CONTEXTS:
        raise ValueError(f"mesh_set: context={context!r} must be one of {', '.join(CONTEXTS)}")
    with contextlib.ExitStack() as entered:
        if not jax.sharding.get_abstract_mesh().empty:
            entered.enter_context(jax.set_mesh(NO_MESH))
        if context in (BOTH, OLD):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    entered.enter_context(mesh)
            except (AttributeError, TypeError, NotImplementedError, RuntimeError, ValueError) as error:
                warnings.warn(
                    f"jax {jax.__version__} refuses `with mesh:` ({error}): a step that asks the old context finds no "
                    "mesh",
                    stacklevel=3,
                )
        if context in (BOTH, NEW):
            entered.enter_context(jax.set_mesh(mesh) if abstract is None else jax.sharding.use_abstract_mesh(abstract))
        yield mesh
