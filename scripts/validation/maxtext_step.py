"""The train step of MaxText's published v5e and v5p runs: its own layer, weights and loss, as they were in late 2023.

From MaxText/layers.py, train.py and configs/base.yml of AI-Hypercomputer/maxtext at that time (layers.py: commit
0012666e28d1 and the fork A9isha/maxtext at 0010c544cc43, December 2023). What differs from our decoder: attention and
MLP read one norm and are added together; rotary pairs are neighbours; the MLP has no gate; tokens are embedded by a
one-hot matmul (use_iota_embed), and the same table makes the logits, in float32; attention is the Pallas flash kernel,
which was not told to be causal (enable_flash_attention); stacked weights have their layers on the second axis
(param_scan_axis=1); weights are cast where they are used and nothing says where their gathers are; `minimal` saves the
result of every matmul with a weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.pallas.ops.tpu import flash_attention as flash
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from autotune.meshes.layout import Layout
from autotune.meshes.step import Step
from autotune.meshes.transformer import TransformerShape

MAXTEXT_RULES = {
    "activation_batch": ("data", "fsdp"),
    "activation_embed": ("tensor",),
    "activation_mlp": ("tensor",),
    "activation_heads": ("tensor",),
    "activation_vocab": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
}
"""logical_axis_rules of base.yml; a name that is not here is not cut (activation_length has the axes of the batch,
which come first, and activation_kv those of the heads)."""

POLICIES = {"full": None, "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims}
"""remat_policy, by its name."""

STREAM = ("activation_batch", "activation_length", "activation_embed")

Constrain = Callable[[jax.Array, tuple[str, ...]], jax.Array]


def build_maxtext_step(transformer: TransformerShape, batch: int, seq: int, layout: Layout, mesh: Mesh) -> Step:
    """The step of a layout along data, fsdp and tensor, in bfloat16 with float32 weights and AdamW moments."""
    if layout.remat not in POLICIES or transformer.mlp != "gelu-2mat" or not transformer.tied_embeddings:
        raise ValueError(f"layout {layout}, model {transformer.name}: not one of MaxText's published runs")

    def array(shape: tuple[int, ...], names: tuple[str, ...], dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec_of(names)))

    parameters = {path: array(shape, names) for path, (shape, names) in weights(transformer).items()}
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    moments = optax.tree.map_params(
        optimizer(),
        # A leaf of its own: memory is told apart by which leaf an argument is.
        lambda _, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        jax.eval_shape(optimizer().init, parameters),
        parameters,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=scalar.sharding),
    )
    words = ("tokens", "targets", "positions", "segments")

    def initialise(seed: int) -> Any:
        raise NotImplementedError("MaxText's step is compiled, not run")

    return Step(
        function=functools.partial(step, transformer=transformer, layout=layout, mesh=mesh),
        mesh=mesh,
        state={"parameters": parameters, "optimizer": moments},
        batch={word: array((batch, seq), ("activation_batch", "activation_length"), jnp.int32) for word in words},
        initialise=initialise,
        make_batch=initialise,
        parameters=lambda state: state["parameters"],
    )


def weights(shape: TransformerShape) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Name -> (shape, logical axes); those of the layers are stacked on their second axis."""
    layers, d, f, n, h = shape.layers, shape.d_model, shape.d_ff, shape.heads, shape.head_dim
    projection = ((d, layers, n, h), ("embed", "layers", "heads", "kv"))
    return {
        "embedding": ((shape.vocab, d), ("vocab", "embed")),
        "norm": ((d,), ("embed",)),
        "layer.norm": ((d, layers), ("embed", "layers")),
        **{f"layer.{name}": projection for name in ("query", "key", "value")},
        "layer.out": ((n, layers, h, d), ("heads", "layers", "kv", "embed")),
        "layer.wi": ((d, layers, f), ("embed", "layers", "mlp")),
        "layer.wo": ((f, layers, d), ("mlp", "layers", "embed")),
    }


def spec_of(names: tuple[str, ...]) -> PartitionSpec:
    """Mesh axes of each dimension."""
    return PartitionSpec(*(MAXTEXT_RULES.get(name) for name in names))


def optimizer() -> optax.GradientTransformation:
    """AdamW; the gradients are clipped before."""
    return optax.adamw(3e-5, b1=0.9, b2=0.95, weight_decay=0.1)


