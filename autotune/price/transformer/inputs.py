"""What is priced: one transformer, its batch, the target, and the training stack that runs it."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.meshes.target import Target
from autotune.meshes.transformer import TransformerShape
from autotune.price.transformer.training_stack import TrainingStack


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a price depends on beside the layout."""

    transformer: TransformerShape
    batch: int
    """Sequences of one step, whole mesh."""
    seq: int
    """Tokens of one sequence."""
    dtype: str
    """Of the matmuls: "bfloat16", "float16" or "float32"."""
    target: Target
    stack: TrainingStack
