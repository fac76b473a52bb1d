"""Attention that no fused kernel takes, in the closed form: FLOPs as programs for h100, gb200 and a100-40 have them."""

from __future__ import annotations

import pytest

from autotune.meshes.layout import Layout
from autotune.meshes.target import parse_target
from autotune.meshes.transformer import TransformerShape
from autotune.price.price import estimate

BATCH, TARGET = 16, parse_target("h100:1x8")


def core_flops(head_dim: int, seq: int, **layout) -> float:
    """FLOPs of attention's core on one device, in matmuls of a layer over the whole square of scores."""
    shape = TransformerShape(
        name="one", layers=1, d_model=2048, heads=8, kv_heads=2, head_dim=head_dim, d_ff=4096, vocab=32768,
    )  # fmt: skip
    priced = estimate(shape, BATCH, seq, "bfloat16", Layout(**layout), TARGET).flops
    matrices = shape.attention_parameters + shape.mlp_parameters
    again = (matrices - shape.d_model * shape.d_ff) if layout.get("remat") == "full" else 0
    tokens = BATCH * seq / 8
    dense = 2 * tokens * (3 * (matrices + shape.vocab * shape.d_model) + again)
    return (priced - dense) / (2 * tokens * seq * shape.heads * head_dim)


def test_cudnn_skips_half_the_scores():
    assert core_flops(128, 4096, fsdp=8) == pytest.approx((2 + 5) / 2)


def test_larger_heads_are_blocks_of_plain_attention():
    """Two matmuls forward, five backward; nothing is skipped, and nothing runs again where its result is kept."""
    assert core_flops(256, 4096, fsdp=8) == pytest.approx(7)
    assert core_flops(256, 4096, fsdp=8, remat="dots") == pytest.approx(7)
    assert core_flops(256, 4096, fsdp=8, remat="full") == pytest.approx(9)


@pytest.mark.parametrize(
    ("context", "seq", "again", "products"),
    [(2, 8192, 2, 5), (2, 4096, 1, 5), (4, 16384, 2, 9), (4, 4096, 2 - 3 / 9, 9)],
)
def test_a_causal_ring_works_on_pairs_of_half_shards(context, seq, again, products):
    """2 c + 1 of 4 c; where a product is one block, its scores serve the second run and the backward pass."""
    ring = {"fsdp": 8 // context, "context": context, "context_attention": "ring", "remat": "full"}
    assert core_flops(256, seq, **ring) == pytest.approx((7 + again) * products / (4 * context))


@pytest.mark.parametrize("way", ["gather", "ring"])
def test_fused_attention_along_context_does_half_of_the_square(way):
    """A policy that keeps attention's result keeps what the backward pass needs of it; without `context` none does."""
    cut = {"fsdp": 4, "context": 2, "context_attention": way}
    assert core_flops(128, 8192, **cut) == pytest.approx((2 + 5) / 2)
    assert core_flops(128, 8192, **cut, remat="full") == pytest.approx((2 + 2 + 5) / 2)
