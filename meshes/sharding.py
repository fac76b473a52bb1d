"""Where every array of a train step lives: logical axes -> mesh axes, one table for each role an array plays.

A weight at rest is cut over `fsdp`; inside its layer it is whole along `fsdp`; its gradient and its optimizer state may
be cut over `data` too (ZeRO). So the same logical name means different mesh axes by role, and the tables say which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autotune.meshes.layout import Layout

WEIGHTS = {
    "layers": ("stage",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "latent": (),
    "positions": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "norm": (),
    "router": (),
}
"""Logical axes of parameters at rest. `latent` is the width of what latent attention makes keys and queries of, and the
rank of adapters, which every device computes whole; `positions` counts the rows of a table of learned positions. `norm`
is the width of a norm's scale: too small to be worth a gather. `router` counts the experts in the router's own weight,
which every device needs whole."""

PRECISE = ("norm", "router")
"""Parameters with such an axis are used in float32 whatever the compute dtype."""

ACTIVATIONS = {
    "microbatch": ("stage",),
    "batch": ("data", "fsdp", "expert"),
    "expert_batch": ("data", "fsdp"),
    "length": ("context",),
    "norm_length": ("context", "tensor"),
    "features": (),
    "slots": ("context",),
    "slot_features": ("tensor",),
    "own": ("data", "fsdp", "expert", "context", "tensor"),
}
"""Logical axes of activations that no weight has.

