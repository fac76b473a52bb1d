"""How many parameters one device works with, before fsdp and ZeRO cut what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.meshes.transformer import TransformerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Counts a device, cut along tensor and expert only. `layer`: of one layer; `layer_dense` and `layer_routed` are
    its parts that every expert rank repeats or holds alone; `vocabulary`: embedding and output projection together on
    the fullest stage; `sent_vocabulary`: what is gathered and reduced of them: XLA does so once for each use of a tied
    table (a100-80 and h100, jax 0.10.2); `embedding`: its part whose gradient is reduced by itself
    (`embedding_gradient`)."""

    layer_dense: np.ndarray
    layer_routed: np.ndarray
    vocabulary: np.ndarray
    sent_vocabulary: np.ndarray
    embedding: np.ndarray

    @property
    def layer(self) -> np.ndarray:
        return self.layer_dense + self.layer_routed

    def dense(self, layers: np.ndarray) -> np.ndarray:
        """Of a stage with that many layers: all but the routed experts."""
        return layers * self.layer_dense + self.vocabulary

    def routed(self, layers: np.ndarray) -> np.ndarray:
        """Of a stage with that many layers: the routed experts."""
        return layers * self.layer_routed


def parameters_of(shape: TransformerShape, size: Mapping[str, np.ndarray]) -> Parameters:
    """The counts of each row, given the sizes of its axes."""
    one_expert = shape.mlp_matrices * shape.d_model * shape.d_ff
    routed = float(one_expert * shape.experts)
    dense = float(shape.attention_parameters + shape.mlp_parameters) - routed
    tables = 1.0 if shape.tied_embeddings else 2.0
    table = float(shape.vocab * shape.d_model) / size["tensor"]
    return Parameters(
        layer_dense=dense / size["tensor"] + 2.0 * shape.d_model,
        layer_routed=routed / (size["tensor"] * size["expert"]),
        vocabulary=tables * table,
        sent_vocabulary=2.0 * table,
        embedding=table,
    )
