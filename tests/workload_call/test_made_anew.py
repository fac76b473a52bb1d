"""Objects that cannot be pickled are made in the worker by the function that makes the state."""

import dataclasses
import threading

import cloudpickle
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import autotune
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Held:
    """A plain tree with an object beside its arrays that no pickle takes."""

    weight: jax.Array
    lock: object
    note: object = dataclasses.field(metadata={"static": True}, default=None)


def descend(state, x):
    value, slope = jax.value_and_grad(lambda w: ((x @ w - x) ** 2).mean())(state.weight)
    return dataclasses.replace(state, weight=state.weight - 0.1 * slope), value


class Note:
    """Static data of a tree, compared by what it says, that keeps a lock."""

    def __init__(self):
        self.lock = threading.Lock()

    def __eq__(self, other):
        return isinstance(other, Note)

    def __hash__(self):
        return 1


def objects():
    model = Locked(threading.Lock, nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


def beside():
    return Held(jnp.full((32, 32), 0.1), threading.Lock())


def inside_the_structure():
    return Held(jnp.full((32, 32), 0.1), None, Note())


@pytest.mark.parametrize("make", [objects, beside, inside_the_structure])
def test_arguments_and_trees_that_cannot_be_pickled_are_made_in_the_worker(make):
    """Of `of_call` and of `Workload`, given the function that makes them; they are measured from what it makes."""
    x = jnp.ones((64, 32))
    if make is beside:
        workload = autotune.Workload(descend, make, jax.ShapeDtypeStruct((64, 32), jnp.float32))
    elif make is objects:
        workload = autotune.Workload.of_call(step, lambda: (*make(), x), batch="x")
    else:
        workload = autotune.Workload.of_call(descend, lambda: (make(), x), batch="x")
    row = autotune.explain(workload, "cpu:8", "data=8", measure=0, jobs=1).rows[0]
    assert row.status == "compiled", row.reason
    assert not [one for one in row.analysis.warnings if "compiled in this process" in one]
    target = parse_target("cpu:8")
    built = workload.build(parse_layout("data=8"), mesh_of(parse_layout("data=8"), target))
    with jax.set_mesh(built.mesh):
        leaves = jax.tree.leaves(built.initialise(0))
    weights = [leaf for leaf in jax.tree.leaves(make()) if getattr(leaf, "shape", ()) == (32, 32)]
    assert any((leaf == weights[0]).all() for leaf in leaves if leaf.shape == (32, 32))


@pytest.mark.parametrize(("made", "word"), [(lambda: jnp.ones(3), "an array"), (dict, "dict")])
def test_a_function_that_makes_no_arguments_is_told_so(made, word):
    with pytest.raises(
        ValueError, match=rf"^of_call: args\(\) returns {word}; it must return a tuple of the step's arguments$"
    ):
        autotune.Workload.of_call(descend, made, batch="x")


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
