"""The train step that Alpa's benchmark ran: its own layer, its loss, what lives from step to step, what is held when.

The runs are of December 2021, when the package was still called parax. From alpa-projects/alpa:
benchmark/parax/benchmark_gpt_bert_2d_one_case.py: no dropout, no clipping, AdamW without decay of norms and biases.
parax/model/model_util.py: float16 parameters beside a float32 master copy and two float32 moments; the old float16
parameters are added to the new ones, times zero, so they are held until the update.
parax/model/bert_model.py and gpt_model.py: norms behind the residual sums, queries, values and keys from one matmul,
biases, exact gelu, attention not causal, its scores and their softmax in float16; learned positions; tied logits in
float16 with a bias of their own, against float32 one-hot targets. Embeddings and layers are computed again (nn.remat;
alpa/model/bert_model.py). parax/monkey_patch.py: words are embedded by a one-hot matmul, and so are positions, which is
0.1 % of the matmuls and not built.

From alpa-projects/tensorflow-alpa, tensorflow/compiler/xla/service:
gpu/gpu_compiler.cc: collectives are joined after fusion, with thresholds of 1 << 60 bytes (parax/shard_parallel/
auto_sharding.py), ZeRO-3's gathers up to 32 MiB (parax/global_env.py). Reduce-scatters become one with many operands,
each gradient whole, in memory of its own, until the last is there. all_reduce_combiner.cc copies all-reduces, and only
those, into one buffer (`combiner::use_continuous_buffer`).
gpu/gpu_hlo_schedule.cc: one stream, so nothing overlaps, and an order for least memory. The list scheduler of that time
(hlo_memory_scheduler.cc) takes next what frees most and does not see that donated memory is written in place: an update
frees 2 bytes a parameter, defines 14, and waits until every gradient is there. That of its three schedulers this
one was taken is our reading: without it tensor=2's peak is 14 % too low in place of 10 %, tensor=4's 8 in place of 5 %.

Not built: ZeRO-3's runs took two passes of gathers longer than ZeRO-2's (99 ms on 2 GPUs, 64 on 4), not one, as spmd/
auto_sharding.cc (GenerateReduceScatter: one gather for the first matmul, one for all others) has it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from autotune.meshes.layout import Layout
from autotune.meshes.sharding import named_sharding
from autotune.meshes.step import Step
from autotune.meshes.transformer import TransformerShape
from autotune.models.execution import Execution, execution_of
from autotune.models.train_step import place

STREAM = ("batch", "length", "features")
HEADS = ("batch", "length", "heads", None)

EPSILON = 1e-12
"""layer_norm_eps of BertConfig."""


def build_alpa_step(
    transformer: TransformerShape, batch: int, seq: int, dtype: str, layout: Layout, mesh: Mesh
) -> Step:
    """The step of a layout with full recomputation along data or fsdp, and tensor.

    The state is {"parameters": `dtype`, "optimizer": {"master", "moments"}: float32}; layers are a list.
    """
    if layout.remat != "full" or (layout.data > 1 and layout.fsdp > 1):
        raise ValueError(f"layout {layout}: Alpa's runs recompute all, and cut the batch over one axis at most")
    if transformer.mlp != "gelu-2mat" or transformer.kv_heads != transformer.heads:
        raise ValueError(f"model {transformer.name}: not one that Alpa's benchmark trains")
    run = execution_of(layout, mesh, dtype)
    shapes, axes = weights(transformer, seq)
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
        function=functools.partial(step, axes=axes, heads=transformer.heads, run=run),
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


def combined(layout: Layout) -> Layout:
    """The layout with Alpa's thresholds of what collectives are joined, and its order: on one stream, for the least
    memory (tensorflow-alpa, xla/service/gpu/gpu_hlo_schedule.cc)."""
    gathers = 1 << 25 if layout.fsdp > 1 else 1 << 60
    options = (
        ("xla_gpu_enable_latency_hiding_scheduler", "false"),
        ("xla_gpu_all_gather_combine_threshold_bytes", str(gathers)),
        ("xla_gpu_reduce_scatter_combine_threshold_bytes", str(1 << 60)),
    )
    return dataclasses.replace(layout, compiler_options=(*layout.compiler_options, *options))


def optimizer() -> optax.GradientTransformation:
    """AdamW without clipping."""
    return optax.adamw(1e-8)


def is_names(node: Any) -> bool:
    """Whether a node of a tree of logical axes is those of one array."""
    return isinstance(node, tuple)


def weights(shape: TransformerShape, seq: int) -> tuple[Any, Any]:
    """(float32 shapes, logical axes) of FlaxGPTForLMModule's parameters."""
    d, f, v = shape.d_model, shape.d_ff, shape.vocab
    norm = {"scale": ((d,), ("norm",)), "bias": ((d,), ("norm",))}
    layer = {
        "qvk": {"kernel": ((d, 3 * d), ("embed", "heads")), "bias": ((3 * d,), ("heads",))},
        "out": {"kernel": ((d, d), ("heads", "embed")), "bias": ((d,), ("norm",))},
        "attention_norm": norm,
        "up": {"kernel": ((d, f), ("embed", "mlp")), "bias": ((f,), ("mlp",))},
        "down": {"kernel": ((f, d), ("mlp", "embed")), "bias": ((d,), ("norm",))},
        "mlp_norm": norm,
    }
    told = {
        "embedding": ((v, d), ("vocab", "embed")),
        "positions": ((seq, d), (None, "embed")),
        "norm": norm,
        "logits_bias": ((v,), ("vocab",)),
        "layers": [layer] * shape.layers,
    }
    sizes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf[0], jnp.float32), told, is_leaf=is_names)
    return sizes, jax.tree.map(lambda leaf: leaf[1], told, is_leaf=is_names)


