"""The train step that Alpa's benchmark ran, on our transformer: what lives from step to step, and what is held when.

From alpa-projects/alpa, benchmark/alpa/benchmark_2d_one_case_gpt_bert.py and alpa/model/model_util.py: float16
parameters beside a float32 master copy and two float32 moments; AdamW without clipping; layers one after another, not
scanned. Its compiler joins all reductions of gradients into one whose operands lie in one buffer
(`all_reduce_threshold` = 1 << 60 bytes, `combiner::use_continuous_buffer`; alpa/shard_parallel/auto_sharding.py), so
every float16 gradient is whole on every device until the last one is there, in memory of its own. Gathers of ZeRO-3 are
joined up to 32 MiB (`force_zero_stage_3_all_gather_threshold`): about a matrix at a time.

Found since and not built (peaks of the rows differ by up to 15 %): its XLA (tensorflow-alpa) copies only all-reduces
into one buffer (all_reduce_combiner.cc) and makes of reduce-scatters one operation of many operands (gpu_compiler.cc);
schedules one stream for least memory (gpu_hlo_schedule.cc); keeps the old parameters until the update (model_util.py
adds them times zero); and its layers compute scores in float16 (model/bert_model.py).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from autotune.meshes.layout import Layout
from autotune.meshes.sharding import named_sharding
from autotune.meshes.step import Step
from autotune.meshes.transformer import Transformer
from autotune.models.execution import Execution, execution_of
from autotune.models.loss import cross_entropy
from autotune.models.network import Network
from autotune.models.train_step import abstract_network, place


def build_alpa_step(transformer: Transformer, batch: int, seq: int, dtype: str, layout: Layout, mesh: Mesh) -> Step:
    """The step of a layout with full recomputation and either data or fsdp above 1.

    The state is {"parameters": `dtype`, "optimizer": {"master", "moments"}: float32}; layers are a list.
    """
    if layout.remat != "full" or (layout.data > 1) == (layout.fsdp > 1):
        raise ValueError(f"layout {layout}: Alpa's runs recompute all, and cut the batch over one axis")
    run = execution_of(layout, mesh, dtype)
    definition, stacked, stacked_axes = abstract_network(transformer)
    shapes, axes = unstack(stacked, stacked_axes, transformer.layers)
    rules = run.sharder.rules
    narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, run.dtype), shapes)
    master = place(shapes, axes, mesh, rules.optimizer)
    scalar = named_sharding(mesh, {}, (), ())
    moments = optax.tree.map_params(
        optimizer(),
        lambda _, leaf: leaf,
        jax.eval_shape(optimizer().init, shapes),
        master,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=scalar),
    )
    rows = named_sharding(mesh, rules.activations, ("batch", "length"), (batch, seq))

    def initialise(seed: int) -> Any:
        raise NotImplementedError("Alpa's step is compiled, not run")

    return Step(
        function=functools.partial(step, definition=definition, axes=axes, run=run),
        mesh=mesh,
        state={
            "parameters": place(narrow, axes, mesh, rules.storage),
            "optimizer": {"master": master, "moments": moments},
        },
        batch={name: jax.ShapeDtypeStruct((batch, seq), jnp.int32, sharding=rows) for name in ("tokens", "targets")},
        initialise=initialise,
        make_batch=initialise,
        parameters=lambda state: state["parameters"],
    )


def optimizer() -> optax.GradientTransformation:
    """AdamW without clipping."""
    return optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0.1)


def is_names(node: Any) -> bool:
    """Whether a node of a tree of logical axes is those of one array."""
    return isinstance(node, tuple)


def unstack(stacked: Any, axes: Any, layers: int) -> tuple[Any, Any]:
    """(shapes, logical axes) with a list of layers in place of the stacked ones."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked["layers"])
    names = jax.tree.map(lambda leaf: leaf[1:], axes["layers"], is_leaf=is_names)
    return {**stacked, "layers": [one] * layers}, {**axes, "layers": [names] * layers}


def step(state: Any, batch: Any, *, definition: nnx.GraphDef, axes: Any, run: Execution) -> tuple[Any, Any]:
    """One optimizer step: (new state, metrics)."""
    with jax.sharding.use_abstract_mesh(run.sharder.mesh.abstract_mesh):
        loss, gradients = reduced_gradients(state["parameters"], batch, definition, axes, run)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)
        held = state["optimizer"]
        updates, moments = optimizer().update(wide, held["moments"], held["master"])
        master = optax.apply_updates(held["master"], updates)

        def copy(leaf, names):
            cut = run.sharder.constrain(leaf.astype(run.dtype), names, "optimizer")
            return run.sharder.constrain(cut, names, "storage")

        parameters = jax.tree.map(copy, master, axes)
        return {"parameters": parameters, "optimizer": {"master": master, "moments": moments}}, {"loss": loss}


