"""A call as the user's loop makes it: what is tuned is what runs, whatever the signature."""

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_steps as small
from flax import nnx

import autotune
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from autotune.user_code import UserCodeError

LAYOUTS = ("fsdp=4,tensor=2", "data=4,tensor=2,zero=1")


def plan_of(workload, layout):
    """The plan of one layout, priced and not compiled."""
    return autotune.tune(workload, "cpu:8", layouts=(parse_layout(layout),), compile=0, probe=False).plan


def roles(workload):
    return {path: leaf.role for path, leaf in workload.partition.state.items() if leaf.role != "other"}


def lm1b_loop(step):
    state, rng, losses = small.state(), jax.random.PRNGKey(0), []
    config = small.Config()
    for _ in range(3):
        state, metrics, rng = step(state, small.X, config, small.lr_scale, 0.0, dropout_rng=rng)
        losses.append(float(metrics["loss"]))
    return losses


def parts_loop(step):
    params, opt, rng, losses = small.weights(), small.ADAM.init(small.weights()), jax.random.key(3), []
    for _ in range(3):
        metrics, rng, opt, params = step(params, opt, rng=rng, batch=small.X)
        losses.append(float(metrics["loss"]))
    return losses


def state_loop(step):
    state, losses = small.state(), []
    for _ in range(3):
        state, metrics = step(state, small.X)
        losses.append(float(jax.tree.leaves(metrics)[0]))
    return losses


def trainer_loop(step):
    state, losses = small.state(), []
    for _ in range(3):
        state, value = step(small.X, state)
        losses.append(float(value))
    return losses


def nnx_loop(step):
    model, optimizer, metrics = small.objects()
    losses = []
    for _ in range(3):
        step(model, optimizer, small.X, metrics)
        losses.append(float(metrics.compute()["loss"]))
    return losses


def returned_loop(step):
    model, optimizer, _ = small.objects()
    losses = []
    for _ in range(3):
        model, optimizer, value = step(model, optimizer, small.X)
        losses.append(float(value))
    return losses


def lm1b_call():
    args = (small.state(), small.X, small.Config(), small.lr_scale, 0.0)
    return small.lm1b_like, args, {"dropout_rng": jax.random.PRNGKey(0)}, 1


def parts_call():
    args = (small.weights(), small.ADAM.init(small.weights()))
    return small.parts, args, {"rng": jax.random.key(3), "batch": small.X}, "batch"


def donated_step():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.NamedSharding(mesh, jax.P())
    return jax.jit(
        lambda state, batch: small.Trainer().train_step(batch, state),
        in_shardings=(where, jax.NamedSharding(mesh, jax.P("x"))),
        donate_argnums=0,
    )


CALLS = {
    "statics and a key": (*lm1b_call(), lm1b_loop),
    "the state in pieces": (*parts_call(), parts_loop),
    "a bound method": (small.Trainer().train_step, (small.X, small.state()), {}, 0, trainer_loop),
    "in_shardings, donated": (donated_step(), (small.state(), small.X), {}, small.X, state_loop),
    "NNX in place": (small.nnx_step, (*small.objects()[:2], small.X, small.objects()[2]), {}, 2, nnx_loop),
    "nnx.jit": (nnx.jit(small.nnx_step), (*small.objects()[:2], small.X, small.objects()[2]), {}, "batch", nnx_loop),
    "NNX returned": (small.nnx_returned, (*small.objects()[:2], small.X), {}, 2, returned_loop),
}


def alone(step, loop):
    """The losses of the user's own loop without a mesh."""
    if isinstance(step, jax.stages.Wrapped) and not isinstance(step, type(nnx.jit(len))):
        step = step.__wrapped__
    return loop(step)


