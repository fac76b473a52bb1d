"""The price of packed documents: nothing where a kernel compares segment ids, a mask where cuDNN is given one."""

from __future__ import annotations

import pytest

from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.training import Training
from autotune.models.presets import PRESETS
from autotune.price.changes_that_fit import price_one
from autotune.price.priced_space import why_illegal
from autotune.reference_workload import transformer_workload

BATCH, SEQ = 64, 4096


def workload(packing, model="llama3-1b"):
    return transformer_workload(
        PRESETS[model], batch=BATCH, seq=SEQ, dtype="bfloat16", training=Training(packing=packing)
    )


def both(target, layout):
    """Prices without and with documents."""
    return [price_one(workload(packing), parse_target(target), parse_layout(layout)) for packing in (0, 8)]


def seconds(estimate):
    return {name: term.seconds for name, term in estimate.terms.items()}


@pytest.mark.parametrize(
    ("target", "layout"),
    [
        ("v5e:4x4", "fsdp=16,remat=full"),
        ("v5e:4x4", "fsdp=4,context=4"),
        ("cpu:8", "fsdp=8"),
    ],
)
def test_segment_ids_skip_no_tile_and_cost_nothing(target, layout):
    plain, packed = both(target, layout)
    assert seconds(plain) == seconds(packed) and plain.peak_bytes == packed.peak_bytes


def test_cudnn_is_given_a_mask_that_recomputation_makes_again_in_each_layer():
    """By hand: 8 sequences a device, 4096 x 4096 numbers of 2 bytes, written once in each of 16 layers."""
    plain, packed = both("h100:1x8", "fsdp=8,remat=full")
    hardware = parse_target("h100:1x8").hardware
    mask = BATCH / 8 * SEQ * SEQ * 2.0
    by_hand = 16 * mask / (hardware.hbm_bytes_per_second * hardware.hbm_efficiency)
    added = {name: value - seconds(plain).get(name, 0.0) for name, value in seconds(packed).items()}
    assert added.pop("attention.mask") == pytest.approx(by_hand)
    assert set(added.values()) == {0.0}
    assert packed.peak_bytes - plain.peak_bytes == pytest.approx(2.0 * mask)


def test_without_recomputation_all_layers_have_one_mask():
    plain, packed = (seconds(one) for one in both("h100:1x8", "fsdp=8,accumulate=2"))
    assert packed.pop("attention.mask", 0.0) == 0.0
    assert packed == plain


def test_over_a_cut_sequence_the_mask_says_what_is_causal_and_all_scores_are_computed():
    plain, packed = (seconds(one) for one in both("h100:1x8", "fsdp=4,context=2,remat=full,accumulate=2"))
    # Twice the FLOPs; a kernel with more keys comes nearer to its peak.
    assert 1.3 < packed["attention"] / plain["attention"] < 2.1
    assert "attention.parts" in plain and "attention.parts" not in packed


# Compiled with jax 0.10.2, deviceless: `autotune explain --model llama3-1b --target TARGET --batch 64 --seq 4096
# [--packing 8] --layout LAYOUT`; seconds without and with documents.
COMPILED = [
    ("h100:1x8", "fsdp=8,accumulate=2,remat=full", 0.6032, 0.6044),
    ("h100:1x8", "fsdp=8,accumulate=2", 0.6120, 0.6122),
    ("h100:1x8", "fsdp=8,accumulate=2,remat=minimal", 0.5500, 0.5511),
    ("h100:1x8", "fsdp=4,tensor=2,accumulate=2,remat=save:attention+query+key+value", 0.6712, 0.6741),
    ("h100:1x8", "fsdp=4,context=2,accumulate=2,remat=full", 0.6494, 0.7003),
    ("v5e:4x4", "fsdp=16,accumulate=2,remat=full", 1.463, 1.468),
]


@pytest.mark.parametrize(("target", "layout", "plain", "packed"), COMPILED)
def test_what_documents_add_is_what_they_add_to_the_compiled_step(target, layout, plain, packed):
    without, with_documents = both(target, layout)
    added = with_documents.step_seconds - without.step_seconds
    assert added == pytest.approx(packed - plain, rel=0.2, abs=0.004 * plain)


@pytest.mark.parametrize(
    ("target", "layout", "said"),
    [
        ("h100:1x8", "fsdp=4,context=2,context_attention=ring",
         "context_attention=ring runs cuDNN's kernel by parts, which has no borders between documents: packing=8 has; "
         "context_attention=gather would"),
        ("h100:1x8", "data=8,accumulate=2,reduce=step",
         "reduce=step runs replicas as one batch, and JAX's call to cuDNN takes no batch of the masks that packing=8 "
         "needs; reduce=pass would"),
    ],
)  # fmt: skip
def test_layouts_that_cannot_pack_say_so(target, layout, said):
    assert why_illegal(workload(8), parse_target(target), parse_layout(layout)) == said
    assert why_illegal(workload(0), parse_target(target), parse_layout(layout)) is None


@pytest.mark.parametrize("layout", ["data=16,accumulate=2,reduce=step", "fsdp=4,context=4,context_attention=ring"])
def test_they_pack_where_no_mask_is_needed(layout):
    assert why_illegal(workload(8), parse_target("v5e:4x4"), parse_layout(layout)) is None
    plain, packed = both("v5e:4x4", layout)
    assert seconds(plain) == seconds(packed)
