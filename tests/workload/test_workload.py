"""Workloads from the user's own step: what is read from annotations, what is guessed; the step stays theirs."""

import dataclasses
from collections.abc import Callable

import cloudpickle
import jax
import numpy as np
import optax
import pytest
import user_models as user
from effort import NUMBERS_ONLY
from flax import nnx
from jax.sharding import PartitionSpec as P

from autotune.compile.jit_step import lower_step
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from autotune.price.priced_space import price_space, why_illegal
from autotune.space import enumerate_layouts
from autotune.user_code import UserCodeError
from autotune.workload.guess import describe
from autotune.workload.leaves import match_rules
from autotune.workload.workload import Workload

CPU = parse_target("cpu:8")


def build(workload: Workload, text: str):
    layout = parse_layout(text)
    target = parse_target(f"cpu:{layout.devices}")
    return workload.build(layout, mesh_of(layout, target))


def specs(step) -> dict[str, P]:
    from autotune.workload.leaves import leaves_of

    return {path: array.sharding.spec for path, (_, array) in leaves_of(step.state).items()}


def losses(workload: Workload, text: str, steps: int = 2) -> list[float]:
    step = build(workload, text)
    program = lower_step(step).compile(NUMBERS_ONLY)
    state, found = step.initialise(0), []
    for seed in range(steps):
        state, metrics = program(state, step.make_batch(seed))
        found.append(float(jax.tree.leaves(metrics)[0]))
    return found


NNX = Workload(user.nnx_step, user.nnx_state(), user.TOKENS)
LINEN = Workload(user.linen_step, user.linen_state, user.TOKENS)
PLAIN = Workload(user.plain_step, user.plain_state, user.PLAIN_BATCH)


@pytest.mark.parametrize("workload", [pytest.param(LINEN, marks=pytest.mark.slow), PLAIN], ids=["linen", "plain"])
def test_every_layout_gives_the_losses_of_one_device(workload):
    alone = losses(workload, "data=1")
    for text in ("fsdp=2,tensor=2", "data=4,zero=1"):
        np.testing.assert_allclose(losses(workload, text), alone, rtol=1e-5)
    assert len(set(alone)) == 2


def test_nnx_logical_names_ride_the_mesh_axes_of_their_kind():
    found = specs(build(NNX, "data=2,fsdp=2,tensor=2"))
    assert found["0/up/kernel"] == P("fsdp", "tensor")
    assert found["0/down/kernel"] == P("tensor", "fsdp")
    assert found["1/opt_state/0/mu/up/kernel"] == P("fsdp", "tensor")
    assert found["0/embed/embedding"] == P(None, None)  # without annotation: whole, as Flax has it
    assert any("0/embed/embedding" in guess for guess in NNX.guesses)


def test_nnx_mesh_names_straight_in_the_model_keep_their_names():
    workload = Workload(user.nnx_step, user.nnx_state(("fsdp", "tp"), ("tp", "fsdp")), user.TOKENS)
    step = build(workload, "fsdp=2,tensor=4")
    assert step.mesh.shape["tp"] == 4 and "tensor" not in step.mesh.shape
    assert specs(step)["0/up/kernel"] == P("fsdp", "tp")
    assert losses(workload, "fsdp=2,tensor=2") == pytest.approx(losses(NNX, "data=2"), rel=1e-4)


def test_nnx_objects_and_a_function_that_makes_them_are_the_same_workload():

    with nnx.use_eager_sharding(False):
        objects = user.nnx_state()()
    assert Workload(user.nnx_step, objects, user.TOKENS).fingerprint == NNX.fingerprint


def test_linen_metadata_and_the_rules_of_its_constraints():
    found = specs(build(LINEN, "fsdp=2,tensor=4"))
    assert found["params/Dense_0/kernel"] == P("fsdp", "tensor")
    assert found["opt_state/0/nu/Dense_1/kernel"] == P("tensor", "fsdp")
    text = lower_step(build(LINEN, "fsdp=2,tensor=4")).as_text()
    assert '[{"data", "fsdp", "expert"}, {"context"}, {"tensor"}]> : tensor<16x8x32xf32>' in text


def test_logical_rules_replace_the_usual_meaning():
    workload = Workload(user.linen_step, user.linen_state, user.TOKENS, logical_rules=[("mlp", None), ("embed", "tp")])
    assert specs(build(workload, "fsdp=2,tensor=4"))["params/Dense_0/kernel"] == P("tp", None)


