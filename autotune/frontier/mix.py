"""How a cluster is divided among the kinds of parallelism, over the levels of its network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """One way to divide a cluster. Each degree is given per network level, inner level first; its total is the product.

    `tensor_model` cuts d_model and `tensor_ff` cuts d_ff (2-D tensor parallelism; 1-D is tensor_model = 1).
    `interleave`: chunks of layers each pipeline stage holds. `microbatches`: per batch and data-parallel member.
    """

    data: tuple[int, ...]
    tensor_model: tuple[int, ...]
    tensor_ff: tuple[int, ...]
    pipeline: tuple[int, ...]
    expert: tuple[int, ...]
    microbatches: int
    interleave: int
    zero_bubble: bool

    def __post_init__(self) -> None:
        degrees = (self.data, self.tensor_model, self.tensor_ff, self.pipeline, self.expert)
        if len({len(degree) for degree in degrees}) != 1:
            raise ValueError("Mix: data, tensor_model, tensor_ff, pipeline and expert must name the same levels")
        if min(min(degree) for degree in degrees) < 1:
            raise ValueError("Mix: every degree must be at least 1 at every level")
        stages = math.prod(self.pipeline)
        if self.zero_bubble and (self.microbatches < 2 * stages or self.interleave != 1):
            raise ValueError(
                f"Mix: zero_bubble needs microbatches={self.microbatches} of at least 2 x {stages} stages "
                f"and interleave={self.interleave} of 1"
            )

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return math.prod(
            math.prod(degree) for degree in (self.data, self.tensor_model, self.tensor_ff, self.pipeline, self.expert)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixes:
    """Many mixes as arrays: degrees of shape (levels, mixes), the rest of shape (mixes,).

    Whole numbers held as float64: exact up to 2^53, far above any one degree.
    """

    data: Floats
    tensor_model: Floats
    tensor_ff: Floats
    pipeline: Floats
    expert: Floats
    microbatches: Floats
    interleave: Floats
    zero_bubble: NDArray[np.bool_]

    @classmethod
    def of(cls, mixes: Sequence[Mix]) -> Mixes:
        def degrees(name: str) -> Floats:
            return np.array([getattr(mix, name) for mix in mixes], dtype=np.float64).T

        return cls(
            data=degrees("data"),
            tensor_model=degrees("tensor_model"),
            tensor_ff=degrees("tensor_ff"),
            pipeline=degrees("pipeline"),
            expert=degrees("expert"),
            microbatches=np.array([mix.microbatches for mix in mixes], dtype=np.float64),
            interleave=np.array([mix.interleave for mix in mixes], dtype=np.float64),
            zero_bubble=np.array([mix.zero_bubble for mix in mixes], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.microbatches)

    def __getitem__(self, index: int) -> Mix:
        def degree(array: Floats) -> tuple[int, ...]:
            return tuple(int(x) for x in array[:, index])

        return Mix(
            data=degree(self.data),
            tensor_model=degree(self.tensor_model),
            tensor_ff=degree(self.tensor_ff),
            pipeline=degree(self.pipeline),
            expert=degree(self.expert),
            microbatches=int(self.microbatches[index]),
            interleave=int(self.interleave[index]),
            zero_bubble=bool(self.zero_bubble[index]),
        )

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Mixes:
        """The mixes that a mask or an index array picks."""
        return Mixes(
            data=self.data[:, which],
            tensor_model=self.tensor_model[:, which],
            tensor_ff=self.tensor_ff[:, which],
            pipeline=self.pipeline[:, which],
            expert=self.expert[:, which],
            microbatches=self.microbatches[which],
            interleave=self.interleave[which],
            zero_bubble=self.zero_bubble[which],
        )
