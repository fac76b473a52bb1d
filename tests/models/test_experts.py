"""Experts against a plain loop over tokens; the plan against its rules."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from autotune.meshes.layout import Layout
from autotune.models import experts
from autotune.models.execution import execution_of
from autotune.models.presets import PRESETS

SHAPE = dataclasses.replace(PRESETS["tiny-moe"], d_model=16, d_ff=8, experts=4, experts_per_token=2, shared_experts=1)
LENGTH = 12


def silu(x):
    return x / (1 + np.exp(-x))


def loop_over_tokens(module, x_LD):
    """The same arithmetic, one token after another: an expert that has had its fill lets later tokens pass."""
    get = {name: np.asarray(getattr(module, name)[...], np.float64) for name in ("router", "gate", "up", "down")}
    shared = [np.asarray(getattr(module.shared, name)[...], np.float64) for name in ("gate", "up", "down")]
    limit = experts.capacity(LENGTH, SHAPE.experts, SHAPE.experts_per_token, SHAPE.capacity_factor)
    taken, chosen, probabilities, out = np.zeros(SHAPE.experts), np.zeros(SHAPE.experts), [], []
    for x in np.asarray(x_LD, np.float64):
        scores = np.exp(x @ get["router"])
        probability = scores / scores.sum()
        best = np.argsort(-probability)[: SHAPE.experts_per_token]
        total = (silu(x @ shared[0]) * (x @ shared[1])) @ shared[2]
        for e in best:
            chosen[e] += 1
            if taken[e] < limit:
                taken[e] += 1
                hidden = silu(x @ get["gate"][e]) * (x @ get["up"][e])
                total = total + probability[e] / probability[best].sum() * (hidden @ get["down"][e])
        probabilities.append(probability)
        out.append(total)
    share = chosen / chosen.sum()
    balance = SHAPE.experts * (share * np.mean(probabilities, axis=0)).sum()
    return np.array(out), balance, (chosen > taken).any()


def test_experts_equal_a_loop_over_tokens_dropped_ones_included():
    layout = Layout()
    devices = np.array(jax.devices()[:1]).reshape((1,) * 6)
    mesh = Mesh(devices, tuple(layout.mesh_shape), axis_types=(AxisType.Auto,) * 6)
    with nnx.use_eager_sharding(False):
        module = experts.Experts(
            SHAPE.described.layers[0].mlp, SHAPE.d_model, SHAPE.capacity_factor, rngs=nnx.Rngs(params=3)
        )
    # A common part makes some experts popular, so that tokens are dropped.
    x = jax.random.normal(jax.random.key(4), (2, LENGTH, SHAPE.d_model)) + 1.0
    definition, parameters = nnx.split(module)

    @jax.jit
    def run(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            execution = execution_of(layout, mesh, "float32")
            return nnx.merge(definition, parameters)(x, jnp.arange(LENGTH), execution)

    out, balance = run(x)
    wanted = [loop_over_tokens(module, one) for one in x]
    assert any(dropped for *_, dropped in wanted)
    np.testing.assert_allclose(out, [one for one, *_ in wanted], rtol=2e-4, atol=2e-5)
    assert float(balance) == pytest.approx(experts.BALANCE * np.mean([one[1] for one in wanted]), rel=1e-5)


def test_a_plan_fills_slots_in_the_order_of_positions():
    # 4 tokens, 1 choice each, 2 experts, capacity ceil(1.25 * 4 / 2) = 3; rows lie in reverse order of position
    chosen = jnp.array([[1], [1], [1], [1]])
    places, owners, load = experts.assign(chosen, jnp.array([3, 2, 1, 0]), 2, 3, 3)
    assert places[:, 0].tolist() == [-1, 5, 4, 3]  # the last position finds expert 1 full
    assert owners.tolist() == [-1, -1, -1, 3, 2, 1]
    assert load.tolist() == [0.0, 2.0]


def test_enough_capacity_drops_no_token():
    """experts / experts_per_token times the mean load is room for all tokens, should they all want the same expert."""
    shape = dataclasses.replace(SHAPE, capacity_factor=SHAPE.experts / SHAPE.experts_per_token)
    limit = experts.capacity(LENGTH, shape.experts, shape.experts_per_token, shape.capacity_factor)
    assert limit == LENGTH and shape.slots_per_token == shape.experts
    chosen = jnp.tile(jnp.array([[1, 3]]), (LENGTH, 1))
    places, _, _ = experts.assign(chosen, jnp.arange(LENGTH), shape.experts, limit, limit)
    assert (places >= 0).all()


def test_take_rows_is_its_own_transpose():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2))
    index, inverse = jnp.array([[2, -1, 0, 2]]), jnp.array([[[2, -1], [-1, -1], [0, 3]]])
    rows = experts.take_rows(x, index, inverse)
    np.testing.assert_array_equal(rows[0], np.stack([x[0, 2], np.zeros(2), x[0, 0], x[0, 2]]))
    ours = jax.grad(lambda x: (experts.take_rows(x, index, inverse) ** 3).sum())(x)
    plain = jax.grad(lambda x: (x[0, jnp.array([2, 0, 2])] ** 3).sum())(x)
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
