"""Layouts priced a second, against pricing the same layouts one at a time; and a machine of 16,384 chips.

Seconds are of the processor (pricing runs on one core), so that other work on the machine does not count.
"""

from __future__ import annotations

import dataclasses
import resource
import time

import numpy as np

from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.price import estimate, price, price_sets, price_transformer
from autotune.price.remat_choices import candidate_sets
from autotune.reference_workload import transformer_workload
from autotune.space import enumerate_layouts
from autotune.table import LayoutTable

MODEL, BATCH, SEQ = "llama3-8b", 512, 4096
AXES = ("data", "fsdp", "tensor", "stage", "context", "expert")
ONE_BY_ONE = 200
MESHES_OF_SETS = 128


def run() -> dict[str, object]:
    """Rates in layouts a second on one core, all terms; the best of three runs. Peak memory is of the whole process."""
    transformer = PRESETS[MODEL]
    target = parse_target("v5p:8x8x8")
    table = enumerate_layouts(target, AXES, BATCH, transformer.layers, {})
    price_transformer(transformer, BATCH, SEQ, "bfloat16", table.take(slice(0, 1000)), target)
    seconds = min(_seconds(transformer, table, target) for _ in range(3))

    rows = np.linspace(0, len(table) - 1, ONE_BY_ONE, dtype=np.int64)
    layouts = [table.layout(int(row)) for row in rows]
    begin = time.process_time()
    alone = [estimate(transformer, BATCH, SEQ, "bfloat16", layout, target).step_seconds for layout in layouts]
    one_by_one = time.process_time() - begin
    together = price_transformer(transformer, BATCH, SEQ, "bfloat16", table.take(rows), target).step_seconds
    assert np.allclose(alone, together, rtol=1e-12), "one layout alone must cost what it costs among others"

    sets = candidate_sets(transformer, True)
    some = table.take(np.linspace(0, len(table) - 1, MESHES_OF_SETS, dtype=np.int64))
    work = transformer_workload(transformer, batch=BATCH, seq=SEQ, dtype="bfloat16")
    set_seconds = min(_seconds_of_sets(work, some, sets, target) for _ in range(3))
    one_set = dataclasses.replace(some, remat=np.full(len(some), sets[-1]))
    same = price_sets(work, some, sets, target)[0][:, -1] == price(work, one_set, target).step_seconds
    assert same.all(), "a set must cost what it costs as a layout's own"

    large = parse_target("v5p:16x16x16*4")
    meshes = _all_meshes(large, transformer)
    price_transformer(transformer, 16384, SEQ, "bfloat16", meshes.take(slice(0, 10)), large)
    begin = time.process_time()
    price_transformer(transformer, 16384, SEQ, "bfloat16", meshes, large)
    large_seconds = time.process_time() - begin
    return {
        "layouts": len(table),
        "layouts_per_second": len(table) / seconds,
        "one_by_one_per_second": ONE_BY_ONE / one_by_one,
        "faster": len(table) / seconds * one_by_one / ONE_BY_ONE,
        "remat_sets_per_second": len(some) * len(sets) / set_seconds,
        "meshes_of_16384_chips": len(meshes),
        "seconds_of_16384_chips": large_seconds,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _seconds(transformer, table: LayoutTable, target) -> float:
    begin = time.process_time()
    price_transformer(transformer, BATCH, SEQ, "bfloat16", table, target)
    return time.process_time() - begin


def _seconds_of_sets(work, table: LayoutTable, sets: np.ndarray, target) -> float:
    begin = time.process_time()
    price_sets(work, table, sets, target)
    return time.process_time() - begin


def _all_meshes(target, transformer) -> LayoutTable:
    """Every way to cut the devices over all six axes, one layout each."""
    fixed = {"remat": "full", "zero": "0", "accumulate": "1", "context_attention": "gather"}
    flat = enumerate_layouts(target, AXES, 16384, transformer.layers, {**fixed, "stage": "1"})
    staged = [
        enumerate_layouts(target, AXES, 16384, transformer.layers,
                          {**fixed, "stage": str(2**k), "schedule": "gpipe", "microbatches": str(2 ** (k + 2)),
                           "virtual_stages": "1"})
        for k in range(1, 15)
    ]  # fmt: skip
    columns = {
        name: np.concatenate([getattr(part, name) for part in (flat, *staged)]) for name in LayoutTable.columns()
    }
    return LayoutTable(orders=flat.orders, option_sets=flat.option_sets, **columns)
