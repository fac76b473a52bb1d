"""A batch that the loop has placed on a mesh of its own is cut along its batch, whatever that mesh calls its axes."""

import jax
import numpy as np
import pytest
import small_steps as small
from jax import devices as devices_here
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import autotune
from autotune.meshes.layout import parse_layout

ONE = ("devices",), (8,)
TWO = ("hosts", "chips"), (2, 4)


def placed(tree, mesh, spec):
    names, shape = mesh
    own = Mesh(np.array(devices_here()[:8]).reshape(shape), names)
    return jax.device_put(tree, NamedSharding(own, spec))


def of_one(state, batch):
    return small.Trainer().train_step(batch, state)


def of_two(state, batch):
    return small.Trainer().train_step(batch["x"] * batch["weight"][:, None], state)


PAIR = {"x": small.X, "weight": np.ones(small.ROWS, np.float32)}
CASES = [
    (of_one, small.X, ONE, P("devices"), "'devices'", "'devices': 'data'"),
    (of_two, PAIR, ONE, P("devices"), "'devices'", "'devices': 'data'"),
    (of_one, small.X, TWO, P(("hosts", "chips")), "'hosts', 'chips'", "'hosts': 'data', 'chips': 'data'"),
]


@pytest.mark.parametrize(("step", "batch", "mesh", "spec", "words", "pin"), CASES)
def test_its_first_dimension_is_the_batch(step, batch, mesh, spec, words, pin):
    state, batch = placed(small.state(), mesh, P()), placed(batch, mesh, spec)
    workload = autotune.Workload.of_call(step, (state, batch), batch=1)
    said = (
        f"the batch lives on a mesh of your own, cut along {words}, which was taken for the batch's axes; pin it with "
        f"mesh_axes={{{pin}}}"
    )
    assert workload.guesses.count(said) == 1
    assert all(leaf.names[0] == "batch" for leaf in workload.partition.batch.values())
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout("data=8"),), compile=0, probe=False).plan
    new, loss = plan.jit(step)(small.state(), batch)
    assert float(loss) == pytest.approx(float(step(small.state(), jax.device_get(batch))[1]), rel=1e-4)
    assert new["params"]["up"].sharding.is_fully_replicated  # P() is what the loop said of its state


PLACES = [
    ("devices", P(), P(), "so fsdp and tensor are not searched: "),
    ("data", P(), P(), "so fsdp and tensor are not searched: "),
    ("fsdp", P("fsdp"), P(), "so tensor is not searched: "),
]


@pytest.mark.parametrize(("name", "params", "opt", "left_out"), PLACES)
def test_a_state_placed_whole_says_what_is_not_searched_and_what_opens_it(name, params, opt, left_out):
    mesh, state = ((name,), (8,)), small.state()
    state = {"params": placed(state["params"], mesh, params), "opt": placed(state["opt"], mesh, opt)}
    workload = autotune.Workload.of_call(of_one, (state, placed(small.X, mesh, P(name))), batch=1)
    [note] = [one for one in workload.guesses if "stay whole on every device" in one]
    assert (
        f" of them because the arrays that were handed over lie whole on a mesh of your own (P()), {left_out}" in note
    )
    assert note.endswith("hand over shapes, jax.eval_shape(lambda: state), to have their cuts guessed")
    opened = autotune.Workload.of_call(of_one, (jax.eval_shape(lambda: state), small.X), batch=1)
    assert opened.axes == ("data", "fsdp", "tensor")
    assert not [one for one in opened.guesses if "stay whole on every device" in one]


def test_where_nothing_is_cut_the_line_says_so():
    state, batch = placed((small.state(), small.X), ONE, P())
    workload = autotune.Workload.of_call(of_one, (state, batch), batch=1)
    with pytest.raises(ValueError, match="8 devices, and no array .* is cut along any axis: workload.guesses"):
        autotune.tune(workload, "cpu:8", compile=0)


def test_state_and_batch_in_one_argument_are_to_be_taken_apart():
    def step(runner):
        return of_one(*runner)

    with pytest.raises(ValueError, match="holds both, hand over a function that takes its parts one by one"):
        autotune.Workload.of_call(step, ((small.state(), small.X),), batch=0)
    workload = autotune.Workload.of_call(lambda *parts: step(parts), (small.state(), small.X), batch=1)
    assert workload.sequences == small.ROWS
