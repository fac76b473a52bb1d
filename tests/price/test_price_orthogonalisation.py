"""What Muon's iteration is priced at, beside compiled programs and by what its formulas must obey."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from architectures import ARCHITECTURES

from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import AXES, parse_layout
from autotune.meshes.matrices import matrices_of
from autotune.meshes.target import parse_target
from autotune.meshes.training import Training
from autotune.meshes.transformer import TransformerShape
from autotune.models.presets import PRESETS
from autotune.models.train_step import abstract_network, matrix_of
from autotune.price.priced_space import price_space
from autotune.price.transformer.orthogonalisation import orthogonalisation_of, parameters_in
from autotune.reference_workload import transformer_workload
from autotune.table import LayoutTable

DENSE = TransformerShape(
    name="dense-2048", layers=4, d_model=2048, heads=16, kv_heads=8, head_dim=128, d_ff=8192, vocab=32768
)
MIXTURE = dataclasses.replace(DENSE, name="mixtral-2048", layers=2, d_ff=7168, experts=8, experts_per_token=2)

COMPILED = [
    (DENSE, 64, "fsdp=8", 4.170e13, {"fsdp": 10892.5}),
    (DENSE, 64, "tensor=8", 4.253e13, {"tensor": 25735.4}),
    (MIXTURE, 32, "fsdp=8", 2.447e13, {"fsdp": 31738.6}),
    (MIXTURE, 32, "expert=8", 2.537e13, {"expert": 1372.3}),
]
"""(model, batch of 2048 tokens, layout with remat=full on h100:1x8, FLOPs of a device, MiB that it sends by axis):
compiled programs, jax 0.10.2."""


def price_of(shape, batch, text, target="h100:1x8", optimizer="muon"):
    workload = transformer_workload(
        shape, batch=batch, seq=2048, dtype="bfloat16", training=Training(optimizer=optimizer)
    )
    layout = parse_layout(f"{text},remat=full")
    return price_space(workload, parse_target(target), LayoutTable.from_layouts([layout]), [layout]).price(0)


@pytest.mark.parametrize(("shape", "batch", "text", "flops", "sent"), COMPILED)
def test_flops_and_bytes_are_those_of_compiled_steps(shape, batch, text, flops, sent):
    price = price_of(shape, batch, text)
    assert price.flops == pytest.approx(flops, rel=1e-3)
    for axis, mebibytes in sent.items():
        assert price.sent[axis] / 2**20 == pytest.approx(mebibytes, rel=0.02)


@pytest.mark.parametrize("model", [*ARCHITECTURES, "tiny", "tiny-moe"])
def test_its_matrices_are_those_of_the_reference_model(model):
    """As many numbers in matrices as the step's rule finds in the network."""
    import jax

    shape = ARCHITECTURES[model] if model in ARCHITECTURES else PRESETS[model]
    _, abstract, axes = abstract_network(shape)
    leaves = jax.tree.leaves(abstract)
    names = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    held = sum(leaf.size for leaf, own in zip(leaves, names, strict=True) if matrix_of(own))
    one = {axis: np.ones(1) for axis in AXES}
    assert shape.layers * parameters_in(matrices_of(shape.described), one)[0] == pytest.approx(held)


def test_devices_share_the_work_where_rows_are_cut_and_repeat_squares_where_columns_are():
    hardware, one = load_hardware("h100"), {axis: np.ones(2) for axis in AXES}
    size = one | {"fsdp": np.array([1.0, 8.0])}
    found = orthogonalisation_of(DENSE, hardware, size, np.zeros(2), np.full(2, 4.0))
    assert found.flops[0] / 8 < found.flops[1] < found.flops[0] / 4
    zero = orthogonalisation_of(
        DENSE, hardware, one | {"data": np.array([1.0, 8.0])}, np.array([0.0, 1.0]), np.full(2, 4.0)
    )
    assert zero.flops.tolist() == found.flops.tolist()
    replicas = orthogonalisation_of(DENSE, hardware, one | {"data": np.array([1.0, 8.0])}, np.zeros(2), np.full(2, 4.0))
    assert replicas.flops[0] == replicas.flops[1] == found.flops[0]
    assert all(np.all(times == 0) for axis, _, _, times in replicas.collectives if axis == "data")


def test_no_other_optimizer_is_priced_with_it():
    for optimizer in ("adamw", "lion"):
        assert not [name for name in price_of(DENSE, 64, "fsdp=8", optimizer=optimizer).terms if "orthogonal" in name]
    muon, adamw = price_of(DENSE, 64, "fsdp=8"), price_of(DENSE, 64, "fsdp=8", optimizer="adamw")
    assert muon.step_seconds > adamw.step_seconds
    assert muon.memory["optimizer_state"] < adamw.memory["optimizer_state"]