def test_regex_rules_first_match_wins_and_reach_the_optimizer():
    rules = [(r"layers/w[qkv]$", P(None, "fsdp", "tensor")), (r"layers/", (None, "fsdp")), (r"table", ("tp", None))]
    with pytest.raises(ValueError, match="'tp' and 'tensor' would both be 'tensor'|'tensor' and 'tp'"):
        Workload(user.plain_step, user.plain_state, user.PLAIN_BATCH, rules=rules)
    rules[2] = (r"table", ("tensor", None))
    workload = Workload(user.plain_step, user.plain_state, user.PLAIN_BATCH, rules=rules)
    found = specs(build(workload, "fsdp=2,tensor=2"))
    assert found["0/layers/wq"] == P(None, "fsdp", "tensor") == found["1/0/mu/layers/wq"]
    assert found["0/layers/up"] == P(None, "fsdp", None)
    assert found["0/table"] == P("tensor", None)
    assert found["0/head"] == P(None, None)


def test_without_annotations_megatron_and_fsdp_are_found_from_the_trace():
    found = specs(build(PLAIN, "fsdp=2,tensor=2"))
    column, row = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
    assert {name: found[f"0/layers/{name}"] for name in ("wq", "wk", "wv", "up", "wo", "down")} == {
        "wq": column, "wk": column, "wv": column, "up": column, "wo": row, "down": row,
    }  # fmt: skip
    assert found["0/layers/bias"] == P(None, "tensor")
    assert found["0/layers/norm"] == P(None, None)
    assert found["0/table"] == P(None, "fsdp") and found["0/head"] == P("fsdp", "tensor")
    said = "0/layers/up, [3, 16, 32], cut over (-, fsdp, tensor); pin with rules=[(r'0/layers/up$'"
    assert any(said in guess for guess in PLAIN.guesses)
    # Guessed axes that do not divide are left out: 4 heads over tensor=8 would cut inside a head.
    assert found["1/0/mu/layers/up"] == column


def test_the_steps_own_constraints_name_its_mesh():
    workload = Workload(user.mlp_step, user.MLP_STATE, user.MLP_BATCH)
    step = build(workload, "data=2,tensor=4")
    assert step.mesh.shape["model"] == 4
    assert specs(step)["w1"] == P(None, "model")


def test_a_data_axis_that_cuts_parameters_is_taken_for_fsdp_and_says_so():
    rules = [("w1", ("data", "model")), ("w2", ("model", "data"))]
    workload = Workload(user.mlp_step, user.MLP_STATE, user.MLP_BATCH, rules=rules)
    assert workload.axes == ("data", "fsdp", "tensor")
    step = build(workload, "fsdp=4,tensor=2")
    assert step.mesh.shape["data"] == 4 and specs(step)["w1"] == P("data", "model")
    assert any("taken for fsdp" in guess for guess in workload.guesses)


def test_explicit_axes():
    def step(weights, batch):
        def loss(weights):
            hidden = jax.numpy.einsum("bi,ih->bh", batch["x"], weights["w1"], out_sharding=P("data", "tensor"))
            out = jax.numpy.einsum("bh,ho->bo", hidden, weights["w2"], out_sharding=P("data", None))
            return ((out - batch["y"]) ** 2).mean()

        value, gradients = jax.value_and_grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value

    rules = [("w1", (None, "tensor")), ("w2", ("tensor", None))]
    workload = Workload(step, user.MLP_STATE, user.MLP_BATCH, rules=rules, explicit=True)
    found = losses(workload, "data=2,tensor=2")
    assert found == pytest.approx(losses(workload, "data=1"), rel=1e-5)


def test_figures_of_the_trace_counted_by_hand():
    tokens = user.BATCH * user.SEQ
    layer = user.WIDTH * user.HEAD * (2 * user.HEADS + 2 * user.KV_HEADS) + 2 * user.WIDTH * user.HIDDEN
    matrices = user.LAYERS * layer + user.WIDTH * user.VOCAB
    attention = user.LAYERS * 4 * user.BATCH * user.HEADS * user.SEQ**2 * user.HEAD
    assert PLAIN.traced.flops == 6 * matrices * tokens + 3 * attention
    again = layer - user.HIDDEN * user.WIDTH  # the last matmul's result is not needed again
    assert PLAIN.traced.recompute_flops == user.LAYERS * 2 * again * tokens + attention
    parameters = matrices + user.VOCAB * user.WIDTH + user.LAYERS * (user.WIDTH + user.HIDDEN)
    assert PLAIN.traced.parameters == parameters
    assert PLAIN.traced.parameter_bytes == 4 * parameters
    assert PLAIN.traced.optimizer_bytes == 8 * parameters
    assert (PLAIN.sequences, PLAIN.seq, PLAIN.dtype) == (user.BATCH, user.SEQ, "float32")


