"""A step that counts the axes of its mesh is traced, compiled and run on a mesh of its own axes alone, and that is
said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_steps as small
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import autotune
from autotune.meshes.layout import parse_layout
from autotune.plan.emit import flax
from autotune.plan.read import plan_from_json
from autotune.user_code import UserCodeError

ROWS = jax.ShapeDtypeStruct(small.X.shape, small.X.dtype)
SAID = "the step counts the axes of its mesh: "


def old_mesh():
    from jax._src.mesh import thread_resources  # as the codebases do; the public name warns

    return thread_resources.env.physical_mesh


def is_fully_sharded(spec):
    """Whether every axis of the mesh cuts something (seqax)."""
    named = [name for part in spec for name in ((part,) if isinstance(part, str) else part or ())]
    return len(named) == len(jax.sharding.get_abstract_mesh().axis_names)


def mapped(d, t, check):
    """A step in the style of seqax: all of it inside one map over a mesh with the axes `d` and `t`.

    The gather of a weight reduces its gradient over `d`; what comes back is right for weights that every axis cuts.
    """
    specs = {"up": P(d, t), "down": P(t, d)}

    def step(weights, batch):
        def inside(weights, batch):
            def of(weights):
                up = jax.lax.all_gather(weights["up"], d, axis=0, tiled=True)
                down = jax.lax.all_gather(weights["down"], d, axis=1, tiled=True)
                made = jax.lax.psum(jax.nn.relu(batch @ up) @ down, t)
                return ((made - batch) ** 2).sum() / small.X.size / jax.lax.axis_size(t)

            value, gradients = jax.value_and_grad(of)(weights)
            gradients = check(gradients, specs, (d, t))
            return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), jax.lax.psum(value, (d, t))

        return jax.shard_map(
            inside, mesh=old_mesh(), in_specs=(specs, P(d)), out_specs=(specs, P()), check_vma=False
        )(weights, batch)  # fmt: skip

    return step


def asserted(gradients, specs, axes):
    assert all(map(is_fully_sharded, specs.values())), "only right for fully sharded weights"
    return gradients


def corrected(gradients, specs, axes):
    """No error, another program: what is not cut by every axis is summed over all of them."""
    return {name: one if is_fully_sharded(specs[name]) else jax.lax.psum(one, axes) for name, one in gradients.items()}


def unpacked(weights, batch):
    """The sizes by position, as `dp, mp = mesh.devices.shape` has them."""
    rows, columns = old_mesh().devices.shape
    assert batch.shape[0] % rows == 0 and weights["up"].shape[1] % columns == 0
    batch = jax.lax.with_sharding_constraint(batch, P("rows", None))
    return unmapped(weights, batch)


def by_names(weights, batch):
    """The mesh of another codebase is refused by its number of axes."""
    mesh = old_mesh() if not old_mesh().empty else jax.sharding.get_abstract_mesh()
    assert 0 < len(mesh.axis_names) <= 2, "a mesh of data and model"
    batch = jax.lax.with_sharding_constraint(batch, P("data", None))
    weights, value = unmapped(weights, batch)
    return jax.lax.with_sharding_constraint(weights, {"up": P(None, "model"), "down": P("model", None)}), value


def plain(weights, batch):
    return ((jax.nn.relu(batch @ weights["up"]) @ weights["down"] - batch) ** 2).mean()


def unmapped(weights, batch):
    value, gradients = jax.value_and_grad(plain)(weights, batch)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


OF_D_AND_T = {"mesh_axes": {"d": "fsdp", "t": "tensor"}}
OF_ROWS = {"mesh_axes": {"rows": "data", "columns": "tensor"}, "rules": [("up$", (None, "columns"))]}
CASES = [
    (mapped("d", "t", asserted), OF_D_AND_T, ("d", "t"), "fsdp=4,tensor=2"),
    (mapped("d", "t", corrected), OF_D_AND_T, ("d", "t"), "fsdp=2,tensor=4"),
    (mapped("fsdp", "model", asserted), {}, ("fsdp", "model"), "fsdp=4,tensor=2"),
    pytest.param(mapped("fsdp", "model", corrected), {}, ("fsdp", "model"), "tensor=8", marks=pytest.mark.slow),
    (unpacked, OF_ROWS, ("rows", "columns"), "data=4,tensor=2"),
    (by_names, {}, ("data", "model"), "data=4,tensor=2"),
]


@pytest.mark.parametrize(("step", "options", "axes", "layout"), CASES)
def test_it_has_a_mesh_of_its_own_axes_alone_and_trains_as_without_one(step, options, axes, layout):
    workload = autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1, **options)
    [note] = [one for one in workload.guesses if one.startswith(SAID)]
    assert f"on a mesh with the axes {', '.join(map(repr, axes))} alone" in note
    assert set(workload.partition.only_axes) == set(axes)
    workload.build.check()
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout(layout),), compile=0, probe=False).plan
    again = plan_from_json(plan.to_json())
    assert again.partition == plan.partition
    assert set(again.mesh().axis_names) == set(axes)
    np.testing.assert_allclose(small.losses(again.jit(step)), small.losses(unmapped), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "options", "axes", "layout"), CASES)
def test_the_worker_compiles_it_on_that_mesh(step, options, axes, layout):
    workload = autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1, **options)
    report = autotune.explain(workload, "cpu:8", layout, measure=1, jobs=1)
    assert report.rows[0].status == "measured", report.rows[0].reason


def test_the_axes_are_those_of_the_users_own_mesh_where_arrays_live_on_one():
    own = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))
    weights = jax.device_put(
        small.weights(), {"up": NamedSharding(own, P(None, "model")), "down": NamedSharding(own, P("model", None))}
    )

    def step(weights, batch):
        assert len(old_mesh().axis_names) == 2, "a mesh of data and model"
        value, gradients = jax.value_and_grad(plain)(weights, batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value

    workload = autotune.Workload.of_call(step, (weights, small.X), batch=1)
    assert workload.partition.only_axes == ("data", "model")
    assert workload.axes == ("data", "tensor")


@pytest.mark.parametrize("layout", ["data=8", "data=2,fsdp=4", "context=2,fsdp=4"])
def test_a_layout_with_another_axis_is_refused_with_the_reason(layout):
    step, options, _, _ = CASES[0]
    workload = autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1, **options)
    assert workload.axes == ("fsdp", "tensor")
    assert workload.problem(parse_layout(layout)).endswith("the mesh of the step has the axes d, t alone")


def uncounted(weights, batch):
    def inside(weights, batch):
        return jax.nn.relu(batch @ weights["up"]) @ weights["down"]

    def of(weights):
        mapped = jax.shard_map(inside, in_specs=(P(), P(("data", "fsdp"))), out_specs=P(("data", "fsdp")))
        return ((mapped(weights, batch) - batch) ** 2).mean()

    value, gradients = jax.value_and_grad(of)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def test_a_map_that_counts_nothing_keeps_the_mesh_of_every_axis():
    workload = autotune.Workload.of_call(uncounted, (jax.eval_shape(small.weights), ROWS), batch=1)
    assert workload.partition.only_axes == ()
    assert not [one for one in workload.guesses if one.startswith(SAID)]


def test_what_fails_on_every_mesh_has_its_own_error_and_is_tried_no_further():
    tries = []

    def step(weights, batch):
        tries.append(len(jax.sharding.get_abstract_mesh().axis_names))
        raise KeyError("no such layer")

    with pytest.raises(UserCodeError, match="KeyError: 'no such layer'"):
        autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1)
    assert 1 not in tries


def test_a_count_that_no_mesh_has_is_the_first_error():
    def step(weights, batch):
        count = len(jax.sharding.get_abstract_mesh().axis_names)
        assert count < 0, f"{count} axes"
        return weights, jnp.zeros(())

    with pytest.raises(UserCodeError, match="AssertionError: 2. axes"):
        autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1)


@pytest.mark.parametrize("name", ["q", "rows"])
def test_an_axis_in_the_specs_of_a_map_that_we_do_not_know_is_asked_for(name):
    def step(weights, batch):
        twice = jax.shard_map(lambda rows: 2.0 * rows, in_specs=P(name), out_specs=P(name))
        return weights, plain(weights, twice(batch))

    with pytest.raises(ValueError, match=f"the step names the mesh axis '{name}', which we do not know"):
        autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1)


def test_the_emitted_mesh_has_all_axes_that_the_step_counts():
    step, options, axes, _ = CASES[2]
    workload = autotune.Workload.of_call(step, (jax.eval_shape(small.weights), ROWS), batch=1, **options)
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout("tensor=8"),), compile=0, probe=False).plan
    code = flax(plan)
    assert all(repr(name) in code or f'"{name}"' in code for name in axes), code


def shorter(gradients, specs, axes):
    """On a mesh with further axes the step ends earlier: the loss alone is another program."""
    return gradients if all(map(is_fully_sharded, specs.values())) else jax.tree.map(jnp.zeros_like, gradients)


def test_a_program_that_is_longer_on_its_own_mesh_is_found():
    workload = autotune.Workload.of_call(
        mapped("fsdp", "model", shorter), (jax.eval_shape(small.weights), ROWS), batch=1
    )  # fmt: skip
    [note] = [one for one in workload.guesses if one.startswith(SAID)]
    assert "because on a mesh with further axes operation " in note
    assert workload.partition.only_axes == ("fsdp", "model")