@pytest.mark.parametrize("name", CALLS)
def test_the_loss_of_every_layout_is_the_loss_of_the_loop(name):
    step, args, kwargs, batch, loop = CALLS[name]
    workload = autotune.Workload.of_call(step, args, kwargs, batch=batch)
    assert "parameters" in roles(workload).values() and workload.sequences == small.ROWS
    expected = alone(step, loop)
    assert len(set(expected)) == 3  # it trains
    for layout in LAYOUTS:
        np.testing.assert_allclose(loop(plan_of(workload, layout).jit(step)), expected, rtol=2e-4)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_compiled_is_the_step_of_the_loop(name):
    """The program that the tuner compiles has the matmuls of the program that `plan.jit` runs, and its arguments."""
    step, args, kwargs, batch, _ = CALLS[name]
    workload = autotune.Workload.of_call(step, args, kwargs, batch=batch)
    layout = parse_layout("fsdp=4,tensor=2")
    made = workload.build(layout, mesh_of(layout, parse_target("cpu:8")))
    with jax.set_mesh(made.mesh):
        tuned = jax.jit(made.function, out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, made.state), None))
        ours = tuned.lower(made.state, made.batch).compile().cost_analysis()["flops"]
    theirs = plan_of(workload, str(layout)).jit(step).lower(*args, **kwargs).compile().cost_analysis()["flops"]
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.slow
def test_a_call_travels_to_other_processes_and_runs_there():
    for name in ("statics and a key", "NNX in place"):
        step, args, kwargs, batch, _ = CALLS[name]
        workload = autotune.Workload.of_call(step, args, kwargs, batch=batch)
        there = cloudpickle.loads(cloudpickle.dumps(workload))
        assert there.fingerprint == workload.fingerprint
        layout = parse_layout("fsdp=8")
        made = there.build(layout, mesh_of(layout, parse_target("cpu:8")))
        with jax.set_mesh(made.mesh):
            new, metrics = jax.jit(made.function)(made.initialise(0), made.make_batch(0))
        assert jax.tree.structure(new) == jax.tree.structure(made.state)


def test_a_step_of_pmap_is_one_replica_with_the_global_batch():
    expected = state_loop(lambda state, batch: small.Trainer().train_step(batch, state))
    for step in (small.pmapped, jax.pmap(small.pmapped, axis_name="batch")):
        workload = autotune.Workload.of_call(step, (small.state(), small.X), batch="batch")
        assert any("'batch' of jax.pmap: it was bound to one replica" in guess for guess in workload.guesses)
        np.testing.assert_allclose(state_loop(plan_of(workload, "fsdp=8").jit(step)), expected, rtol=1e-4)


def test_an_evaluation_step_has_no_gradients():
    def evaluate(params, batch):
        return {"loss": small.loss(params, batch)}

    workload = autotune.Workload.of_call(evaluate, (small.weights(), small.X), batch=1)
    assert set(roles(workload).values()) == {"frozen"} and workload.traced.parameter_bytes == 0
    metrics = plan_of(workload, "fsdp=8").jit(evaluate)(small.weights(), small.X)
    assert float(metrics["loss"]) == pytest.approx(float(small.loss(small.weights(), small.X)), rel=1e-5)


def test_gradients_are_not_taken_for_the_parameters():
    """A tree built like the parameters is their new value only if it is made of them."""

    def gradients(params, batch):
        return jax.value_and_grad(small.loss)(params, batch)

    frozen = {"base": small.weights()["up"]}
    workload = autotune.Workload.of_call(gradients, (small.weights(), small.X), batch=1)
    assert roles(workload) == {"params/up": "parameters", "params/down": "parameters"}
    assert any(
        "params (2 arrays, 32 KiB), which have gradients that the step returns" in one for one in workload.guesses
    )
    assert all(place is None for place in workload.build.adapted.function.returned)

    def of_some(base, params, batch):
        return jax.grad(lambda p: small.loss({"up": base["base"] + p["up"], "down": p["down"]}, batch))(params)

    workload = autotune.Workload.of_call(of_some, (frozen, small.weights(), small.X), batch=2)
    assert roles(workload) == {"base/base": "frozen", "params/up": "parameters", "params/down": "parameters"}


