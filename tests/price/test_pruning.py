"""What the search passes over never holds the best: against every layout in every order, enumerated by plain loops."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from autotune.meshes.layout import OUTERMOST_FIRST, REMAT, Layout
from autotune.meshes.legality import reject
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.axis_orders import orders_that_differ, with_best_orders
from autotune.price.priced_space import price_space
from autotune.reference_workload import transformer_workload
from autotune.report.rows import LISTED_PRICED
from autotune.search import search
from autotune.space import enumerate_layouts
from autotune.table import LayoutTable

DENSE = dataclasses.replace(PRESETS["tiny"], name="dense", layers=8, d_model=256, d_ff=1024, vocab=4096, heads=8)
ROUTED = dataclasses.replace(DENSE, name="routed", d_ff=256, experts=8, experts_per_token=2, shared_experts=1)
ENCODER = dataclasses.replace(DENSE, name="encoder", kind="encoder", mlp="gelu-2mat", kv_heads=8)

CASES = [
    # unequal lines; two slices; a cube; two devices a chip; switches
    (DENSE, "v5e:2x4", ("data", "fsdp", "tensor", "stage"), 0.2),
    (DENSE, "v5e:2x2*2", ("fsdp", "tensor", "context"), 1.0),
    (ROUTED, "v5p:2x2x2", ("data", "fsdp", "expert", "tensor"), 1.0),
    (ROUTED, "tpu7x:2x2x1", ("fsdp", "expert", "context", "stage"), 0.3),
    (ROUTED, "h100:2x4", ("fsdp", "expert", "tensor"), 0.5),
    (ENCODER, "v5e:2x4", ("data", "context", "tensor"), 1.0),
]
"""Model, target, axes, and the share of the legal layouts that memory is made large enough for."""

BATCH, SEQ = 16, 1024


def every_layout(target, axes, layers):
    """All choices of the README's space, by loops; whether a model can be cut so is not asked here."""
    for sizes in itertools.product(range(1, target.devices + 1), repeat=len(axes)):
        if math.prod(sizes) != target.devices:
            continue
        size = dict.fromkeys(OUTERMOST_FIRST, 1) | dict(zip(axes, sizes, strict=True))
        for factors in itertools.product(*(range(1, one + 1) for one in sizes)):
            if math.prod(factors) != target.groups or any(a % b for a, b in zip(sizes, factors, strict=True)):
                continue
            for zero, remat, attention in itertools.product((0, 1, 2), REMAT, ("gather", "ring")):
                if size["stage"] > 1:
                    virtual = [("gpipe", 1), *(("circular", v) for v in (2, 4, 8) if v * size["stage"] <= layers)]
                    passes = [
                        {"schedule": name, "virtual_stages": v, "microbatches": m * size["stage"]}
                        for name, v in virtual for m in (1, 2, 4, 8)
                    ]  # fmt: skip
                else:
                    passes = [{"accumulate": 2**power} for power in range(5)]
                for choice in passes:
                    yield Layout(
                        **size, dcn=tuple(zip(axes, factors, strict=True)), zero=zero, remat=remat,
                        context_attention=attention, **choice,
                    )  # fmt: skip


@pytest.mark.parametrize(("model", "name", "axes", "share"), CASES, ids=[f"{c[0].name}-{c[1]}" for c in CASES])
def test_the_best_of_every_layout_in_every_order_is_found(model, name, axes, share):
    target = parse_target(name)
    workload = transformer_workload(model, batch=BATCH, seq=SEQ, dtype="bfloat16")
    legal = [one for one in every_layout(target, axes, model.layers) if reject(one, model, BATCH, SEQ, target) is None]
    orders = []
    for permuted in itertools.permutations(axes):
        left = iter(permuted)
        orders.append(tuple(next(left) if axis in axes else axis for axis in OUTERMOST_FIRST))
    everything = [dataclasses.replace(one, order=order) for one in legal for order in orders]
    priced = price_space(workload, target, LayoutTable.from_layouts(everything), everything)
    capacity = int(np.quantile(priced.peak_bytes, share))
    target = dataclasses.replace(target, hardware=dataclasses.replace(target.hardware, capacity_bytes=capacity))
    fits = priced.peak_bytes <= capacity
    report = search(
        workload, target, axes=axes, layouts=None, fix=("vocab_tiles=1",), compile_count=0, measure_count=0, jobs=1
    )  # fmt: skip
    # sets without a name are tested against all sets in test_remat_choices.py
    ranked = [row for row in report.ranked if row.layout.remat in REMAT]
    best = min(ranked, key=lambda row: row.price.step_seconds)
    assert best.status == "priced" and best.price.step_seconds == pytest.approx(priced.seconds[fits].min(), rel=1e-9)
    assert report.best().price.step_seconds <= best.price.step_seconds
    # of each layout, its fastest order; the listed ones are the best of those
    fastest = np.where(fits, priced.seconds, np.inf).reshape(len(legal), len(orders)).min(axis=1)
    listed = sorted({str(dataclasses.replace(row.layout, order=OUTERMOST_FIRST)): row.price.step_seconds for row in
                     reversed(ranked)}.values())  # fmt: skip
    expected = np.sort(fastest)[: min(len(listed), LISTED_PRICED // 2)]
    assert listed[: len(expected)] == pytest.approx(expected, rel=1e-9)


def test_no_order_makes_a_passed_over_layout_one_of_the_best():
    """With few to keep most layouts are passed over; the best of all orders are still there."""
    target = parse_target("v5e:4x4")
    workload = transformer_workload(DENSE, batch=32, seq=SEQ, dtype="bfloat16")
    table = enumerate_layouts(target, ("data", "fsdp", "tensor"), 32, DENSE.layers, {})
    space = price_space(workload, target, table)
    for keep in (1, 5, 20):
        few = with_best_orders(space, keep, np.inf)
        all_of_them = with_best_orders(space, len(table), np.inf)
        assert len(few.table) < len(all_of_them.table)
        kept, full = (np.sort(one.seconds[one.legal])[:keep] for one in (few, all_of_them))
        np.testing.assert_array_equal(kept, full)


def test_orders_that_place_alike_are_one():
    target = parse_target("v5p:4x4x4")
    sizes = dict.fromkeys(OUTERMOST_FIRST, 1)
    assert orders_that_differ(target, sizes | {"fsdp": 64}) == [OUTERMOST_FIRST]
    # each has a whole dimension, and all dimensions are alike
    assert orders_that_differ(target, sizes | {"data": 4, "fsdp": 4, "tensor": 4}) == [OUTERMOST_FIRST]
    assert len(orders_that_differ(target, sizes | {"fsdp": 8, "tensor": 8})) == 2
