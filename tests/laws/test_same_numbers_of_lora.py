"""The law of `test_same_numbers` for adapters beside a frozen base: the same loss and gradients of the adapters on
every layout, nothing else moves, and both are those of the model with A B added to its matrices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import NUMBERS_ONLY, slow
from jax.sharding import AxisType
from test_same_numbers import BATCH, CIRCULAR, MODELS, PIPELINE, RING, SEQ, mesh_of

from autotune.meshes.layout import parse_layout
from autotune.meshes.training import Training
from autotune.models.adapters import joined, parted
from autotune.models.train_step import build_step

FLOAT = Training(lora_rank=4, base_dtype="float32")
INT8 = Training(lora_rank=4, base_dtype="int8")
SOME = Training(lora_rank=4, lora_targets="q,v,down", base_dtype="int8")

ROWS = [
    ("tiny", FLOAT, "fsdp=8"),
    ("tiny", FLOAT, "data=2,fsdp=2,tensor=2,zero=2,accumulate=2,remat=full"),
    ("tiny", INT8, "fsdp=4,tensor=2,sequence_parallel=0,vocab_tiles=2"),
    ("tiny", INT8, f"fsdp=2,{PIPELINE}=2"),
    ("tiny", INT8, "data=4,accumulate=2,reduce=step"),
    ("tiny-moe", INT8, "fsdp=2,expert=2,tensor=2"),
]

MORE = [
    ("tiny", FLOAT, "data=8"),
    ("tiny", FLOAT, "tensor=2"),
    ("tiny", FLOAT, f"context=4,{RING}"),
    ("tiny", FLOAT, f"fsdp=2,tensor=2,{CIRCULAR}=2,remat=minimal"),
    ("tiny", FLOAT, "data=2,fsdp=2,zero=1,accumulate=2,reduce=step"),
    ("tiny", INT8, "data=4,zero=1"),
    ("tiny", INT8, "fsdp=2,context=2,tensor=2,accumulate=2,remat=save:query+attention+mlp_up"),
    ("tiny", SOME, "fsdp=4,tensor=2,remat=full"),
    ("tiny", SOME, f"tensor=2,{PIPELINE}=4"),
    ("tiny-moe", FLOAT, f"expert=2,{CIRCULAR}=2"),
    ("tiny-moe", INT8, "data=2,expert=4"),
    ("tiny-encoder", INT8, "fsdp=2,context=2,tensor=2"),
    ("like-deepseek", INT8, "fsdp=2,tensor=2"),
    ("like-deepseek", FLOAT, "fsdp=2,expert=2"),
]


def step_of(model, training, text, kind=AxisType.Auto):
    layout = parse_layout(text)
    return build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout, kind), dtype="float32", training=training)


@functools.cache
def start(model, training):
    """The first state and batch, as NumPy arrays. B is drawn, too: at zero it has no gradient to give to A."""
    step = step_of(model, training, "data=1")
    state, batch = jax.tree.map(np.asarray, (step.initialise(0), step.make_batch(1)))
    draw = np.random.default_rng(7)
    adapters, frozen = parted(state["parameters"])

    def drawn(path, leaf):
        return 0.05 * draw.standard_normal(leaf.shape).astype(leaf.dtype) if path[-1].key == "lora_b" else leaf

    return state | {"parameters": joined(jax.tree_util.tree_map_with_path(drawn, adapters), frozen)}, batch


def one_step(model, training, text, kind=AxisType.Auto):
    """(loss, gradients of the adapters as AdamW's first moments, frozen weights) after one step from `start`."""
    step = step_of(model, training, text, kind)
    with jax.set_mesh(step.mesh):
        placed = jax.tree.map(
            lambda leaf, x: jax.device_put(x, leaf.sharding), (step.state, step.batch), start(model, training)
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
        lowered = jax.jit(step.function, out_shardings=(shardings, None)).lower(*placed)
        state, metrics = lowered.compile(NUMBERS_ONLY)(*placed)
    adam = next(
        part for part in jax.tree.leaves(state["optimizer"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    return (
        float(metrics["loss"]),
        jax.tree.map(np.asarray, adam.mu),
        jax.tree.map(np.asarray, parted(state["parameters"])[1]),
    )


@functools.cache
def single_device(model, training):
    return one_step(model, training, "data=1")


def assert_same(found, expected, frozen):
    assert found[0] == pytest.approx(expected[0], rel=2e-5)

    def moment(path, a, b):
        assert np.abs(b).max() > 1e-7, f"{jax.tree_util.keystr(path)} has no gradient"
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-5 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(moment, found[1], expected[1])
    jax.tree.map(np.testing.assert_array_equal, found[2], frozen)


@pytest.mark.parametrize(
    ("model", "training", "text"),
    [*ROWS, *slow(MORE)],
    ids=[f"{model}-{training.lora.base_dtype}-{text}" for model, training, text in ROWS + MORE],
)
def test_every_layout_gives_the_numbers_of_one_device(model, training, text):
    frozen = parted(start(model, training)[0]["parameters"])[1]
    assert_same(one_step(model, training, text), single_device(model, training), frozen)


@pytest.mark.parametrize("training", [FLOAT, *slow([(INT8,)])], ids=["float32", "int8"])
def test_meshes_with_explicit_axes_give_them_too(training):
    frozen = parted(start("tiny", training)[0]["parameters"])[1]
    found = one_step("tiny", training, "data=2,fsdp=2,tensor=2", AxisType.Explicit)
    assert_same(found, single_device("tiny", training), frozen)


@pytest.mark.parametrize("training", [FLOAT, *slow([(INT8,)])], ids=["float32", "int8"])
def test_they_are_the_numbers_of_the_model_with_the_product_added(training):
    """W + A B in the plain model: the same loss, and its gradient G gives those of the adapters: G B^T and A^T G."""
    (state, batch), (_, moments, _) = start("tiny", training), single_device("tiny", training)
    rows = {"output": 2}
    added = {}

    def whole(tree, name=""):
        if "base" not in tree:
            return {key: whole(value, key) if isinstance(value, dict) else value for key, value in tree.items()}
        base, cut = np.asarray(tree["base"], np.float64), 1 + rows.get(name, 1)
        if "scale" in tree:
            base = base * np.expand_dims(np.asarray(tree["scale"], np.float64), tuple(range(1, cut)))
        layers, rank = base.shape[0], tree["lora_a"].shape[-1]
        a, b = tree["lora_a"].reshape(layers, -1, rank), tree["lora_b"].reshape(layers, rank, -1)
        added[name] = (a, b)
        return (base + (a @ b).reshape(base.shape)).astype(np.float32)

    plain = build_step(
        MODELS["tiny"], BATCH, SEQ, parse_layout("data=1"), mesh_of(parse_layout("data=1")), dtype="float32"
    )
    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), whole(state["parameters"]))
    with jax.set_mesh(plain.mesh):
        after, metrics = jax.jit(plain.function)(
            {"parameters": parameters, "optimizer": plain.initialise(0)["optimizer"]}, batch
        )
    assert float(metrics["loss"]) == pytest.approx(single_device("tiny", training)[0], rel=1e-5)
    adam = next(
        part for part in jax.tree.leaves(after["optimizer"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    clipped = {"plain": float(metrics["gradient_norm"])}
    assert set(added) == {"query", "key", "value", "output", "gate", "up", "down"}
    blocks = {
        name: adam.mu["layers"]["attention" if name in adam.mu["layers"]["attention"] else "mlp"][name]
        for name in added
    }
    ours = {
        name: moments["layers"]["attention" if name in moments["layers"]["attention"] else "mlp"][name]
        for name in added
    }
    # Each step clips by the norm of its own gradients: the two differ by one factor.
    factors = []
    for name, (a, b) in added.items():
        gradient = np.asarray(blocks[name], np.float64).reshape(a.shape[0], a.shape[1], b.shape[2])
        for found, expected in (
            (ours[name]["lora_a"], gradient @ b.swapaxes(1, 2)), (ours[name]["lora_b"], a.swapaxes(1, 2) @ gradient)
        ):  # fmt: skip
            found = found.reshape(expected.shape)
            factor = float((found * expected).sum() / (expected * expected).sum())
            factors.append(factor)
            np.testing.assert_allclose(found, factor * expected, rtol=0, atol=1e-4 * np.abs(found).max(), err_msg=name)
    assert max(factors) == pytest.approx(min(factors), rel=1e-3) and clipped["plain"] > 0


def test_int8_weights_are_near_what_they_were_made_of():
    """Half a step of 127 of each channel's largest number."""
    whole, codes = start("tiny", FLOAT)[0]["parameters"], start("tiny", INT8)[0]["parameters"]
    for block, name, dims in (("attention", "query", (1,)), ("attention", "output", (1, 2)), ("mlp", "down", (1,))):
        made_of, kept = whole["layers"][block][name]["base"], codes["layers"][block][name]
        assert kept["base"].dtype == np.int8
        found = kept["base"] * np.expand_dims(kept["scale"].astype(np.float32), dims)
        step = np.abs(made_of).max(axis=dims, keepdims=True) / 127
        assert np.all(np.abs(found - made_of) <= 1.01 * step)
        assert np.sqrt(np.mean((found - made_of) ** 2 / step**2)) < 0.35
