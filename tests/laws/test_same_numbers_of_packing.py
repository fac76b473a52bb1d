"""The law of `test_same_numbers` for packed sequences; and the truth: the numbers are those of the documents alone."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from effort import NUMBERS_ONLY, slow
from flax import nnx
from jax.sharding import AxisType
from test_same_numbers import BATCH, CIRCULAR, MODELS, PIPELINE, RING, SEQ, assert_same, mesh_of

from autotune.meshes.layout import parse_layout
from autotune.meshes.training import Training
from autotune.models.execution import execution_of
from autotune.models.packing import NO_TARGET, weighted
from autotune.models.train_step import abstract_network, build_step, mean_loss, new_network

PACKED = Training(packing=3)
LENGTHS = ((16, 16), (8, 8, 16), (32,), (24, 8), (8, 24), (16, 8, 8), (32,), (8, 16, 8))
"""Of each sequence of the batch: its documents. Slices of the batch have other numbers of tokens that count."""

ROWS = [
    ("tiny", "data=2,fsdp=2,tensor=2,accumulate=2"),
    ("tiny", "context=2,fsdp=2"),
    ("tiny", f"fsdp=2,{PIPELINE}=4"),
]
MORE = [
    ("tiny", "fsdp=8,remat=full"),
    ("tiny", "context=4,tensor=2,remat=minimal"),
    ("tiny", f"context=4,{RING}"),
    ("tiny", f"context=2,fsdp=2,{RING},remat=attention,accumulate=2"),
    ("tiny-encoder", f"context=4,{RING}"),
    ("tiny", "data=4,accumulate=2,reduce=step"),
    ("tiny", "data=4,zero=2,accumulate=2"),
    ("tiny", "fsdp=4,vocab_tiles=2"),
    ("tiny", f"tensor=2,{CIRCULAR}=4"),
    ("tiny-moe", "expert=2,tensor=2,accumulate=2"),
    ("tiny-moe", "expert=2,context=2"),
    ("tiny-encoder", "context=2,tensor=2"),
    ("like-gemma", "fsdp=2,context=2"),
    ("like-deepseek", "fsdp=2,tensor=2"),
    ("like-gpt2", f"fsdp=2,{PIPELINE}=2"),
]


def step_of(model, text, kind=AxisType.Auto):
    layout = parse_layout(text)
    return build_step(MODELS[model], BATCH, SEQ, layout, mesh_of(layout, kind), dtype="float32", training=PACKED)


def packed(tokens):
    """A batch with these tokens, packed into documents of the lengths `LENGTHS`."""
    segments, positions, targets = (np.zeros_like(tokens) for _ in range(3))
    for row, lengths in enumerate(LENGTHS):
        for number, end in enumerate(np.cumsum(lengths)):
            own = slice(end - lengths[number], end)
            segments[row, own], positions[row, own] = number + 1, np.arange(lengths[number])
            targets[row, own] = [*tokens[row, own][1:], NO_TARGET]
    return {"tokens": tokens, "targets": targets, "segments": segments, "positions": positions}


@functools.cache
def start(model):
    """The first state, and a batch whose sequences have documents of other lengths."""
    step = step_of(model, "data=1")
    state, drawn = jax.tree.map(np.asarray, (step.initialise(0), step.make_batch(1)))
    return state, packed(drawn["tokens"])


def one_step(model, text, kind=AxisType.Auto):
    """(loss, first moments, weights) after one step from `start`."""
    step = step_of(model, text, kind)
    with jax.set_mesh(step.mesh):
        placed = jax.tree.map(lambda leaf, x: jax.device_put(x, leaf.sharding), (step.state, step.batch), start(model))
        shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
        lowered = jax.jit(step.function, out_shardings=(shardings, None)).lower(*placed)
        state, metrics = lowered.compile(NUMBERS_ONLY)(*placed)
    adam = next(
        part for part in jax.tree.leaves(state["optimizer"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")
    )
    return float(metrics["loss"]), jax.tree.map(np.asarray, adam.mu), jax.tree.map(np.asarray, state["parameters"])


@functools.cache
def single_device(model):
    return one_step(model, "data=1")


@pytest.mark.parametrize(
    ("model", "text"), [*ROWS, *slow(MORE)], ids=[f"{model}-{text}" for model, text in ROWS + MORE]
)
def test_every_layout_gives_the_numbers_of_one_device(model, text):
    assert_same(one_step(model, text), single_device(model), 2e-5)


@pytest.mark.slow
def test_meshes_with_explicit_axes_give_them_too():
    assert_same(one_step("tiny", "data=2,context=2,tensor=2", AxisType.Explicit), single_device("tiny"), 2e-5)


MASKED = [("tiny", "context=2,fsdp=2"), ("tiny", "fsdp=2,tensor=2,remat=full"), ("like-gpt2", "context=2,tensor=2"),
          ("tiny-encoder", "context=2,fsdp=2"), ("like-gemma", "fsdp=2"), ("like-gpt-oss", "fsdp=2")]  # fmt: skip


@pytest.mark.parametrize(("model", "text"), [MASKED[0], *slow(MASKED[1:])])
def test_the_mask_that_cudnn_is_given_keeps_documents_apart(model, text, monkeypatch):
    """cuDNN does not run on a CPU: the same public call with plain matmuls stands for it."""
    expected, asked, public = single_device(model), [], jax.nn.dot_product_attention

    def plain(*arrays, implementation, **words):
        asked.append((implementation, words.get("is_causal", False), words["mask"].shape))
        return public(*arrays, implementation="xla", **words)

    monkeypatch.setattr("autotune.models.execution.attention_kernel", lambda device, dtype: "cudnn")
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    assert_same(one_step(model, text), expected, 2e-5)
    if model != "like-gemma":  # its scores are soft-capped, which cuDNN does not take
        layout, causal = parse_layout(text), model != "tiny-encoder"
        shape = (BATCH // layout.batch_shards, 1, SEQ // layout.context, SEQ)
        assert set(asked) == {("cudnn", causal and layout.context == 1, shape)}


def loss_and_gradients(model, batch):
    """Of a batch on one device, before clipping."""
    layout = parse_layout("data=1")
    run = execution_of(layout, mesh_of(layout), "float32")
    definition, _, _ = abstract_network(MODELS[model])
    weights = nnx.to_pure_dict(nnx.state(new_network(MODELS[model], jax.random.key(0))))
    with jax.set_mesh(run.sharder.mesh):
        found = jax.jit(jax.value_and_grad(functools.partial(mean_loss, definition, {}, run)))(weights, batch)
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("model", ["tiny", *slow([("like-gpt2",), ("like-gemma",)])])
def test_packed_sequences_give_the_numbers_of_their_documents_alone(model):
    """A document of n tokens alone is a sequence of n - 1 tokens, each of which predicts the next. (The capacity of an
    expert and its load-balance loss are of whole sequences.)"""
    batch = start(model)[1]
    loss, gradients = loss_and_gradients(model, weighted(batch))
    alone = {}
    for row, lengths in zip(batch["tokens"], LENGTHS, strict=True):
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            alone.setdefault(length, []).append(row[end - length : end])
    total = sum((length - 1) * len(documents) for length, documents in alone.items())
    expected, sums = 0.0, jax.tree.map(np.zeros_like, gradients)
    for length, documents in alone.items():
        tokens = np.stack(documents)
        share = (length - 1) * len(documents) / total
        own, own_gradients = loss_and_gradients(model, {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        expected += share * own
        sums = jax.tree.map(lambda a, b, share=share: a + share * b, sums, own_gradients)
    assert loss == pytest.approx(expected, rel=1e-5)

    def same(path, a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))

    jax.tree.map_with_path(same, gradients, sums)


def test_a_batch_is_drawn_in_documents():
    """As many as the job says in each sequence; the last token of each predicts nothing, all others the next."""
    batch = jax.tree.map(np.asarray, step_of("tiny", "data=1").make_batch(3))
    segments, positions, targets = batch["segments"], batch["positions"], batch["targets"]
    assert (segments.max(axis=1) == PACKED.packing).all() and (segments.min(axis=1) == 1).all()
    starts = np.diff(segments, axis=1, prepend=0) > 0
    assert ((positions == 0) == starts).all() and (np.diff(positions, axis=1)[~starts[:, 1:]] == 1).all()
    last = np.concatenate([starts[:, 1:], np.ones((BATCH, 1), bool)], axis=1)
    assert ((targets == NO_TARGET) == last).all()
    assert (targets[:, :-1] == batch["tokens"][:, 1:])[~last[:, :-1]].all()
    assert len({tuple(row) for row in starts.tolist()}) > 1, "every sequence has the same borders"
