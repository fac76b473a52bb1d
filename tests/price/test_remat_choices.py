"""Sets of arrays that are kept, offloaded or computed again: the best of all of them, against every one enumerated."""

import dataclasses
import itertools

import numpy as np
import pytest

from autotune.meshes.layout import parse_layout
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.legality import has_array, reject
from autotune.meshes.remat_sets import NAMED_SETS, REMAT_ARRAYS, places_of, text_of
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.price import price, price_sets
from autotune.price.priced_space import NEAR_CAPACITY, price_space
from autotune.price.remat_choices import HOST_WINS, WINS, candidate_sets, with_best_sets
from autotune.reference_workload import transformer_workload
from autotune.search import shortlist
from autotune.space import enumerate_layouts
from autotune.table import LayoutTable

DENSE = dataclasses.replace(
    PRESETS["tiny"], name="dense", layers=8, d_model=512, d_ff=2048, vocab=4096, heads=8, kv_heads=4
)
ENCODER = dataclasses.replace(DENSE, name="encoder", kind="encoder", mlp="gelu-2mat", kv_heads=8)
ROUTED = dataclasses.replace(DENSE, name="routed", d_ff=256, experts=8, experts_per_token=2, shared_experts=1)
BATCH, SEQ = 16, 1024
REMAT = LAYOUT_WORDS["remat"]


def every_set(shape, host):
    """The code of every set of the model's arrays."""
    places = ("device", "host", "recompute") if host else ("device", "recompute")
    mine = [name for name, array in REMAT_ARRAYS.items() if has_array(array, shape)]
    return np.array([
        REMAT.code(text_of(dict(zip(mine, chosen, strict=True))))
        for chosen in itertools.product(*(places if name != "layer_input" else places[:-1] for name in mine))
    ])  # fmt: skip


def with_sets(table, sets):
    rows = table.take(np.repeat(np.arange(len(table)), len(sets)))
    return dataclasses.replace(rows, remat=np.tile(sets, len(table)))


def undominated(seconds: np.ndarray, peak_bytes: np.ndarray) -> np.ndarray:
    """Rows that no other beats in both: none is at least as fast with less memory, or faster with as much. Of equal
    ones the first. By rising memory."""
    order = np.lexsort((np.arange(len(seconds)), seconds, peak_bytes))
    fastest = np.minimum.accumulate(seconds[order])
    return order[np.append(True, fastest[1:] < fastest[:-1])] if len(order) else order


def front(seconds, peak):
    rows = undominated(seconds, peak)
    return sorted(zip(seconds[rows].tolist(), peak[rows].tolist(), strict=True))


@pytest.mark.parametrize(
    ("shape", "target", "texts"),
    [
        (DENSE, "v5e:2x4", ("fsdp=8", "fsdp=2,tensor=4,accumulate=2", "stage=2,schedule=gpipe,microbatches=4,fsdp=4")),
        (ENCODER, "v5e:2x4", ("context=2,fsdp=4", "data=8,zero=1")),
        (DENSE, "h100:1x8", ("fsdp=8", "context=2,tensor=4")),
        (ROUTED, "h100:1x8", ("expert=4,tensor=2",)),
    ],
)
def test_no_set_beats_those_that_stand_for_all(shape, target, texts):
    machine = parse_target(target)
    work = transformer_workload(shape, batch=BATCH, seq=SEQ, dtype="bfloat16")
    host = machine.platform == "tpu"
    for text in texts:
        table = LayoutTable.from_layouts([parse_layout(text)])
        found, every = (
            price_space(work, machine, with_sets(table, sets))
            for sets in (candidate_sets(shape, host), every_set(shape, host))
        )
        assert every.legal.all() and len(found.table) < len(every.table)
        assert front(found.seconds, found.peak_bytes) == front(every.seconds, every.peak_bytes)


@pytest.mark.parametrize(
    ("shape", "target", "axes"),
    [
        (DENSE, "v5p:2x2x1*2", ("data", "fsdp", "tensor", "stage", "context")),
        (ROUTED, "h100:2x4", ("fsdp", "tensor", "expert", "context")),
        (ROUTED, "v6e:2x4", ("fsdp", "expert")),
        (ENCODER, "a100-80:1x8", ("data", "tensor", "stage")),
    ],
)
def test_a_set_costs_the_same_alone_and_among_all_sets_of_its_mesh(shape, target, axes):
    machine = parse_target(target)
    work = transformer_workload(shape, batch=BATCH, seq=SEQ, dtype="bfloat16")
    table = enumerate_layouts(machine, axes, BATCH, shape.layers, {"remat": "full"})
    table = table.take(np.linspace(0, len(table) - 1, 60, dtype=np.int64))
    sets = candidate_sets(shape, machine.platform == "tpu")[::7]
    seconds, peak = price_sets(work, table, sets, machine)
    alone = price(work, with_sets(table, sets), machine)
    np.testing.assert_array_equal(seconds.ravel(), alone.step_seconds)
    np.testing.assert_array_equal(peak.ravel(), alone.peak_bytes)


