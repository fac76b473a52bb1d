"""Two mesh axes of the user's own that are one of ours share its size, as its arrays take it."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import slow
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import autotune
from autotune.meshes.layout import parse_layout
from autotune.plan.emit import flax
from autotune.plan.read import plan_from_json

BATCH, LENGTH, EMBED, HEADS, KV, HEAD = 16, 4, 16, 8, 2, 4
BOTH = ("y", "z")
NAMES = {"x": "data", "y": "tensor", "z": "tensor"}
X = jnp.linspace(-1, 1, BATCH * LENGTH * EMBED).reshape(BATCH, LENGTH, EMBED)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    """Attention with fewer heads of keys than of queries, and an MLP."""

    q: Any
    k: Any
    o: Any
    up: Any
    down: Any


def weights():
    keys = itertools.count()

    def normal(*shape):
        return 0.2 * jax.random.normal(jax.random.key(next(keys)), shape)

    return Weights(
        normal(EMBED, HEADS, HEAD), normal(EMBED, KV, HEAD), normal(HEADS, HEAD, EMBED), normal(EMBED, 64),
        normal(64, EMBED),
    )  # fmt: skip


RULES = (("/q$", (None, BOTH, None)), ("/k$", (None, "y", None)), ("/o$", (BOTH, None, None)), ("up$", (None, BOTH)),
         ("down$", (BOTH, None)))  # fmt: skip


def forward(w, x, say):
    """The model; `say(spec)` gives the keywords of an operation whose result is cut so."""
    q = jnp.einsum("btd,dhk->bthk", x, w.q, **say(P("x", None, BOTH, None)))
    k = jnp.einsum("btd,dhk->bthk", x, w.k, **say(P("x", None, "y", None)))
    q = jax.lax.reshape(q, (BATCH, LENGTH, KV, HEADS // KV, HEAD), **say(P("x", None, "y", "z", None)))
    score = jax.nn.softmax(jnp.einsum("btkgd,bskd->bkgts", q, k), -1)
    mixed = jnp.einsum("bkgts,bskd->btkgd", score, k, **say(P("x", None, "y", "z", None)))
    mixed = jax.lax.reshape(mixed, (BATCH, LENGTH, HEADS, HEAD), **say(P("x", None, BOTH, None)))
    x = x + jnp.einsum("bthk,hkd->btd", mixed, w.o, **say(P("x", None, None)))
    h = jax.nn.silu(jnp.einsum("btd,df->btf", x, w.up, **say(P("x", None, BOTH))))
    return jnp.einsum("btf,fd->btd", h, w.down, **say(P("x", None, None)))


def updated(w, x, of):
    value, gradients = jax.value_and_grad(lambda w: ((of(w, x) - x) ** 2).mean())(w)
    return jax.tree.map(lambda w, g: w - 0.3 * g, w, gradients), value


def explicit_step(w, x):
    return updated(w, x, lambda w, x: forward(w, x, lambda spec: {"out_sharding": spec}))


def auto_step(w, x):
    def of(w, x):
        k = jax.lax.with_sharding_constraint(jnp.einsum("btd,dhk->bthk", x, w.k), P("x", None, "y", None))
        h = jax.lax.with_sharding_constraint(jax.nn.silu(x @ w.up), P("x", None, BOTH))
        return forward(w, x, lambda spec: {}) + 0.1 * k.mean() + 0.1 * h @ w.down

    return updated(w, x, of)


def plain_step(w, x):
    return updated(w, x, lambda w, x: forward(w, x, lambda spec: {}))


def losses(step):
    w, found = weights(), []
    for _ in range(3):
        w, value = step(w, X)
        found.append(float(value))
    return found


def workload_of(step, **options):
    options = {"rules": RULES, "mesh_axes": NAMES} | options
    return autotune.Workload.of_call(step, (jax.eval_shape(weights), X), batch=1, **options)


def plan_of(workload, layout):
    plan = autotune.tune(workload, "cpu:8", layouts=(parse_layout(layout),), compile=0, probe=False).plan
    return plan_from_json(plan.to_json())


def own_sizes(plan, names="xyz"):
    shape = dict(plan.mesh().shape)
    return tuple(shape[name] for name in names)


def alone(step):
    """On one device, in a mesh of the user's own names."""
    kind = AxisType.Explicit if step is explicit_step else AxisType.Auto
    with jax.set_mesh(jax.make_mesh((1, 1, 1), ("x", "y", "z"), axis_types=(kind,) * 3)):
        return losses(jax.jit(step))


