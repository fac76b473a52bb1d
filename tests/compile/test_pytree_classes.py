"""Pytree classes that a worker cannot import are nodes of a tree there too, or the compile stays in this process."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx, struct
from flax.training import train_state

import autotune
from autotune.compile.pytree_classes import NotKnown, Registration, registrations
from autotune.meshes.layout import parse_layout

X = jnp.linspace(-1, 1, 16 * 8).reshape(16, 8)
W = 0.1 * jnp.ones((8, 8))


def by_dataclass():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Weights:
        up: Any
        depth: int = dataclasses.field(metadata={"static": True}, default=2)

    return Weights


def by_field_names():
    @dataclasses.dataclass
    class Weights:
        depth: int
        up: Any

        def __init__(self, up, depth=2):
            self.depth, self.up = depth, up

    return jax.tree_util.register_dataclass(Weights, data_fields=["up"], meta_fields=["depth"])


def by_flax():
    @struct.dataclass
    class Weights:
        up: Any
        depth: int = struct.field(pytree_node=False, default=2)

    return Weights


def by_methods():
    @jax.tree_util.register_pytree_node_class
    class Weights:
        def __init__(self, up, depth=2):
            self.up, self.depth = up, depth

        def tree_flatten(self):
            return (self.up,), self.depth

        @classmethod
        def tree_unflatten(cls, depth, children):
            return cls(*children, depth)

    return Weights


def by_functions():
    class Weights:
        def __init__(self, up, depth=2):
            self.up, self.depth = up, depth

    jax.tree_util.register_pytree_node(
        Weights, lambda one: ((one.up,), one.depth), lambda depth, children: Weights(*children, depth)
    )
    return Weights


def by_base_class():
    class Weights(struct.PyTreeNode):
        up: Any
        depth: int = struct.field(pytree_node=False, default=2)

    return Weights


def compiled(step, *args):
    workload = autotune.Workload.of_call(step, (*args, X), batch=len(args))
    report = autotune.tune(
        workload, "cpu:8", layouts=(parse_layout("data=8"),), compile=1, measure=0, probe=False, jobs=1
    )
    return report.rows[0], [one for one in report.notes if "compiled in this process" in one]


def descend(weights, x):
    def loss(weights):
        h = x
        for _ in range(weights.depth):
            h = jnp.tanh(h @ weights.up)
        return (h**2).mean()

    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


@pytest.mark.parametrize("kind", [by_dataclass, by_field_names, by_flax, by_methods])
def test_a_class_that_no_worker_can_import_is_a_node_in_the_worker(kind):
    row, notes = compiled(descend, kind()(W))
    assert row.status == "compiled", row.reason
    assert not notes


def test_a_static_class_is_static_in_the_worker():
    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Config:
        rate: float = 0.1

    def step(weights, config, x):
        value, gradients = jax.value_and_grad(lambda w: ((x @ w) ** 2).mean())(weights)
        return weights - config.rate * gradients, value

    row, notes = compiled(step, W, Config())
    assert row.status == "compiled" and not notes, row.reason


@pytest.mark.parametrize(
    ("kind", "why"),
    [(by_functions, "is registered with functions of its own"), (by_base_class, "is registered by its base class")],
)
def test_a_class_that_cannot_be_registered_anew_stays_in_this_process_and_is_named(kind, why):
    row, [note] = compiled(descend, kind()(W))
    assert row.status == "compiled", row.reason
    assert f"{kind.__name__}.<locals>.Weights of test_pytree_classes {why}" in note


def test_a_train_state_with_a_field_more_keeps_it():
    class State(train_state.TrainState):
        scale: Any

    def step(state, x):
        value, gradients = jax.value_and_grad(lambda p: ((x @ p["w"] * state.scale) ** 2).mean())(state.params)
        return state.apply_gradients(grads=gradients, scale=0.9 * state.scale), value

    state = State.create(apply_fn=None, params={"w": W}, tx=optax.adam(1e-2), scale=jnp.ones((1, 8)))
    row, notes = compiled(step, state)
    assert row.status == "compiled" and len(notes) == 1, row.reason


@pytest.mark.parametrize("kind", [by_dataclass, by_field_names, by_flax])
def test_a_registration_names_every_field(kind):
    cls = kind()
    assert registrations([cls]) == [Registration(cls=cls, by="fields", data=("up",), meta=("depth",))]


def test_what_is_no_node_and_what_registers_itself_is_left_alone():
    class Plain:
        pass

    class Net(nnx.Module):
        pass

    assert registrations([Plain, Net, type("Pair", (tuple,), {})]) == []


@pytest.mark.parametrize("kind", [by_functions, by_base_class])
def test_a_registration_that_nothing_tells_of_is_refused(kind):
    with pytest.raises(NotKnown, match="Weights of test_pytree_classes is registered"):
        registrations([kind()])
