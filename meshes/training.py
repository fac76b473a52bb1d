"""How a model is trained, as far as it decides bytes: the optimizer, the dtypes of weights and moments. JAX-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.meshes.fields import did_you_mean

OPTIMIZERS = {"adamw": 2.0, "adafactor": 0.01, "lion": 1.0, "sgd": 1.0}
"""Optimizer -> numbers of state for each parameter: AdamW two moments; Lion (Chen et al. 2023, arXiv 2302.06675) and
SGD with momentum one; Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) without momentum the means of rows and
columns of each matrix, about 1 % of the parameters."""

DTYPES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
"""Dtype of weights and moments -> bytes of one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The optimizer and what it keeps. Gradients have the dtype of the weights; updates are computed in float32.

    >>> Training(optimizer="adafactor", weights_dtype="bfloat16").words()
    'adafactor, bfloat16 weights'
    """

    optimizer: str = "adamw"
    weights_dtype: str = "float32"
    moments_dtype: str = "float32"

    def __post_init__(self) -> None:
        for field, known in (("optimizer", OPTIMIZERS), ("weights_dtype", DTYPES), ("moments_dtype", DTYPES)):
            value = getattr(self, field)
            if value not in known:
                close = did_you_mean(str(value), known)
                raise ValueError(f"{field}={value!r} must be one of {', '.join(known)}{close}")

    @property
    def weight_bytes(self) -> float:
        """Bytes of one parameter, and of its gradient."""
        return DTYPES[self.weights_dtype]

    @property
    def moment_bytes(self) -> float:
        """Bytes of optimizer state for each parameter."""
        return OPTIMIZERS[self.optimizer] * DTYPES[self.moments_dtype]

    @property
    def update_bytes(self) -> float:
        """Bytes read and written for each parameter by the update: weights and state both ways, gradients once and once
        more for their norm; Adafactor reads them a third time, for the means, and writes and reads the update to clip
        it."""
        passes = 5.0 if self.optimizer == "adafactor" else 2.0
        return 2.0 * self.weight_bytes + 2.0 * self.moment_bytes + passes * self.weight_bytes

    def words(self) -> str:
        """What differs from AdamW with float32 weights and moments, for a heading; empty where nothing does."""
        found = [] if self.optimizer == "adamw" else [self.optimizer]
        if self.weights_dtype != "float32":
            found.append(f"{self.weights_dtype} weights")
        if self.moments_dtype != "float32":
            found.append(f"{self.moments_dtype} moments")
        return ", ".join(found)

    def recipe(self) -> dict[str, str]:
        """The flags' words that say it again; none that are at their default."""
        plain = Training()
        names = ("optimizer", "weights_dtype", "moments_dtype")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}


def training_of(words: Mapping[str, Any]) -> Training:
    """The training that some words say; those that are missing or None are at their default."""
    names = ("optimizer", "weights_dtype", "moments_dtype")
    return Training(**{name: str(words[name]) for name in names if words.get(name) is not None})
