"""Objects that cannot be pickled are made in the worker by the function that makes the state."""

import threading

import cloudpickle
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import autotune


class Locked(nnx.Module):
    """Keeps an object that no pickle takes, as modules with caches, threads or device handles do."""

    def __init__(self, kind, rngs):
        self.held = nnx.static(kind())
        self.layer = nnx.Linear(32, 32, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


def step(model, optimizer, x):
    value, gradients = nnx.value_and_grad(lambda model: ((model(x) - x) ** 2).mean())(model)
    optimizer.update(model, gradients)
    return value


@pytest.mark.parametrize("kind", [threading.Lock, threading.Event, threading.Condition])
def test_a_module_that_cannot_be_pickled_is_made_in_the_worker(kind):
    def make():
        model = Locked(kind, nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    batch = jax.ShapeDtypeStruct((64, 32), jnp.float32)
    with pytest.raises(TypeError):
        cloudpickle.dumps(make()[0])
    report = autotune.explain(autotune.Workload(step, make, batch), "cpu:8", "data=8", measure=0, jobs=1)
    row = report.rows[0]
    assert row.status == "compiled", row.reason
    assert not [one for one in row.analysis.warnings if "compiled in this process" in one]
    given = autotune.explain(autotune.Workload(step, make(), batch), "cpu:8", "data=8", measure=0, jobs=1).rows[0]
    assert [one for one in given.analysis.warnings if "compiled in this process" in one], given.reason
