"""Gradients reduced over data once a step (`reduce=step`): what it sends and holds, where it is legal, its search."""

import dataclasses

import numpy as np
import pytest

from autotune.meshes.layout import parse_layout
from autotune.meshes.legality import ONCE_A_STEP, reject
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.deferred_reduction import WINS, with_deferred_reduction
from autotune.price.price import estimate
from autotune.price.priced_space import price_space
from autotune.price.remat_choices import with_best_sets
from autotune.reference_workload import transformer_workload
from autotune.space import enumerate_layouts

DENSE = dataclasses.replace(
    PRESETS["tiny"], name="dense", layers=8, d_model=512, d_ff=2048, vocab=4096, heads=8, kv_heads=4
)
TIED = dataclasses.replace(DENSE, name="tied", tied_embeddings=True)
ROUTED = dataclasses.replace(DENSE, name="routed", d_ff=256, experts=8, experts_per_token=2, shared_experts=1)
BATCH, SEQ = 64, 256


def priced(shape, target, text):
    return estimate(shape, BATCH, SEQ, "bfloat16", parse_layout(text), parse_target(target))


@pytest.mark.parametrize("shape", [DENSE, TIED, ROUTED], ids=lambda shape: shape.name)
@pytest.mark.parametrize("target", ["h100:1x8", "h100:2x4", "v5e:2x4", "v5p:2x2x2"])
def test_replicas_send_as_much_as_without_accumulation(shape, target):
    text = "data=8,remat=full" + (",dcn.data=2" if target == "h100:2x4" else "")
    whole = priced(shape, target, text)
    for passes in (2, 8):
        once = priced(shape, target, f"{text},accumulate={passes},reduce=step")
        each = priced(shape, target, f"{text},accumulate={passes}")
        assert once.sent["data"] == pytest.approx(whole.sent["data"], rel=1e-12)
        assert each.sent["data"] > 1.4 * once.sent["data"]


@pytest.mark.parametrize("words", ["data=2,fsdp=4", "data=2,tensor=2,fsdp=2,zero=1", "data=4,context=2"])
@pytest.mark.parametrize("target", ["h100:1x8", "v5e:2x4"])
def test_other_axes_send_what_they_send_for_one_replica_and_the_sums_are_whole(words, target):
    once, each = (priced(DENSE, target, f"{words},accumulate=4,remat=full{more}") for more in (",reduce=step", ""))
    assert once.sent["data"] < each.sent["data"]
    assert once.memory["gradients"] >= each.memory["gradients"]
    assert (once.memory["gradients"] > each.memory["gradients"]) == ("zero=1" in words)
    layers = 2.0 * (DENSE.attention_parameters + DENSE.mlp_parameters) * DENSE.layers
    layout = parse_layout(words)
    # A ring all-reduce of the layers' bfloat16 gradients alone, each device its part of them.
    least = 2.0 * (1.0 - 1.0 / layout.data) * layers / (layout.fsdp * layout.tensor)
    assert least < once.sent["data"] < 2.0 * least + priced(DENSE, target, words + ",remat=full").sent["data"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fsdp=8,accumulate=2,reduce=step", "reduce=step puts off reductions over data, which is 1; reduce=pass would"),
        ("data=8,reduce=step", "sums gradients over the passes of accumulate, which is 1; accumulate=2 would"),
        ("data=8,accumulate=2,zero=2,reduce=step", "zero=2 cuts them over data in every pass; zero=1 would"),
        (
            "data=4,stage=2,schedule=gpipe,microbatches=2,accumulate=2,reduce=step",
            "does not go with stage=2: a pipeline reduces once for all its microbatches; reduce=pass would",
        ),
    ],
)
def test_where_it_says_nothing_it_is_refused(text, said):
    assert said in str(reject(parse_layout(text), DENSE, BATCH, SEQ, parse_target("h100:1x8")))


@pytest.mark.parametrize(("shape", "target"), [(DENSE, "h100:4x2"), (ROUTED, "h100:4x2"), (DENSE, "v5e:2x2*2")])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_search_finds_the_best_of_all_layouts_with_the_word(shape, target, share):
    machine = parse_target(target)
    work = transformer_workload(shape, batch=BATCH, seq=SEQ, dtype="bfloat16")
    axes = ("data", "fsdp", "tensor", "expert")
    space = price_space(work, machine, enumerate_layouts(machine, axes, BATCH, shape.layers, {}))
    capacity = float(np.quantile(space.peak_bytes[space.legal], share))
    machine = dataclasses.replace(machine, hardware=dataclasses.replace(machine.hardware, capacity_bytes=capacity))
    space = price_space(work, machine, space.table)
    every = price_space(work, machine, enumerate_layouts(machine, axes, BATCH, shape.layers, {"reduce": "step"}))

    def least(some):
        return some.seconds[some.legal & (some.peak_bytes <= capacity)].min(initial=np.inf)

    found = with_deferred_reduction(space, 20)
    added = slice(len(space.table), None)
    assert (found.table.reduce[added] == ONCE_A_STEP).all() and found.legal[added].all()
    assert least(found) <= least(space)
    if least(every) < WINS * least(space):
        assert least(found) == least(every)
    else:
        assert least(found) > WINS * least(space) or len(found.table) > len(space.table)
    assert least(with_best_sets(found, 20)) <= least(found)
