"""The reference train step: mixed precision, AdamW with clipping, gradient accumulation; built for any layout."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh

from autotune.meshes.compiler_options import options_to_run_once
from autotune.meshes.layout import Layout
from autotune.meshes.legality import Job, reject_for
from autotune.meshes.sharding import named_sharding
from autotune.meshes.step import Step
from autotune.meshes.training import Training
from autotune.meshes.transformer import TransformerShape, check_packing
from autotune.models.adapters import joined, parted
from autotune.models.execution import Execution, execution_of
from autotune.models.network import Network
from autotune.models.packing import (
    POSITIONS,
    SEGMENTS,
    WEIGHTS,
    Places,
    documents_of,
    draw_packed,
    weighted,
)
from autotune.models.pipeline import RUNNABLE, pipelined
from autotune.models.ring import zigzag

LEARNING_RATE, CLIP_NORM = 3e-4, 1.0


def optimizer(
    training: Training | None = None, axes: Any = None, *, experts_first: bool = False
) -> optax.GradientTransformation:
    """An optimizer on gradients clipped to a global norm of 1, as large models are usually trained; AdamW where nothing
    else is said. With weights or moments that are not float32 the update is computed in float32 all the same.

    `axes`: the parameters' logical axes, by which Muon tells matrices from other parameters; no other needs them.
    `experts_first`: its update works on experts before layers (`_experts_first`)."""
    training = training or Training()
    update = {
        "adamw": lambda: optax.adamw(LEARNING_RATE, b1=0.9, b2=0.95, weight_decay=0.1),
        "adafactor": lambda: optax.adafactor(LEARNING_RATE),
        "lion": lambda: optax.lion(LEARNING_RATE, weight_decay=0.1),
        "sgd": lambda: optax.sgd(LEARNING_RATE, momentum=0.9),
        "muon": lambda: _experts_first(_muon(axes), axes) if experts_first else _muon(axes),
    }[training.optimizer]()
    chain = optax.chain(optax.clip_by_global_norm(CLIP_NORM), update)
    if {training.weights_dtype, training.moments_dtype, training.gradients_dtype or "float32"} != {"float32"}:
        chain = _in_float32(chain, jnp.dtype(training.moments_dtype))
    return _with_master(chain, jnp.dtype(training.master_dtype)) if training.master_dtype else chain


def _muon(axes: Any) -> optax.GradientTransformation:
    """Muon (arXiv 2502.16982) for the matrices inside the layers, AdamW for the vocabulary's tables, norms, biases."""
    assert axes is not None, "Muon asks for the parameters' logical axes"
    numbers = jax.tree.map(matrix_of, axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return optax.contrib.muon(
        LEARNING_RATE, weight_decay=0.1, adam_b1=0.9, adam_b2=0.95, adam_weight_decay=0.1, consistent_rms=0.2,
        muon_weight_dimension_numbers=numbers,
    )  # fmt: skip


def _experts_first(inner: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
    """The same update, for which matrices of experts are stacked over experts, then over layers.

    optax makes one dimension of both. XLA keeps the cut of the outer one of two that become one: with layers outside it
    would cut the matrices over `expert` instead of dealing them out, and the step takes twice as long (mixtral-2048 on
    h100:1x8, expert=4, fsdp=2, jax 0.10.2)."""
    named = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    routed = [tuple(map(str, path)) for path, names in named if names[:2] == ("layers", "experts") and matrix_of(names)]

    def turned(tree: Any) -> Any:
        def turn(path: Any, leaf: Any) -> Any:
            words = tuple(map(str, path))
            return leaf.swapaxes(0, 1) if any(words[-len(own) :] == own for own in routed) else leaf

        return jax.tree_util.tree_map_with_path(turn, tree)

    def update(gradients: Any, state: Any, parameters: Any = None) -> Any:
        updates, state = inner.update(turned(gradients), turned(state), turned(parameters))
        return turned(updates), turned(state)

    return optax.GradientTransformation(inner.init, update)


def matrix_of(names: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which dimensions of a parameter Muon takes for the rows and the columns of its matrices; None: AdamW has it.

    Heads and the width of a head are one side of a matrix. Layers and experts have a matrix each.

    >>> matrix_of(("layers", "heads", "head_dim", "embed"))
    MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=(3,))
    >>> matrix_of(("vocab", "embed")) is None
    True
    """
    sides: list[list[int]] = []
    for index, name in enumerate(names):
        if name in ("vocab", "positions", "norm"):
            return None
        if name == "head_dim" and sides:
            sides[-1].append(index)
        elif name not in ("layers", "experts"):
            sides.append([index])
    if len(sides) != 2:
        return None
    return optax.contrib.MuonDimensionNumbers(reduction_axis=tuple(sides[0]), output_axis=tuple(sides[1]))


def _in_float32(inner: optax.GradientTransformation, kept: Any) -> optax.GradientTransformation:
    """The same update from float32 copies of weights, gradients and state, whose state is kept in another dtype."""

    def cast(tree: Any, dtype: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)

    def moments(state: Any) -> Any:
        """Muon's coefficients are no moments."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if str(path[-1]) == ".ns_coeffs" else cast(leaf, kept), state
        )

    def init(parameters: Any) -> Any:
        return moments(inner.init(cast(parameters, jnp.float32)))

    def update(gradients: Any, state: Any, parameters: Any = None) -> Any:
        wide = None if parameters is None else cast(parameters, jnp.float32)
        updates, state = inner.update(cast(gradients, jnp.float32), cast(state, jnp.float32), wide)
        return updates, moments(state)

    return optax.GradientTransformation(init, update)


def _with_master(inner: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """The same update of a copy of the weights that the state keeps in another dtype; the weights follow it."""

    def init(parameters: Any) -> Any:
        master = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)
        return {"master": master, "inner": inner.init(parameters)}

    def update(gradients: Any, state: Any, parameters: Any = None) -> Any:
        updates, kept = inner.update(gradients, state["inner"], state["master"])
        master = optax.apply_updates(state["master"], updates)
        moves = jax.tree.map(  # added to the weights in float32, they give the master copy, rounded
            lambda new, old: new.astype(old.dtype).astype(jnp.float32) - old.astype(jnp.float32), master, parameters
        )
        return moves, {"master": master, "inner": kept}

    return optax.GradientTransformation(init, update)


def build_step(
    transformer: TransformerShape, batch: int, seq: int, layout: Layout, mesh: Mesh, *, dtype: str = "bfloat16",
    training: Training | None = None,
) -> Step:  # fmt: skip
    """The train step of a transformer under a layout.

    The state is {"parameters", "optimizer"}: weights (names and global shapes the same under every layout) and the
    optimizer's state, by default float32 and AdamW's two moments of the same shapes (`training` says another). The
    batch is {"tokens", "targets"}, int32 of (batch, seq); of packed sequences also {"segments", "positions"}
    (`autotune.models.packing`).
    Metrics: the mean loss, and the gradients' norm before clipping.
    ValueError when the layout cannot run this model.
    """
    platform = {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, mesh.devices.flat[0].platform)
    training = training or Training()
    if reasons := transformer.priced_only(platform, training):
        raise ValueError(f"model {transformer.name}: priced only: {'; '.join(reasons)}")
    check_packing(training, transformer, seq)
    job = Job(transformer=transformer, batch=batch, seq=seq, platform=platform, training=training)
    rejection = reject_for(layout, job)
    if rejection:
        raise ValueError(f"layout {layout}: {rejection}")
    if layout.schedule not in (None, *RUNNABLE):
        raise ValueError(f"layout {layout}: schedule={layout.schedule} can be priced but not run; {RUNNABLE} can")
    run = execution_of(layout, mesh, dtype, training.matmul_dtype)
    if transformer.dropless and layout.reduce == "step" and run.sharder.explicit:
        raise ValueError(
            f"layout {layout}: reduce=step needs a mesh of Auto axes where experts drop no token: "
            "capacity_factor=dropless"
        )
    definition, abstract, axes = abstract_network(transformer, training)
    (shapes, frozen_shapes), (names, frozen_names) = parted(abstract), parted(axes)
    rules = run.sharder.rules
    weights = place(shapes, names, mesh, rules.optimizer if layout.zero else rules.storage)
    stored = joined(weights, place(frozen_shapes, frozen_names, mesh, rules.storage))
    state = {"parameters": stored, "optimizer": optimizer_state(weights, names, run, training)}
    rows = named_sharding(mesh, run.sharder.rules.activations, ("batch", "length"), (batch, seq))
    arrays = ("tokens", "targets", *((SEGMENTS, POSITIONS) if training.packing else ()))
    tokens = {name: jax.ShapeDtypeStruct((batch, seq), jnp.int32, sharding=rows) for name in arrays}

    def draw(key):
        parameters = stored_weights(nnx.to_pure_dict(nnx.state(new_network(transformer, key, training))), training)
        return {"parameters": parameters, "optimizer": optimizer(training, names).init(parted(parameters)[0])}

    drawn = jax.jit(
        draw,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
        compiler_options=options_to_run_once(platform),
    )

    def initialise(seed: int):
        with jax.set_mesh(mesh):
            return drawn(jax.random.key(seed))

    return Step(
        function=functools.partial(train_step, definition=definition, axes=axes, run=run, training=training),
        mesh=mesh,
        state=state,
        batch=tokens,
        initialise=initialise,
        make_batch=batch_maker(transformer, batch, seq, rows, training.packing),
        parameters=lambda state: state["parameters"],
    )


def new_network(transformer: TransformerShape, key: jax.Array, training: Training | None = None) -> Network:
    """A network with fresh weights; the same key gives the same values under every layout."""
    with nnx.use_eager_sharding(False):
        training = training or Training()
        return Network(transformer, rngs=nnx.Rngs(params=key), lora=training.lora, scan_layers=training.scan_layers)


def stored_weights(parameters: Any, training: Training) -> Any:
    """Freshly drawn float32 weights in the dtype in which they are kept between steps; quantised ones as they are."""
    lora = training.lora
    if lora is not None:
        weights, frozen = parted(parameters)
        kept = jax.tree.map(lambda leaf: leaf.astype(lora.tables_dtype) if leaf.dtype == jnp.float32 else leaf, frozen)
        return joined(jax.tree.map(lambda leaf: leaf.astype(training.weights_dtype), weights), kept)
    if training.weights_dtype == "float32":
        return parameters
    return jax.tree.map(lambda leaf: leaf.astype(training.weights_dtype), parameters)


def abstract_network(
    transformer: TransformerShape, training: Training | None = None
) -> tuple[nnx.GraphDef, dict, dict]:
    """(definition, shapes, logical axes): the trees are plain nested dicts with the same names."""
    static: list[Any] = []  # not nnx.eval_shape: under a mesh it takes logical axes for the mesh's

    def trace():
        definition, state = nnx.split(new_network(transformer, jax.random.key(0), training))
        axes = nnx.to_pure_dict(state, extract_fn=lambda variable: variable.get_metadata("out_sharding"))
        static.extend((definition, axes))
        return stored_weights(nnx.to_pure_dict(state), training or Training())

    shapes = jax.eval_shape(trace)
    return static[0], shapes, static[1]


def place(abstract: Any, axes: Any, mesh: Mesh, rules) -> Any:
    """The abstract tree with the shardings that the rules give its logical axes."""
    return jax.tree.map(
        lambda leaf, names: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=named_sharding(mesh, rules, names, leaf.shape)
        ),
        abstract,
        axes,
    )


