"""Where a step's `jax.shard_map` says how an array of the state is cut, it is cut so, and that is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_steps as small
from jax.sharding import PartitionSpec as P

import autotune
from autotune.meshes.layout import parse_layout

ROWS = jax.ShapeDtypeStruct(small.X.shape, small.X.dtype)
ADAM = optax.adam(1e-2)


def trained(forward):
    """A step with Adam around `forward(params, batch)`, which is to give the batch back."""

    def step(state, batch):
        value, gradients = jax.value_and_grad(lambda p: ((forward(p, batch) - batch) ** 2).mean())(state["params"])
        return small.update(state, gradients), value

    return step


ROWS_CUT = P(("data", "fsdp"))


def mapped(inside, specs, rows=ROWS_CUT, **options):
    def forward(params, batch):
        params = {"up": params["up"].astype(jnp.float32), "down": params["down"].T.T}
        return jax.shard_map(inside, in_specs=(specs, rows), out_specs=rows, check_vma=False, **options)(params, batch)

    return forward


def gathered(params, batch):
    up = jax.lax.all_gather(params["up"], "fsdp", axis=1, tiled=True)
    return jax.nn.gelu(batch @ up) @ jax.lax.all_gather(params["down"], "fsdp", axis=0, tiled=True)


def reduced(params, batch):
    return jax.lax.psum(jax.nn.gelu(batch @ params["up"]) @ params["down"], "tensor")


def whole(params, batch):
    return jax.nn.gelu(batch @ params["up"]) @ params["down"]


BY_WIDTH = {"up": P(None, "fsdp"), "down": P("fsdp")}
BY_TENSOR = {"up": P(None, "tensor"), "down": P("tensor")}
CASES = [
    (mapped(gathered, BY_WIDTH), {"up": (None, "fsdp"), "down": ("fsdp", None)}, "fsdp=8"),
    (mapped(reduced, BY_TENSOR), {"up": (None, "tensor"), "down": ("tensor", None)}, "data=4,tensor=2"),
    (mapped(jax.checkpoint(gathered), BY_WIDTH), {"up": (None, "fsdp"), "down": ("fsdp", None)}, "data=2,fsdp=4"),
]


@pytest.mark.parametrize(("forward", "cut", "layout"), CASES)
def test_the_specs_of_the_inputs_cut_parameters_and_their_moments(forward, cut, layout):
    step = trained(forward)
    workload = autotune.Workload.of_call(step, (jax.eval_shape(small.state), ROWS), batch=1)
    state = workload.partition.state
    for name, names in cut.items():
        leaves = [leaf for path, leaf in state.items() if path.endswith(f"/{name}")]
        assert len(leaves) == 3
        assert all(leaf.names == names for leaf in leaves)
        [note] = [one for one in workload.guesses if f"state/params/{name}, " in one]
        assert "is cut as jax.shard_map at " in note
        assert note.endswith(f"pin it with rules=[(r'state/params/{name}$', {names!r})]")
    assert not [one for one in workload.guesses if one.startswith("guessed: ")]
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout(layout),), compile=0, probe=False).plan
    np.testing.assert_allclose(
        small.losses(plan.jit(step), small.state), small.losses(jax.jit(trained(whole)), small.state), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["up", "down"])
def test_rules_go_before_the_specs(name):
    rules = [(f"params/{name}$", ("tensor", None))]
    workload = autotune.Workload.of_call(
        trained(mapped(gathered, BY_WIDTH)), (jax.eval_shape(small.state), ROWS), batch=1, rules=rules
    )
    assert workload.partition.state[f"state/params/{name}"].names == ("tensor", None)
    assert not [one for one in workload.guesses if f"state/params/{name}, " in one and "is cut as" in one]


def test_what_enters_a_map_whole_is_guessed_as_without_one():
    found = [
        autotune.Workload.of_call(trained(forward), (jax.eval_shape(small.state), ROWS), batch=1).partition.state
        for forward in (mapped(whole, P(), P("data")), whole)
    ]
    assert found[0] == found[1]


def test_a_map_over_some_axes_leaves_the_others_to_the_guess():
    def inside(params, batch):
        return jax.lax.psum(jax.nn.gelu(batch @ params["up"]) @ params["down"], "tensor")

    forward = mapped(inside, BY_TENSOR, P(), axis_names={"tensor"})
    workload = autotune.Workload.of_call(trained(forward), (jax.eval_shape(small.state), ROWS), batch=1)
    assert workload.partition.state["state/params/up"].names == ("fsdp", "tensor")
    assert workload.partition.state["state/params/down"].names == ("tensor", "fsdp")
    assert any(one.startswith("guessed: state/params/up, ") for one in workload.guesses)


def stacked_step(weights, batch):
    """Layers in one array each, through which a loop goes, with a map in each turn."""

    def layer(x, parts):
        def inside(up, down, x):
            return x + jax.lax.psum(jax.nn.gelu(x @ up) @ down, "tensor")

        rows = P("data")
        made = jax.shard_map(
            inside, in_specs=(P(None, "tensor"), P("tensor", None), rows), out_specs=rows, check_vma=False
        )(parts["up"], parts["down"].astype(x.dtype), x)  # fmt: skip
        return made, None

    def of(weights):
        return ((jax.lax.scan(layer, batch, weights)[0] - batch) ** 2).mean()

    value, gradients = jax.value_and_grad(of)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def test_a_map_inside_a_loop_over_layers_cuts_the_stack():
    weights = jax.eval_shape(lambda: jax.tree.map(lambda one: jnp.stack([one] * 4), small.weights()))
    workload = autotune.Workload.of_call(stacked_step, (weights, ROWS), batch=1)
    assert workload.partition.state["weights/up"].names == (None, None, "tensor")
    assert workload.partition.state["weights/down"].names == (None, "tensor", None)


def updated_in_a_map(weights, batch):
    """The new value leaves a map, into which the old one went as a product with the batch's scale."""
    value, gradients = jax.value_and_grad(lambda p: ((whole(p, batch) - batch) ** 2).mean())(weights)
    spec = P("fsdp", None)
    update = jax.shard_map(lambda w, g: w - 0.1 * g, in_specs=(spec, spec), out_specs=spec)
    return {name: update(1.0 * weights[name], gradients[name]) for name in weights}, value


def test_the_specs_of_the_outputs_are_heard_where_no_input_says_it():
    workload = autotune.Workload.of_call(updated_in_a_map, (jax.eval_shape(small.weights), ROWS), batch=1)
    assert workload.partition.state["weights/up"].names == ("fsdp", None)
    assert workload.partition.state["weights/down"].names == ("fsdp", None)


def test_two_maps_that_take_one_array_differently_are_both_named():
    def forward(params, batch):
        one = mapped(gathered, BY_WIDTH)(params, batch)
        return 0.5 * (one + mapped(reduced, BY_TENSOR)(params, batch))

    workload = autotune.Workload.of_call(trained(forward), (jax.eval_shape(small.state), ROWS), batch=1)
    [note] = [one for one in workload.guesses if one.startswith("state/params/up, ")]
    assert "P(None, 'fsdp'), the first of its specs (" in note and "has P(None, 'tensor'))" in note
