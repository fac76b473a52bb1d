"""Experts that drop no token, against a plain loop over tokens, on several devices; the plan against its rules."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from autotune.meshes.layout import parse_layout
from autotune.meshes.training import Training
from autotune.models import dropless, experts
from autotune.models.execution import execution_of
from autotune.models.presets import PRESETS
from autotune.models.train_step import build_step
from autotune.reference_workload import transformer_workload

SHAPE = dataclasses.replace(
    PRESETS["tiny-moe"], d_model=16, d_ff=8, experts=4, experts_per_token=2, shared_experts=0, capacity_factor=None
)
LENGTH = 12


def execution(text):
    layout = parse_layout(text)
    sizes = tuple(layout.mesh_shape.values())
    devices = np.array(jax.devices()[: layout.devices]).reshape(sizes)
    mesh = Mesh(devices, tuple(layout.mesh_shape), (AxisType.Auto,) * 6)
    return execution_of(layout, mesh, "float32")


def silu(x):
    return x / (1 + np.exp(-x))


def loop_over_tokens(module, x_LD):
    get = {name: np.asarray(getattr(module, name)[...], np.float64) for name in ("router", "gate", "up", "down")}
    out, chosen = [], []
    for x in np.asarray(x_LD, np.float64):
        scores = np.exp(x @ get["router"])
        best = np.argsort(-scores)[: SHAPE.experts_per_token]
        chosen.append(best)
        weights = scores[best] / scores[best].sum()
        each = [(silu(x @ get["gate"][e]) * (x @ get["up"][e])) @ get["down"][e] for e in best]
        out.append(weights @ np.array(each))
    return np.array(out), np.array(chosen)


@pytest.mark.parametrize("text", ["data=1", "expert=2", "expert=4,tensor=2"])
def test_all_tokens_to_the_same_experts_and_none_is_dropped(text):
    """A router that sends every token to experts 1 and 2: each has all of the tokens, the others none."""
    run = execution(text)
    with nnx.use_eager_sharding(False):
        module = experts.Experts(SHAPE.described.layers[0].mlp, SHAPE.d_model, None, rngs=nnx.Rngs(params=3))
    router = np.array(module.router[...])
    router[0] = [0.0, 40.0, 30.0, 0.0]
    module.router[...] = jnp.asarray(router)
    x = jax.random.normal(jax.random.key(4), (4, LENGTH, SHAPE.d_model)).at[:, :, 0].set(2.0)
    definition, parameters = nnx.split(module)

    with jax.set_mesh(run.sharder.mesh):
        x, weights = jax.device_put((x, parameters), NamedSharding(run.sharder.mesh, PartitionSpec()))
        positions = jnp.arange(LENGTH)
        out, balance = jax.jit(lambda x, weights: nnx.merge(definition, weights)(x, positions, run))(x, weights)
    wanted = [loop_over_tokens(module, one) for one in x]
    assert {tuple(sorted(best)) for _, chosen in wanted for best in chosen} == {(1, 2)}
    np.testing.assert_allclose(out, [one for one, _ in wanted], rtol=2e-4, atol=2e-5)
    assert float(balance) > 1.9 * experts.BALANCE  # all load on half of the experts


def test_a_plan_puts_choices_in_order_of_experts():
    # 3 tokens, 2 choices each; of a device with experts 0 and 1, others are elsewhere
    plan = dropless.assign(jnp.array([[1, 5, 0], [0, 1, -3]]), 2, execution("data=1"))
    assert plan.sizes_GE.tolist() == [2, 2]
    # numbered choice * 3 + token: token 2's first and token 0's second go to expert 0, then expert 1's
    assert plan.choices_GR.tolist() == [2, 3, 0, 4, -1, -1]
    assert plan.places_GKT.tolist() == [[2, -1, 0], [1, 3, -1]]


def test_a_device_with_one_expert_has_one_row_for_a_token():
    plan = dropless.assign(jnp.array([[3, 0, 2], [0, 1, 1]]), 1, execution("data=1"))
    assert plan.sizes_GE.tolist() == [2]
    assert plan.places_GKT.tolist() == [[0, 1, -1]] or plan.places_GKT.tolist() == [[1, 0, -1]]
    assert plan.choices_GR.shape == (3,) and plan.picks_GKT[0, 0] == 1 and plan.picks_GKT[0, 1] == 0


@pytest.mark.parametrize(
    ("platform", "words", "reason"),
    [
        ("cuda", {}, "capacity_factor=dropless: JAX compiles no grouped matmul for a GPU that is not attached"),
        ("tpu", {"matmul_dtype": "int8"}, "grouped matmuls run in the compute dtype, not in int8"),
        ("tpu", {"lora_rank": 4}, "matrices of grouped matmuls have no adapters and are not quantised"),
    ],
)
def test_what_has_no_grouped_matmul_is_priced_only(platform, words, reason):
    workload = transformer_workload(SHAPE, batch=8, seq=8, dtype="bfloat16", training=Training(**words))
    assert reason in "; ".join(workload.priced_only(platform))
    roomy = dataclasses.replace(SHAPE, capacity_factor=1.25)
    workload = transformer_workload(roomy, batch=8, seq=8, dtype="bfloat16", training=Training(**words))
    assert workload.priced_only(platform) == []


def test_a_step_that_is_priced_only_is_not_built():
    run = execution("data=1")
    with pytest.raises(ValueError, match="priced only: capacity_factor=dropless: matrices of grouped matmuls have no"):
        build_step(SHAPE, 8, 8, run.layout, run.sharder.mesh, training=Training(lora_rank=4))
