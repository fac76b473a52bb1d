"""The matrices inside the layers of a transformer, by their sides and the axes that cut them. JAX-free."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.meshes.architecture import Architecture, LayerKind
from autotune.meshes.lora import LORA_TARGETS, Lora


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Matrices of one shape. `name`: in the reference model. `count`: of a layer (of a model the mean over all
    layers); of experts those of all experts. `sides`: numbers of its rows and columns as stored; `names`: the logical
    axis that a layout cuts of each."""

    name: str
    count: float
    sides: tuple[int, int]
    names: tuple[str, str]
    routed: bool = False


def matrices_of_layer(kind: LayerKind, d_model: int) -> tuple[Matrix, ...]:
    """Those of one layer."""
    d, attention, mlp = d_model, kind.attention, kind.mlp
    heads = attention.heads * attention.head_dim
    if attention.latent:
        into = attention.query_rank or d
        keys = attention.head_dim - attention.rope_dim + attention.value_width
        sides = [
            ("query", (into, heads), ("embed", "heads")),
            ("key_value_down", (d, attention.kv_rank + attention.rope_dim), ("embed", "latent")),
            ("key_value", (attention.kv_rank, attention.heads * keys), ("embed", "heads")),
        ]
        if attention.query_rank:
            sides.append(("query_down", (d, into), ("embed", "latent")))
    else:
        sides = [
            ("query", (d, heads), ("embed", "heads")),
            ("key", (d, attention.kv_heads * attention.head_dim), ("embed", "heads")),
            ("value", (d, attention.kv_heads * attention.value_width), ("embed", "heads")),
        ]
    sides.append(("output", (attention.heads * attention.value_width, d), ("heads", "embed")))
    found = [Matrix(name=name, count=1.0, sides=both, names=names) for name, both, names in sides]
    own = [(mlp.width, float(mlp.experts or 1), bool(mlp.experts))]
    if mlp.experts:
        found.append(Matrix(name="router", count=1.0, sides=(d, mlp.experts), names=("embed", "router")))
        if mlp.shared_width:
            own.append((mlp.shared_width, 1.0, False))
        if mlp.shared_gate:
            found.append(Matrix(name="shared_gate", count=1.0, sides=(d, 1), names=("embed", "router")))
    for width, count, routed in own:
        wide = ("gate", "up")[-(mlp.matrices - 1) :]
        found += [
            Matrix(name=name, count=count, sides=(d, width), names=("embed", "mlp"), routed=routed) for name in wide
        ]
        found.append(Matrix(name="down", count=count, sides=(width, d), names=("mlp", "embed"), routed=routed))
    return tuple(found)


def check_lora(lora: Lora, model: Architecture) -> None:
    """ValueError where adapters are asked for beside a matrix that the model does not have.

    The default names all seven and means those that there are."""
    present = {one.name for kind, _ in model.kinds for one in matrices_of_layer(kind, model.d_model)}
    missing = [target for target in lora.targets if not present & set(LORA_TARGETS[target])]
    if missing and lora.targets != tuple(LORA_TARGETS):
        has = ", ".join(name for name in LORA_TARGETS if present & set(LORA_TARGETS[name]))
        raise ValueError(f"lora_targets={missing[0]}: model {model.name} has no such matrix; it has {has}")


def matrices_of(model: Architecture) -> tuple[Matrix, ...]:
    """Those of all layers, each counted by its share of the layers."""
    return tuple(
        Matrix(
            name=one.name, count=one.count * (layers / len(model.layers)), sides=one.sides, names=one.names,
            routed=one.routed,
        )
        for kind, layers in model.kinds
        for one in matrices_of_layer(kind, model.d_model)
    )  # fmt: skip