def optimizer_state(stored: Any, axes: Any, run: Execution, training: Training | None = None) -> Any:
    """The optimizer's state for these parameters, each moment cut as its parameter under the optimizer's rules.

    With offload=optimizer the moments lie in host memory between steps.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored)
    moments = place(shapes, axes, run.sharder.mesh, run.sharder.rules.optimizer)
    if run.layout.offload == "optimizer":
        moments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind("pinned_host")
            ),
            moments,
        )
    scalar = named_sharding(run.sharder.mesh, {}, (), ())
    if training is not None and training != Training():
        return _state_like(jax.eval_shape(optimizer(training, axes).init, shapes), moments, scalar)
    return optax.tree.map_params(
        optimizer(),
        lambda _, moment: moment,
        jax.eval_shape(optimizer().init, shapes),
        moments,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=scalar),
    )


def _state_like(state: Any, moments: Any, whole: Any) -> Any:
    """The state's arrays with shardings: that of the parameter whose path ends an array's path, less the dimension that
    a mean over rows or columns leaves out; `whole` for all others."""
    parts = {tuple(map(str, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(moments)}

    def place(path: Any, leaf: Any) -> Any:
        names = tuple(map(str, path))
        found = next((parts[names[start:]] for start in range(len(names)) if names[start:] in parts), None)
        sharding = whole
        if found is not None and leaf.shape == found.shape:
            sharding = found.sharding
        elif found is not None and leaf.ndim == found.ndim - 1:
            spec = (*found.sharding.spec, *(None,) * (found.ndim - len(found.sharding.spec)))
            for left_out in range(found.ndim):
                if leaf.shape == found.shape[:left_out] + found.shape[left_out + 1 :]:
                    sharding = jax.sharding.NamedSharding(
                        found.sharding.mesh,
                        jax.sharding.PartitionSpec(*spec[:left_out], *spec[left_out + 1 :]),
                        memory_kind=found.sharding.memory_kind,
                    )
                    break
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def batch_maker(
    transformer: TransformerShape, batch: int, seq: int, rows, packing: int = 0
) -> Callable[[int], dict[str, jax.Array]]:
    """seed -> random tokens, each to be predicted from those before it, in `packing` documents a sequence. Compiled at
    the first call only."""

    def draw(key):
        if packing:
            return draw_packed(key, batch, seq, transformer.vocab, packing)
        drawn = jax.random.randint(key, (batch, seq + 1), 0, transformer.vocab, jnp.int32)
        return {"tokens": drawn[:, :-1], "targets": drawn[:, 1:]}

    drawn = jax.jit(draw, out_shardings=rows)

    def make(seed: int):
        with jax.set_mesh(rows.mesh):
            return drawn(jax.random.key(seed))

    return make


def train_step(
    state: Any, batch: Any, *, definition: nnx.GraphDef, axes: Any, run: Execution, training: Training | None = None
):
    """One optimizer step: (new state, metrics)."""
    with jax.sharding.use_abstract_mesh(run.sharder.mesh.abstract_mesh):
        (stored, frozen), (axes, _) = parted(state["parameters"]), parted(axes)
        weights = replicas(stored, axes, run)
        told = training or Training()
        kept = jnp.dtype(told.gradients_dtype or told.weights_dtype)
        batch = weighted(batch) if told.packing else batch
        loss, gradients = accumulate(functools.partial(mean_loss, definition, frozen), weights, batch, axes, run, kept)
        if run.layout.zero == 1 and run.sharder.explicit:
            # Explicit axes want the gradients cut as the optimizer's state before they meet.
            gradients = jax.tree.map(
                lambda leaf, names: run.sharder.constrain(leaf, names, "optimizer"), gradients, axes
            )
        moments = state["optimizer"]
        if run.layout.offload == "optimizer":  # the new ones go back where the state's shardings say
            moments = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), moments)
        dealt_out = run.layout.expert > 1 and run.layout.stage == 1
        update = optimizer(training, axes, experts_first=dealt_out).update
        if told.optimizer == "muon" and run.sharder.explicit:
            # Explicit axes ask for the cut of every product in the iteration, of which optax says nothing.
            cuts = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, (stored, moments))
            update = jax.sharding.auto_axes(update, out_sharding=cuts)
        updates, moments = update(gradients, moments, stored)
        parameters = joined(optax.apply_updates(stored, updates), frozen)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return {"parameters": parameters, "optimizer": moments}, metrics


def replicas(parameters: Any, axes: Any, run: Execution) -> Any:
    """The weights one step works with: under ZeRO, copies in the compute dtype gathered over `data` once a step."""
    if not run.layout.zero:
        return parameters

    def copy(leaf, names):
        # Constrained on both sides of the gather, or XLA gathers the float32 weights and casts them afterwards.
        cast = run.sharder.constrain(run.sharder.narrow(leaf, names, run.dtype), names, "optimizer")
        return run.sharder.constrain(cast, names, "storage")

    return jax.tree.map(copy, parameters, axes)


def mean_loss(definition: nnx.GraphDef, frozen: Any, run: Execution, weights: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy over all positions of the batch, and what the experts' imbalance costs. `frozen`: weights
    without gradient, beside the others.

    The sequence is put in the order in which it lies over `context`: the mean does not mind. Of packed sequences the
    mean is over the tokens that predict one of their own document.
    """
    network = nnx.merge(definition, joined(weights, frozen))
    order = zigzag(batch["tokens"].shape[1], run.layout.context, network.causal)
    positions = run.sharder.constrain(jnp.asarray(order), ("length",))
    if run.layout.context > 1:
        batch = jax.tree.map(lambda leaf: run.sharder.constrain(leaf, ("batch", None))[:, order], batch)
        batch = jax.tree.map(lambda leaf: run.sharder.constrain(leaf, ("batch", "length")), batch)
    if run.layout.stage == 1:
        x, balance = network.last_stream(batch["tokens"], Places(order_L=positions, documents=documents_of(batch)), run)
        return _mean(network.losses(x, batch["targets"], run), batch) + balance

    def over_stages(function):  # its constraints get the microbatches' axis in front
        return jax.vmap(function, spmd_axis_name="stage")

    pieces = jax.tree.map(lambda leaf: slices(leaf, run.layout.microbatches, "microbatch", run), batch)
    places = Places(order_L=positions, documents=documents_of(pieces))
    if places.documents is None:
        x = over_stages(lambda tokens: network.embed(tokens, positions, run))(pieces["tokens"])
    else:
        embed = over_stages(lambda tokens, positions: network.embed(tokens, positions, run))
        x = embed(pieces["tokens"], places.positions)
    x, balance = pipelined(network.layers, x, places, run)
    losses = over_stages(lambda x, targets: network.losses(x, targets, run))(x, pieces["targets"])
    return _mean(losses, pieces) + balance


