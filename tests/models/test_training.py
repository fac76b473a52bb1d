"""Optimizers and dtypes of the state: the same numbers on every layout, and the bytes that the price counts."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from autotune.cli import run
from autotune.meshes.layout import parse_layout
from autotune.meshes.training import DTYPES, OPTIMIZERS, Training, training_of
from autotune.models.presets import PRESETS
from autotune.models.train_step import build_step, new_network, optimizer, stored_weights
from autotune.plan.read import load_plan
from autotune.price.transformer.training_stack import stack_of
from autotune.reference_workload import reference_workload, workload_of_plan

SHAPE = dataclasses.replace(PRESETS["tiny"], layers=1, d_model=128, d_ff=256)
"""Wide enough that Adafactor factors some of its matrices (from 128)."""

TRAININGS = [
    Training(optimizer="adafactor"),
    Training(optimizer="lion"),
    Training(optimizer="sgd"),
    Training(moments_dtype="bfloat16"),
    Training(optimizer="adafactor", weights_dtype="bfloat16"),
    Training(weights_dtype="bfloat16", moments_dtype="bfloat16"),
    Training(weights_dtype="bfloat16", gradients_dtype="float32", master_dtype="float32"),
]
LAYOUTS = ("fsdp=4,tensor=2", "data=2,fsdp=2,zero=1,accumulate=2")


@functools.cache
def drawn():
    """The first weights, as NumPy arrays of float32, and a batch."""
    parameters = jax.jit(lambda: nnx.to_pure_dict(nnx.state(new_network(SHAPE, jax.random.key(0)))))()
    tokens = np.arange(8 * 33, dtype=np.int32).reshape(8, 33) * 7 % SHAPE.vocab
    return jax.tree.map(np.asarray, parameters), {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


def one_step(training, text):
    """(loss, weights after one step) under a layout, computed in float32."""
    layout = parse_layout(text)
    devices = np.array(jax.devices()[: layout.devices]).reshape(tuple(layout.mesh_shape.values()))
    mesh = Mesh(devices, tuple(layout.mesh_shape), axis_types=(AxisType.Auto,) * devices.ndim)
    step = build_step(SHAPE, 8, 32, layout, mesh, dtype="float32", training=training)
    weights, batch = drawn()
    weights = stored_weights(weights, training)
    state = {"parameters": weights, "optimizer": optimizer(training).init(weights)}
    assert kinds(state) == kinds(step.state)
    state, batch = (
        jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), value, like)
        for value, like in ((state, step.state), (batch, step.batch))
    )
    with jax.set_mesh(mesh):
        after, metrics = jax.jit(step.function)(state, batch)
    assert kinds(after) == kinds(step.state)
    return float(metrics["loss"]), jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), after["parameters"])


def kinds(tree):
    """(shape, dtype) of each array."""
    return jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), tree)


@pytest.mark.parametrize(
    "training",
    [TRAININGS[6], *(pytest.param(TRAININGS[index], marks=pytest.mark.slow) for index in (1, 3, 4))],
    ids=lambda one: one.words(),
)
def test_every_layout_gives_the_numbers_of_one_device(training):
    loss, weights = one_step(training, "data=1")
    # A 16-bit weight is rounded to about 1 part in 256; Lion's step is a sign, which rounding may turn.
    close = {"rtol": 2e-2, "atol": 1e-2} if training.weights_dtype != "float32" else {"rtol": 1e-4, "atol": 7e-4}
    for text in LAYOUTS:
        other_loss, other = one_step(training, text)
        assert other_loss == pytest.approx(loss, rel=2e-3)
        for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(weights), strict=True):
            np.testing.assert_allclose(ours, theirs, **close)


@pytest.mark.parametrize(
    "training", [Training(), *TRAININGS], ids=lambda one: one.words().replace(", ", "-") or "adamw"
)
def test_the_price_counts_the_bytes_of_the_state(training):
    """Of a large model, from the abstract state alone: within 1 % of the parameters' bytes in float32."""
    parameters = {"table": jax.ShapeDtypeStruct((32000, 4096), jnp.dtype(training.weights_dtype)),
                  "layers": jax.ShapeDtypeStruct((32, 4096, 14336), jnp.dtype(training.weights_dtype))}  # fmt: skip
    state = jax.eval_shape(optimizer(training).init, parameters)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert held / count == pytest.approx(training.moment_bytes, abs=0.05)


@pytest.mark.parametrize("model", ["tiny", "tiny-moe"])
def test_the_price_counts_the_state_of_muon_as_the_step_holds_it(model):
    """One moment of a matrix inside a layer, two of every other parameter, cut as the parameters are."""
    from autotune.meshes.target import parse_target
    from autotune.price.priced_space import price_space
    from autotune.reference_workload import transformer_workload
    from autotune.table import LayoutTable

    shape = dataclasses.replace(PRESETS[model], layers=4, vocab=1024)
    training = Training(optimizer="muon", moments_dtype="bfloat16", master_dtype="float32")
    for text in ("tensor=2", "fsdp=2,tensor=2", "data=2,fsdp=2,zero=1", "expert=2,fsdp=2"):
        layout = parse_layout(text)
        if layout.expert > 1 and not shape.experts:
            continue
        devices = np.array(jax.devices()[: layout.devices]).reshape(tuple(layout.mesh_shape.values()))
        mesh = Mesh(devices, tuple(layout.mesh_shape), axis_types=(AxisType.Auto,) * devices.ndim)
        step = build_step(shape, 8, 32, layout, mesh, training=training)
        shards = [
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(step.state["optimizer"])
        ]
        workload = transformer_workload(shape, batch=8, seq=32, dtype="bfloat16", training=training)
        target = parse_target(f"cpu:{layout.devices}")
        space = price_space(workload, target, LayoutTable.from_layouts([layout]), [layout])
        # The norms' scales, which no axis cuts, are priced as if it did.
        assert space.price(0).memory["optimizer_state"] == pytest.approx(sum(shards), rel=0.02)