def test_fingerprint_is_of_the_program_and_its_cut():
    def same(params, opt_state, batch):
        return user.plain_step(params, opt_state, batch)

    again = Workload(user.plain_step, user.plain_state, user.PLAIN_BATCH)
    assert again.fingerprint == PLAIN.fingerprint
    batch = {name: user.array(32, user.SEQ, dtype="int32") for name in ("x", "y")}
    assert Workload(user.plain_step, user.plain_state, batch).fingerprint != PLAIN.fingerprint
    ruled = Workload(user.plain_step, user.plain_state, user.PLAIN_BATCH, rules=[("table", ("fsdp", None))])
    assert ruled.fingerprint != PLAIN.fingerprint


@pytest.mark.parametrize("workload", [NNX, LINEN, PLAIN], ids=["nnx", "linen", "plain"])
def test_travels_to_other_processes(workload):
    there = cloudpickle.loads(cloudpickle.dumps(workload))
    assert there.fingerprint == workload.fingerprint
    assert specs(build(there, "fsdp=8")) == specs(build(workload, "fsdp=8"))


def test_layouts_that_a_plain_step_cannot_follow_are_refused_with_the_reason():
    assert PLAIN.problem(parse_layout("fsdp=8")) is None
    assert "remat=full: the step takes no notice" in PLAIN.problem(parse_layout("fsdp=8,remat=full"))
    assert "expert=2: no array" in PLAIN.problem(parse_layout("expert=2"))
    assert "data=32 does not divide dimension 0 (batch) of batch x, (16, 8)" in PLAIN.problem(parse_layout("data=32"))
    assert "tensor=64 does not divide dimension 1 (mlp)" in LINEN.problem(Layout(tensor=64))
    with pytest.raises(ValueError, match="tensor=8 does not divide dimension 1 .mlp. of state params/up"):
        narrow = {"params": {"up": user.array(16, 12)}}
        said = [("up", ("embed", "mlp"))]
        build(Workload(lambda state, batch: (state, batch.sum()), narrow, user.array(8, 16), rules=said), "tensor=8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": [("w9", ("fsdp",))]}, r"rules: 'w9' matches no array of the state; paths are like: w1, w2"),
        ({"rules": [("w1(", ("fsdp",))]}, r"rules: 'w1\(' is not a regular expression"),
        ({"rules": [("w1", ("fsdp", None, "tensor"))]}, r"rules: 'w1' names 3 dimensions, w1 has 2"),
        ({"rules": ["w1"]}, r"must be a pair"),
        ({"logical_rules": [("mlp", "x")]}, r"rides 'x', a mesh axis we do not know"),
        ({"mesh_axes": {"mdl": "tensors"}}, r"mesh_axes: 'mdl' is given as 'tensors'"),
        ({"step": lambda state: state}, r"the step takes 1 arguments"),
        ({"step": lambda state, batch: 1.0}, r"the step returns .* it must return the new state"),
        ({"step": 3}, r"step=3 must be a function"),
        ({"batch": {}}, r"batch has no arrays"),
        ({"state": {}}, r"state has no arrays"),
        ({"parameters": lambda state: state["nowhere"]}, r"parameters: the function finds none"),
    ],
)
def test_wrong_input_gets_one_clear_line(change, message):
    given = {"step": user.mlp_step, "state": user.MLP_STATE, "batch": user.MLP_BATCH} | change
    with pytest.raises(ValueError, match=message) as caught:
        Workload(given.pop("step"), given.pop("state"), given.pop("batch"), **given)
    assert "\n" not in str(caught.value)


def test_a_step_that_changes_the_shape_of_its_state_is_named():
    def grow(state, batch):
        return {**state, "w1": state["w1"].astype("bfloat16")}, batch["x"].sum()

    with pytest.raises(ValueError, match=r"turns w1 from float32\[16, 32\] into bfloat16\[16, 32\]"):
        Workload(grow, user.MLP_STATE, user.MLP_BATCH)