SIZES = {"tensor=8": (1, 2, 4), "data=2,tensor=4": (2, 2, 2), "data=4,tensor=2": (4, 2, 1), "data=8": (8, 1, 1)}


@pytest.mark.parametrize(
    ("step", "layout"),
    [
        *((step, "tensor=8") for step in (explicit_step, auto_step, plain_step)),
        *((explicit_step, layout) for layout in SIZES if layout != "tensor=8"),
        *slow((step, layout) for step in (auto_step, plain_step) for layout in SIZES if layout != "tensor=8"),
    ],
)
def test_the_first_has_as_much_as_its_arrays_take_and_the_next_the_rest(step, layout):
    workload = workload_of(step)
    assert workload.problem(parse_layout(layout)) is None
    plan, sizes = plan_of(workload, layout), SIZES[layout]
    assert own_sizes(plan) == sizes
    np.testing.assert_allclose(losses(plan.jit(step)), alone(step), rtol=2e-4)
    placed = plan.shardings(jax.eval_shape(weights))
    assert placed.k.shard_shape((EMBED, KV, HEAD)) == (EMBED, KV // sizes[1], HEAD)
    assert placed.q.shard_shape((EMBED, HEADS, HEAD)) == (EMBED, HEADS // (sizes[1] * sizes[2]), HEAD)


def test_what_is_decided_is_said_with_its_reason_and_the_line_that_pins_it():
    [note] = [one for one in workload_of(explicit_step).guesses if one.startswith("mesh axes")]
    assert (
        "mesh axes 'y' and 'z' are each tensor: 'y' has at most 2 of its size, because it alone cuts dimension" in note
    )
    assert note.endswith("; no other split is searched: pin the size of one with mesh_axes={'z': 'tensor=2'}")


@pytest.mark.parametrize("step", [explicit_step, pytest.param(auto_step, marks=pytest.mark.slow)])
def test_every_layout_compiles_under_the_users_names(step):
    workload = workload_of(step)
    report = autotune.tune(
        workload, "cpu:8", layouts=(parse_layout("tensor=8"), parse_layout("data=2,tensor=4")), compile=2, measure=0,
        probe=False, jobs=1,
    )  # fmt: skip
    assert report.counts == {"compiled": 2}, [row.reason for row in report.rows]
    with report.plan.use():
        np.testing.assert_allclose(losses(jax.jit(step)), alone(step), rtol=2e-4)


@pytest.mark.parametrize(
    ("names", "layout", "sizes"),
    [
        ({"x": "data", "y": "tensor", "z": "tensor=2"}, "tensor=8", (1, 4, 2)),
        ({"x": "data", "y": "tensor=1", "z": "tensor"}, "data=2,tensor=4", (2, 1, 4)),
        ({"x": "data", "y": "tensor=2", "z": "tensor=4"}, "tensor=8", (1, 2, 4)),
    ],
)
def test_a_size_that_the_user_says_is_kept(names, layout, sizes):
    workload = workload_of(plain_step, rules=[rule for rule in RULES if rule[0] != "/k$"], mesh_axes=names)
    plan = plan_of(workload, layout)
    assert own_sizes(plan) == sizes
    np.testing.assert_allclose(losses(plan.jit(plain_step)), alone(plain_step), rtol=2e-4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"x": "data", "y": "tensor=two", "z": "tensor"}, "'y' is given as 'tensor=two'; a size is a whole number"),
        ({"x": "data", "y": "tensor=0", "z": "tensor"}, "'y' is given as 'tensor=0'; a size is a whole number"),
        ({"x": "data", "y": "tensor=2", "z": "fsdp"}, "'y' is given a size, but no other axis is tensor"),
        ({"x": "rows"}, "'x' is given as 'rows', which is not one of"),
        ({"x": None}, "'x' is given as None, which is not one of"),
    ],
)
def test_a_size_that_is_none_is_refused_in_one_line(names, message):
    with pytest.raises(ValueError, match="mesh_axes: ") as caught:
        workload_of(plain_step, mesh_axes=names)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["tensor=8", "data=2,tensor=4", "data=8"])
def test_what_is_emitted_is_the_users_mesh(layout):
    plan = plan_of(workload_of(explicit_step), layout)
    made: dict[str, Any] = {}
    exec(flax(plan), made)
    mesh = made["mesh"]
    assert {name: mesh.shape[name] for name in "xyz"} == dict(zip("xyz", own_sizes(plan), strict=True))
    assert (mesh.devices.ravel() == plan.mesh().devices.ravel()).all()
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(losses(jax.jit(explicit_step)), alone(explicit_step), rtol=2e-4)


