"""The loss in tiles of the vocabulary (`vocab_tiles`): what it costs and holds, where it is legal, its search."""

import dataclasses

import numpy as np
import pytest

from autotune.meshes.layout import parse_layout
from autotune.meshes.legality import reject
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.price import estimate
from autotune.price.priced_space import price_space
from autotune.price.remat_choices import with_best_sets
from autotune.price.vocabulary_tiles import STAND_IN_THE_WAY, TRIED, WINS, with_vocabulary_tiles
from autotune.reference_workload import transformer_workload
from autotune.space import enumerate_layouts

DENSE = dataclasses.replace(
    PRESETS["tiny"], name="dense", layers=4, d_model=512, d_ff=2048, vocab=65536, heads=8, kv_heads=4
)
TIED = dataclasses.replace(DENSE, name="tied", tied_embeddings=True)
BATCH, SEQ = 64, 1024
TARGETS = ("h100:1x8", "v5e:2x4", "v6e:2x4")


def priced(shape, target, text):
    return estimate(shape, BATCH, SEQ, "bfloat16", parse_layout(text), parse_target(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mesh", ["fsdp=8", "data=8", "fsdp=4,tensor=2"])
def test_logits_are_held_a_tile_at_a_time_and_computed_once_more(mesh, target):
    large = dataclasses.replace(TIED, vocab=262144)  # so that the worst moment is that of the logits
    whole = priced(large, target, f"{mesh},remat=full")
    layout = parse_layout(mesh)
    tokens = BATCH * SEQ / layout.batch_shards
    for tiles in (2, 4):
        tiled = priced(large, target, f"{mesh},remat=full,vocab_tiles={tiles}")
        sums = 4.0 * tokens * large.d_model  # the gradient of the stream, float32
        assert tiled.memory["logits"] == pytest.approx(whole.memory["logits"] / tiles + sums, rel=1e-9)
        once_more = 2.0 * tokens * large.d_model * large.vocab / layout.tensor
        assert tiled.flops - whole.flops == pytest.approx(once_more, rel=1e-9)
        assert tiled.step_seconds > whole.step_seconds


@pytest.mark.parametrize("shape", [DENSE, TIED], ids=lambda shape: shape.name)
def test_one_gather_more_over_fsdp_and_nothing_more_over_data_and_tensor(shape):
    whole, tiled = (
        priced(shape, "h100:1x8", f"data=2,fsdp=2,tensor=2,remat=full{more}") for more in ("", ",vocab_tiles=4")
    )
    gathered = (
        2.0 * shape.vocab * shape.d_model / 2 * (1 - 1 / 2)
    )  # bfloat16, cut along tensor, half comes from elsewhere
    assert tiled.sent["fsdp"] - whole.sent["fsdp"] == pytest.approx(gathered, rel=1e-9)
    assert tiled.sent["data"] == whole.sent["data"] and tiled.sent["tensor"] == whole.sent["tensor"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("data=8,vocab_tiles=3", "vocab_tiles=3 does not divide vocab=65536"),
     ("data=2,tensor=4,vocab_tiles=32768", "tensor=4 x vocab_tiles=32768 = 131072 does not divide vocab=65536")],
)  # fmt: skip
def test_tiles_divide_what_a_device_has_of_the_vocabulary(text, said):
    assert said in str(reject(parse_layout(text), DENSE, BATCH, SEQ, parse_target("h100:1x8")))


def least(space, capacity):
    return space.seconds[space.legal & (space.peak_bytes <= capacity)].min(initial=np.inf)


@pytest.mark.parametrize("target", ["h100:1x8", "v5e:2x4"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_the_search_finds_the_best_of_all_layouts_with_the_word(target, share):
    """`share`: of the legal layouts that fit without tiles."""
    machine = parse_target(target)
    work = transformer_workload(TIED, batch=BATCH, seq=SEQ, dtype="bfloat16")
    axes = ("data", "fsdp", "tensor")
    space = price_space(work, machine, enumerate_layouts(machine, axes, BATCH, TIED.layers, {}))
    capacity = float(np.quantile(space.peak_bytes[space.legal], share)) * (0.99 if share == 0.0 else 1.0)
    machine = dataclasses.replace(machine, hardware=dataclasses.replace(machine.hardware, capacity_bytes=capacity))
    space = price_space(work, machine, space.table)
    assert np.isfinite(least(space, capacity)) == (share > 0)
    every = [
        price_space(work, machine, enumerate_layouts(machine, axes, BATCH, TIED.layers, {"vocab_tiles": str(tiles)}))
        for tiles in TRIED
    ]
    best = min(least(some, capacity) for some in every)
    found = with_vocabulary_tiles(space, 20)
    added = slice(len(space.table), None)
    assert (found.table.vocab_tiles[added] > 1).all() and found.legal[added].all()
    if best < WINS * least(space, capacity):
        assert least(found, capacity) == best
    if share == 0.0:
        assert best < np.inf, "tiles alone make it fit"
    assert least(with_best_sets(found, 20), capacity) <= least(found, capacity)


def test_where_nothing_fits_the_nearest_layout_is_found_among_those_with_tiles():
    machine = parse_target("h100:1x8")
    work = transformer_workload(TIED, batch=BATCH, seq=SEQ, dtype="bfloat16")
    hardware = dataclasses.replace(machine.hardware, capacity_bytes=2.0**20)
    machine = dataclasses.replace(machine, hardware=hardware)
    space = price_space(work, machine, enumerate_layouts(machine, ("data", "fsdp"), BATCH, TIED.layers, {}))
    found = with_vocabulary_tiles(space, 20)
    assert found.peak_bytes[found.legal].min() < space.peak_bytes[space.legal].min()


def test_small_vocabularies_have_no_rows_added():
    small = dataclasses.replace(TIED, vocab=1024)
    machine = parse_target("h100:1x8")
    work = transformer_workload(small, batch=BATCH, seq=SEQ, dtype="bfloat16")
    space = price_space(work, machine, enumerate_layouts(machine, ("data", "fsdp"), BATCH, small.layers, {}))
    largest = space.prices.memory(np.flatnonzero(space.legal))["logits"].max()
    assert largest < STAND_IN_THE_WAY * machine.hardware.capacity_bytes
    assert with_vocabulary_tiles(space, 20) is space
