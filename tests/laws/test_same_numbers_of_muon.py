"""The law of `test_same_numbers` for Muon, whose update of one number depends on the whole matrix around it."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from effort import NUMBERS_ONLY
from jax.sharding import AxisType
from test_same_numbers import BATCH, CIRCULAR, MODELS, PIPELINE, SEQ, mesh_of

from autotune.meshes.layout import parse_layout
from autotune.meshes.training import Training
from autotune.models.train_step import LEARNING_RATE, build_step, matrix_of

MUON = Training(optimizer="muon")

ROWS = [
    ("tiny", "fsdp=8"),
    ("tiny", "tensor=2"),
    ("tiny", f"{PIPELINE}=4"),
    ("tiny", f"fsdp=2,{CIRCULAR}=2"),
    ("tiny", "data=4,zero=1"),
    ("tiny", "data=2,fsdp=2,tensor=2,zero=2,accumulate=2"),
    ("tiny", "data=2,context=2,accumulate=2,reduce=step"),
    ("tiny-moe", "expert=4"),
    ("tiny-moe", "fsdp=2,expert=2,tensor=2"),
    ("like-deepseek", "fsdp=2,tensor=2"),
]
SLOW = (("tiny-moe", "expert=4"), ("like-deepseek", "fsdp=2,tensor=2"))
"""Each compiles for a quarter of a minute; other rows have experts, fsdp and tensor."""


@functools.cache
def start(model):
    """The first state and batch, as NumPy arrays, and the parameters' logical axes."""
    layout = parse_layout("data=1")
    step = build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout), dtype="float32", training=MUON)
    state, batch = jax.tree.map(np.asarray, (step.initialise(0), step.make_batch(1)))
    return state, batch, step.function.keywords["axes"]


def moves(model, text, kind=AxisType.Auto):
    """(loss, what one step from `start` adds to each parameter)."""
    layout = parse_layout(text)
    step = build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout, kind), dtype="float32", training=MUON)
    state, batch, _ = start(model)
    with jax.set_mesh(step.mesh):
        placed = jax.tree.map(
            lambda leaf, x: jax.device_put(x, leaf.sharding), (step.state, step.batch), (state, batch)
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
        after, metrics = (
            jax.jit(step.function, out_shardings=(shardings, None)).lower(*placed).compile(NUMBERS_ONLY)(*placed)
        )
    difference = jax.tree.map(lambda new, old: np.asarray(new) - old, after["parameters"], state["parameters"])
    return float(metrics["loss"]), difference


single_device = functools.cache(functools.partial(moves, text="data=1"))


def assert_same(found, expected, axes):
    assert found[0] == pytest.approx(expected[0], rel=2e-5)

    def compare(path, names, ours, theirs):
        # A matrix's smallest directions are made as large as its largest, and rounding with them. AdamW's first step is
        # the gradient's sign: that of a gradient which is rounding may turn, and few are.
        close = np.abs(ours - theirs) < 0.02 * LEARNING_RATE
        least = 1.0 if matrix_of(names) else 0.98
        assert close.mean() >= least, (jax.tree_util.keystr(path), close.mean(), np.abs(ours - theirs).max())

    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    jax.tree_util.tree_map_with_path(compare, axes, found[1], expected[1], is_leaf=is_names)


@pytest.mark.parametrize(
    ("model", "text"),
    [pytest.param(*row, marks=[pytest.mark.slow] if row in SLOW else []) for row in ROWS],
    ids=[f"{model}-{text}" for model, text in ROWS],
)
def test_every_layout_gives_the_numbers_of_one_device(model, text):
    assert_same(moves(model, text), single_device(model), start(model)[2])


def test_meshes_with_explicit_axes_give_them_too():
    text = "data=2,fsdp=2,tensor=2"
    assert_same(moves("tiny", text, AxisType.Explicit), single_device("tiny"), start("tiny")[2])


def test_the_update_of_a_matrix_is_nearly_orthogonal():
    """Its singular values lie within what five steps of the iteration leave (0.5 to 1.5, before the scale that makes
    the mean square of its entries 0.2 of the learning rate); weight decay is far below that."""
    _, moved = single_device("tiny")
    shape = MODELS["tiny"]
    for layer in range(shape.layers):
        update = moved["layers"]["mlp"]["up"][layer]
        values = np.linalg.svd(update / (LEARNING_RATE * 0.2 * np.sqrt(max(update.shape))), compute_uv=False)
        assert np.quantile(values, 0.1) > 0.5 and values.max() < 1.5
    heads = moved["layers"]["attention"]["query"][0].reshape(shape.d_model, -1)
    values = np.linalg.svd(heads / (LEARNING_RATE * 0.2 * np.sqrt(max(heads.shape))), compute_uv=False)
    assert np.quantile(values, 0.1) > 0.5 and values.max() < 1.5
