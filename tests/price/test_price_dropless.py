"""The price of experts that drop no token: rows of choices and no slots, a buffer for the worst case along `expert`."""

from __future__ import annotations

import dataclasses

import pytest

from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.price.price import estimate
from autotune.price.priced_space import price_space
from autotune.reference_workload import reference_workload
from autotune.table import LayoutTable

MIXTRAL = dataclasses.replace(PRESETS["mixtral-8x7b"], layers=4)
DROPLESS = dataclasses.replace(MIXTRAL, capacity_factor=None)
TARGET = parse_target("v5p:2x2x2")
TOKENS = 64 * 2048 / 8


def priced(model, words, target=TARGET):
    return estimate(model, 64, 2048, "bfloat16", parse_layout(words), target)


def test_no_slot_is_empty():
    """As many FLOPs as choices, whatever the cut; with a capacity of 1.25 a quarter more in the experts."""
    one = DROPLESS.mlp_matrices * DROPLESS.d_model * DROPLESS.d_ff
    experts = 6.0 * 2 * one * 64 * 2048 * DROPLESS.layers / 8
    assert DROPLESS.slots_per_token == 2 and DROPLESS.padding_flops(64, 2048) == 0
    roomy = priced(MIXTRAL, "fsdp=8").flops
    for words in ("fsdp=8", "expert=8", "expert=2,tensor=2,fsdp=2"):
        assert roomy - priced(DROPLESS, words).flops == pytest.approx(0.25 * experts, rel=1e-6), words


def test_the_tile_at_a_border_is_computed_twice():
    """8 experts on a device have 7 borders, each in a tile of 512 rows; an expert alone on its device has none."""
    rows = 2 * TOKENS
    whole, alone = (priced(DROPLESS, words).terms["matmul.mlp"].seconds for words in ("fsdp=8", "expert=8"))
    routers = 3 * 2 * TOKENS * DROPLESS.d_model * 8 * DROPLESS.layers / TARGET.hardware.peak("bfloat16")
    assert (whole - routers) / (alone - routers) == pytest.approx(1 + 7 * 512 / rows, rel=0.01)


def test_a_buffer_has_room_for_every_choice_of_all_tokens_along_expert():
    def kept(words):
        return priced(DROPLESS, words).memory["activations"] / DROPLESS.layers

    wide = 2 * DROPLESS.d_model + 2 * DROPLESS.d_ff  # rows and results; gate and up
    slots = {words: (kept(words + ",remat=dots")) / 2.0 / TOKENS for words in ("fsdp=8", "expert=2,fsdp=4", "expert=8")}
    # a token's two choices; those of two devices' tokens; one of each of eight devices' tokens
    assert slots["expert=2,fsdp=4"] - slots["fsdp=8"] == pytest.approx(2 * wide, rel=1e-6)
    assert slots["expert=8"] - slots["fsdp=8"] == pytest.approx((8 - 2) * wide, rel=1e-6)


def test_tokens_are_gathered_along_expert_and_sums_scattered():
    price = priced(DROPLESS, "expert=4,fsdp=2,remat=full")
    assert {"all_gather[expert]@ici", "reduce_scatter[expert]@ici"} <= set(price.terms)
    assert not any(name.startswith("all_to_all[expert]") for name in price.terms)
    # A capacity needs whole sequences along `context`; tokens that no one drops do not.
    gather = "all_gather[context]@ici"
    roomy, free = (priced(model, "expert=4,context=2").terms for model in (MIXTRAL, DROPLESS))
    assert gather in roomy and gather not in free


def test_on_gpus_it_is_priced_only_and_compiled_on_tpus():
    workload = reference_workload(
        "mixtral-8x7b", batch=64, seq=2048, dtype="bfloat16", settings=("capacity_factor=dropless",)
    )
    assert workload.transformer.dropless and "dropless experts" in workload.name
    layouts = [parse_layout("fsdp=8")]
    table = LayoutTable.from_layouts(layouts)
    assert not price_space(workload, parse_target("h100:1x8"), table, layouts).can_be_compiled(0)
    assert price_space(workload, parse_target("v5p:2x2x2"), table, layouts).can_be_compiled(0)
