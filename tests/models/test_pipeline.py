"""Which layers a stage holds, and in which order it works through microbatches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import NUMBERS_ONLY
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from autotune.meshes.layout import parse_layout
from autotune.models.pipeline import borrow, deal_chunks, gather_once
from autotune.models.presets import PRESETS
from autotune.models.train_step import build_step


@pytest.mark.parametrize(("stages", "repeats"), [(2, 1), (2, 2), (2, 3), (3, 2), (4, 2), (2, 4)])
def test_chunks_reach_their_stages_and_their_gradients_come_back(stages, repeats):
    layers = 2 * stages * repeats
    mesh = Mesh(np.array(jax.devices()[:stages]), ("stage",), axis_types=(AxisType.Auto,))
    dealt = jax.jit(
        jax.shard_map(
            lambda x: deal_chunks(x, stages, repeats)[None], mesh=mesh, in_specs=P("stage"), out_specs=P("stage")
        )
    )
    chunks = np.arange(layers).reshape(repeats, stages, 2)
    np.testing.assert_array_equal(dealt(jnp.arange(layers)), chunks.swapaxes(0, 1))
    weights = jnp.arange(float(layers)).reshape(stages, repeats, 2)
    gradient = jax.grad(lambda x: (dealt(x) * weights).sum())(jnp.zeros(layers))
    np.testing.assert_array_equal(gradient.reshape(repeats, stages, 2).swapaxes(0, 1), weights)


def test_gradients_of_microbatches_are_summed_in_float32():
    """256 + 1 is 256 in bfloat16: summed in that type the second microbatch would be lost."""

    def loss(weight):
        whole, sums = gather_once(weight, None)
        factors = jnp.array([256.0, 1.0, 1.0], jnp.bfloat16)

        def microbatch(total, factor):
            return total + (borrow(whole, sums) * factor).astype(jnp.float32).sum(), None

        return jax.lax.scan(microbatch, jnp.zeros(()), factors)[0]

    assert jax.grad(loss)(jnp.ones(1, jnp.bfloat16)).tolist() == [258.0]


@pytest.mark.parametrize("schedule", ["gpipe", pytest.param("circular,virtual_stages=2", marks=pytest.mark.slow)])
def test_no_tick_keeps_weights_of_its_own(schedule):
    """Sixteen microbatches more, of nearly no tokens: the step may not grow by a copy of a stage's weights for each."""
    transformer = dataclasses.replace(PRESETS["tiny"], layers=8, d_model=256, d_ff=1024, vocab=256)
    stage_bytes = transformer.layers / 2 * (transformer.attention_parameters + transformer.mlp_parameters) * 2

    def temporary_bytes(microbatches):
        layout = parse_layout(f"stage=2,schedule={schedule},microbatches={microbatches},remat=full")
        devices = np.array(jax.devices()[:2]).reshape(tuple(layout.mesh_shape.values()))
        mesh = Mesh(devices, tuple(layout.mesh_shape), axis_types=(AxisType.Auto,) * devices.ndim)
        step = build_step(transformer, microbatches, 16, layout, mesh)
        with jax.set_mesh(mesh):
            compiled = jax.jit(step.function).lower(step.state, step.batch).compile(NUMBERS_ONLY)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(20) - temporary_bytes(4) < 2 * stage_bytes
