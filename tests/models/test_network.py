"""What must hold of the networks whatever the mesh: who sees whom, and that the tree never changes with the layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from autotune.meshes.layout import Layout, parse_layout
from autotune.models.execution import execution_of
from autotune.models.packing import Places
from autotune.models.presets import PRESETS
from autotune.models.train_step import abstract_network, build_step, new_network

LENGTH = 16


def mesh_of(layout):
    devices = np.array(jax.devices()[: layout.devices]).reshape(tuple(layout.mesh_shape.values()))
    return Mesh(devices, tuple(layout.mesh_shape), axis_types=(AxisType.Auto,) * 6)


def logits_of(name):
    """(a function from tokens to logits, jitted): float32 on one device."""
    shape, mesh = PRESETS[name], mesh_of(Layout())
    definition, parameters = nnx.split(new_network(shape, jax.random.key(0)))
    run = execution_of(Layout(), mesh, "float32")

    @jax.jit
    def logits(tokens):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return nnx.merge(definition, parameters)(tokens, Places(order_L=jnp.arange(LENGTH)), run)[0]

    return logits


@pytest.mark.parametrize(("name", "sees_later"), [("tiny", False), ("tiny-moe", False), ("tiny-encoder", True)])
def test_a_decoder_sees_nothing_later_and_an_encoder_everything(name, sees_later):
    tokens = jax.random.randint(jax.random.key(1), (1, LENGTH), 0, 256)
    changed = tokens.at[0, 9].set((tokens[0, 9] + 1) % 256)
    logits = logits_of(name)
    moved = np.abs(np.asarray(logits(tokens) - logits(changed))).max(axis=(0, 2)) > 1e-6
    assert moved[9:].all()
    assert moved[:9].all() if sees_later else not moved[:9].any()


def test_moving_a_pair_of_tokens_together_keeps_their_attention():
    """Rotary positions enter scores only as differences."""
    from autotune.models.attention import rotate

    q, k = jax.random.normal(jax.random.key(2), (2, 1, 1, 1, 16))
    at = [[rotate(x, jnp.array([position])) for x, position in ((q, p + 3), (k, p))] for p in (0, 40)]
    np.testing.assert_allclose((at[0][0] * at[0][1]).sum(), (at[1][0] * at[1][1]).sum(), rtol=1e-5)
    assert abs(float((rotate(q, jnp.array([1])) * at[0][1]).sum() - (at[0][0] * at[0][1]).sum())) > 1e-3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tiny", "fsdp=8"),
        ("tiny", "data=2,tensor=2,zero=2"),
        ("tiny", "stage=2,schedule=circular,virtual_stages=2,microbatches=2,fsdp=2"),
        ("tiny", "context=2"),
        ("tiny-moe", "expert=2,tensor=2,accumulate=2,remat=full"),
        ("tiny-moe", "expert=2,stage=2,schedule=gpipe,microbatches=2,data=2,zero=1"),
        ("tiny-encoder", "context=2,tensor=2,context_attention=ring"),
    ],
)
def test_the_state_has_the_same_names_and_global_shapes_under_every_layout(name, text):
    shape = dataclasses.replace(PRESETS[name], layers=4)
    layout = parse_layout(text)
    mesh = mesh_of(layout)
    state = build_step(shape, 8, 32, layout, mesh, dtype="float32").state
    plain = build_step(shape, 8, 32, Layout(), mesh_of(Layout()), dtype="float32").state

    def described(tree):
        return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)]

    assert described(state) == described(plain)
    names = [name for name, *_ in described(state["parameters"])]
    assert "['layers']['attention']['query']" in names and "['embedding']" in names


def test_every_parameter_says_its_logical_axes():
    _, _, axes = abstract_network(PRESETS["tiny-moe"])
    assert axes["layers"]["mlp"]["up"] == ("layers", "experts", "embed", "mlp")
    assert axes["embedding"] == ("vocab", "embed")


def test_an_illegal_layout_is_refused_with_the_rule():
    with pytest.raises(ValueError, match="tensor=4 does not divide kv_heads=2; tensor=2 would"):
        layout = Layout(tensor=4)
        build_step(PRESETS["tiny"], 8, 32, layout, mesh_of(layout))
    with pytest.raises(ValueError, match="1f1b can be priced but not run"):
        layout = Layout(stage=2, schedule="1f1b", microbatches=2)
        build_step(PRESETS["tiny"], 8, 32, layout, mesh_of(layout))