def step(state: Any, batch: Any, *, transformer: TransformerShape, layout: Layout, mesh: Mesh) -> tuple[Any, Any]:
    """One optimizer step: (new state, metrics)."""

    def constrain(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(names)))

    parameters = state["parameters"]
    loss, raw = jax.value_and_grad(mean_loss)(parameters, batch, transformer, layout, mesh, constrain)
    gradients, _ = optax.clip_by_global_norm(1.0).update(raw, optax.EmptyState())
    updates, moments = optimizer().update(gradients, state["optimizer"], parameters)
    parameters = optax.apply_updates(parameters, updates)
    norms = {"gradients": gradients, "raw_gradients": raw, "parameters": parameters}
    metrics = {"loss": loss, **{name: optax.tree.norm(tree) for name, tree in norms.items()}}
    return {"parameters": parameters, "optimizer": moments}, metrics


def mean_loss(
    parameters: Any, batch: Any, transformer: TransformerShape, layout: Layout, mesh: Mesh, constrain: Constrain
) -> jax.Array:
    """Cross-entropy of float32 logits with one-hot targets, padding left out."""
    dtype = jnp.bfloat16
    one_hot = (batch["tokens"][..., None] == jnp.arange(transformer.vocab)[None, None, :]).astype(dtype)
    x = constrain(jnp.dot(one_hot, parameters["embedding"].astype(dtype)), STREAM)
    layers = {
        path.removeprefix("layer."): jnp.moveaxis(leaf, 1, 0)
        for path, leaf in parameters.items()
        if path.startswith("layer.")
    }

    def layer(x: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        return decoder_layer(x, w, batch["positions"], mesh, constrain), None

    x, _ = jax.lax.scan(jax.checkpoint(layer, policy=POLICIES[layout.remat], prevent_cse=False), x, layers)
    x = norm(x, parameters["norm"])
    logits = jnp.dot(x.astype(jnp.float32), parameters["embedding"].T) / transformer.d_model**0.5
    logits = constrain(logits, ("activation_batch", "activation_length", "activation_vocab"))
    targets = jax.nn.one_hot(batch["targets"], transformer.vocab)
    losses = -(targets * jax.nn.log_softmax(logits)).sum(-1)
    losses = constrain(losses, ("activation_batch", "activation_length"))
    return (losses * (batch["segments"] != 0)).sum() / losses.size


def decoder_layer(
    x: jax.Array, w: dict[str, jax.Array], positions: jax.Array, mesh: Mesh, constrain: Constrain
) -> jax.Array:
    """Attention and MLP side by side on one norm of `x` (batch, length, d_model)."""
    dtype = x.dtype
    x = constrain(x, STREAM)
    y = constrain(norm(x, w["norm"]), STREAM)
    heads = ("activation_batch", "activation_length", "activation_heads", "activation_kv")

    def project(name: str) -> jax.Array:
        return jnp.einsum("bld,dnh->blnh", y, w[name].astype(dtype))

    q = constrain(rotate(project("query"), positions), heads)
    k = constrain(rotate(project("key"), positions), heads)
    v = constrain(project("value"), heads)
    mixed = attend(q, k, v, mesh)
    attention = constrain(jnp.einsum("blnh,nhd->bld", mixed, w["out"].astype(dtype)), STREAM)
    hidden = jax.nn.relu(jnp.einsum("bld,df->blf", y, w["wi"].astype(dtype)))
    hidden = constrain(hidden, ("activation_batch", "activation_length", "activation_mlp"))
    mlp = constrain(jnp.einsum("blf,fd->bld", hidden, w["wo"].astype(dtype)), STREAM)
    return constrain(mlp + attention + x, STREAM)


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root-mean-square norm over the last axis: statistics in float32, scaled in x's dtype."""
    wide = x.astype(jnp.float32)
    y = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
    return y.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding of neighbouring pairs of x (batch, length, heads, head_dim)."""
    head_dim = x.shape[-1]
    timescale = 10_000 ** (2 * jnp.arange(head_dim // 2) / head_dim)
    angles = positions[:, :, None, None] / timescale[None, None, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = ((first * cos - second * sin).astype(x.dtype), (second * cos + first * sin).astype(x.dtype))
    return jnp.stack(turned, axis=-1).reshape(x.shape)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mesh: Mesh) -> jax.Array:
    """The Pallas flash kernel on each device's own sequences and heads (batch, length, heads, head_dim)."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    heads = spec_of(("activation_batch", "activation_heads", "activation_length", "activation_kv"))
    blocks = flash.BlockSizes(
        block_q=512, block_k_major=512, block_k=512, block_b=1, block_q_major_dkv=512, block_k_major_dkv=512,
        block_q_dkv=512, block_k_dkv=512, block_q_dq=512, block_k_dq=512, block_k_major_dq=512,
    )  # fmt: skip
    local = functools.partial(flash.flash_attention, causal=False, block_sizes=blocks)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(heads, heads, heads), out_specs=heads, check_vma=False)
    return mapped(q, k, v).transpose(0, 2, 1, 3)