def reduced_gradients(
    parameters: Any, batch: Any, definition: nnx.GraphDef, axes: Any, run: Execution
) -> tuple[jax.Array, Any]:
    """(loss, gradients): each device's own gradients are whole until all are there, then reduced at once.

    Cut as the optimizer's state: under ZeRO along `embed`, else whole.
    """
    axis = "fsdp" if run.layout.fsdp > 1 else "data"
    cut = bool(run.layout.zero) or axis == "fsdp"

    def spec(names, cut: bool) -> PartitionSpec:
        return PartitionSpec(*(axis if cut and name == "embed" else None for name in names))

    def local(parameters, batch):
        value, gradients = loss_and_gradients(parameters, axes, batch, axis, definition, run)
        return jax.lax.pmean(value, axis), reduce_at_once(gradients, axes, axis, cut, run)

    mapped = jax.shard_map(
        local,
        in_specs=(
            jax.tree.map(lambda names: spec(names, axis == "fsdp"), axes, is_leaf=is_names),
            jax.tree.map(lambda _: PartitionSpec(axis), batch),
        ),
        out_specs=(PartitionSpec(), jax.tree.map(lambda names: spec(names, cut), axes, is_leaf=is_names)),
        axis_names={axis},
        check_vma=False,
    )
    return mapped(parameters, batch)


def reduce_at_once(gradients: Any, axes: Any, axis: str, cut: bool, run: Execution) -> Any:
    """The mean over `axis` of all gradients as one collective over one buffer; each device's part of it where `cut`."""
    shards = run.layout.data * run.layout.fsdp
    leaves, tree = jax.tree.flatten(gradients)
    names = jax.tree.leaves(axes, is_leaf=is_names)
    reduced = [jax.lax.pmean(leaf, axis) if "embed" not in of else leaf for leaf, of in zip(leaves, names, strict=True)]
    large = [index for index, of in enumerate(names) if "embed" in of]
    fronted = {index: jnp.moveaxis(leaves[index] / shards, names[index].index("embed"), 0) for index in large}
    # A row for each device, of what it gets of every gradient.
    buffer = jnp.concatenate([fronted[index].reshape(shards, -1) for index in large], axis=1)
    if cut:
        own = jax.lax.psum_scatter(buffer, axis, scatter_dimension=0, tiled=True)
    else:
        own = jax.lax.psum(buffer, axis)
    begin = 0
    for index in large:
        shape = fronted[index].shape
        size = math.prod(shape) // shards
        part = own[:, begin : begin + size].reshape(shape[0] // shards if cut else shape[0], *shape[1:])
        reduced[index] = jnp.moveaxis(part, 0, names[index].index("embed"))
        begin += size
    return jax.tree.unflatten(tree, reduced)


def loss_and_gradients(
    parameters: Any, axes: Any, batch: Any, axis: str, definition: nnx.GraphDef, run: Execution
) -> tuple[jax.Array, Any]:
    """(mean cross-entropy, gradients) of one device's rows, of whole weights: gathered, where cut, once in each pass.

    The backward pass is written out, each layer computed again from its input: autodiff through a gather would reduce
    every layer's gradients by themselves.
    """

    def whole(leaf, names):
        if axis == "data" or "embed" not in names:
            return leaf
        return jax.lax.all_gather(leaf, axis, axis=names.index("embed"), tiled=True)

    layers = parameters["layers"]
    outer = {name: jax.tree.map(whole, parameters[name], axes[name]) for name in parameters if name != "layers"}
    layer_definition, _ = nnx.split(nnx.merge(definition, {**outer, "layers": layers[0]}).layers)
    positions = jnp.arange(batch["tokens"].shape[1])

    def network(outer) -> Network:
        return nnx.merge(definition, {**outer, "layers": layers[0]})

    def layer(weights, x):
        return nnx.merge(layer_definition, weights)(x, positions, run)[0]

    def head(outer, x):
        return cross_entropy(network(outer).logits(x, run), batch["targets"]).mean()

    x, embed_back = jax.vjp(lambda outer: network(outer).embed(batch["tokens"], run), outer)
    inputs = []
    for weights, names in zip(layers, axes["layers"], strict=True):
        inputs.append(x)
        x = layer(jax.tree.map(whole, weights, names), x)
    loss, head_back = jax.vjp(head, outer, x)
    outer_gradients, dx = head_back(jnp.ones_like(loss))
    gradients = []
    for weights, names, x in reversed(list(zip(layers, axes["layers"], inputs, strict=True))):
        # Not before its turn, and not merged with the forward pass.
        weights, x, dx = jax.lax.optimization_barrier((weights, x, dx))
        _, layer_back = jax.vjp(layer, jax.tree.map(whole, weights, names), x)
        of_weights, dx = layer_back(dx)
        gradients.append(of_weights)
    outer_gradients = jax.tree.map(jnp.add, outer_gradients, *embed_back(dx))
    return loss, {**outer_gradients, "layers": gradients[::-1]}
