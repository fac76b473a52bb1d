"""Every way to cut a model gives the numbers of one device: loss, gradients, and the weights after one step.

Eight simulated CPU devices. Gradients are read from AdamW's first moment, which after one step is a tenth of them.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES
from effort import NUMBERS_ONLY, slow
from jax.sharding import AxisType, Mesh

from autotune.meshes import legality
from autotune.meshes.layout import parse_layout
from autotune.models.presets import PRESETS
from autotune.models.train_step import LEARNING_RATE, build_step

BATCH, SEQ = 8, 32
MODELS = {name: dataclasses.replace(PRESETS[name], layers=4) for name in ("tiny", "tiny-moe", "tiny-encoder")}
MODELS |= ARCHITECTURES
PIPELINE = "stage=2,schedule=gpipe,microbatches"
CIRCULAR = "stage=2,schedule=circular,virtual_stages=2,microbatches"
RING = "context_attention=ring"

WORDS = [
    # every axis alone
    ("tiny", "data=8"),
    ("tiny", "fsdp=8"),
    ("tiny", "tensor=2"),
    ("tiny", "tensor=2,sequence_parallel=0"),
    ("tiny", f"context=4,{RING}"),
    ("tiny", f"{PIPELINE}=4"),
    ("tiny", f"{CIRCULAR}=4"),
    ("tiny-moe", "expert=8"),
    # the other way over the context, and a model that sees both ways
    ("tiny-encoder", "context=2,fsdp=2"),
    # what the backward pass finds saved, slices of the batch, ZeRO, gradients reduced over data once a step
    ("tiny", "remat=minimal"),
    ("tiny", "fsdp=4,remat=save:key+value+mlp_out"),
    ("tiny", "data=2,zero=2,accumulate=2,fsdp=2,remat=full"),
    ("tiny", "data=4,accumulate=2,reduce=step"),
    # the loss in tiles of the vocabulary
    ("tiny", "fsdp=4,vocab_tiles=2"),
]
"""Every word of a layout, and every path of the code that it takes."""

COMBINATIONS = [
    ("tiny", "context=4"),
    # what the backward pass finds saved changes no number
    ("tiny", "remat=dots"),
    ("tiny", "remat=attention"),
    ("tiny", "remat=full"),
    ("tiny-moe", "remat=minimal,expert=2"),
    # sets of arrays, alone and with every axis, with a pipeline and with accumulation
    ("tiny", "remat=save:query+attention+mlp_up"),
    ("tiny", "tensor=2,remat=save:attention+attention_out+mlp_gate,accumulate=2"),
    ("tiny", f"context=2,fsdp=2,{RING},remat=save:query+attention"),
    ("tiny", f"fsdp=2,{PIPELINE}=2,remat=save:attention+mlp_gate+mlp_up"),
    ("tiny-moe", "expert=2,context=2,remat=save:expert_tokens+attention+mlp_up"),
    ("tiny-moe", f"expert=2,{CIRCULAR}=2,remat=save:mlp_out+query"),
    ("tiny-encoder", "data=2,tensor=2,remat=save:mlp_up+attention_out"),
    # slices of the batch, and ZeRO
    ("tiny", "accumulate=4"),
    ("tiny", "data=4,zero=1"),
    # gradients reduced over data once a step
    ("tiny", "data=2,fsdp=2,tensor=2,accumulate=2,reduce=step"),
    ("tiny", f"data=2,context=2,tensor=2,accumulate=2,reduce=step,{RING},remat=full"),
    ("tiny-moe", "data=2,expert=2,accumulate=2,reduce=step"),
    ("tiny-encoder", "data=2,fsdp=2,zero=1,accumulate=2,reduce=step,remat=save:query+mlp_up"),
    # the loss in tiles of the vocabulary
    ("tiny", "data=1,vocab_tiles=4"),
    ("tiny", "data=4,tensor=2,zero=1,vocab_tiles=4,remat=full"),
    ("tiny", f"fsdp=2,context=2,tensor=2,vocab_tiles=8,accumulate=2,{RING}"),
    ("tiny", f"fsdp=2,tensor=2,{PIPELINE}=2,vocab_tiles=4"),
    ("tiny", "data=2,fsdp=2,accumulate=2,reduce=step,vocab_tiles=2"),
    ("tiny-moe", "expert=2,tensor=2,sequence_parallel=0,vocab_tiles=4"),
    ("tiny-encoder", "data=2,fsdp=2,zero=2,vocab_tiles=2"),
    # pairs
    ("tiny", "data=2,fsdp=4"),
    ("tiny", "fsdp=4,tensor=2,order=tensor>stage>context>expert>fsdp>data"),
    ("tiny", f"context=2,tensor=2,{RING}"),
    ("tiny", f"fsdp=2,{PIPELINE}=2,remat=full"),
    ("tiny", f"tensor=2,{CIRCULAR}=2,remat=minimal"),
    ("tiny", "stage=4,schedule=gpipe,microbatches=4,zero=1,data=2"),
    ("tiny-moe", "expert=2,tensor=2"),
    ("tiny-moe", "expert=2,context=2"),
    ("tiny-moe", f"expert=2,{PIPELINE}=2"),
    ("tiny-encoder", f"context=4,tensor=2,{RING}"),
    # triples and more
    ("tiny", "data=2,fsdp=2,tensor=2,accumulate=2,remat=attention"),
    ("tiny", f"data=2,tensor=2,zero=2,{PIPELINE}=2"),
    ("tiny", f"fsdp=2,context=2,{CIRCULAR}=2,{RING},accumulate=2"),
    ("tiny-moe", "data=2,expert=2,tensor=2,zero=2,remat=dots"),
    ("tiny-moe", f"fsdp=2,expert=2,{CIRCULAR}=2"),
    ("tiny-encoder", f"data=2,tensor=2,{PIPELINE}=4"),
]


def mesh_of(layout, kind=AxisType.Auto):
    devices = np.array(jax.devices()[: layout.devices]).reshape(tuple(layout.mesh_shape.values()))
    return Mesh(devices, tuple(layout.mesh_shape), axis_types=(kind,) * devices.ndim)


@functools.cache
def start(model, dtype):
    """The first state and batch, as NumPy arrays."""
    step = build_step(MODELS[model], BATCH, SEQ, parse_layout("data=1"), mesh_of(parse_layout("data=1")), dtype=dtype)
    return jax.tree.map(np.asarray, (step.initialise(0), step.make_batch(1)))


def one_step(model, text, dtype="float32", kind=AxisType.Auto, training=None):
    """(loss, first moments, weights) after one step from `start`."""
    layout = parse_layout(text)
    step = build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout, kind), dtype=dtype, training=training)
    return run_one_step(step, *start(model, dtype))


def run_one_step(step, state, batch):
    """(loss, first moments, weights) after one step from a state and batch of NumPy arrays."""
    with jax.set_mesh(step.mesh):
        placed = jax.tree.map(
            lambda leaf, x: jax.device_put(x, leaf.sharding), (step.state, step.batch), (state, batch)
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
        lowered = jax.jit(step.function, out_shardings=(shardings, None)).lower(*placed)
        compiled = lowered.compile(NUMBERS_ONLY)
        state, metrics = compiled(*placed)
    adam = next(
        part for part in jax.tree.leaves(state["optimizer"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    return float(metrics["loss"]), jax.tree.map(np.asarray, adam.mu), jax.tree.map(np.asarray, state["parameters"])


@functools.cache
def single_device(model, dtype="float32"):
    return one_step(model, "data=1", dtype)


def assert_same(found, expected, tolerance):
    loss, moments, weights = found
    expected_loss, expected_moments, expected_weights = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=tolerance)

    def moment(path, a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))

    def weight(path, a, b, gradient):
        # AdamW's first step is the gradient's sign: where the gradient is no more than rounding, so is its sign
        clear = np.abs(gradient) > 100 * tolerance * np.abs(gradient).max()
        np.testing.assert_allclose(
            a[clear], b[clear], rtol=0, atol=0.02 * LEARNING_RATE, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree.map_with_path(moment, moments, expected_moments)
    jax.tree.map_with_path(weight, weights, expected_weights, expected_moments)


@pytest.mark.parametrize(
    ("model", "text"),
    [*WORDS, *slow(COMBINATIONS)],
    ids=[f"{model}-{text}" for model, text in WORDS + COMBINATIONS],
)
def test_every_layout_gives_the_numbers_of_one_device(model, text):
    assert_same(one_step(model, text), single_device(model), 2e-5)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("tiny", "data=2,fsdp=2,tensor=2"),
        *slow(
            [
                ("tiny", "fsdp=4,remat=minimal"),
                ("tiny", "data=2,fsdp=2,zero=2,accumulate=2"),
                ("tiny", "data=2,fsdp=2,zero=1,accumulate=2,reduce=step"),
                ("tiny", "fsdp=2,tensor=2,context=2,vocab_tiles=4"),
                ("tiny", "data=2,fsdp=2,zero=1,accumulate=2,reduce=step,vocab_tiles=2"),
                ("tiny", f"tensor=2,{PIPELINE}=2,vocab_tiles=2"),
                ("tiny", f"context=2,tensor=2,{RING}"),
                ("tiny-moe", "expert=2,tensor=2,context=2"),
                ("tiny-moe", f"fsdp=2,expert=2,{CIRCULAR}=2"),
                ("tiny-encoder", "fsdp=2,context=2"),
            ]
        ),
    ],
)
def test_meshes_with_explicit_axes_give_them_too(model, text):
    assert_same(one_step(model, text, kind=AxisType.Explicit), single_device(model), 2e-5)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("tiny", "offload=optimizer,data=2,fsdp=2,zero=1"),
        ("tiny", "remat=save:query+attention/offload:layer_input+key+value+mlp_up,fsdp=2,tensor=2,accumulate=2"),
        *slow(
            [
                ("tiny", "remat=offload,fsdp=2,tensor=2,accumulate=2"),
                ("tiny", f"offload=optimizer,remat=offload,fsdp=2,{PIPELINE}=2"),
                ("tiny-moe", "offload=optimizer,remat=offload,expert=2,context=2"),
                ("tiny", f"remat=save:mlp_gate/offload:query+attention_out,fsdp=2,{PIPELINE}=2"),
                ("tiny-moe", "remat=save:mlp_up/offload:expert_tokens+attention,expert=2,context=2"),
            ]
        ),
    ],
)
def test_what_waits_on_the_host_comes_back_the_same(model, text, monkeypatch):
    """XLA's CPU backend keeps a host memory apart, of no use to a layout there: the rules against it are lifted."""
    allowed = tuple(rule for rule in legality.LEGALITY_RULES if "offload" not in rule.constraint)
    monkeypatch.setattr(legality, "LEGALITY_RULES", allowed)
    layout = parse_layout(text)
    step = build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout), dtype="float32")
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(step.state["optimizer"]) if leaf.ndim}
    assert kinds == {"pinned_host" if layout.offload == "optimizer" else "device"}
    with jax.set_mesh(step.mesh):
        traced = str(jax.jit(step.function).trace(step.state, step.batch).jaxpr)
    assert ("MemorySpace.Host" in traced or "pinned_host" in traced) == ("offload" in layout.remat)
    assert_same(one_step(model, text), single_device(model), 2e-5)


@pytest.mark.parametrize(
    "text", ["data=2,fsdp=2,tensor=2,zero=2", pytest.param(f"fsdp=2,tensor=2,{PIPELINE}=4", marks=pytest.mark.slow)]
)
def test_in_bfloat16_within_its_precision(text):
    """bfloat16 has 8 bits: gradients agree to a few per cent of the largest, the loss to 0.1 %."""
    loss, moments, _ = one_step("tiny", text, "bfloat16")
    expected_loss, expected, _ = single_device("tiny", "bfloat16")
    assert loss == pytest.approx(expected_loss, rel=1e-3)
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * np.abs(b).max())
