"""Compiled for a TPU slice and a GPU node: `reduce=step` reduces each gradient over data once, outside the loop."""

import dataclasses
import importlib.util

import pytest
from effort import QUICK

from autotune.analysis.analyse import analyse
from autotune.compile.compilation import Candidate, CompileFailure
from autotune.compile.compile import compile_all
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.reference_workload import transformer_workload

SMALL = dataclasses.replace(
    PRESETS["llama3-8b"], name="small", layers=2, d_model=512, heads=4, kv_heads=4, d_ff=1024, vocab=2048
)
PASSES = 4


@pytest.mark.parametrize(
    ("target", "package", "mesh"),
    [
        ("h100:1x4", "jax_plugins", "data=2,tensor=2"),
        pytest.param("v5e:2x2", "libtpu", "data=4", marks=pytest.mark.slow),
    ],
)
def test_each_gradient_is_reduced_once_a_step(target, package, mesh):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    work = transformer_workload(SMALL, batch=64, seq=256, dtype="bfloat16")
    layout = parse_layout(f"{mesh},accumulate={PASSES},reduce=step{QUICK}")
    ((job, outcome),) = compile_all([Candidate(workload=work, layout=layout, target=parse_target(target))], workers=1)
    assert not isinstance(outcome, CompileFailure), f"{outcome.reason} ({outcome.log_path})"
    ledger = analyse(outcome, job.layout, job.target, None).prediction.ledger
    sums = [row for row in ledger if row.axis == "data" and row.kind in ("all_reduce", "reduce_scatter")]
    gradients = 2.0 * SMALL.parameters / layout.tensor
    # Beside them the norms' gradients, which are float32, and the gradients' norm.
    assert sum(row.payload_bytes for row in sums) == pytest.approx(gradients, rel=0.01)
    assert sum(row.count for row in sums) < PASSES * SMALL.layers