`microbatch`: pieces of the batch outside the pipeline's loop. `norm_length`: the sequence of norms and residuals under
sequence parallelism. `features`: d_model of an activation (of a weight it is `embed`). Where experts are cut over
`expert`: `expert_batch` is the batch, `slots` the places of one expert, `slot_features` d_model while tokens travel.
`own`: one entry for each device, of arrays that every device has for itself (rows of experts that drop no token).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Logical axis -> mesh axes, by the role of the array.

    `storage`: parameters between steps. `weights`: parameters as the matmuls use them. `gradients`, `optimizer`: as
    storage, cut further by ZeRO. `activations`: everything computed from a batch.
    """

    storage: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, tuple[str, ...]]
    gradients: Mapping[str, tuple[str, ...]]
    optimizer: Mapping[str, tuple[str, ...]]
    activations: Mapping[str, tuple[str, ...]]


def rules_of(layout: Layout) -> Rules:
    """The tables of a layout: the defaults, with its own `rules` in their place.

    ZeRO adds `data` to `embed`: 1 to the optimizer's state (the f32 weights are part of it), 2 to gradients too.
    ValueError when a rule names a mesh axis or logical axis that does not exist.
    """
    own = dict(layout.rules)
    for name, axes in own.items():
        if name not in WEIGHTS and name not in ACTIVATIONS:
            raise ValueError(f"layout: rule.{name} is no logical axis; axes: {', '.join((*WEIGHTS, *ACTIVATIONS))}")
        for axis in axes:
            if axis not in layout.axes:
                raise ValueError(f"layout: rule.{name}: {axis!r} is not a mesh axis")
    storage = WEIGHTS | {name: axes for name, axes in own.items() if name in WEIGHTS}
    weights = {name: tuple(axis for axis in axes if axis != "fsdp") for name, axes in storage.items()}
    sharded = {**storage, "embed": (*storage["embed"], "data")}
    activations = weights | ACTIVATIONS
    if not layout.sequence_parallel:
        activations["norm_length"] = activations["length"]
    return Rules(
        storage=storage,
        weights=weights,
        gradients=sharded if layout.zero == 2 else storage,
        optimizer=sharded if layout.zero else storage,
        activations=activations | own,
    )


def partition_spec(
    rules: Mapping[str, tuple[str, ...]], logical_axes: tuple[str | None, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """The mesh axes of each dimension; axes of size 1 are left out, one used by an earlier dimension is not used again.

    >>> tuple(partition_spec({"embed": ("fsdp", "data")}, ("embed", None), {"fsdp": 4, "data": 1}))
    ('fsdp', None)
    """
    used: set[str] = set()
    parts: list[str | tuple[str, ...] | None] = []
    for name in logical_axes:
        axes = () if name is None else rules[name]
        axes = tuple(axis for axis in axes if sizes.get(axis, 1) > 1 and axis not in used)
        used.update(axes)
        parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*parts)


def named_sharding(
    mesh: Mesh, rules: Mapping[str, tuple[str, ...]], logical_axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """The sharding of one array; ValueError where a dimension does not divide by the axes that cut it."""
    spec = partition_spec(rules, logical_axes, dict(mesh.shape))
    for size, name, axes in zip(shape, logical_axes, spec, strict=True):
        cut = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
        if size % cut:
            raise ValueError(f"sharding: {name}={size} does not divide by {axes} = {cut} devices")
    return NamedSharding(mesh, spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharder:
    """Puts arrays of one step where the layout wants them. Call its methods inside jit, under the step's mesh."""

    mesh: Mesh
    rules: Rules
    mapped_over: tuple[str, ...] = ()
    """Mesh axes over which a surrounding vmap cuts an axis of every array (its `spmd_axis_name`)."""

    @property
    def explicit(self) -> bool:
        """Whether shardings are part of array types (`AxisType.Explicit`)."""
        return AxisType.Explicit in self.mesh.axis_types

    def spec(self, logical_axes: tuple[str | None, ...], role: str = "activations") -> PartitionSpec:
        """Mesh axes of an array in its role, without those that the surrounding shard_map handles by hand."""
        current = jax.sharding.get_abstract_mesh()
        sizes = {axis: size for axis, size in self.mesh.shape.items() if axis not in current.manual_axes}
        return partition_spec(getattr(self.rules, role), logical_axes, sizes)

    def constrain(self, x: jax.Array, logical_axes: tuple[str | None, ...], role: str = "activations") -> jax.Array:
        """`x`, cut as its logical axes say."""
        spec = self.spec(logical_axes, role)
        return jax.reshard(x, spec) if self.explicit else jax.lax.with_sharding_constraint(x, spec)

    def einsum(
        self, formula: str, x: jax.Array, y: jax.Array, logical_axes: tuple[str | None, ...], role: str = "activations"
    ) -> jax.Array:
        """A matmul whose result is cut as its logical axes say: partial sums are reduced into that sharding."""
        if self.explicit:
            return jnp.einsum(formula, x, y, out_sharding=self.spec(logical_axes, role))
        return self.constrain(jnp.einsum(formula, x, y), logical_axes, role)

    def map(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`function` on each device's part, by hand along every axis that a surrounding shard_map does not handle."""
        free = set(self.mesh.axis_names) - set(jax.sharding.get_abstract_mesh().manual_axes)
        if self.explicit:
            free -= set(self.mapped_over)  # such a vmap runs what is inside on the mesh of the other axes
        # check_vma off: Pallas kernels do not say along which axes their results vary
        mapped = jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=False)
        if not self.explicit:
            return mapped
        return lambda *arrays: mapped(*(jax.reshard(x, spec) for x, spec in zip(arrays, in_specs, strict=True)))

    def narrow(self, weight: jax.Array, logical_axes: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
        """A weight in the compute dtype; as it is where it is one of the `PRECISE`, or integers."""
        kept = set(PRECISE) & set(logical_axes) or not jnp.issubdtype(weight.dtype, jnp.floating)
        return weight if kept else weight.astype(dtype)

    def fetch(self, weight: jax.Array, logical_axes: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
        """A weight as its matmul wants it: cast to the compute dtype, then gathered over fsdp.

        In this order the gather moves `dtype` and not float32. The gradient comes back in `dtype` too and is reduced
        straight onto its shards: without the second constraint it would be summed whole on every device.
        """
        if self.explicit:
            return self.constrain(self.narrow(weight, logical_axes, dtype), logical_axes, "weights")

        @jax.custom_vjp
        def gather(weight):
            return self.constrain(weight, logical_axes, "weights")

        gather.defvjp(
            lambda weight: (gather(weight), None),
            lambda _, gradient: (self.constrain(gradient, logical_axes, "gradients"),),
        )
        return gather(self.constrain(self.narrow(weight, logical_axes, dtype), logical_axes, "storage"))