def test_a_master_copy_moves_where_16_bit_weights_stand_still():
    """A step far below a weight's rounding is lost in bfloat16 and kept in the copy, from which weights are rounded."""
    kept = Training(optimizer="sgd", weights_dtype="bfloat16", master_dtype="float32")
    weights = {"w": jnp.ones((4,), jnp.bfloat16)}
    rule = optimizer(kept)
    state = rule.init(weights)
    for _ in range(40):
        updates, state = rule.update({"w": 0.1 * jnp.ones((4,), jnp.bfloat16)}, state, weights)
        weights = jax.tree.map(lambda w, u: (w + u).astype(w.dtype), weights, updates)
    assert weights["w"].dtype == jnp.bfloat16 and state["master"]["w"].dtype == jnp.float32
    assert 0.0 < 1.0 - float(state["master"]["w"][0]) < 0.1
    np.testing.assert_array_equal(np.asarray(weights["w"]), np.asarray(state["master"]["w"].astype(jnp.bfloat16)))


def test_defaults_change_no_price_and_fewer_bytes_need_less():
    from autotune.meshes.hardware import load_hardware

    for chip in ("v5e", "h100"):
        hardware = load_hardware(chip)
        plain = stack_of(hardware, "bfloat16")
        assert stack_of(hardware, "bfloat16", Training()) == plain
        small = stack_of(hardware, "bfloat16", Training(optimizer="adafactor", weights_dtype="bfloat16")).state
        assert (small.weights, small.gradients) == (2.0, 2.0) and small.optimizer < 0.1 * plain.state.optimizer
        assert small.update_traffic < plain.state.update_traffic
    assert Training().update_bytes == plain.state.update_traffic == 32.0


def test_words_are_read_back_and_bad_ones_refused():
    for training in TRAININGS:
        assert training_of(training.recipe()) == training
    with pytest.raises(ValueError, match="optimizer='adamax' must be one of"):
        Training(optimizer="adamax")
    with pytest.raises(ValueError, match="weights_dtype='int4' must be one of"):
        Training(weights_dtype="int4")
    assert set(OPTIMIZERS) == {"adamw", "adafactor", "lion", "sgd", "muon"} and "bfloat16" in DTYPES


FITS = ["tune", "--model", "llama3-8b", "--target", "v6e:2x2", "--batch", "8", "--seq", "8192", "--layouts",
        "fsdp=4,remat=full", "--compile", "0", "--json"]  # fmt: skip


def test_llama3_8b_on_four_chips_fits_with_16_bit_weights_and_adafactor(capsys):
    """It is trained so every night by others; with float32 weights and AdamW it does not fit."""
    assert run(FITS) == 1
    capsys.readouterr()
    assert run([*FITS, "--optimizer", "adafactor", "--weights-dtype", "bfloat16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "adafactor, bfloat16 weights" in told["workload"]["name"] if isinstance(told["workload"], dict) else True
    assert told["best"]["peak_bytes"] < told["best"]["capacity_bytes"]


def test_a_plan_keeps_its_training_and_another_is_another_program(tmp_path, capsys):
    path = tmp_path / "plan.json"
    words = ["tune", "--model", "tiny", "--target", "cpu:8", "--batch", "16", "--seq", "64", "--layouts", "fsdp=8",
             "--compile", "0", "--optimizer", "lion", "--moments-dtype", "bfloat16", "--out", str(path)]  # fmt: skip
    assert run(words) == 0
    assert "lion, bfloat16 moments" in capsys.readouterr().out
    plan = load_plan(path)
    assert (plan.recipe["optimizer"], plan.recipe["moments_dtype"]) == ("lion", "bfloat16")
    workload = workload_of_plan(plan)
    assert workload.fingerprint == plan.fingerprint
    plain = reference_workload("tiny", batch=16, seq=64, dtype="float32")
    assert plain.fingerprint != plan.fingerprint and "optimizer" not in plain.recipe


def test_a_step_of_your_own_has_its_own_optimizer(capsys):
    words = ["tune", "--workload", "a.b:c", "--target", "cpu:8", "--optimizer", "lion"]
    assert run(words) == 2
    assert "--optimizer is of a --model" in capsys.readouterr().err


def test_matmuls_in_8_bits_do_not_go_with_adapters():
    with pytest.raises(ValueError, match="matmul_dtype='int8' does not go with lora_rank=8"):
        Training(matmul_dtype="int8", lora_rank=8)
