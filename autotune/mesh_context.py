"""The one place where a mesh is set, in the new way and the old."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import jax
from jax.sharding import Mesh


@contextlib.contextmanager
def mesh_set(mesh: Mesh) -> Iterator[Mesh]:
    """A context with `mesh` set by `jax.set_mesh` and, where this jax still has it, by the deprecated `with mesh:`.

    Many codebases ask the old context which mesh there is, and leave all their sharding constraints out where it has
    none. A jax version that refuses the old context gets `jax.set_mesh` alone, with a warning that says so.
    """
    with contextlib.ExitStack() as entered:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                entered.enter_context(mesh)
        except (AttributeError, TypeError, NotImplementedError, RuntimeError, ValueError) as error:
            warnings.warn(
                f"jax {jax.__version__} refuses `with mesh:` ({error}): a step that asks the old context finds no mesh",
                stacklevel=3,
            )
        entered.enter_context(jax.set_mesh(mesh))
        yield mesh