def _mean(losses: jax.Array, batch: Any) -> jax.Array:
    """The mean of losses, each with its weight where the batch has weights."""
    return (losses * batch[WEIGHTS] if WEIGHTS in batch else losses).mean()


def slices(leaf_BL: jax.Array, count: int, name: str | None, run: Execution) -> jax.Array:
    """The batch as `count` slices on a leading axis. The slice is the fast index of a row, so that each slice is spread
    over all devices and no row moves."""
    split = leaf_BL.reshape(-1, count, leaf_BL.shape[1]).swapaxes(0, 1)
    return run.sharder.constrain(split, (name, "batch", "length"))


def accumulate(loss, weights: Any, batch: Any, axes: Any, run: Execution, kept: Any = jnp.float32):
    """(loss, gradients of dtype `kept`) of the whole batch, in `layout.accumulate` passes over slices of it.

    Gradients are reduced in the compute dtype and summed in `kept`: reduced in every pass, or over `data` once, the
    sums of each replica (`reduce=step`).
    """
    if run.layout.reduce == "step":
        return _reduced_once(loss, weights, batch, axes, run, kept)

    def settle(gradients):
        return jax.tree.map(
            lambda leaf, names: run.sharder.constrain(leaf.astype(kept), names, "gradients"), gradients, axes
        )

    def pass_over(batch):
        value, gradients = jax.value_and_grad(functools.partial(loss, run))(weights, batch)
        return value, settle(gradients)

    passes = run.layout.accumulate
    if passes == 1:
        return pass_over(batch)
    pieces = jax.tree.map(lambda leaf: slices(leaf, passes, None, run), batch)
    return _mean_of_passes(pass_over, pieces, settle(jax.tree.map(jnp.zeros_like, weights)), jnp.zeros(()), passes)


