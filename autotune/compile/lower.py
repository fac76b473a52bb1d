"""How a Step becomes a program: the one way it is jitted, whether it is then only read or really run."""

from __future__ import annotations

from typing import Any

import jax

from autotune.meshes.layout import Layout
from autotune.meshes.step import Step

LATENCY_HIDING = {"xla_gpu_enable_latency_hiding_scheduler": True}
"""XLA leaves nearly every collective synchronous on A100 and V100 without it; H100 and later turn it on themselves
(compared on the text of one transformer step per GPU, jax 0.10.2)."""


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


def compiler_options(layout: Layout, platform: str) -> dict[str, Any]:
    """The backend's defaults, and the layout's own options over them."""
    defaults: dict[str, Any] = dict(LATENCY_HIDING) if platform == "cuda" else {}
    return defaults | {name: _option(value) for name, value in layout.compiler_options}


def _option(value: str) -> bool | int | float | str:
    """XLA refuses "true" where it wants true, and JAX "-0.5" where it wants a number."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
