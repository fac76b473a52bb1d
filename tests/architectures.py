"""Small models with the parts of today's architectures, four layers each."""

from __future__ import annotations

import dataclasses

from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind
from autotune.meshes.transformer import TransformerShape
from autotune.model_files.read_model import ReadModel
from autotune.model_files.shape import shape_of

HEADS = AttentionKind(heads=4, kv_heads=2, head_dim=16)
LATENT = AttentionKind(heads=4, kv_heads=4, head_dim=24, value_dim=16, kv_rank=32, query_rank=48, rope_dim=8)
WINDOW, CHUNK = 7, 8


def kind_of(attention: AttentionKind, mlp: MlpKind, norms: int = 2, **parts) -> LayerKind:
    return LayerKind(attention=dataclasses.replace(attention, **parts), mlp=mlp, norms=norms)


def model_of(name: str, layers: tuple[LayerKind, ...], **more) -> TransformerShape:
    model = Architecture(name=name, d_model=64, vocab=256, layers=layers, **more)
    return shape_of(ReadModel(architecture=model, source="test"))


GEGLU = MlpKind(activation="geglu", width=128)
GEMMA = {"qk_norm": "head", "soft_cap": True}
OSS = {"bias": "all", "sinks": True}
EXPERTS = MlpKind(activation="swiglu", width=32, experts=8, experts_per_token=2, bias=True, router_bias=True)
SHARED = MlpKind(activation="swiglu", width=32, experts=8, experts_per_token=2, shared_width=48, shared_gate=True)
ROUTED = dataclasses.replace(SHARED, shared_gate=False, router_bias=True)
DENSE = MlpKind(activation="swiglu", width=128)
OLD = kind_of(HEADS, MlpKind(activation="relu2", width=128, bias=True), bias="all", qk_norm="whole")

ARCHITECTURES = {
    "like-gemma": model_of(
        "like-gemma",
        (kind_of(HEADS, GEGLU, 4, window=WINDOW, **GEMMA), kind_of(HEADS, GEGLU, 4, **GEMMA)) * 2,
        tied_embeddings=True,
        logit_cap=True,
    ),
    "like-deepseek": model_of("like-deepseek", (kind_of(LATENT, DENSE), *[kind_of(LATENT, ROUTED)] * 3)),
    "like-gpt-oss": model_of(
        "like-gpt-oss", (kind_of(HEADS, EXPERTS, window=WINDOW, **OSS), kind_of(HEADS, EXPERTS, **OSS)) * 2
    ),
    "like-llama4": model_of(
        "like-llama4",
        (
            kind_of(HEADS, DENSE, window=CHUNK, chunked=True, qk_norm="unscaled"),
            kind_of(HEADS, SHARED, qk_norm="unscaled"),
        )
        * 2,
    ),
    "like-gpt2": model_of("like-gpt2", (OLD,) * 4, norm_offset=True, position_rows=40),
}
"""Layers that differ in a repeating pattern (gemma, gpt-oss, llama4) or after a dense one (deepseek); windows, chunks,
norms of queries and keys of each kind, soft caps, sinks, biases, latent attention, shared experts of another width with
and without a gate, GeGLU and relu2, LayerNorm, learned positions."""