def test_errors_of_the_users_code_are_theirs():
    def step(state, batch):
        return state["missing"], 0.0

    with pytest.raises(UserCodeError, match="the step: your code failed: KeyError: 'missing'") as caught:
        Workload(step, user.MLP_STATE, user.MLP_BATCH)
    assert "in step" in caught.value.traceback and "autotune/workload" not in caught.value.traceback


def test_a_builder_is_searched_along_the_words_it_reads():
    def builder(layout):
        remat = layout.remat != "none"

        def step(state, batch):
            def loss(state):
                hidden = jax.nn.relu(batch["x"] @ state["w1"])
                return ((hidden @ state["w2"] - batch["y"]) ** 2).mean()

            value, gradients = jax.value_and_grad(jax.checkpoint(loss) if remat else loss)(state)
            return jax.tree.map(lambda w, g: w - 0.1 * g, state, gradients), value

        return step, user.MLP_STATE, user.MLP_BATCH

    workload = Workload.from_builder(builder)
    assert "remat" not in workload.fixed and workload.fixed["accumulate"] == "1"
    assert workload.axes == ("data", "fsdp", "tensor")
    plain, full = (lower_step(build(workload, f"fsdp=2,remat={remat}")).as_text() for remat in ("none", "full"))
    assert plain.count("dot_general") < full.count("dot_general")
    staged = Workload.from_builder(lambda layout: builder(layout)[:3] if layout.stage == 1 else None)
    assert "stage" in staged.axes and "microbatches" not in staged.fixed


@pytest.mark.parametrize("reads", [(), ("schedule",), ("schedule", "virtual_stages")])
def test_a_pipeline_is_searched_along_the_words_that_its_stages_read(reads):
    """What a step reads with stages alone is found too; schedules that it does not run are not priced."""

    def builder(layout):
        def step(state, batch):
            pieces = layout.microbatches if layout.stage > 1 else 1
            for word in reads if layout.stage > 1 else ():
                getattr(layout, word)
            x = batch["x"].reshape(pieces, -1, 16) @ state["w1"]
            return state, (x @ state["w2"]).sum()

        return step, user.MLP_STATE, user.MLP_BATCH

    workload = Workload.from_builder(builder, rules=[("w1", ("stage", None)), ("w2", (None, "stage"))])
    assert "stage" in workload.axes and (workload.fixed.get("virtual_stages") == "1") == (not reads)
    table = enumerate_layouts(CPU, workload.axes, workload.sequences, None, dict(workload.fixed))
    found = {(layout.stage > 1, layout.schedule) for layout in (table.layout(row) for row in range(len(table)))}
    assert found == {(False, None), (True, "gpipe"), *([(True, "circular")] if reads else [])}


def test_a_builder_that_takes_the_mesh_makes_the_step_itself():
    inner = Workload(user.mlp_step, user.MLP_STATE, user.MLP_BATCH)
    workload = Workload.from_builder(lambda layout, mesh: inner.build(layout, mesh), axes=("data", "tensor"))
    assert workload.axes == ("data", "tensor")
    assert workload.traced.flops == inner.traced.flops
    assert losses(workload, "data=2,tensor=2") == losses(inner, "data=2,tensor=2")


def test_builders_that_are_none():
    with pytest.raises(ValueError, match="takes 0 arguments"):
        Workload.from_builder(lambda: None)
    with pytest.raises(ValueError, match="returned int, not"):
        Workload.from_builder(lambda layout: 3)
    with pytest.raises(UserCodeError, match="building the step: your code failed: ZeroDivisionError"):
        Workload.from_builder(lambda layout: 1 / 0)


def test_an_nnx_module_may_keep_what_cannot_be_hashed():
    """A config dataclass that is not frozen, say: the step is traced and lowered all the same."""

    class Configured(user.Block):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            self.config = nnx.static({"width": user.WIDTH})

    def make():
        model = Configured(("embed", "mlp"), ("mlp", "embed"), nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)

    workload = Workload(user.nnx_step, make, user.TOKENS)
    assert losses(workload, "data=2") == losses(NNX, "data=2")


class Missing:
    """Told by identity, which pickling does not keep."""


MISSING = Missing()


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Layer:
    """As an Equinox module: its activation is a leaf of the tree like any other, fields without a value are marked."""

    weight: jax.Array
    activation: Callable = jax.nn.relu

    def tree_flatten_with_keys(self):
        names = ("weight", "activation")
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], (MISSING,)

    @classmethod
    def tree_unflatten(cls, marks, children):
        assert marks[0] is MISSING
        return cls(*children)


