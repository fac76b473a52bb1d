"""What a model file said: the architecture, and every key that did not go into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.meshes.architecture import Architecture, AttentionKind, LayerKind, MlpKind
from autotune.meshes.fields import short
from autotune.meshes.transformer import CAPACITY_RULE, DROPLESS, TransformerShape, is_capacity

DROPS = (
    "experts: the price gives each expert room for 1.25 times its mean load and drops the rest; without dropping, the "
    "busiest expert decides"
)
"""What a file with routed experts does not say, and what is priced."""

CAPACITY = "capacity_factor"
"""The key of `ReadModel.run`, and of a setting that every model with experts takes: room for so many times an expert's
mean load, or `dropless`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadModel:
    """One model as a file or a preset describes it."""

    architecture: Architecture
    source: str
    """What the file was recognised as, in words."""
    ignored: tuple[str, ...] = ()
    """Keys that are known to change nothing in cost."""
    not_modelled: tuple[str, ...] = ()
    """"key: what it may cost" of what the file says and no price or program has."""
    shape: TransformerShape | None = None
    """Of presets and our own JSON: the shape as it stands there."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """What the file says of the job and its layout (MaxText): word of a flag -> value."""


def with_capacity(model: ReadModel, value: Any) -> ReadModel:
    """The same with another `capacity_factor`: a number, or `dropless`. ValueError in one line where it is neither."""
    factor = None if value == DROPLESS else value
    if value is None or not is_capacity(factor):
        raise ValueError(f"--set {CAPACITY}={short(value)}: {CAPACITY} {CAPACITY_RULE}")
    if not any(layer.mlp.experts for layer in model.architecture.layers):
        raise ValueError(f"--set {CAPACITY}={value}: {model.architecture.name} has no experts")
    shape = model.shape and dataclasses.replace(model.shape, capacity_factor=factor)
    notes = tuple(note for note in model.not_modelled if note != DROPS)
    return dataclasses.replace(model, shape=shape, not_modelled=notes, run={**model.run, CAPACITY: factor})


def describe(model: ReadModel) -> dict[str, Any]:
    """The document of `autotune models FILE --json`."""
    architecture = model.architecture
    return {
        "name": architecture.name,
        "parameters": architecture.parameters,
        "active_parameters": architecture.active_parameters,
        "layers": [
            {"count": count, "attention": kind.attention.words(), "mlp": kind.mlp.words()}
            for kind, count in architecture.kinds
        ],
        "ignored": list(model.ignored),
        "not_modelled": list(model.not_modelled),
    }


def architecture_of(shape: TransformerShape) -> Architecture:
    """The architecture of a uniform stack."""
    attention = AttentionKind(heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim)
    mlp = MlpKind(
        activation=shape.mlp.partition("-")[0],
        width=shape.d_ff,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token if shape.experts else 0,
        shared_width=shape.shared_experts * shape.d_ff if shape.experts else 0,
    )
    return Architecture(
        name=shape.name,
        d_model=shape.d_model,
        vocab=shape.vocab,
        layers=(LayerKind(attention=attention, mlp=mlp),) * shape.layers,
        kind=shape.kind,
        tied_embeddings=shape.tied_embeddings,
    )
