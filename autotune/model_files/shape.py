"""The shape that is priced and run of a model that was read, and what the reference model lacks of it."""

from __future__ import annotations

from autotune.meshes.architecture import Architecture
from autotune.meshes.transformer import TransformerShape
from autotune.model_files.read_model import ReadModel

MLPS = {"swiglu": "swiglu-3mat", "gelu": "gelu-2mat"}
"""Activation -> MLP of the reference model."""


def lacks(architecture: Architecture) -> list[str]:
    """Parts of an architecture that the reference model does not have, in words; none where it runs it as it is."""
    found: list[str] = []
    kinds = [kind for kind, _ in architecture.kinds]
    if len(kinds) > 1:
        found.append("layers that differ")
    for kind in kinds:
        attention, mlp = kind.attention, kind.mlp
        if attention.latent:
            found.append("latent attention")
        if attention.window is not None:
            found.append("attention in chunks" if attention.chunked else "attention over a window")
        found += attention.extras()
        if mlp.activation not in MLPS:
            found.append(f"{mlp.activation} MLPs")
        if mlp.bias:
            found.append("MLP biases")
        if mlp.shared_width % mlp.width:
            found.append("shared experts of another width")
        if mlp.shared_gate:
            found.append("a gate on shared experts")
        if kind.norms != 2:
            found.append(f"{kind.norms} norms a layer")
    if architecture.norm_offset:
        found.append("LayerNorm")
    if architecture.position_rows:
        found.append("learned positions")
    if architecture.logit_cap:
        found.append("soft-capped logits")
    return list(dict.fromkeys([*found, *architecture.other_parts]))


def shape_of(model: ReadModel, seq: int | None = None) -> TransformerShape:
    """The shape of a model for sequences of `seq` tokens. ValueError in one line where it cannot be priced truly."""
    if model.shape is not None:
        return model.shape
    architecture = model.architecture if seq is None else model.architecture.at_length(seq)
    name = architecture.name
    if not architecture.vocab:
        raise ValueError(f"model {name}: a vision encoder has no tokens to embed and to predict: not modelled")
    missing = lacks(architecture)
    if missing:
        raise ValueError(f"model {name}: cannot be priced yet: {', '.join(missing)}")
    [(kind, layers)] = architecture.kinds
    return TransformerShape(
        name=name,
        layers=layers,
        d_model=architecture.d_model,
        heads=kind.attention.heads,
        kv_heads=kind.attention.kv_heads,
        head_dim=kind.attention.head_dim,
        d_ff=kind.mlp.width,
        vocab=architecture.vocab,
        mlp=MLPS[kind.mlp.activation],
        experts=kind.mlp.experts,
        experts_per_token=kind.mlp.experts_per_token,
        shared_experts=kind.mlp.shared_width // kind.mlp.width if kind.mlp.experts else 0,
        capacity_factor=model.run.get("capacity_factor", 1.25),
        kind=architecture.kind,
        tied_embeddings=architecture.tied_embeddings,
    )
