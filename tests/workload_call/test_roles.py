"""What each array of a state is, whatever it is called and wherever it stands."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from small_steps import ADAM

import autotune
from autotune.compile.worker import arguments_of
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import mesh_of
from autotune.workload.flow import flow_of


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


P = {"up": array(64, 256), "down": array(256, 64)}
MOMENTS = jax.eval_shape(ADAM.init, P)
X = array(32, 64)


def forward(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def loss(params, x):
    return ((forward(params, x) - x) ** 2).mean()


def trained(params, moments, x, of=loss):
    value, gradients = jax.value_and_grad(of)(params, x)
    updates, moments = ADAM.update(gradients, moments, params)
    return optax.apply_updates(params, updates), moments, value


def roles(workload):
    """Role of each part of the state by the first part of its path, plain numbers left out."""
    found = {}
    for path, leaf in workload.partition.state.items():
        if leaf.role != "other":
            found.setdefault(path.split("/")[0], set()).add(leaf.role)
    return {name: "/".join(sorted(one)) for name, one in found.items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Theta:
    """A state whose fields have names of its own."""

    theta: dict
    opt: tuple


def named(name):
    def step(state, x):
        new, moments, value = trained(state[name], state["opt"], x)
        return {name: new, "opt": moments}, value

    return step, {name: P, "opt": MOMENTS}


def reversed_tuple():
    def step(moments, params, x):
        new, moments, value = trained(params, moments, x)
        return moments, new, value

    return step, (MOMENTS, P)


def dataclass_state():
    def step(state, x):
        new, moments, value = trained(state.theta, state.opt, x)
        return Theta(new, moments), value

    return step, Theta(P, MOMENTS)


def actor_and_critic():
    def step(state, x):
        critic, critic_moments, _ = trained(
            state["critic"],
            state["of_critic"],
            x,
            lambda p, x: ((forward(p, x) - forward(state["target"], x)) ** 2).mean(),
        )
        actor, actor_moments, value = trained(
            state["actor"], state["of_actor"], x, lambda p, x: -forward(critic, forward(p, x)).mean()
        )
        target = optax.incremental_update(critic, state["target"], 0.01)
        return {"actor": actor, "critic": critic, "of_actor": actor_moments, "of_critic": critic_moments,
                "target": target}, value  # fmt: skip

    return step, {"actor": P, "critic": P, "of_actor": MOMENTS, "of_critic": MOMENTS, "target": P}


def lora():
    low = {"a": array(64, 8), "b": array(8, 64)}

    def step(state, x):
        def of(adapter, x):
            return ((forward(state["frozen"], x) + x @ adapter["a"] @ adapter["b"] - x) ** 2).mean()

        new, moments, value = trained(state["params"], state["opt"], x, of)
        return {"frozen": state["frozen"], "params": new, "opt": moments}, value

    return step, {"frozen": P, "params": low, "opt": jax.eval_shape(ADAM.init, low)}


def masked():
    """Frozen by the optimizer: its updates are zeros."""
    rule = optax.multi_transform({"train": ADAM, "freeze": optax.set_to_zero()}, {"up": "freeze", "down": "train"})

    def step(state, x):
        value, gradients = jax.value_and_grad(loss)(state["w"], x)
        updates, opt = rule.update(gradients, state["opt"], state["w"])
        new = optax.apply_updates(state["w"], updates)
        return {"w": new, "opt": opt}, value

    return step, {"w": P, "opt": jax.eval_shape(rule.init, P)}


def teacher():
    def step(state, x):
        def of(student, x):
            return ((forward(student, x) - jax.lax.stop_gradient(forward(state["teacher"], x))) ** 2).mean()

        new, moments, value = trained(state["student"], state["moments"], x, of)
        follow = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, state["teacher"], new)
        average = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, state["average"], new)
        return {"student": new, "moments": moments, "teacher": follow, "average": average}, value

    return step, {"student": P, "moments": MOMENTS, "teacher": P, "average": P}


def batch_statistics():
    def step(state, x):
        def of(params):
            hidden = x @ params["up"]
            mean = hidden.mean(0)
            made = jax.nn.relu(hidden - mean[None]) @ params["down"]
            return ((made - x) ** 2).mean(), 0.9 * state["mean"] + 0.1 * mean

        (value, mean), gradients = jax.value_and_grad(of, has_aux=True)(state["net"])
        updates, opt = ADAM.update(gradients, state["opt"])
        return {"net": optax.apply_updates(state["net"], updates), "opt": opt, "mean": mean}, value

    return step, {"net": P, "opt": MOMENTS, "mean": array(256)}


def scanned_layers():
    """Layers stacked, the gradient through a scan and a remat, several passes of the batch, a jit around it all."""
    layers = {"up": array(4, 64, 128), "down": array(4, 128, 64)}

    @jax.jit
    def step(state, x):
        def of(params, x):
            def layer(h, w):
                return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

            made, _ = jax.lax.scan(jax.checkpoint(layer), x, params)
            return ((made - x) ** 2).mean()

        def piece(total, x):
            value, gradients = jax.value_and_grad(of)(state["blocks"], x)
            return jax.tree.map(jnp.add, total, gradients), value

        zeros = jax.tree.map(jnp.zeros_like, state["blocks"])
        gradients, values = jax.lax.scan(piece, zeros, x.reshape(4, -1, 64))
        updates, opt = ADAM.update(gradients, state["slots"])
        return {"blocks": optax.apply_updates(state["blocks"], updates), "slots": opt}, values.mean()

    return step, {"blocks": layers, "slots": jax.eval_shape(ADAM.init, layers)}


def low_precision():
    """The weights of the loss are copies of others in the optimizer's state, with a loss scale that grows."""
    narrow = jax.tree.map(lambda leaf: array(*leaf.shape, dtype=jnp.bfloat16), P)

    def step(state, x):
        def of(params):
            return loss(params, x.astype(jnp.bfloat16)) * state["scale"].astype(jnp.bfloat16)

        value, gradients = jax.value_and_grad(of)(state["low"])
        wide = jax.tree.map(lambda g: g.astype(jnp.float32) / state["scale"], gradients)
        finite = jnp.all(jnp.isfinite(wide["up"]))
        master = jax.tree.map(lambda w, g: jnp.where(finite, w - 0.1 * g, w), state["high"], wide)
        scale = jnp.where(finite, state["scale"] * 2, state["scale"] / 2)
        return {"low": jax.tree.map(lambda w: w.astype(jnp.bfloat16), master), "high": master, "scale": scale}, value

    return step, {"low": narrow, "high": P, "scale": array()}