def test_predictions_of_the_shape_of_a_parameter_are_not_its_new_value():
    def evaluate(params, batch):
        return small.predict(params, batch)

    square = {"up": array(32, 64), "down": array(64, 32)}
    workload = autotune.Workload.of_call(evaluate, (square, array(64, 32)), batch=1)
    assert roles(workload) == {"params/up": "frozen", "params/down": "frozen"}


def cell(hidden, x):
    return jnp.tanh(hidden + x), hidden * x


@pytest.mark.parametrize("axes", [{}, {"batch": 1}, {"": 1}])
def test_state_that_the_loss_is_computed_with_comes_back(axes):
    """Recurrent state and batch statistics are returned beside the loss, inside what is differentiated."""

    def step(params, opt, hidden, stats, batch):
        def of(params):
            last, made = jax.lax.scan(cell, hidden, batch)
            value = small.loss(params, made + stats["mean"][None, None])
            return value, (last, {"mean": 0.9 * stats["mean"] + 0.1 * batch.mean((0, 1))})

        (value, (last, new)), gradients = jax.value_and_grad(of, has_aux=True)(params)
        made = small.update({"params": params, "opt": opt}, gradients)
        return made["params"], made["opt"], last, new, value

    args = (small.weights(), small.ADAM.init(small.weights()), array(16, 32), {"mean": array(32)}, array(8, 16, 32))
    workload = autotune.Workload.of_call(step, args, batch=4, batch_axes=axes)
    found = roles(workload)
    assert (found["hidden"], found["stats/mean"]) == ("mutable", "mutable")
    assert workload.partition.state["hidden"].names == ("batch", None) and workload.sequences == 16
    assert workload.axes == ("data", "fsdp", "tensor")  # and not `expert`, along which only rows would be cut
    looped = any("the step loops over its first dimension, so dimension 1 was" in one for one in workload.guesses)
    assert looped is not bool(axes)


def test_micro_batches_stacked_by_the_loop_are_no_batch():
    def step(params, batch):
        def one(total, micro):
            return jax.tree.map(jnp.add, total, jax.grad(small.loss)(params, micro["x"] * micro["mask"][:, None])), None

        total, _ = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, params), batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, total)

    def inside(params, batch):
        return step(params, jax.tree.map(lambda one: one.reshape(4, -1, *one.shape[1:]), batch))

    stacked = {"mask": array(4, 16), "x": array(4, 16, 32)}
    workload = autotune.Workload.of_call(step, (small.weights(), stacked), batch=1)
    assert {leaf.names[:2] for leaf in workload.partition.batch.values()} == {(None, "batch")}
    whole = {"mask": array(64), "x": array(64, 32)}
    workload = autotune.Workload.of_call(inside, (small.weights(), whole), batch=1)
    assert {leaf.names[0] for leaf in workload.partition.batch.values()} == {"batch"} and workload.sequences == 64


@pytest.mark.parametrize("jitted", [False, True])
def test_arrays_that_the_step_closes_over_are_said(jitted):
    base = small.weights()

    def step(params, batch):
        return jax.tree.map(lambda w, g: w - g, params, jax.grad(small.loss)(params, small.predict(base, batch)))

    said = "the step closes over 2 arrays, 32 KiB, the largest float32[32, 128]"
    workload = autotune.Workload.of_call(jax.jit(step) if jitted else step, (small.weights(), small.X), batch=1)
    assert any(one.startswith(said) for one in workload.guesses)
    workload = autotune.Workload.of_call(small.Trainer().train_step, (small.X, small.state()), batch=0)
    assert not any("closes over" in one for one in workload.guesses)


def test_out_shardings_of_the_steps_own_jit_give_way():
    whole = jax.NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P())
    step = jax.jit(lambda state, batch: small.Trainer().train_step(batch, state), out_shardings=(whole, whole))
    workload = autotune.Workload.of_call(step, (small.state(), small.X), batch=1)
    assert "the out_shardings of the step's own jax.jit are left out: a plan says where arrays live" in workload.guesses
    assert not any("a mesh of its own" in one for one in workload.guesses)