def step(state: Any, batch: Any, *, axes: Any, heads: int, run: Execution) -> tuple[Any, Any]:
    """One optimizer step: (new state, metrics)."""
    with jax.sharding.use_abstract_mesh(run.sharder.mesh.abstract_mesh):
        loss, gradients = reduced_gradients(state["parameters"], batch, axes, heads, run)
        # No update before the last gradient.
        gradients = jax.lax.optimization_barrier(gradients)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)
        held = state["optimizer"]
        updates, moments = optimizer().update(wide, held["moments"], held["master"])
        master = optax.apply_updates(held["master"], updates)

        def copy(leaf, old, names):
            # apply_gradients of model_util.py adds nothing of the old weights, so they are held until here.
            part = run.sharder.constrain(old, names, "optimizer")
            cut = run.sharder.constrain(leaf.astype(run.dtype) + 0.0 * part, names, "optimizer")
            return run.sharder.constrain(cut, names, "storage")

        parameters = jax.tree.map(copy, master, state["parameters"], axes)
        return {"parameters": parameters, "optimizer": {"master": master, "moments": moments}}, {"loss": loss}


def reduced_gradients(parameters: Any, batch: Any, axes: Any, heads: int, run: Execution) -> tuple[jax.Array, Any]:
    """(loss, gradients), cut as the optimizer's state: under ZeRO along `embed`, else whole."""
    axis = "fsdp" if run.layout.fsdp > 1 else "data"
    shards = run.layout.data * run.layout.fsdp
    cut = shards > 1 and (bool(run.layout.zero) or axis == "fsdp")

    def specs(embed: str | None, tensor: str | None, *first: str) -> Any:
        of = {"embed": embed, "heads": tensor, "mlp": tensor, "vocab": tensor}
        return jax.tree.map(lambda names: PartitionSpec(*first, *map(of.get, names)), axes, is_leaf=is_names)

    def local(parameters, batch):
        value, gradients = loss_and_gradients(parameters, axes, batch, axis, heads, run)
        return jax.lax.psum(value, axis), jax.tree.map(lambda leaf: leaf[None], gradients)

    # Each device's own gradients, one after another along a first dimension.
    loss, own = jax.shard_map(
        local,
        in_specs=(
            specs("fsdp" if axis == "fsdp" else None, None),
            jax.tree.map(lambda _: PartitionSpec(axis), batch),
        ),
        out_specs=(PartitionSpec(), specs(None, None, axis)),
        axis_names={axis},
        check_vma=False,
    )(parameters, batch)
    if shards == 1:
        return loss, jax.tree.map(lambda leaf: leaf[0], own)
    # By itself, with `tensor` manual too: else the partitioner gathers along it first.
    reduced = jax.shard_map(
        lambda own: reduce(jax.tree.map(lambda leaf: leaf[0], own), axes, axis, cut),
        in_specs=(specs(None, "tensor", axis),),
        out_specs=specs(axis if cut else None, "tensor"),
        check_vma=False,
    )(own)
    return loss, reduced


def reduce(gradients: Any, axes: Any, axis: str, cut: bool) -> Any:
    """The sum over `axis` of every gradient, each device's part of it where `cut`; else in one buffer."""
    leaves, tree = jax.tree.flatten(gradients)
    names = jax.tree.leaves(axes, is_leaf=is_names)
    if cut:
        return jax.tree.unflatten(
            tree,
            [
                jax.lax.psum_scatter(leaf, axis, scatter_dimension=of.index("embed"), tiled=True)
                if "embed" in of
                else jax.lax.psum(leaf, axis)
                for leaf, of in zip(leaves, names, strict=True)
            ],
        )
    buffer = jax.lax.psum(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), axis)
    ends = [0, *itertools.accumulate(math.prod(leaf.shape) for leaf in leaves)]
    pieces = [buffer[begin:end] for begin, end in itertools.pairwise(ends)]
    return jax.tree.unflatten(tree, [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)])


