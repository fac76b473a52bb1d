"""How many parameters one device works with, before fsdp and ZeRO cut what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.meshes.architecture import Architecture
from autotune.meshes.transformer import TransformerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Numbers of parameters of one device, cut along `tensor` and `expert` only. One entry a row."""

    layer_dense: np.ndarray
    """Of one layer (the mean where layers differ), without routed experts: every device along `expert` has them."""
    layer_routed: np.ndarray
    """Of the routed experts of one layer (the mean where layers differ): divided along `expert`."""
    vocabulary: np.ndarray
    """Of embedding and output projection together, on the fullest stage."""
    sent_vocabulary: np.ndarray
    """What is gathered and reduced of them: XLA does so once for each use of a tied table (a100-80 and h100, jax
    0.10.2)."""
    embedding: np.ndarray
    """What of `sent_vocabulary` has its gradient reduced by itself (`embedding_gradient`)."""
    largest_dense: np.ndarray
    """`layer_dense` of the layer with the most parameters."""
    largest_routed: np.ndarray
    """`layer_routed` of the layer with the most parameters."""

    @property
    def layer(self) -> np.ndarray:
        """Of one layer."""
        return self.layer_dense + self.layer_routed

    def dense(self, layers: np.ndarray) -> np.ndarray:
        """Of a stage with that many layers: all but the routed experts."""
        return layers * self.layer_dense + self.vocabulary

    def routed(self, layers: np.ndarray) -> np.ndarray:
        """Of a stage with that many layers: the routed experts."""
        return layers * self.layer_routed


def parameters_of(shape: TransformerShape, size: Mapping[str, np.ndarray]) -> Parameters:
    """The counts of each row, given the sizes of its axes."""
    if shape.architecture is not None:
        return _of_architecture(shape.architecture, size)
    one_expert = shape.mlp_matrices * shape.d_model * shape.d_ff
    routed = float(one_expert * shape.experts)
    dense = float(shape.attention_parameters + shape.mlp_parameters) - routed
    tables = 1.0 if shape.tied_embeddings else 2.0
    table = float(shape.vocab * shape.d_model) / size["tensor"]
    layer_dense = dense / size["tensor"] + 2.0 * shape.d_model
    layer_routed = routed / (size["tensor"] * size["expert"])
    return Parameters(
        layer_dense=layer_dense,
        layer_routed=layer_routed,
        largest_dense=layer_dense,
        largest_routed=layer_routed,
        vocabulary=tables * table,
        sent_vocabulary=2.0 * table,
        embedding=table,
    )


def _of_architecture(model: Architecture, size: Mapping[str, np.ndarray]) -> Parameters:
    """The counts where layers are more than a uniform stack: of a layer their mean, and those of the largest.

    The small matrices of latent attention that make the latents are the same on every tensor rank.
    """
    d, count = model.d_model, len(model.layers)
    tensor, expert = size["tensor"], size["expert"]
    dense, routed, largest = 0.0 * tensor, 0.0 * tensor, None
    for kind, layers in model.kinds:
        cut, whole = kind.attention.matrices(d)
        whole += kind.attention.vectors(d) + kind.norms * model.norm_parameters
        experts = float(kind.mlp.one(d) * kind.mlp.experts)
        own_dense = (cut + kind.mlp.parameters(d) - experts) / tensor + float(whole)
        own_routed = experts / (tensor * expert)
        dense, routed = dense + own_dense * (layers / count), routed + own_routed * (layers / count)
        if largest is None or (own_dense + own_routed).max() > (largest[0] + largest[1]).max():
            largest = (own_dense, own_routed)
    assert largest is not None, "an architecture has layers"
    tables = 1.0 if model.tied_embeddings else 2.0
    table = float(model.table_parameters) / tensor
    beside = float(model.position_rows * d + model.other_parameters)
    return Parameters(
        layer_dense=dense,
        layer_routed=routed,
        largest_dense=largest[0],
        largest_routed=largest[1],
        vocabulary=tables * table + beside,
        sent_vocabulary=2.0 * table,
        embedding=table,
    )
