"""How a Step becomes a program: the one way it is jitted, whether it is then only read or really run."""

from __future__ import annotations

import jax

from autotune.meshes.step import Step


def trace_step(step: Step) -> jax.stages.Traced:
    """The step traced for its mesh: state donated, and given back under the shardings it came with."""
    with jax.set_mesh(step.mesh):
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
    with jax.set_mesh(step.mesh):
        return trace_step(step).lower()