def loss_and_gradients(
    parameters: Any, axes: Any, batch: Any, axis: str, heads: int, run: Execution
) -> tuple[jax.Array, Any]:
    """(one device's part of the loss, its gradients) of whole weights: gathered, where cut, once in each pass.

    The backward pass is written out, embedding and each layer computed again from their input: autodiff through a
    gather would reduce every layer's gradients by themselves.
    """

    def whole(leaf, names):
        if axis == "data" or "embed" not in names:
            return leaf
        return jax.lax.all_gather(leaf, axis, axis=names.index("embed"), tiled=True)

    layers = parameters["layers"]
    outer = {name: jax.tree.map(whole, parameters[name], axes[name]) for name in parameters if name != "layers"}

    def one(weights, x):
        return layer(x, weights, heads, run)

    def head(outer, x):
        kept = jax.lax.psum((batch["targets"] > 0).astype(jnp.float32).sum(), axis)
        return summed_loss(outer, x, batch["targets"], run) / kept

    x = embed(outer, batch["tokens"], run)
    inputs = []
    for held, names in zip(layers, axes["layers"], strict=True):
        inputs.append(x)
        x = one(jax.tree.map(whole, held, names), x)
    loss, head_back = jax.vjp(head, outer, x)
    outer_gradients, dx = head_back(jnp.ones_like(loss))
    gradients = []
    for held, names, x in reversed(list(zip(layers, axes["layers"], inputs, strict=True))):
        # Not before its turn, and not merged with the forward pass.
        held, x, dx = jax.lax.optimization_barrier((held, x, dx))
        _, layer_back = jax.vjp(one, jax.tree.map(whole, held, names), x)
        of_weights, dx = layer_back(dx)
        gradients.append(of_weights)
    tokens, dx = jax.lax.optimization_barrier((batch["tokens"], dx))
    _, embed_back = jax.vjp(lambda outer: embed(outer, tokens, run), outer)
    outer_gradients = jax.tree.map(jnp.add, outer_gradients, *embed_back(dx))
    return loss, {**outer_gradients, "layers": gradients[::-1]}


def embed(outer: Any, tokens_BL: jax.Array, run: Execution) -> jax.Array:
    """FlaxBertEmbeddings, its word embedding as alpa/monkey_patch.py has it; no token types (type_vocab_size=0)."""
    words = jax.nn.one_hot(tokens_BL, outer["embedding"].shape[0], dtype=run.dtype) @ outer["embedding"]
    x = run.sharder.constrain(words, STREAM) + outer["positions"][None]
    return norm(x, outer["norm"])


def layer(x_BLD: jax.Array, w: Any, heads: int, run: Execution) -> jax.Array:
    """FlaxBertLayer."""
    batch, length, width = x_BLD.shape
    constrain = run.sharder.constrain
    x = constrain(x_BLD, STREAM)
    triples = dense(x, w["qvk"]).reshape(batch, length, width, 3)
    parts = (triples[..., index].reshape(batch, length, heads, width // heads) for index in range(3))
    q, v, k = (constrain(part, HEADS) for part in parts)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", attention_weights(q, k), v)
    mixed = constrain(mixed, HEADS).reshape(batch, length, width)
    x = norm(constrain(dense(mixed, w["out"]), STREAM) + x, w["attention_norm"])
    hidden = constrain(dense(x, w["up"]), ("batch", "length", "mlp"))
    hidden = hidden * (jax.lax.erf(hidden / math.sqrt(2)) + 1) / 2
    return norm(constrain(dense(hidden, w["down"]), STREAM) + x, w["mlp_norm"])


def dense(x_BLD: jax.Array, w: Any) -> jax.Array:
    """flax.linen's Dense."""
    return x_BLD @ w["kernel"] + w["bias"][None, None]


def attention_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """flax.linen's dot_product_attention_weights and jax.nn.softmax of 2021, all in q's dtype; nothing is masked."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q / math.sqrt(q.shape[-1]), k)
    raised = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return raised / raised.sum(axis=-1, keepdims=True)


def norm(x: jax.Array, w: Any) -> jax.Array:
    """LayerNorm as monkey_patch.py has it: statistics in float32, all else in x's dtype."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    variance = (wide * wide).mean(axis=-1, keepdims=True) - mean * mean
    factor = jax.lax.rsqrt(variance + EPSILON).astype(x.dtype) * w["scale"][None, None]
    return ((wide - mean) * factor).astype(x.dtype) + w["bias"][None, None]


def summed_loss(outer: Any, x_BLD: jax.Array, targets_BL: jax.Array, run: Execution) -> jax.Array:
    """FlaxGPTForLMModule's logits and the benchmark's loss_func; targets that are 0 do not count."""
    logits = run.sharder.constrain(x_BLD @ outer["embedding"].T, ("batch", "length", "vocab"))
    logits += outer["logits_bias"][None, None]
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    likely = shifted - jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))
    losses = -(jax.nn.one_hot(targets_BL, logits.shape[-1], dtype=jnp.float32) * likely).sum(axis=-1)
    return (jnp.where(targets_BL > 0, 1.0, 0.0) * losses).sum()
