"""The shape that is priced and run of a model that was read."""

from __future__ import annotations

import math

from autotune.meshes.architecture import REFERENCE_MLPS, beyond_uniform
from autotune.meshes.transformer import TransformerShape
from autotune.model_files.read_model import CAPACITY, ReadModel


def shape_of(model: ReadModel, seq: int | None = None) -> TransformerShape:
    """The shape of a model for sequences of `seq` tokens. ValueError in one line where it cannot be priced truly.

    What the reference model runs as it is becomes a plain shape. Of any other model the shape carries the architecture,
    by which it is priced, and its sizes are those that a mesh may cut: common divisors where layers differ.
    """
    if model.shape is not None:
        return model.shape
    architecture = model.architecture if seq is None else model.architecture.at_length(seq)
    name = architecture.name
    if not architecture.vocab:
        raise ValueError(f"model {name}: a vision encoder has no tokens to embed and to predict: not modelled")
    if seq is not None and 0 < architecture.position_rows < seq:
        raise ValueError(
            f"model {name}: seq={seq} is longer than its table of {architecture.position_rows} learned positions"
        )
    kinds = [kind for kind, _ in architecture.kinds]
    first = next((kind.mlp for kind in kinds if kind.mlp.experts), kinds[0].mlp)
    if len({(kind.mlp.experts, kind.mlp.experts_per_token) for kind in kinds if kind.mlp.experts}) > 1:
        raise ValueError(f"model {name}: layers with different numbers of experts are not modelled")
    plain = not beyond_uniform(architecture)
    widths = [width for kind in kinds for width in (kind.mlp.width, kind.mlp.shared_width) if width]
    return TransformerShape(
        name=name,
        layers=len(architecture.layers),
        d_model=architecture.d_model,
        heads=math.gcd(*(kind.attention.heads for kind in kinds)),
        kv_heads=math.gcd(*(kind.attention.kv_heads for kind in kinds)),
        head_dim=kinds[0].attention.head_dim,
        d_ff=first.width if plain else math.gcd(*widths),
        vocab=architecture.vocab,
        mlp=REFERENCE_MLPS.get(first.activation, "swiglu-3mat" if first.matrices == 3 else "gelu-2mat"),
        experts=first.experts,
        experts_per_token=first.experts_per_token,
        shared_experts=first.shared_width // first.width if plain and first.experts else 0,
        capacity_factor=model.run.get(CAPACITY, 1.25),
        kind=architecture.kind,
        tied_embeddings=architecture.tied_embeddings,
        architecture=None if plain else architecture,
    )
