"""`jax.shard_map` over the mesh that the old context has set, as seqax writes it: that is the mesh which is set."""

import jax
import pytest
import small_steps as small
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import autotune
from autotune.meshes.layout import parse_layout
from autotune.partition import BOTH

ROWS = P(("data", "fsdp"))


def old_mesh():
    from jax._src.mesh import thread_resources  # as the codebases do; the public name warns

    return thread_resources.env.physical_mesh


def twice(mesh, batch):
    return jax.shard_map(lambda x: 2.0 * x, mesh=mesh, in_specs=ROWS, out_specs=ROWS)(batch)


def alone(state, batch):
    mesh = old_mesh()
    return small.Trainer().train_step(batch if mesh.empty else twice(mesh, batch) / 2, state)


def beside_a_constraint(state, batch):
    mesh = old_mesh()
    if not mesh.empty:
        held = jax.lax.with_sharding_constraint(twice(mesh, batch), NamedSharding(mesh, ROWS))
        batch = jax.lax.with_sharding_constraint(held / 2, ROWS)
    return small.Trainer().train_step(batch, state)


def with_collectives(state, batch):
    """As seqax: the gradients themselves are made inside the map, and summed by hand."""
    mesh = old_mesh()
    if mesh.empty:
        return small.Trainer().train_step(batch, state)

    def loss(params, x):
        return jax.lax.pmean(small.loss(params, x), ("data", "fsdp"))

    mapped = jax.shard_map(jax.value_and_grad(loss), mesh=mesh, in_specs=(P(), ROWS), out_specs=(P(), P()))
    value, grads = mapped(state["params"], batch)
    return small.update(state, grads), value


@pytest.mark.parametrize("step", [alone, beside_a_constraint, with_collectives])
def test_the_mesh_of_the_old_context_is_the_mesh_that_is_set(step):
    workload = autotune.Workload.of_call(step, (small.state(), small.X), batch=1)
    assert workload.partition.mesh_context == BOTH
    assert not any("because otherwise its trace fails" in guess for guess in workload.guesses)
    assert not any("a mesh of its own" in guess for guess in workload.guesses)
    layout = parse_layout("data=2,fsdp=4")
    plan = autotune.tune(workload, "cpu:8", layouts=(layout,), compile=0, probe=False).plan

    def losses(run):
        state, found = small.state(), []
        for _ in range(3):
            state, value = run(state, small.X)
            found.append(float(value))
        return found

    assert losses(plan.jit(step)) == pytest.approx(losses(step), rel=1e-4)