def _mean_of_passes(pass_over: Callable, pieces: Any, zeros: Any, zero_loss: jax.Array, passes: int):
    """The mean of (loss, gradients) over passes, one after the other."""

    def one_pass(carry, piece):
        value, gradients = pass_over(piece)
        total, sums = carry
        return (total + value, jax.tree.map(jnp.add, sums, gradients)), None

    (value, gradients), _ = jax.lax.scan(one_pass, (zero_loss, zeros), pieces)
    return value / passes, jax.tree.map(lambda leaf: leaf / passes, gradients)


def _reduced_once(loss, weights: Any, batch: Any, axes: Any, run: Execution, kept: Any):
    """`accumulate` with one reduction over `data` a step: each replica sums the gradients of its own rows.

    The replicas are an axis of every array, cut over `data`, so that a sum over it is a reduction over `data`. A loop
    cannot carry a gradient without that axis: all replicas have one value of it, so it is reduced in every pass.
    """
    count, on_replica = run.layout.data, beside_data(run)

    def constrain(leaf, names, role="activations"):
        spec = jax.sharding.PartitionSpec("data", *on_replica.sharder.spec(names, role))
        if run.sharder.explicit:
            return jax.reshard(leaf, spec)
        return jax.lax.with_sharding_constraint(leaf, spec)

    def settle(gradients):
        return jax.tree.map(lambda leaf, names: constrain(leaf.astype(kept), names, "gradients"), gradients, axes)

    def pass_over(piece):
        on_each = jax.vmap(
            jax.value_and_grad(functools.partial(loss, on_replica)), in_axes=(None, 0), spmd_axis_name="data"
        )
        values, gradients = on_each(weights, piece)
        return values, settle(gradients)

    def rows(leaf_BL):
        """(passes, replicas, rows of a pass, length): a replica's rows are those that its devices hold."""
        split = (count, leaf_BL.shape[0] // count, leaf_BL.shape[1])
        spec = jax.sharding.PartitionSpec("data", *on_replica.sharder.spec(("batch", "length")))
        of_replica = jnp.reshape(leaf_BL, split, out_sharding=spec if run.sharder.explicit else None)
        of_replica = constrain(of_replica, ("batch", "length"))
        return jax.vmap(
            lambda leaf: slices(leaf, run.layout.accumulate, None, on_replica), out_axes=1, spmd_axis_name="data"
        )(of_replica)

    def mean(leaf, names):
        # In the compute dtype, as every reduction of gradients: jnp.sum would widen it.
        sent = run.sharder.narrow(leaf, names, run.stage_dtype)
        total = jax.lax.reduce(sent, jnp.zeros((), sent.dtype), jax.lax.add, (0,))
        return run.sharder.constrain(total, names, "gradients").astype(kept) / count

    zeros = settle(jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), weights))
    values, gradients = _mean_of_passes(
        pass_over, jax.tree.map(rows, batch), zeros, constrain(jnp.zeros(count), ()), run.layout.accumulate
    )
    return values.mean(), jax.tree.map(mean, gradients, axes)


def beside_data(run: Execution) -> Execution:
    """The execution of one replica: its arrays are cut along every axis but `data`."""
    rules = run.sharder.rules
    alone = {name: tuple(axis for axis in axes if axis != "data") for name, axes in rules.activations.items()}
    sharder = dataclasses.replace(
        run.sharder, rules=dataclasses.replace(rules, activations=alone), mapped_over=("data",)
    )
    return dataclasses.replace(run, sharder=sharder)
