"""What one instruction computes: its FLOPs and the largest matmul in it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OpWork:
    """FLOPs (2 per multiply-add) of one execution on one device, and the largest product inside.

    `matmul`: its (batch, m, n, k); `dtype`: what its operands are, "bf16". `unknown`: custom calls whose FLOPs are not
    known and therefore missing in `flops`.
    """

    flops: float = 0.0
    matmul: tuple[int, int, int, int] | None = None
    dtype: str | None = None
    attention: bool = False
    unknown: tuple[str, ...] = ()

    def __add__(self, other: OpWork) -> OpWork:
        larger = self if _size(self) >= _size(other) else other
        return OpWork(
            flops=self.flops + other.flops,
            matmul=larger.matmul,
            dtype=larger.dtype or self.dtype or other.dtype,
            attention=self.attention or other.attention,
            unknown=self.unknown + other.unknown,
        )


def _size(work: OpWork) -> float:
    return math.prod(work.matmul) if work.matmul else work.flops / 2


def dot_shape(
    left: tuple[int, ...],
    right: tuple[int, ...],
    batch: tuple[tuple[int, ...], tuple[int, ...]],
    contracting: tuple[tuple[int, ...], tuple[int, ...]],
) -> tuple[int, int, int, int]:
    """(batch, m, n, k) of a dot of two shapes.

    >>> dot_shape((8, 4, 16), (8, 16, 32), ((0,), (0,)), ((2,), (1,)))
    (8, 4, 32, 16)
    """
    b = math.prod(left[dim] for dim in batch[0])
    k = math.prod(left[dim] for dim in contracting[0])
    return b, math.prod(left) // max(b * k, 1), math.prod(right) // max(b * k, 1), k