def test_a_number_that_the_step_can_only_take_as_it_is_comes_back_as_it_is():
    def step(model, batch):
        rate = 0.1 if model["train"] else 0.0
        new = jax.tree.map(lambda w, g: w - rate * g, model["w"], jax.grad(small.loss)(model["w"], batch))
        return model | {"w": new}

    model = {"train": True, "w": small.weights()}
    workload = autotune.Workload.of_call(step, (model, small.X), batch=1)
    assert "the step takes model/train=True only as plain numbers: another value is another program" in workload.guesses
    planned = plan_of(workload, "fsdp=8").jit(step)
    model = planned(planned(model, small.X), small.X)
    assert model["train"] is True


def test_an_average_beside_the_parameters_is_told_apart_from_them():
    def step(params, average, batch):
        new = jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(small.loss)(params, batch))
        return jax.tree.map(lambda a, w: 0.9 * a + 0.1 * w, average, new), new  # in the other order

    workload = autotune.Workload.of_call(step, (small.weights(), small.weights(), small.X), batch=2)
    assert roles(workload) == {
        "params/up": "parameters", "params/down": "parameters", "average/up": "optimizer", "average/down": "optimizer",
    }  # fmt: skip


def test_another_value_of_a_static_argument_is_another_program():
    def step(state, batch, depth):
        for _ in range(depth):
            batch = jnp.tanh(batch)
        return small.Trainer().train_step(batch, state)

    workload = autotune.Workload.of_call(step, (small.state(), small.X, 1), batch=1)
    assert any("depth=1 only as plain numbers" in guess for guess in workload.guesses)
    jitted = plan_of(workload, "data=8").jit(step)
    for depth in (1, 3, 1):
        expected = step(small.state(), small.X, depth)[1]
        assert float(jitted(small.state(), small.X, depth)[1]) == pytest.approx(float(expected), rel=1e-5)


def test_a_number_that_can_be_traced_is():
    def step(state, batch, rate):
        return small.Trainer().train_step(batch * rate, state)

    workload = autotune.Workload.of_call(step, (small.state(), small.X, 0.5), batch=1)
    assert not any("plain number" in guess for guess in workload.guesses)
    jitted = plan_of(workload, "data=8").jit(step)
    assert float(jitted(small.state(), small.X, 0.5)[1]) != float(jitted(small.state(), small.X, 0.25)[1])


def test_jit_says_which_arguments_are_static_and_donated():
    def step(state, batch, names):
        assert names == ("a", 1)
        return small.Trainer().train_step(batch, state)

    workload = autotune.Workload.of_call(jax.jit(step, static_argnums=2), (small.state(), small.X, ("a", 1)), batch=1)
    jitted = plan_of(workload, "data=8").jit(step, static_argnames="names", donate_argnums=0)
    state, _ = jitted(small.state(), small.X, ("a", 1))
    again, _ = jitted(state, small.X, ("a", 1))
    assert state["params"]["up"].is_deleted() and not again["params"]["up"].is_deleted()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, r"of_call: step=3 must be a function"),
        ({"batch": 7}, r"batch=7 is none of the arguments: batch \(0\), state \(1\)"),
        ({"batch": "tokens"}, r"batch='tokens' is none of the arguments: batch \(0\), state \(1\)"),
        ({"batch": jnp.ones(3)}, r"batch=ArrayImpl is none of the arguments; give its position"),
        ({"batch": ()}, r"batch=\(\) names no argument"),
        ({"args": (small.X,)}, r"the step cannot be called with 1 arguments: missing a required argument: 'state'"),
        ({"args": small.X}, r"args=ArrayImpl must be a tuple"),
        ({"kwargs": [1]}, r"kwargs=list must be a dict"),
        ({"batch_axes": {"y": 0}}, r"batch_axes: 'y' is no array of the batch"),
        ({"batch_axes": {"": 2}}, r"batch_axes: '' is 2; the batch has 2 dimensions"),
        ({"batch_axes": {"": None}}, r"batch: it holds random keys, numbers and constants only"),
    ],
)
def test_wrong_input_gets_one_clear_line(change, message):
    given = {"step": small.Trainer().train_step, "args": (small.X, small.state()), "kwargs": {}, "batch": 0} | change
    with pytest.raises(ValueError, match=message) as caught:
        autotune.Workload.of_call(given.pop("step"), **given)
    assert "\n" not in str(caught.value)


