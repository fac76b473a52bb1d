"""The price of matmuls in 8 bits: what gets faster, what is added, and what stays."""

from __future__ import annotations

import pytest

from autotune.efficiency import matmul_seconds
from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.training import Training
from autotune.models.presets import PRESETS
from autotune.price.changes_that_fit import price_one
from autotune.reference_workload import transformer_workload


def priced(target, layout, kind):
    workload = transformer_workload(
        PRESETS["llama3-1b"], batch=64, seq=4096, dtype="bfloat16", training=Training(matmul_dtype=kind)
    )
    return price_one(workload, parse_target(target), parse_layout(layout))


def seconds(estimate):
    """Seconds of a step by name of the term."""
    return {name: term.seconds for name, term in estimate.terms.items()}


@pytest.mark.parametrize(
    ("target", "layout", "kind"), [("h100:1x8", "fsdp=8", "float8"), ("v5e:4x4", "fsdp=16", "int8")]
)
def test_linear_layers_run_at_the_peak_of_8_bits_and_the_rest_does_not(target, layout, kind):
    plain, narrow = (seconds(priced(target, f"{layout},remat=full", one)) for one in (None, kind))
    for name in ("matmul.attention", "matmul.mlp"):
        assert 1.5 < plain[name] / narrow[name] < 2.2
    for name in ("matmul.logits", "attention", "elementwise", "casts"):
        # On a GPU the power that narrow matmuls leave decides the clock of the others.
        assert narrow[name] == pytest.approx(plain[name], rel=0.06)
    assert narrow["quantise"] > 0 and "quantise" not in plain


def test_scales_are_reductions_along_every_axis_in_use():
    plain, narrow = (seconds(priced("h100:1x8", "fsdp=4,tensor=2,remat=full", kind)) for kind in (None, "float8"))
    for axis in ("fsdp", "tensor"):
        name = f"latency[{axis}]"
        assert narrow[name] > plain[name], sorted(plain)


def test_where_the_peak_is_not_higher_nothing_is_gained():
    plain, narrow = (priced("v6e:4x4", "fsdp=16,remat=full", kind) for kind in (None, "float8"))
    assert narrow.step_seconds > plain.step_seconds


def test_a_result_wider_than_its_operands_costs_its_bytes():
    v5e = load_hardware("v5e")
    same, wide = (matmul_seconds(v5e, "int8", 1.0, 8192, 8192, 64, result_bytes=each) for each in (None, 2.0))
    assert wide > same
