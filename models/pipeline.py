"""The stack of layers cut over `stage`: GPipe and circular schedules as one SPMD loop.

Work is dealt in units of one microbatch through one chunk of layers. With S stages, M microbatches and V virtual
stages, stage s holds chunks s, S+s, 2S+s, ... of SxV; microbatches go round in groups of S, each group V times. At tick
t stage s does unit u = t - s: repeat (u / S) mod V of microbatch (u / SV) S + u mod S. A result leaves for the next
stage at the end of its tick and is wanted there at the next, so nothing waits anywhere. The loop has MV + S - 1 ticks,
of which each stage idles (computes on what nobody reads) S - 1: the bubble is (S - 1) / (MV + S - 1) of the loop. GPipe
is V = 1.

The embedding and the head are outside the loop, with the microbatches dealt out over the stages: no stage does
another's work. The backward pass is the loop run in reverse by autodiff, so all forward work comes before all backward
work, and each stage keeps what the remat policy saves of every tick. 1F1B and zero-bubble start a microbatch's backward
pass while others are still going forward: their loop would have to compute the loss inside (the head in every stage,
or its vocabulary cut over the stages) and hold both passes of a layer by hand, zero-bubble also split in two. They are
priced, not run.

Everything but `tensor` is handled by hand here: weights are gathered over `fsdp` once a step, and their gradients are
summed on each device in float32 over the microbatches and reduced once. Left to the partitioner, both would happen at
every tick.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from autotune.meshes.sharding import partition_spec
from autotune.models.adapters import trained
from autotune.models.execution import Execution
from autotune.models.network import Layer, Pattern, layers_of
from autotune.models.packing import Places
from autotune.models.remat import one_after_another

RUNNABLE = ("gpipe", "circular")
"""Schedules this module can run."""

ByHand = Callable[[Callable], Callable]

BY_HAND = ("stage", "data", "fsdp", "context", "expert")
SHARDS = ("data", "fsdp", "context", "expert")


def pipelined(layers: Layer | Pattern, x_MBLD: jax.Array, places: Places, run: Execution):
    """(x after all layers, sum of load-balance losses); x is microbatches, cut over `stage` along the first axis, and
    packed documents are of as many, whole on every stage."""
    definitions, parameters = zip(*map(nnx.split, layers_of(layers)), strict=True)
    axes = [
        nnx.to_pure_dict(own, extract_fn=lambda variable: variable.get_metadata("out_sharding")) for own in parameters
    ]
    weights = jax.tree.map(
        lambda leaf, names: run.sharder.narrow(leaf, names, run.stage_dtype),
        [nnx.to_pure_dict(own) for own in parameters],
        axes,
    )
    rules, sizes = run.sharder.rules, {name: run.sharder.mesh.shape[name] for name in BY_HAND}

    def spec(names, table=rules.activations):
        return partition_spec(table, names, sizes)

    rows = spec(("microbatch", "batch", "length", "features"))
    loop = jax.shard_map(
        lambda weights, x, places: _loop(definitions, axes, weights, x, places, run),
        in_specs=(
            jax.tree.map(lambda names: spec(names, rules.storage), axes, is_leaf=_is_axes),
            rows,
            Places(order_L=spec(("length",)), documents=spec((None, "batch", "length"))),
        ),
        out_specs=(rows, spec(())),
        axis_names=set(BY_HAND),
        check_vma=False,
    )
    x, balance = loop(weights, x_MBLD.astype(run.stage_dtype), places)
    return x.astype(run.dtype), balance


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)


def _loop(definitions, axes, weights, x_MBLD, places: Places, run: Execution):
    """What one device does: gather its weights, run the ticks, hand the results of the last stage back to all."""
    layout = run.layout
    stages, repeats, count = layout.stage, layout.virtual_stages, layout.microbatches
    flags = trained(axes)
    stage = jax.lax.axis_index("stage")
    chunks = jax.tree.map(lambda leaf: deal_chunks(leaf, stages, repeats), weights)

    def whole(leaf, names, is_trained):
        by_hand = _by_hand((None, None, *names[1:]), run, "weights")
        gathered, sums = gather_once(leaf, _fsdp_dimension(names, run), by_hand)
        # What is frozen has no sum of gradients: one number stands in its place.
        sums = sums if is_trained else jnp.zeros(leaf.shape[:2])
        return run.sharder.narrow(gathered, names, run.dtype), sums

    gathered = jax.tree.map(whole, chunks, axes, flags)
    held_weights, sums = jax.tree.transpose(jax.tree.structure(chunks), jax.tree.structure((0, 0)), gathered)
    beside_tensor = _by_hand((None, "batch", "norm_length", "features"), run)
    inputs = beside_tensor(lambda x: jax.lax.all_gather(x, "stage", axis=0, tiled=True))(x_MBLD).astype(run.dtype)

    def tick(carry, t):
        held, outputs, balance = carry
        unit = t - stage
        busy = (unit >= 0) & (unit < count * repeats)
        unit = jnp.clip(unit, 0, count * repeats - 1)
        repeat = unit // stages % repeats
        microbatch = unit // (stages * repeats) * stages + unit % stages
        x = jnp.where((stage == 0) & (repeat == 0), inputs[microbatch], held)
        documents = jax.tree.map(lambda leaf: leaf[microbatch], places.documents)
        here = Places(order_L=places.order_L, documents=documents)

        def one_layer(definition, own, is_trained, x, layer):
            index, sum_of_layer = layer
            weights = jax.tree.map(lambda leaf: leaf[repeat, index], own)
            weights = jax.tree.map(
                lambda leaf, gradient_sum, yes: borrow(leaf, gradient_sum) if yes else leaf,
                weights, sum_of_layer, is_trained,
            )  # fmt: skip
            return nnx.merge(definition, weights)(x, here, run)

        calls = [partial(one_layer, *each) for each in zip(definitions, held_weights, flags, strict=True)]

        def turn(x, layers):
            index, sums_of_turn = layers
            beside = [(index, sums_of_layer) for sums_of_layer in sums_of_turn]
            return one_after_another(zip(calls, beside, strict=True), x, layout.remat)

        turns = jnp.arange(jax.tree.leaves(held_weights)[0].shape[1]), jax.tree.map(lambda leaf: leaf[repeat], sums)
        y, layer_balance = jax.lax.scan(turn, x, turns)
        done = busy & (stage == stages - 1) & (repeat == repeats - 1)
        outputs = outputs.at[microbatch].set(jnp.where(done, y, outputs[microbatch]))
        balance = balance + jnp.where(busy, layer_balance.sum(), 0.0)
        held = jax.lax.ppermute(y, "stage", [(i, (i + 1) % stages) for i in range(stages)])
        return (held, outputs, balance), None

    start = (jnp.zeros_like(inputs[0]), jnp.zeros_like(inputs), jnp.zeros(()))
    (_, outputs, balance), _ = jax.lax.scan(tick, start, jnp.arange(count * repeats + stages - 1))
    balance = jax.lax.pmean(jax.lax.psum(balance, "stage") / count, SHARDS)
    # Only the last stage wrote anything but zeros: the sum hands each stage its share of the microbatches.
    share = beside_tensor(lambda x: jax.lax.psum_scatter(x, "stage", scatter_dimension=0, tiled=True))
    return share(outputs.astype(run.stage_dtype)), balance


def _by_hand(
    names: tuple[str | None, ...], run: Execution, role: str = "activations"
) -> Callable[[Callable], Callable]:
    """Makes a collective that each member of `tensor` does on its own share of such an array.

    The partitioner would gather the array over `tensor` first: it does not split gathers and scatters of other axes.
    """
    spec = run.sharder.spec(names, role)
    return lambda collective: run.sharder.map(collective, in_specs=(spec,), out_specs=spec)


def deal_chunks(layers: jax.Array, stages: int, repeats: int) -> jax.Array:
    """This stage's layers as (repeats, layers a chunk, ...).

    Parameters lie in the order of the layers whatever the schedule, so a stage of a circular pipeline begins with the
    wrong chunks: s*V ... s*V+V-1 for s, S+s, 2S+s, .... Each chunk travels once, along the shift d - s to its stage.
    """
    chunks = layers.reshape(repeats, layers.shape[0] // repeats, *layers.shape[1:])
    if repeats == 1:
        return chunks
    stage = jax.lax.axis_index("stage")
    dealt = jnp.zeros_like(chunks)
    for shift in range(stages):
        moves = [
            [j for j in range(repeats) if (s * repeats + j) % stages == (s + shift) % stages] for s in range(stages)
        ]
        for turn in range(max(len(move) for move in moves)):
            senders = [s for s in range(stages) if len(moves[s]) > turn]
            sent = jnp.array([moves[s][turn] if s in senders else 0 for s in range(stages)])
            sources = [(d - shift) % stages for d in range(stages)]
            slots = [(s * repeats + moves[s][turn]) // stages if s in senders else repeats for s in sources]
            arrived = jax.lax.ppermute(chunks[sent[stage]], "stage", [(s, (s + shift) % stages) for s in senders])
            dealt = dealt.at[jnp.array(slots)[stage]].set(arrived, mode="drop")
    return dealt


def _fsdp_dimension(names: tuple[str | None, ...], run: Execution) -> int | None:
    """The dimension of a chunked weight (repeats, layers, ...) that is cut over fsdp; None when none is."""
    if run.layout.fsdp == 1:
        return None
    cut = [index for index, name in enumerate(names) if name and "fsdp" in run.sharder.rules.storage[name]]
    return cut[0] + 1 if cut else None


def gather_once(
    weight: jax.Array, dimension: int | None, by_hand: ByHand = lambda collective: collective
) -> tuple[jax.Array, jax.Array]:
    """(the weight whole along fsdp, a zero array of its shape in float32 that collects its gradient).

    The gradient is taken with respect to the second: summed over the microbatches in the weight's own 16-bit type, it
    would lose the small ones. At the end it is reduced onto the shards, in the weight's type.
    """

    @jax.custom_vjp
    def gather(weight):
        whole = weight
        if dimension is not None:
            whole = by_hand(lambda part: jax.lax.all_gather(part, "fsdp", axis=dimension, tiled=True))(weight)
        return whole, jnp.zeros_like(whole, dtype=jnp.float32)

    def reduce(_, gradients):
        total = gradients[1].astype(weight.dtype)
        if dimension is not None:
            total = by_hand(lambda part: jax.lax.psum_scatter(part, "fsdp", scatter_dimension=dimension, tiled=True))(
                total
            )
        return (total,)

    gather.defvjp(lambda weight: (gather(weight), None), reduce)
    whole, zeros = gather(weight)
    return jax.lax.stop_gradient(whole), zeros


@jax.custom_vjp
def borrow(weight: jax.Array, gradient_sum: jax.Array) -> jax.Array:
    """The weight; its gradient goes to `gradient_sum` (see `gather_once`)."""
    return weight


borrow.defvjp(
    lambda weight, gradient_sum: (weight, None),
    lambda _, gradient: (jnp.zeros_like(gradient), gradient.astype(jnp.float32)),
)
