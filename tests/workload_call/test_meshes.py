"""Steps with meshes and constraints of their own: what they need is found in the trace, or said with what to write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_steps as small
from flax import linen as nn
from jax import local_devices as devices_here
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import autotune
from autotune.compile.jit_step import lower_step
from autotune.mesh_context import mesh_set
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from autotune.partition import BOTH, NEW, NONE, OLD
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
    np.testing.assert_allclose(
        small.losses(plan_of(workload, "data=8").jit(step)), small.losses(jax.jit(step)), rtol=1e-5
    )


def test_a_mesh_that_the_old_context_gives_is_not_the_steps_own():
    workload = workload_of(by_old_context)
    assert not [one for one in workload.guesses if "a mesh of its own" in one]


@pytest.mark.slow
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
    alone = small.losses(jax.jit(lambda weights, batch: updated(weights, batch, plain)))
    np.testing.assert_allclose(small.losses(again.jit(step)), alone, rtol=1e-5)
    with again.use():
        np.testing.assert_allclose(float(jax.jit(step)(small.weights(), small.X)[1]), alone[0], rtol=1e-5)


@pytest.mark.slow
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


def explicit_step(rows, columns):
    """A step that names these axes for the batch and for the hidden width."""

    def step(weights, batch):
        def forward(weights, batch):
            h = jnp.einsum("bi,ih->bh", batch, weights["up"], out_sharding=P(rows, columns))
            return jnp.einsum("bh,ho->bo", jax.nn.relu(h), weights["down"], out_sharding=P(rows, None))

        return updated(weights, batch, forward)

    return step


def by_tensor(axis):
    return [("up$", (None, axis)), ("down$", (axis, None))]


@pytest.mark.parametrize(
    ("step", "options", "axes", "left_out"),
    [
        (explicit_step("data", "tensor"), {}, ("data", "tensor"), ("fsdp",)),
        (explicit_step("fsdp", "tensor"), {"rules": [("up$", ("fsdp", "tensor"))]}, ("fsdp", "tensor"), ("data",)),
        (explicit_step(("data", "fsdp"), "tensor"), {}, ("data", "fsdp", "tensor"), ()),
    ],
)
def test_an_axis_that_an_explicit_step_refuses_leaves_the_space_with_its_reason(step, options, axes, left_out):
    workload = workload_of(step, explicit=True, **options)
    assert workload.axes == axes
    for axis in left_out:
        reason = workload.problem(parse_layout(f"{axis}=8"))
        assert reason.startswith(f"{axis}=8: the step does not trace with "), reason
        assert "incompatible" in reason or "sharding" in reason.lower()
        assert any(one.startswith(f"{axis} is left out of the search: ") for one in workload.guesses)
        with pytest.raises(ValueError, match=f"makes no use of '{axis}': the step does not trace"):
            autotune.tune(workload, "cpu:8", axes=(axis,), compile=0)
    alone = small.losses(jax.jit(lambda weights, batch: updated(weights, batch, plain)))
    for layout in (f"{axes[0]}=8", ",".join(f"{axis}={4 if axis == axes[0] else 2}" for axis in axes[:2])):
        np.testing.assert_allclose(small.losses(plan_of(workload, layout).jit(step)), alone, rtol=1e-4)


def added(axis, where):
    """A step that adds a table of as many rows as the batch, cut over an axis of its own."""

    def step(weights, batch):
        def forward(weights, batch):
            h = jnp.einsum("bi,ih->bh", batch + weights["table"], weights["up"], out_sharding=P())
            return jnp.einsum("bh,ho->bo", jax.nn.relu(h), weights["down"], out_sharding=P())

        return updated(weights, batch, forward)

    return step, [("table$", tuple(axis if index == where else None for index in range(2)))]


@pytest.mark.parametrize(
    ("axis", "where", "apart"), [("tensor", 0, ("data,tensor",)), ("fsdp", 0, ("data,fsdp",)), ("tensor", 1, ())]
)
def test_axes_that_an_explicit_step_refuses_only_together_are_not_searched_together(axis, where, apart):
    step, rules = added(axis, where)
    state = jax.eval_shape(small.weights) | {"table": ROWS}
    workload = autotune.Workload(step, state, ROWS, rules=rules, explicit=True)
    assert tuple(workload.partition.apart) == apart
    for pair in apart:
        one, other = pair.split(",")
        reason = workload.problem(parse_layout(f"{one}=4,{other}=2"))
        assert reason.startswith(f"{one}=4 x {other}=2: the step does not trace with {one}=2 and {other}=2: ")
        assert workload.problem(parse_layout(f"{one}=8")) is workload.problem(parse_layout(f"{other}=8")) is None
        said = f"layouts with {one} and {other} are left out of the search: "
        assert any(guess.startswith(said) for guess in workload.guesses)
        report = autotune.tune(workload, "cpu:8", compile=0, probe=False)
        priced = [row.layout.axes for row in report.rows if row.status == "priced"]
        assert priced and all(axes[one] == 1 or axes[other] == 1 for axes in priced)
        again = plan_from_json(report.plan.to_json())
        assert again.partition == report.plan.partition


def test_every_layout_of_an_explicit_step_compiles():
    report = autotune.tune(
        workload_of(explicit_step("data", "tensor"), explicit=True), "cpu:8", compile=4, measure=0, probe=False, jobs=1
    )
    assert "failed" not in report.counts and report.counts["compiled"] == 4


@pytest.mark.parametrize(
    ("rules", "axes"),
    [
        (by_tensor("tensor"), ("data", "tensor")),
        ([("up$", (None, None)), ("down$", (None, None))], ("data",)),
        ([("up$", ("fsdp", None)), ("down$", (None, "fsdp"))], ("data", "fsdp")),
    ],
)
def test_an_axis_along_which_nothing_but_the_batch_is_cut_is_data_and_nothing_else(rules, axes):
    workload = workload_of(lambda weights, batch: updated(weights, batch, plain), rules=rules)
    assert workload.axes == axes


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (explicit_step("x", ("y", "z")), {"rules": by_tensor(("y", "z"))}),
        (explicit_step("x", ("y", "z")), {}),
        (explicit_step("x", "y"), {"rules": by_tensor("y")}),
        (explicit_step(("x", "z"), "y"), {"mesh_axes": {"x": "data", "z": "data", "y": "tensor"}}),
    ],
)
def test_two_axes_of_the_users_own_may_be_of_one_kind(step, options):
    workload = workload_of(step, **({"mesh_axes": {"x": "data", "y": "tensor", "z": "tensor"}} | options))
    assert workload.axes == ("data", "tensor")
    assert any("'z'" in one and "has size 1" in one for one in workload.guesses)
    plan = plan_from_json(plan_of(workload, "data=2,tensor=4").to_json())
    assert dict(plan.mesh().shape) | {"x": 2, "y": 4, "z": 1} == dict(plan.mesh().shape)
    alone = small.losses(jax.jit(lambda weights, batch: updated(weights, batch, plain)))
    np.testing.assert_allclose(small.losses(plan.jit(step)), alone, rtol=1e-4)


def test_the_layouts_of_two_axes_of_one_kind_compile():
    step = explicit_step("x", ("y", "z"))
    workload = workload_of(step, mesh_axes={"x": "data", "y": "tensor", "z": "tensor"})
    report = autotune.tune(workload, "cpu:8", compile=2, measure=0, probe=False, jobs=1)
    assert "failed" not in report.counts and report.counts["compiled"] == 2


def constrained(*names):
    def step(weights, batch):
        return updated(weights, jax.lax.with_sharding_constraint(batch, P(names)), plain)

    return step


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (explicit_step("x", ("y", "z")), ("x", "y", "z")),
        (constrained("rows"), ("rows",)),
        (constrained("data", "replicas"), ("replicas",)),
    ],
)
def test_axes_that_nobody_explained_are_asked_for_all_at_once_by_the_users_names(step, names):
    with pytest.raises(ValueError, match="which we do not know; say what") as caught:
        workload_of(step)
    message = str(caught.value)
    assert ", ".join(map(repr, names)) in message and ", ".join(f"{one!r}: ..." for one in names) in message
    assert "replicate" not in message and "\n" not in message


def test_no_message_lists_the_axes_of_the_tracing_mesh():
    def step(weights, batch):
        raise ValueError(str(jax.sharding.get_abstract_mesh()) + str(old_mesh().axis_names))

    with pytest.raises(UserCodeError) as caught:
        workload_of(step)
    assert "dp_fsdp" not in str(caught.value) + caught.value.traceback
    assert "the axes of the tracing mesh" in str(caught.value)


def maps(rows, axes=None):
    """A step that maps over the mesh that is set."""

    def step(weights, batch):
        over = {} if axes is None else {"axis_names": set(axes)}
        batch = jax.shard_map(lambda x: 2.0 * x, in_specs=P(rows), out_specs=P(rows), **over)(batch)
        return updated(weights, batch, plain)

    return step


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (maps("data"), "data, and along fsdp, tensor every device does the same work again: write "
                       "jax.shard_map(..., axis_names={'data'})"),
        (maps(("data", "fsdp")), "data, fsdp, and along tensor every device does the same work again: write "
                                 "jax.shard_map(..., axis_names={'data', 'fsdp'})"),
        (maps("data", ("data",)), "data: write jax.lax.with_sharding_constraint"),
    ],
)  # fmt: skip
def test_a_map_over_the_mesh_that_is_set_fixes_the_cut_and_is_named(step, said):
    workload = workload_of(step)
    [note] = [one for one in workload.guesses if one.startswith("jax.shard_map cuts its arrays by its own specs")]
    assert f"test_meshes.py:{step.__code__.co_firstlineno + 2}: in_specs P(" in note
    assert f" fix the cut along {said}" in note
    plan = plan_of(workload, "data=2,fsdp=2,tensor=2")
    expected = float(jax.jit(lambda w, x: ((plain(w, 2.0 * x) - 2.0 * x) ** 2).mean())(small.weights(), small.X))
    np.testing.assert_allclose(small.losses(plan.jit(step), count=1)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("step", [constrained("data", "fsdp"), lambda w, x: updated(w, x, plain)])
def test_a_step_without_a_map_is_not_said_to_have_one(step):
    assert not [one for one in workload_of(step).guesses if "shard_map" in one]


def small_memory(capacity_bytes):
    target = parse_target("cpu:8")
    return dataclasses.replace(target, hardware=dataclasses.replace(target.hardware, capacity_bytes=capacity_bytes))


@pytest.mark.slow
def test_nothing_fits_is_said_after_a_compile_only():
    """Of many results that are fused away the trace counts all."""

    def forward(weights, batch):
        h = batch @ weights["up"]
        return jax.nn.relu(sum(jnp.sin(h * factor) for factor in range(1, 25))) @ weights["down"]

    workload = workload_of(lambda weights, batch: updated(weights, batch, forward))
    priced = autotune.tune(workload, "cpu:8", compile=0, probe=False)
    least = min(row.peak_bytes for row in priced.rows if row.peak_bytes is not None)
    for share in (0.86, 0.6):
        target = small_memory(int(least * share))
        report = autotune.tune(workload, target, compile=1, measure=0, probe=False, jobs=1)
        assert report.best().status == "compiled"
        assert report.best().peak_bytes <= target.hardware.capacity_bytes
    blind = autotune.tune(workload, target, compile=0, probe=False)
    assert blind.plan_or_none is None
    assert any("no layout fits by the trace alone" in one for one in blind.notes)
    hopeless = autotune.tune(workload, small_memory(1000), compile=1, measure=0, probe=False, jobs=1)
    assert hopeless.plan_or_none is None and any(row.analysis is not None for row in hopeless.rows)


def by_platform(weights, batch):
    return updated(weights, batch * (1.0 if jax.devices()[0].platform == "tpu" else 2.0), plain)


def by_count(weights, batch):
    return updated(weights, batch * jax.device_count(), plain)


def by_name_of_its_own(weights, batch):
    return updated(weights, batch * len(devices_here()), plain)


def by_backend(weights, batch):
    return updated(weights, batch + (jax.default_backend() == "tpu"), plain)


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (by_platform, "jax.devices()"),
        (by_name_of_its_own, "jax.local_devices()"),
        (by_count, "jax.device_count()"),
        (by_backend, "jax.default_backend()"),
    ],
)
def test_a_step_that_asks_for_the_devices_of_this_machine_is_said_to(step, word):
    [note] = [one for one in workload_of(step).guesses if one.startswith("the step asks ")]
    assert f"{word} at {__file__}:{step.__code__.co_firstlineno + 1}" in note
    assert "of this machine (cpu)" in note
    assert devices_here is jax.local_devices and not hasattr(jax.devices, "__wrapped__")


@pytest.mark.parametrize("template", ["encoderblock_{}/kernel", "blocks_{}/w", "h/{}/kernel", "stage{}_block/kernel"])
def test_layers_whose_names_hold_a_number_are_one_guess(template):
    paths = [template.format(number) for number in range(3)]
    weights = {path: jax.ShapeDtypeStruct((32, 32), jnp.float32) for path in paths}

    def forward(weights, batch):
        for path in paths:
            batch = batch + jax.nn.relu(batch @ weights[path])
        return batch

    def step(weights, batch):
        return updated(weights, batch, forward)

    workload = autotune.Workload.of_call(step, (weights, ROWS), batch=1)
    [guess] = [one for one in workload.guesses if one.startswith("guessed")]
    assert "and 2 like it" in guess
    rule = guess.split("rules=[(r'")[1].split("'")[0]
    pinned = autotune.Workload.of_call(step, (weights, ROWS), batch=1, rules=[(rule, (None, "tensor"))])
    assert {leaf.names for leaf in pinned.partition.state.values()} == {(None, "tensor")}


def with_names(*names, jitted=False):
    """A step with a logical constraint on the hidden layer."""

    def forward(weights, batch):
        h = nn.with_logical_constraint(batch @ weights["up"], names)
        return jax.nn.relu(h) @ weights["down"]

    def step(weights, batch):
        return updated(weights, batch, forward)

    return jax.jit(step) if jitted else step


@pytest.mark.parametrize(
    ("names", "jitted", "rows", "unknown"),
    [
        (("act_batch", "act_emb"), False, "act_batch", ["act_emb"]),  # the name says it
        (("B", "hidden_act"), False, "B", ["hidden_act"]),  # the dimension says it
        (("decoder_batch", "mlp"), True, "decoder_batch", []),  # inside the step's own jit
        (("batch", "mlp"), False, None, []),
    ],
)
def test_logical_names_that_no_rule_explains_are_said_and_those_of_the_batch_taken_for_it(names, jitted, rows, unknown):
    step = with_names(*names, jitted=jitted)
    workload = workload_of(step)
    said = [one for one in workload.guesses if one.startswith("logical axis")]
    assert len(said) == (rows is not None) + len(unknown)
    if rows is not None:
        assert dict(workload.partition.rules)[rows] == ("data", "fsdp", "expert")
        assert any(f"{rows!r}" in one and "was taken for the batch" in one and "test_meshes.py:" in one for one in said)
    for name in unknown:
        assert any(f"pin it with logical_rules={{{name!r}: 'tensor'}}" in one for one in said)
        assert not [
            one for one in workload_of(step, logical_rules={name: None}).guesses if f"logical axis {name!r}" in one
        ]
    assert not [one for one in workload.guesses if "hold the batch away" in one]
    mesh = mesh_of(parse_layout("data=8"), parse_target("cpu:8"))
    built = workload.build(parse_layout("data=8"), mesh)
    text = lower_step(built).as_text()
    assert "sharding_constraint" in text or "@Sharding" in text


@pytest.mark.parametrize(
    ("step", "options", "axis"),
    [
        (with_names("act_batch", None), {"logical_rules": {"act_batch": "data"}}, "fsdp"),
        (with_names("rows", "mlp"), {"logical_rules": {"rows": None}}, "data and fsdp"),
        (constrained("data"), {}, "fsdp"),
    ],
)
def test_a_constraint_that_holds_the_batch_away_from_an_axis_is_said(step, options, axis):
    [note] = [one for one in workload_of(step, **options).guesses if "hold the batch away" in one]
    assert f"hold the batch away from {axis}, along which the batch is cut" in note
    assert "test_meshes.py:" in note and "dimension 0 of [64, " in note


@pytest.mark.parametrize("step", [constrained("data", "fsdp"), with_names("batch", None), constrained("fsdp", "data")])
def test_a_constraint_that_leaves_the_batch_where_it_is_is_not_said(step):
    assert not [one for one in workload_of(step).guesses if "hold the batch away" in one]


def test_a_second_trace_is_made_only_where_flax_asks_for_rules():
    traces = []

    def step(weights, batch):
        traces.append(1)
        return updated(weights, batch, plain)

    workload_of(step)
    assert len(traces) == 1
