"""A batch whose first dimension is time: the step slices it and loops over it, so the batch is the second dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autotune
from autotune.meshes.layout import parse_layout

TIME, ROWS, WIDTH, HIDDEN = 8, 16, 32, 24
X = jnp.linspace(-1, 1, TIME * ROWS * WIDTH).reshape(TIME, ROWS, WIDTH)
TOKENS = (jnp.arange(TIME * ROWS) * 7 % WIDTH).reshape(TIME, ROWS)


def weights():
    shapes = {"in": (WIDTH, HIDDEN), "rec": (HIDDEN, HIDDEN), "out": (HIDDEN, WIDTH)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {name: 0.2 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def updated(weights, loss):
    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def unrolled(w, inputs, first):
    """Predictions of a recurrent network: (time, rows, width)."""

    def cell(h, x):
        h = jnp.tanh(first(w, x) + h @ w["rec"])
        return h, h @ w["out"]

    return jax.lax.scan(cell, jnp.zeros((inputs.shape[1], HIDDEN)), inputs)[1]


def product(w, x):
    return x @ w["in"]


def next_one(w, x):
    return updated(w, lambda w: ((unrolled(w, x[:-1], product) - x[1:]) ** 2).mean())


def burned_in(w, x):
    return updated(
        w, lambda w: ((unrolled(w, x, product)[3:] - x[3:]) ** 2).mean() + unrolled(w, x[2:], product).mean()
    )


def by_dynamic_slice(w, x):
    inputs = jax.lax.dynamic_slice_in_dim(x, 0, TIME - 1, 0)
    return updated(w, lambda w: ((unrolled(w, inputs, product) - x[1:]) ** 2).mean())


def shifted(w, x):
    inputs = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    return updated(w, lambda w: ((unrolled(w, inputs, product) - x) ** 2).mean())


def by_index(w, x):
    def loss(w):
        def turn(t, carried):
            h, total = carried
            h = jnp.tanh(x[t] @ w["in"] + h @ w["rec"])
            return h, total + ((h @ w["out"] - x[t + 1]) ** 2).mean()

        return jax.lax.fori_loop(0, TIME - 1, turn, (jnp.zeros((x.shape[1], HIDDEN)), 0.0))[1]

    return updated(w, loss)


def masked(w, batch):
    x, mask = batch["x"], batch["mask"][1:]
    return updated(w, lambda w: (((unrolled(w, x[:-1], product) - x[1:]) ** 2).mean(-1) * mask).mean())


def of_tokens(w, tokens):
    def loss(w):
        logits = unrolled(w, w["in"][tokens[:-1]], lambda w, x: x)
        return -(jax.nn.log_softmax(logits) * jax.nn.one_hot(tokens[1:], WIDTH)).sum(-1).mean()

    return updated(w, loss)


CASES = {
    "next": (next_one, X),
    "burned in": (burned_in, X),
    "dynamic": (by_dynamic_slice, X),
    "shifted": (shifted, X),
    "index": (by_index, X),
    "mask": (masked, {"x": X, "mask": jnp.ones((TIME, ROWS))}),
    "tokens": (of_tokens, TOKENS),
}


@pytest.mark.parametrize("name", CASES)
def test_the_batch_is_the_dimension_that_the_step_does_not_loop_over(name):
    step, batch = CASES[name]
    workload = autotune.Workload.of_call(step, (weights(), batch), batch=1)
    assert (workload.sequences, workload.seq) == (ROWS, TIME)
    assert {leaf.names[:2] for leaf in workload.partition.batch.values()} == {(None, "batch")}
    [note] = [one for one in workload.guesses if "the step loops over its first dimension" in one]
    assert "batch_axes={" in note
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout("data=4,tensor=2"),), compile=0, probe=False).plan
    planned, alone = plan.jit(step)(weights(), batch)[1], jax.jit(step)(weights(), batch)[1]
    np.testing.assert_allclose(float(planned), float(alone), rtol=1e-5)


def batch_first(w, x):
    x = x.swapaxes(0, 1)
    return updated(w, lambda w: ((unrolled(w, x[:-1], product) - x[1:]) ** 2).mean())


def sliced_batch(w, x):
    return updated(w, lambda w: ((jnp.tanh(x[:8] @ w["in"]) @ w["out"] - x[8:]) ** 2).mean())


def sliced_micro_batches(w, x):
    def piece(total, rows):
        return total + ((jnp.tanh(rows @ w["in"]) @ w["out"]) ** 2).mean(), None

    return updated(w, lambda w: jax.lax.scan(piece, 0.0, x[:12].reshape(4, 3, WIDTH))[0] + w["rec"].sum())


def micro_batches_by_index(w, x):
    def loss(w):
        def turn(index, total):
            rows = jax.lax.dynamic_slice_in_dim(x, 4 * index, 4)
            return total + ((jnp.tanh(rows @ w["in"]) @ w["out"]) ** 2).mean()

        return jax.lax.fori_loop(0, 4, turn, 0.0)

    return updated(w, loss)


@pytest.mark.parametrize(
    ("step", "batch"),
    [
        (batch_first, X.swapaxes(0, 1)),
        (sliced_batch, X[0]),
        (sliced_micro_batches, X[0]),
        (micro_batches_by_index, X[0]),
    ],
)
def test_a_slice_of_the_batch_is_no_loop_over_it(step, batch):
    workload = autotune.Workload.of_call(step, (weights(), batch), batch=1)
    assert workload.sequences == ROWS
    assert {leaf.names[0] for leaf in workload.partition.batch.values()} == {"batch"}