@pytest.mark.parametrize(("shape", "target"), [(ENCODER, "v5e:2x2"), (DENSE, "h100:1x4"), (ROUTED, "h100:1x4")])
@pytest.mark.parametrize("share", [0.15, 0.5])
def test_the_search_finds_the_best_of_every_mesh_with_every_set(shape, target, share):
    machine = parse_target(target)
    work = transformer_workload(shape, batch=BATCH, seq=SEQ, dtype="bfloat16")
    table = enumerate_layouts(machine, ("fsdp", "tensor"), BATCH, shape.layers, {"accumulate": "1"})
    space = price_space(work, machine, table)
    capacity = float(np.quantile(space.peak_bytes[space.legal], share))
    hardware = dataclasses.replace(machine.hardware, capacity_bytes=capacity)
    machine = dataclasses.replace(machine, hardware=hardware)
    space = price_space(work, machine, table)
    bare = table.take(np.flatnonzero(space.legal & (table.remat == REMAT.code("full"))))
    every = price_space(work, machine, with_sets(bare, every_set(shape, machine.platform == "tpu")))

    def least(some, room, among=True):
        return some.seconds[some.legal & (some.peak_bytes <= room * capacity) & among].min(initial=np.inf)

    waits = REMAT.on_host(every.table.remat)
    named, kept, offloaded = least(space, 1.0), least(every, NEAR_CAPACITY, ~waits), least(every, NEAR_CAPACITY, waits)
    expected = kept if kept < WINS * named else named
    expected = offloaded if offloaded < HOST_WINS * expected else expected
    found = with_best_sets(space, 20)
    assert least(found, 1.0) == expected
    added = found.table.remat[len(space.table) :]
    assert (added >= len(REMAT.values)).all() and found.legal[len(space.table) :].all()


def test_a_set_has_one_text_and_one_code():
    for name in REMAT.values:
        assert text_of(places_of(name)) == ("dots" if name == "none" else name)
        assert REMAT.value(REMAT.code(name)) == name
    same = {"save:query/offload:layer_input", "offload:layer_input/save:query"}
    assert {parse_layout(f"remat={text}").remat for text in same} == {"save:query/offload:layer_input"}
    assert parse_layout("remat=save:" + "+".join(NAMED_SETS["dots"])).remat == "dots"
    assert parse_layout("remat=offload:layer_input").remat == "offload"
    for code in every_set(ENCODER, True)[::37]:
        assert REMAT.code(REMAT.value(int(code))) == code


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("save:querry", "'querry' is no array of a layer; arrays: layer_input, query, key, value, attention"),
        ("save:query/offload:query", "names query twice"),
        ("save:query/save:key", "has save: twice"),
        ("keep:query", "must be one of none, dots, minimal, attention, full, offload, or arrays by name"),
        ("save:", "'' is no array of a layer"),
    ],
)
def test_what_is_wrong_with_a_set_is_said_in_one_line(text, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        parse_layout(f"fsdp=2,remat={text}")
    assert "\n" not in str(error.value) and str(error.value).startswith("layout: remat")


@pytest.mark.parametrize(
    ("shape", "target", "remat", "said"),
    [
        (DENSE, "v5e:2x2", "save:expert_tokens", "names expert_tokens, dense has none"),
        (ENCODER, "v5e:2x2", "save:mlp_gate", "names mlp_gate, encoder has none"),
        (DENSE, "h100:1x4", "save:query/offload:key", "needs host memory that XLA can address"),
    ],
)
def test_a_set_that_the_job_has_no_use_for_is_refused(shape, target, remat, said):
    layout = parse_layout(f"fsdp=4,remat={remat}")
    assert said in str(reject(layout, shape, BATCH, SEQ, parse_target(target)))


def test_sets_and_policies_are_compiled_in_turns():
    """Prices of sets are less sure: they never keep the best policies from being compiled."""
    shape, target = PRESETS["llama3-8b"], parse_target("v5e:8x8")
    work = transformer_workload(shape, batch=128, seq=4096, dtype="bfloat16")
    table = enumerate_layouts(target, ("data", "fsdp", "tensor"), 128, shape.layers, {})
    policies = price_space(work, target, table)
    space = with_best_sets(policies, 20)
    capacity = target.hardware.capacity_bytes
    texts = [str(space.layout(row)) for row in shortlist(space, capacity)[:6]]
    kinds = ["save:" in text or "offload:" in text for text in texts]
    assert kinds == [kinds[0], not kinds[0]] * 3
    named = [text for text, is_set in zip(texts, kinds, strict=True) if not is_set]
    assert named == [str(policies.layout(row)) for row in shortlist(policies, capacity)[:3]]