def test_errors_of_the_step_are_its_own():
    def step(state, batch):
        return state["missing"], batch

    with pytest.raises(UserCodeError, match="the step: your code failed: KeyError: 'missing'"):
        autotune.Workload.of_call(step, (small.state(), small.X), batch=1)


def test_variables_made_inside_the_step_are_named():
    def step(model, batch):
        model.extra = nnx.Param(jnp.ones(3))
        return model(batch).sum()

    with pytest.raises(ValueError, match="the step adds extra"):
        autotune.Workload.of_call(step, (small.objects()[0], small.X), batch=1)


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


KEY = jax.eval_shape(lambda: jax.random.PRNGKey(0))
NEW_KEY = jax.eval_shape(lambda: jax.random.key(0))


@pytest.mark.parametrize(
    ("batch", "axes", "sequences", "names"),
    [
        ({"rng": KEY, "x": array(64, 32)}, {}, 64, {"rng": (None,), "x": ("batch", None)}),
        ({"rng": NEW_KEY, "x": array(64, 32)}, {}, 64, {"rng": (), "x": ("batch", None)}),
        ({"scale": array(32), "x": array(64, 32)}, {}, 64, {"scale": (None,), "x": ("batch", None)}),
        ({"scale": array(32), "x": array(32, 32)}, {}, 32, {"scale": (None,), "x": ("batch", None)}),
        ({"mask": array(64, 1), "x": array(64, 32)}, {}, 64, {"mask": ("batch", None), "x": ("batch", None)}),
        ({"x": array(32, 64)}, {"x": 1}, 64, {"x": (None, "batch")}),
        ({"step": array(), "x": array(64, 32)}, {}, 64, {"step": (), "x": ("batch", None)}),
        ({"mask": array(64, 1), "step": array(), "x": array(32, 64)}, {"x": 1}, 64,
         {"mask": ("batch", None), "step": (), "x": (None, "batch")}),
    ],
)  # fmt: skip
def test_what_is_batch_and_what_is_not(batch, axes, sequences, names):
    def step(state, batch):
        x = batch["x"].T if axes else batch["x"]
        x = x * batch["scale"][None] if "scale" in batch else x * batch.get("mask", 1.0) + batch.get("step", 0.0)
        return small.Trainer().train_step(x, state)

    for workload in (
        autotune.Workload(step, small.state, batch, batch_axes=axes),
        autotune.Workload.of_call(step, (small.state(), batch), batch="batch", batch_axes=axes),
    ):
        assert (workload.sequences, workload.seq) == (sequences, 1)
        assert {path: leaf.names for path, leaf in workload.partition.batch.items()} == names


def test_tokens_with_the_batch_last():
    def step(table, tokens):
        return table - jax.grad(lambda table: table[tokens].sum())(table), 0.0

    workload = autotune.Workload(step, array(50, 32), array(128, 16, dtype=jnp.int32), batch_axes={"": 1})
    assert (workload.sequences, workload.seq) == (16, 128)


def test_an_array_placed_whole_stays_whole():
    """`P()` says something: the array is on every device."""
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    whole = jax.NamedSharding(mesh, jax.P())
    table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=whole)
    params = {"up": array(32, 128), "down": array(128, 32), "table": table}

    def step(params, batch):
        gradients = jax.grad(lambda p: small.loss(p, batch + p["table"]))(params)
        return jax.tree.map(lambda w, g: w - g, params, gradients), 0.0

    workload = autotune.Workload(step, params, array(64, 32))
    assert workload.partition.state["table"].names == (None, None)
    said = [guess for guess in workload.guesses if "stay whole on every device" in guess]
    assert said and "rules=[" in said[0]
