"""A step inside `jax.pmap` that is called with a dimension of replicas is refused with what to hand over: many models
take arrays with a dimension more, and another program would be tuned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_steps as small

import autotune
from autotune.meshes.layout import parse_layout

REPLICAS = 8


def replicated(tree):
    return jax.tree.map(lambda one: jnp.stack([one] * REPLICAS), tree)


def sharded(tree):
    return jax.tree.map(lambda one: one.reshape(REPLICAS, -1, *one.shape[1:]), tree)


def with_keys(params, opt, keys, rows):
    """The pieces of a state and a key of its own for each replica, as big_vision had them."""
    keys, key = jax.random.split(keys)
    key = jax.random.fold_in(key, jax.lax.axis_index("batch"))
    value, gradients = jax.value_and_grad(small.loss)(params, rows["x"], key)
    value, gradients = jax.lax.pmean((value, gradients), axis_name="batch")
    new = small.update({"params": params, "opt": opt}, gradients)
    return new["params"], new["opt"], keys, value


def one_call():
    return small.state(), small.X


def call_with_keys():
    state = small.state()
    return state["params"], state["opt"], jax.random.PRNGKey(0), {"x": small.X}


CASES = [
    (jax.pmap(small.pmapped, axis_name="batch"), one_call, (True, True), "state, batch have", "one replica of state: "),
    (jax.pmap(small.pmapped, axis_name="batch", in_axes=(None, 0)), one_call, (False, True), "batch has", "the global"),
    (
        jax.pmap(with_keys, axis_name="batch", donate_argnums=(0, 1)), call_with_keys, (True, True, True, True),
        "params, opt, keys, rows have", "one replica of params, opt, keys: ",
    ),
]  # fmt: skip


def as_in_the_loop(arguments, mapped):
    *state, rows = [
        one if not cut else replicated(one) if index < len(mapped) - 1 else sharded(one)
        for index, (one, cut) in enumerate(zip(arguments, mapped, strict=True))
    ]
    return *state, rows


@pytest.mark.parametrize(("step", "make", "mapped", "names", "give"), CASES)
def test_replicas_are_refused_with_what_to_give(step, make, mapped, names, give):
    arguments = as_in_the_loop(make(), mapped)
    with pytest.raises(ValueError, match="the step is inside jax.pmap") as caught:
        autotune.Workload.of_call(step, arguments, batch=-1)
    line = str(caught.value)
    assert f"{names} a first dimension of {REPLICAS} replicas; give {give}" in line
    assert "the global " in line and "x.reshape(-1, *x.shape[2:])" in line and "\n" not in line


@pytest.mark.parametrize(("step", "make", "mapped", "names", "give"), CASES)
def test_one_replica_and_the_global_batch_are_taken_and_the_plan_refuses_replicas_too(step, make, mapped, names, give):
    arguments = make()
    workload = autotune.Workload.of_call(step, arguments, batch=-1)
    assert workload.sequences == small.ROWS
    [note] = [one for one in workload.guesses if "'batch' of jax.pmap" in one]
    assert "what a replica computes of its own rows alone (batch statistics" in note
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout("data=8"),), compile=0, probe=False).plan
    planned = plan.jit(step)
    with pytest.raises(ValueError, match=f"{names} a first dimension of {REPLICAS} replicas"):
        planned(*as_in_the_loop(arguments, mapped))
    if make is one_call:
        found = float(planned(*arguments)[1]["loss"])
        alone = float(step(*as_in_the_loop(arguments, mapped))[1]["loss"][0])
        np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_the_function_inside_takes_rows_as_they_are():
    workload = autotune.Workload.of_call(small.pmapped, (small.state(), small.X[:REPLICAS]), batch=1)
    assert workload.sequences == REPLICAS
