"""What `sweep` leaves unpriced can win nothing: its bounds lie below every layout that they speak for."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.meshes.layout import REMAT
from autotune.meshes.legality import reject_codes
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.price import price_table
from autotune.price.unique_rows import unique_rows
from autotune.reference_workload import transformer_workload
from autotune.space import enumerate_layouts
from autotune.sweep.bounds import Bounds
from autotune.table import LayoutTable

AXES = ("data", "fsdp", "tensor", "stage", "context", "expert")
BOX = [
    name for name in LayoutTable.columns() if name not in ("accumulate", "microbatches", "schedule", "virtual_stages")
]
MESH = [name for name in BOX if name not in ("zero", "context_attention", "remat")]
SLACK = 1 + 1e-9


@pytest.mark.parametrize(
    ("model", "target_text", "batch", "seq"),
    [
        ("llama3-1b", "h100:2x8", 32, 2048),
        ("mixtral-8x7b", "a100-80:2x8", 64, 4096),
        ("llama3-8b", "v5e:4x4", 64, 4096),
        ("bert-large", "h100:2x8", 64, 512),
        ("llama3-1b", "cpu:8", 24, 1024),
    ],
)
def test_bounds_lie_below_all_that_they_speak_for(model, target_text, batch, seq):
    target, transformer = parse_target(target_text), PRESETS[model]
    workload = transformer_workload(transformer, batch=batch, seq=seq, dtype="bfloat16")
    bounds = Bounds(workload, target, {})
    table = enumerate_layouts(target, AXES, batch, transformer.layers, {})
    table = table.take(reject_codes(table, transformer, batch, seq, target) < 0)
    prices = price_table(bounds.pricer, table)

    boxes, seconds, peak = least_of(table, BOX, prices)
    assert (bounds.seconds(boxes).seconds <= seconds * SLACK).all()
    assert (bounds.bytes(boxes) <= peak * SLACK).all()

    meshes, seconds, peak = least_of(table, MESH, prices)
    least_kept = REMAT.index("offload" if target.platform == "tpu" else "full")
    floor, least, held = (np.full(len(seconds), np.inf) for _ in range(3))
    for zero in (0, 1, 2):
        for ring in (0, 1):
            some = {**meshes, **filled(meshes, zero=zero, context_attention=ring, remat=REMAT.index("none"))}
            least = np.minimum(least, bounds.seconds(some, any_remat=True).seconds)
            if zero == 0:
                floor = np.minimum(floor, bounds.seconds(some, any_zero=True, any_remat=True).seconds)
            held = np.minimum(held, bounds.bytes({**some, **filled(meshes, remat=least_kept)}))
    assert (floor <= seconds * SLACK).all()
    assert (least <= seconds * SLACK).all()
    assert (held <= peak * SLACK).all()
    assert np.median(least / seconds) > 0.5, "a bound that far below leaves nothing out"


def least_of(table, names, prices):
    """(columns of each distinct combination, its least seconds, its least bytes)."""
    first, of_row = unique_rows([getattr(table, name) for name in names])
    least = []
    for values in (prices.step_seconds, prices.peak_bytes):
        found = np.full(len(first), np.inf)
        np.minimum.at(found, of_row, values)
        least.append(found)
    return ({name: getattr(table, name)[first] for name in BOX}, *least)


def filled(columns, **values):
    return {name: np.full_like(columns["data"], value) for name, value in values.items()}
