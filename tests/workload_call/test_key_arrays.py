"""Random keys of the old kind in numbers (one for each example, layer or micro-batch) are no frozen weights."""

import jax
import jax.numpy as jnp
import pytest
import small_steps as small

import autotune


def kept(key, x):
    return x * jax.random.bernoulli(key, 0.9, x.shape)


def for_each_example(keys, batch):
    """As Equinox's ViT: the model is mapped over images and keys."""
    return jax.vmap(kept)(keys, batch)


def for_each_layer(keys, batch):
    return jax.lax.scan(lambda x, key: (kept(key, x), None), batch, keys)[0]


def for_each_layer_and_example(keys, batch):
    return jax.lax.scan(lambda x, one: (for_each_example(one, x), None), batch, keys)[0]


@pytest.mark.parametrize(
    ("noise", "shape"),
    [(for_each_example, (small.ROWS,)), (for_each_layer, (3,)), (for_each_layer_and_example, (3, small.ROWS))],
)
@pytest.mark.parametrize("make", [jax.random.PRNGKey, jax.random.key])
def test_keys_in_numbers_are_no_weights(noise, shape, make):
    def step(state, batch, keys):
        return small.Trainer().train_step(noise(keys, batch), state)

    keys = jax.eval_shape(lambda: jax.random.split(make(0), shape))
    workload = autotune.Workload.of_call(step, (small.state(), small.X, keys), batch=1)
    assert workload.partition.state["keys"].role == "other"
    assert not any("frozen" in guess for guess in workload.guesses)


def test_whole_numbers_that_are_weights_stay_frozen():
    def step(state, batch, base):
        return small.Trainer().train_step(batch @ (0.1 * base.astype(jnp.float32)), state)

    base = jax.ShapeDtypeStruct((small.WIDTH, small.WIDTH), jnp.uint32)
    workload = autotune.Workload.of_call(step, (small.state(), small.X, base), batch=1)
    assert workload.partition.state["base"].role == "frozen"