def function_leaves():
    layers = [Layer(0.1 * jax.random.normal(jax.random.key(index), (16, 16))) for index in range(2)]
    return layers, {"count": 0, "name": "two layers"}


def function_leaves_step(layers, about, batch):
    """What `equinox.filter_jit` would wrap."""

    def loss(weights):
        x = batch
        for layer, weight in zip(layers, weights, strict=True):
            x = layer.activation(x @ weight)
        return (x**2).mean()

    value, gradients = jax.value_and_grad(loss)([layer.weight for layer in layers])
    new = [Layer(one.weight - 0.1 * g, one.activation) for one, g in zip(layers, gradients, strict=True)]
    return new, {**about, "count": about["count"] + 1}, value


@pytest.mark.parametrize("state", [function_leaves, function_leaves()], ids=["made", "given"])
def test_what_stands_beside_the_arrays_of_a_state_stays_beside_them(state):
    workload = Workload(function_leaves_step, state, user.array(16, 16))
    assert sorted(workload.partition.state) == ["0/0/weight", "0/1/weight", "1/count"]
    assert workload.fixed["zero"] == "0"
    there = cloudpickle.loads(cloudpickle.dumps(workload))
    assert losses(there, "fsdp=2,tensor=2") == pytest.approx(losses(workload, "data=1"), rel=1e-5)
    assert specs(build(workload, "fsdp=2,tensor=2"))["0/0/weight"] == P("fsdp", "tensor")


def test_layers_alike_are_one_guess():
    names = {f"h/{i}/up": ("fsdp", "tensor") for i in range(3)} | {"table": (None, "fsdp")}
    shapes = {path: (8, 16) for path in names}
    assert describe(names, shapes) == (
        "guessed: h/0/up and 2 like it, [8, 16], cut over (fsdp, tensor); "
        "pin with rules=[(r'h/\\d+/up$', ('fsdp', 'tensor'))]",
        "guessed: table, [8, 16], cut over (-, fsdp); pin with rules=[(r'table$', (None, 'fsdp'))]",
    )  # fmt: skip


def test_guesses_of_layers_that_differ_are_pinned_apart():
    """Two matmuls of one block, numbered like the blocks; and every other block cut otherwise."""
    cut = [("tensor", "fsdp"), ("fsdp", "tensor")]
    for names in (
        {f"{block}/{matmul}/w": cut[matmul] for block in range(3) for matmul in range(2)},
        {f"h/{block}/w": cut[block % 2] for block in range(6)},
    ):
        lines = describe(names, dict.fromkeys(names, (8, 8)))
        rules = [eval(line.partition("rules=[")[2].rstrip("]")) for line in lines]
        assert match_rules(rules, {path: (None, user.array(8, 8)) for path in names}) == names


def test_an_optimizer_that_keeps_sums_of_rows_in_the_parameters_box_is_left_whole():
    """Adafactor: of names for two dimensions nothing is known of the one that is left, and a size of 1 is never cut."""

    def factored():
        state = user.linen_state()
        adafactor = optax.adafactor(1e-2, min_dim_size_to_factor=8)
        return state.replace(tx=adafactor, opt_state=adafactor.init(state.params))

    workload = Workload(user.linen_step, factored, user.TOKENS)
    found = {path: leaf for path, leaf in workload.partition.state.items() if "Dense_0/kernel" in path}
    rows = [leaf for path, leaf in found.items() if "v_row" in path]
    assert rows and all(set(leaf.names) == {None} for leaf in rows)
    assert workload.partition.problem(parse_layout("fsdp=4,tensor=2")) is None


def test_what_the_steps_arrays_refuse_is_illegal_in_the_whole_space():
    """Else it is priced, ranked, and fails when it is compiled."""
    table = enumerate_layouts(CPU, PLAIN.axes, PLAIN.sequences, None, dict(PLAIN.fixed))
    space = price_space(PLAIN, CPU, table)
    for row in range(len(table)):
        assert space.legal[row] == (why_illegal(PLAIN, CPU, space.layout(row)) is None)
        if not space.legal[row]:
            assert space.why_illegal(row) and space.rule_of(row)
    twos = [row for row in range(len(table)) if table.zero[row] == 2]
    assert twos and not any(space.legal[row] for row in twos)
