"""How a Step becomes a program: the one way it is jitted, whether it is then only read or really run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from autotune.mesh_context import mesh_set
from autotune.meshes.compiler_options import refused_option, without_options
from autotune.meshes.hardware import Hardware
from autotune.meshes.layout import Layout
from autotune.meshes.step import Step


def trace_step(step: Step) -> jax.stages.Traced:
    """The step traced for its mesh: state donated, and given back under the shardings it came with."""
    with mesh_set(step.mesh, step.mesh_context):
        # keep_unused: so that the entry parameters are exactly the leaves of (state, batch), in order.
        jitted = jax.jit(
            step.function,
            donate_argnums=0,
            keep_unused=True,
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, step.state), None),
        )
        return jitted.trace(step.state, step.batch)


def lower_step(step: Step) -> jax.stages.Lowered:
    """The step traced and lowered for its mesh."""
    with mesh_set(step.mesh, step.mesh_context):
        return trace_step(step).lower()


def compile_step(
    lowered: Any, layout: Layout, hardware: Hardware, options: Callable[[Layout, Hardware], dict[str, Any]]
) -> tuple[Any, tuple[str, ...]]:
    """The compiled step, and the hardware file's options that this compiler refuses and that were left out.

    `options`: what the compiler is told of a layout on some hardware (`meshes.compiler_options`). A layout's own
    options are never left out: they are what the user asked for.
    """
    refused: tuple[str, ...] = ()
    while True:
        less = without_options(hardware, refused)
        try:
            return lowered.compile(compiler_options=options(layout, less)), refused
        except Exception as error:
            more = refused_option(str(error), less, layout.options)
            if not more:
                raise
            refused += more
