"""Compiled for a TPU slice and a GPU node: `vocab_tiles` holds one tile's logits, and sums no gradient in its loops."""

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
    PRESETS["llama3-8b"], name="small", layers=2, d_model=512, heads=4, kv_heads=4, d_ff=1024, vocab=32768
)
BATCH, SEQ, TILES = 8, 1024, 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "package", "mesh"),
    [("h100:1x4", "jax_plugins", "fsdp=2,tensor=2"), ("v5e:2x2", "libtpu", "data=2,fsdp=2")],
)
def test_no_array_of_all_logits_and_no_more_traffic_than_one_gather(target, package, mesh):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    work = transformer_workload(SMALL, batch=BATCH, seq=SEQ, dtype="bfloat16")
    machine = parse_target(target)
    jobs = [
        Candidate(workload=work, layout=parse_layout(f"{mesh},remat=full{more}{QUICK}"), target=machine)
        for more in ("", f",vocab_tiles={TILES}")
    ]
    found = []
    for job, outcome in compile_all(jobs, workers=1):
        assert not isinstance(outcome, CompileFailure), f"{outcome.reason} ({outcome.log_path})"
        found.append(analyse(outcome, job.layout, job.target, None))
    whole, tiled = sorted(found, key=lambda analysis: analysis.memory.by_category["logits"], reverse=True)
    layout = parse_layout(mesh)
    logits = 2.0 * BATCH * SEQ / layout.batch_shards * SMALL.vocab / layout.tensor
    assert whole.memory.by_category["logits"] >= logits
    assert tiled.memory.by_category["logits"] < 3 * logits / TILES
    assert tiled.memory.peak_bytes < whole.memory.peak_bytes - 0.5 * logits

    def sent(analysis, axis):
        return sum(row.payload_bytes for row in analysis.prediction.ledger if row.axis == axis)

    table = 2.0 * SMALL.vocab * SMALL.d_model / layout.tensor  # whole along fsdp, bfloat16
    assert sent(tiled, "fsdp") - sent(whole, "fsdp") == pytest.approx(table, rel=0.1)
    for axis in ("data", "tensor"):
        if getattr(layout, axis) > 1:
            assert sent(tiled, axis) == pytest.approx(sent(whole, axis), rel=0.1), axis
