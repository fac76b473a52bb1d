"""Steps with meshes and constraints of their own: what they need is found in the trace, or said with what to write."""

import jax
import numpy as np
import pytest
import small_steps as small
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import autotune
from autotune.mesh_context import BOTH, NEW, NONE, OLD, mesh_set
from autotune.meshes.layout import parse_layout
from autotune.plan.read import plan_from_json
from autotune.user_code import UserCodeError

ROWS = jax.ShapeDtypeStruct(small.X.shape, small.X.dtype)


def own_mesh(count=8, name="rows"):
    return Mesh(np.array(jax.devices()[:count]), (name,))


def updated(weights, batch, forward):
    """(new weights, loss) of gradient descent on `forward(weights, batch)`, which is to give the batch back."""
    value, gradients = jax.value_and_grad(lambda w: ((forward(w, batch) - batch) ** 2).mean())(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def plain(weights, batch):
    return jax.nn.relu(batch @ weights["up"]) @ weights["down"]


def workload_of(step, **options):
    return autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1, **options)


def plan_of(workload, layout):
    return autotune.tune(workload, "cpu:8", layouts=(parse_layout(layout),), compile=0, probe=False).plan


def losses(step, count=3):
    weights, found = small.weights(), []
    for _ in range(count):
        weights, value = step(weights, small.X)
        found.append(float(value))
    return found


def by_constraint(weights, batch):
    batch = jax.lax.with_sharding_constraint(batch, NamedSharding(own_mesh(), P("rows")))
    return updated(weights, batch, plain)


def by_map(weights, batch):
    twice = jax.shard_map(lambda rows: 2.0 * rows, mesh=own_mesh(), in_specs=P("rows"), out_specs=P("rows"))
    return updated(weights, twice(batch), plain)


def by_inner_jit(weights, batch):
    placed = jax.jit(lambda rows: rows + 1.0, out_shardings=NamedSharding(own_mesh(), P("rows", None)))
    return updated(weights, placed(batch), plain)


@pytest.mark.parametrize(
    ("step", "instead"),
    [
        (by_constraint, "PartitionSpec('rows') in place of the NamedSharding"),
        (by_map, "jax.shard_map without mesh="),
        (by_inner_jit, "PartitionSpec('rows', None) in place of the NamedSharding"),
    ],
)
def test_a_mesh_of_the_steps_own_is_named_with_its_line_and_what_to_write(step, instead):
    workload = workload_of(step)
    [note] = [one for one in workload.guesses if "a mesh of its own" in one]
    line = step.__code__.co_firstlineno
    assert any(f"test_meshes.py:{line + more}: {instead}" in note for more in (1, 2)), note
    assert "rows=8" in note
    np.testing.assert_allclose(losses(plan_of(workload, "data=8").jit(step)), losses(jax.jit(step)), rtol=1e-5)


def test_a_mesh_that_the_old_context_gives_is_not_the_steps_own():
    workload = workload_of(by_old_context)
    assert not [one for one in workload.guesses if "a mesh of its own" in one]


def test_where_every_compile_fails_for_one_reason_there_is_no_plan():
    def step(weights, batch):
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(own_mesh(4), P("rows")))
        return updated(weights, batch, plain)

    report = autotune.tune(workload_of(step), "cpu:8", compile=1, measure=0, probe=False, jobs=1)
    assert report.plan_or_none is None
    assert "incompatible devices" in report.compilers_word
    assert any("pins arrays to a mesh of its own (rows=4)" in one for one in report.notes)


def old_mesh():
    from jax._src.mesh import thread_resources  # as the codebases do; the public name warns

    return thread_resources.env.physical_mesh


def by_old_context(weights, batch):
    mesh = old_mesh()
    if not mesh.empty:  # EasyLM: constraints are left out where there is no mesh
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, P(("dp", "fsdp"))))
    return updated(weights, batch, plain)


def by_old_names(weights, batch):
    known = old_mesh().axis_names  # Tunix: only the axes that the mesh has
    if known:
        batch = jax.lax.with_sharding_constraint(batch, P(tuple(name for name in ("dp", "fsdp") if name in known)))
    return updated(weights, batch, plain)


def by_old_size(weights, batch):
    return updated(weights, batch * old_mesh().shape["fsdp"] ** 0, plain)  # big_vision: a mesh has to be there


def without_a_mesh(weights, batch):
    assert old_mesh().empty and jax.sharding.get_abstract_mesh().empty, "this step wants no mesh"
    return updated(weights, batch, plain)


def only_the_old(weights, batch):
    assert not old_mesh().empty and jax.sharding.get_abstract_mesh().empty, "this step wants `with mesh:` alone"
    return updated(weights, batch, plain)


def only_the_new(weights, batch):
    assert old_mesh().empty and not jax.sharding.get_abstract_mesh().empty, "this step wants jax.set_mesh alone"
    return updated(weights, batch, plain)


@pytest.mark.parametrize(
    ("step", "context"),
    [
        (by_old_context, BOTH),
        (by_old_names, BOTH),
        (by_old_size, BOTH),
        (without_a_mesh, NONE),
        (only_the_old, OLD),
        (only_the_new, NEW),
    ],
)
def test_the_context_in_which_a_step_works_is_used_everywhere(step, context):
    workload = workload_of(step)
    assert workload.partition.mesh_context == context
    assert [bool(workload.guesses and "because otherwise its trace fails" in workload.guesses[0])] == [context != BOTH]
    workload.build.check()
    plan = plan_of(workload, "data=2,fsdp=2,tensor=2")
    again = plan_from_json(plan.to_json())
    alone = losses(jax.jit(lambda weights, batch: updated(weights, batch, plain)))
    np.testing.assert_allclose(losses(again.jit(step)), alone, rtol=1e-5)
    with again.use():
        np.testing.assert_allclose(float(jax.jit(step)(small.weights(), small.X)[1]), alone[0], rtol=1e-5)


def test_constraints_of_the_old_context_are_in_the_compiled_step():
    workload = workload_of(by_old_context)
    assert workload.partition.mesh_names["data"] == "dp"
    report = autotune.explain(workload, "cpu:8", "data=8", measure=1, jobs=1)
    assert report.rows[0].status == "measured", report.rows[0].reason


def test_a_step_that_fails_in_every_context_has_its_own_error():
    def step(weights, batch):
        raise KeyError("no such layer")

    with pytest.raises(UserCodeError, match="KeyError: 'no such layer'"):
        workload_of(step)


def test_a_context_that_is_none_is_refused():
    with pytest.raises(ValueError, match="context='all' must be one of both, old, new, none"), mesh_set(None, "all"):
        pass
