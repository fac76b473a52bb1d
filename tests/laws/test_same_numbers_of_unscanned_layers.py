"""The law of `test_same_numbers`, for layers that have programs of their own: the numbers are those of a scan."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from architectures import ARCHITECTURES
from effort import slow
from test_same_numbers import BATCH, MODELS, RING, SEQ, assert_same, mesh_of, run_one_step, single_device, start

from autotune.meshes.layout import parse_layout
from autotune.meshes.training import Training
from autotune.models.train_step import build_step

UNSCANNED = Training(scan_layers=False)

ROWS = [("tiny", "fsdp=2,tensor=2,context=2,remat=full")]
COMBINATIONS = [
    ("tiny", "data=2,fsdp=2,tensor=2,zero=2,accumulate=2,remat=save:query+mlp_up"),
    ("tiny", "data=4,accumulate=2,reduce=step,vocab_tiles=2"),
    ("tiny", f"context=2,tensor=2,{RING},sequence_parallel=0"),
    ("tiny-moe", "expert=2,tensor=2,remat=minimal"),
    ("tiny-encoder", "data=2,context=2,zero=1"),
    ("like-gemma", "fsdp=4,remat=attention"),
    *((model, "fsdp=2,tensor=2") for model in ARCHITECTURES if model != "like-gemma"),
]


def apart(parameters, model):
    """Parameters whose layers are stacked -> the same with arrays of each layer alone."""
    stacks = {name: value for name, value in parameters.items() if name == "layers" or name.startswith("layers_")}
    layers = []
    for (kinds, turns), (_, stack) in zip(MODELS[model].described.repeating_parts, sorted(stacks.items()), strict=True):
        pattern = [stack] if len(kinds) == 1 else [stack[f"layer_{index}"] for index in range(len(kinds))]
        layers += [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], own) for at in range(turns) for own in pattern]
    rest = {name: value for name, value in parameters.items() if name not in stacks}
    return {**rest, "layers": {f"layer_{index}": layer for index, layer in enumerate(layers)}}


@pytest.mark.parametrize(
    ("model", "text"), [*ROWS, *slow(COMBINATIONS)], ids=[f"{model}-{text}" for model, text in ROWS + COMBINATIONS]
)
def test_every_layout_gives_the_numbers_of_a_scan(model, text):
    layout = parse_layout(text)
    step = build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout), dtype="float32", training=UNSCANNED)
    state, batch = start(model, "float32")
    moments = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.state["optimizer"])
    state = {"parameters": apart(state["parameters"], model), "optimizer": moments}
    loss, found_moments, weights = run_one_step(step, state, batch)
    expected_loss, *expected = single_device(model)
    assert_same((loss, found_moments, weights), (expected_loss, *(apart(tree, model) for tree in expected)), 2e-5)


def test_no_layer_runs_in_a_loop():
    layout = parse_layout("fsdp=4")
    step = build_step(MODELS["tiny"], BATCH, SEQ, layout, mesh_of(layout), training=UNSCANNED)
    with jax.set_mesh(step.mesh):
        assert "while" not in jax.jit(step.function).lower(step.state, step.batch).as_text()
