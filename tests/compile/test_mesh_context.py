"""A mesh is set for codebases that ask the new context, and for those that ask the old one."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import pxla
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from autotune.compile.jit_step import lower_step
from autotune.mesh_context import mesh_set
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from autotune.workload.workload import Workload

STATE = {"params": jax.ShapeDtypeStruct((16, 16), jnp.float32)}
X = jax.ShapeDtypeStruct((8, 16), jnp.float32)


def old_mesh():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pxla.thread_resources.env.physical_mesh


def asks_old(h):
    """As EasyLM and big_vision do: no mesh, no constraint."""
    return h if old_mesh().empty else jax.lax.with_sharding_constraint(h, P("data"))


def asks_new(h):
    return h if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(h, P("data"))


@pytest.mark.parametrize("constrain", [asks_old, asks_new])
def test_the_constraints_of_a_step_are_in_its_program(constrain):
    def step(state, x):
        grad = jax.grad(lambda w: (constrain(x @ w) ** 2).mean())(state["params"])
        return {"params": state["params"] - grad}, {}

    layout = parse_layout("data=2")
    built = Workload(step, STATE, X).build(layout, mesh_of(layout, parse_target("cpu:2")))
    assert "sharding_constraint" in lower_step(built).as_text() or "@Sharding" in lower_step(built).as_text()


def test_both_are_left_again_and_no_deprecation_is_said():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), mesh_set(mesh):
            assert jax.sharding.get_abstract_mesh().axis_names == ("data",)
            raise KeyError
    assert old_mesh().empty and jax.sharding.get_abstract_mesh().empty


def test_a_jax_that_refuses_the_old_context_still_gets_the_new(monkeypatch):
    def refuse(self):
        raise NotImplementedError("gone")

    monkeypatch.setattr(Mesh, "__enter__", refuse)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    with pytest.warns(UserWarning, match="refuses `with mesh:`"), mesh_set(mesh):
        assert jax.sharding.get_abstract_mesh().axis_names == ("data",)