def with_names(w, x):
    """Logical names: `kv` rides one of the two axes, `wide` both."""

    def of(w, x):
        k = nn.with_logical_constraint(jnp.einsum("btd,dhk->bthk", x, w.k), ("batch", None, "kv", None))
        h = nn.with_logical_constraint(jax.nn.silu(x @ w.up), ("batch", None, "wide"))
        return forward(w, x, lambda spec: {}) + 0.1 * k.mean() + 0.1 * h @ w.down

    return updated(w, x, of)


def test_logical_rules_may_ride_one_of_the_two():
    workload = workload_of(
        with_names,
        rules=[("/k$", (None, "kv", None)), ("up$", (None, "wide"))],
        logical_rules={"batch": "x", "kv": "y", "wide": BOTH},
    )
    plan = plan_of(workload, "tensor=8")
    assert own_sizes(plan) == (1, 2, 4)
    assert plan.shardings(jax.eval_shape(weights)).up.spec == P(None, BOTH)
    assert plan.shardings(jax.eval_shape(weights)).k.spec == P(None, "y", None)
    assert "('kv', 'y')" in flax(plan) and "('wide', ('y', 'z'))" in flax(plan)
    np.testing.assert_allclose(losses(plan.jit(with_names)), losses(jax.jit(with_names)), rtol=2e-4)


def test_two_axes_of_data_cut_the_batch_together():
    def step(w, x):
        x = jax.lax.with_sharding_constraint(x, P(("x", "z")))
        return updated(w, x, lambda w, x: forward(w, x, lambda spec: {}))

    workload = workload_of(step, rules=(), mesh_axes={"x": "data", "y": "tensor", "z": "data=2"})
    plan = plan_of(workload, "data=8")
    assert own_sizes(plan) == (4, 1, 2)
    assert plan.batch_shardings(X).shard_shape(X.shape)[0] == BATCH // 8
    np.testing.assert_allclose(losses(plan.jit(step)), alone(plain_step), rtol=2e-4)


def test_axes_that_an_explicit_step_takes_one_at_a_time_only_are_not_cut_together():
    """Two branches name the same dimension by one axis each; with both of size above 1 their sum has no type."""

    def step(w, x):
        def of(w, x):
            one = jnp.einsum("btd,df->btf", x, w.up, out_sharding=P("x", None, "y"))
            other = jnp.einsum("btd,df->btf", x, 2.0 * w.up, out_sharding=P("x", None, "z"))
            if jax.sharding.get_abstract_mesh().shape["z"] == 1:
                other = jax.sharding.reshard(other, P("x", None, "y"))
            return jnp.einsum("btf,fd->btd", one + other, w.down, out_sharding=P("x", None, None))

        return updated(w, x, of)

    workload = workload_of(step, rules=())
    [note] = [one for one in workload.guesses if one.startswith("mesh axes")]
    assert (
        "'y' has the whole size of tensor, the other has size 1, and no other split is searched, because the step does "
        "not trace with y=2 and z=2" in note
    )
    plan = plan_of(workload, "data=2,tensor=4")
    assert own_sizes(plan) == (2, 4, 1)
    plan.jit(step)(weights(), X)


def test_prices_see_the_part_of_each():
    """Keys that only "y" cuts take as many bytes a device as its part of the size leaves them."""
    workload = workload_of(plain_step, rules=[("/k$", (None, "y", None)), ("up$", (None, BOTH))])
    report = autotune.tune(
        workload, "cpu:8", layouts=(parse_layout("tensor=8"), parse_layout("data=8")), compile=0, probe=False
    )
    held = {str(row.layout): dict(row.memory.by_category)["parameters"] for row in report.rows}
    cut, whole = held["tensor=8"], held["data=8"]
    k, up = 4 * EMBED * KV * HEAD, 4 * EMBED * 64
    assert whole - cut == pytest.approx(k - k / 2 + up - up / 8)


def test_an_axis_that_nothing_names_has_no_size():
    """What it had of the size would do the same work again on every device."""
    workload = workload_of(plain_step, rules=[("/k$", (None, "y", None))])
    assert "y=8 does not divide dimension 1" in workload.problem(parse_layout("tensor=8"))
    assert own_sizes(plan_of(workload, "data=4,tensor=2")) == (4, 2, 1)