CASES = {
    "net": (named("net"), {"net": "parameters", "opt": "optimizer"}),
    "params": (named("params"), {"params": "parameters", "opt": "optimizer"}),
    "0": (named("0"), {"0": "parameters", "opt": "optimizer"}),
    "opt_state": (reversed_tuple(), {"0": "optimizer", "1": "parameters"}),
    "dataclass": (dataclass_state(), {"theta": "parameters", "opt": "optimizer"}),
    "actor and critic": (
        actor_and_critic(),
        {"actor": "parameters", "critic": "parameters", "of_actor": "optimizer", "of_critic": "optimizer",
         "target": "mutable"},
    ),
    "lora": (lora(), {"frozen": "frozen", "params": "parameters", "opt": "optimizer"}),
    "masked": (masked(), {"w": "frozen/parameters", "opt": "optimizer"}),
    "teacher": (
        teacher(), {"student": "parameters", "moments": "optimizer", "teacher": "mutable", "average": "optimizer"},
    ),
    "batch statistics": (batch_statistics(), {"net": "parameters", "opt": "optimizer", "mean": "mutable"}),
    "scanned": (scanned_layers(), {"blocks": "parameters", "slots": "optimizer"}),
    "low precision": (low_precision(), {"low": "parameters", "high": "optimizer"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_roles_are_what_the_arrays_do(name):
    (step, state), expected = CASES[name]
    workload = autotune.Workload(step, state, X)
    assert roles(workload) == expected
    for path, leaf in workload.partition.state.items():  # moments, teachers and averages are cut like their parameters
        if leaf.role in ("optimizer", "mutable") and len(leaf.shape) > 1:
            assert any(leaf.names), path


def test_moments_that_two_networks_could_have_are_cut_like_their_own():
    step, state = actor_and_critic()
    rules = [("^actor/up$", ("fsdp", "tensor")), ("^actor/down$", ("tensor", "fsdp")),
             ("^critic/up$", (None, "fsdp")), ("^critic/down$", ("fsdp", None))]  # fmt: skip
    found = autotune.Workload(step, state, X, rules=rules).partition.state
    assert found["of_actor/0/mu/up"].names == ("fsdp", "tensor")
    assert found["of_critic/0/nu/up"].names == (None, "fsdp")
    assert found["target/down"].names == ("fsdp", None)


def test_a_cache_is_mutable_and_cut_where_the_batch_is():
    weights = {"table": array(512, 64), "key": array(64, 64), "query": array(64, 64), "out": array(64, 64)}

    def decode(params, cache, tokens, position):
        h = params["table"][tokens]
        cache = jax.lax.dynamic_update_slice(cache, (h @ params["key"])[:, None], (0, position, 0))
        score = jax.nn.softmax(jnp.einsum("bd,btd->bt", h @ params["query"], cache))
        return jnp.einsum("bt,btd->bd", score, cache) @ params["out"] @ params["table"].T, cache

    args = (weights, array(16, 128, 64), array(16, dtype=jnp.int32), 3)
    workload = autotune.Workload.of_call(decode, args, batch="tokens")
    assert roles(workload) == {"params": "frozen", "cache": "mutable"}
    assert workload.partition.state["cache"].names[0] == "batch"


def test_nnx_weights_that_are_not_trained_are_frozen():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(64, 64, rngs=rngs)
            self.lora = nnx.LoRA(64, 4, 64, rngs=rngs)

        def __call__(self, x):
            return self.base(x) + self.lora(x)

    def make():
        net = Net(nnx.Rngs(0))
        return net, nnx.Optimizer(net, ADAM, wrt=nnx.LoRAParam)

    def step(model, optimizer, x):
        def of(model):
            return ((model(x) - x) ** 2).mean()

        value, gradients = nnx.value_and_grad(of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, gradients)
        return value

    workload = autotune.Workload(step, make, X)
    found = {path: leaf.role for path, leaf in workload.partition.state.items()}
    assert found["0/base/kernel"] == "frozen" and found["0/lora/lora_a"] == "parameters"
    assert any("frozen weights by the trace: 0/base" in guess for guess in workload.guesses)


def test_gradients_made_by_hand_are_said_to_be_told_by_names():
    def step(state, x):
        made = x @ state["w"]
        gradient = x.T @ made
        velocity = 0.9 * state["v"] + gradient
        return {"w": state["w"] - 0.1 * velocity, "v": velocity}, (made**2).mean()

    workload = autotune.Workload(step, {"w": array(64, 64), "v": array(64, 64)}, X)
    assert roles(workload) == {"w": "parameters", "v": "optimizer"}
    assert any(
        "no gradient of jax.grad, so the parameters are guessed from their names" in one for one in workload.guesses
    )


def test_what_the_user_says_wins_but_untouched_arrays_stay_frozen():
    step, state = lora()
    told = autotune.Workload(step, state, X, parameters=lambda state: (state["frozen"], state["params"]))
    assert roles(told) == {"frozen": "frozen", "params": "parameters", "opt": "optimizer"}
    step, state = teacher()
    told = autotune.Workload(step, state, X, parameters=lambda state: (state["student"], state["teacher"]))
    assert roles(told)["teacher"] == "parameters"
    assert told.fingerprint != autotune.Workload(step, state, X).fingerprint


def priced(workload, layout="fsdp=8", target="h100:1x8"):
    report = autotune.tune(workload, target, layouts=(parse_layout(layout),), compile=0, probe=False)
    return report.rows[0].price


@pytest.mark.parametrize("name", ["net", "params", "theta", "0"])
def test_the_name_of_the_weights_changes_no_byte(name):
    """Two 4096 x 16384 matrices under Adam, `fsdp=8`: 545 MiB, of which an eighth of 2 GiB is the state."""
    wide = {"up": array(4096, 16384), "down": array(16384, 4096)}
    step, _ = named(name)
    workload = autotune.Workload(step, {name: wide, "opt": jax.eval_shape(ADAM.init, wide)}, array(512, 4096))
    memory = priced(workload).memory
    assert priced(workload).peak_bytes / 2**20 == pytest.approx(545, abs=0.5)
    assert (memory["parameters"], memory["optimizer_state"]) == (64 * 2**20, 128 * 2**20)


def test_frozen_weights_have_no_gradients_and_are_not_reduced():
    step, state = lora()
    workload = autotune.Workload(step, state, X)
    low, base = 2 * 64 * 8 * 4, 2 * 64 * 256 * 4
    whole = priced(workload, "data=8")
    assert whole.memory["gradients"] == low and whole.memory["parameters"] == low + base
    assert whole.memory["optimizer_state"] == 2 * low
    traced = workload.traced
    assert (traced.parameter_bytes, traced.frozen_bytes, traced.optimizer_bytes) == (low, base, 2 * low)


def test_categories_of_the_compiled_steps_arguments():
    step, state = lora()
    layout = parse_layout("fsdp=8")
    made = autotune.Workload(step, state, X).build(layout, mesh_of(layout, parse_target("cpu:8")))
    found = {one.name: one.category for one in arguments_of(made)}
    assert found["state['frozen']['up']"] == "frozen"
    assert found["state['params']['a']"] == "parameters"
    assert found["state['opt'][0].mu['a']"] == "optimizer_state"


def test_memory_that_stays_whole_is_said_with_the_rule_that_cuts_it():
    step, state = named("net")
    workload = autotune.Workload(step, state, X, rules=[("up$", ("fsdp", None))])
    (said,) = (guess for guess in workload.guesses if "stay whole on every device" in guess)
    assert "net/down [256, 64] (parameters)" in said
    rule = eval(said.split("rules=")[1])  # noqa: S307
    again = autotune.Workload(step, state, X, rules=[("up$", ("fsdp", None)), *rule])
    assert not any("stay whole" in guess for guess in again.guesses)


def test_dataflow_knows_what_is_passed_on():
    def step(a, b, c):
        kept = jax.jit(lambda x: x + jnp.zeros_like(x))(a)
        stacked, rows = jax.lax.scan(lambda carry, row: (carry, row), b, c)
        return kept, stacked, rows, jax.lax.cond(b.sum() > 0, lambda: a, lambda: a), a * 2

    flow = flow_of(jax.make_jaxpr(step)(jnp.ones(3), jnp.ones(2), jnp.ones((4, 5))).jaxpr)
    a, b, c = flow.inputs
    assert flow.outputs[:4] == (a, b, c, a) and flow.outputs[4] not in flow.inputs
