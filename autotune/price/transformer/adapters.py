"""What low-rank adapters beside a frozen base cost (`autotune.models.adapters`): counts of numbers, and their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from autotune.meshes.architecture import LayerKind
from autotune.meshes.lora import BASE_DTYPES, Lora
from autotune.meshes.matrices import Matrix, matrices_of, matrices_of_layer
from autotune.meshes.transformer import TransformerShape

GROUPS = {
    "query": "qkv", "key": "qkv", "value": "qkv", "query_down": "qkv", "key_value_down": "qkv",
    "key_value": "qkv", "output": "attention_out", "gate": "mlp_in", "up": "mlp_in", "down": "mlp_out",
}  # fmt: skip
"""A matrix -> the group of matmuls (`device_work.DeviceWork`) that it is one of."""

CUT_BY_TENSOR = ("heads", "mlp")
"""Logical axes of a layer's matrices that `tensor` cuts."""

ADDED_TRAFFIC = (2.0, 2.0)
"""Bytes of memory traffic, (forward, backward), per element that an adapter's part is added to: what reads the sum
reads one array more. Backward, the gradients of a matmul's input are summed with one array more (llama3-8b on h100,
jax 0.10.2)."""

ADAPTER_KERNELS = (4.0, 12.0)
"""Kernels of an adapted matrix, (forward, backward). Forward: two matmuls, two casts of weights. Backward: four
matmuls, two casts; and for each of A and B the sum of a split matmul, the slice of a joint reduction and the place
among the stacked gradients (llama3-8b on h100, jax 0.10.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The frozen weights; bytes of one weight."""

    lora: Lora
    kept: float
    """Of a matrix inside a layer, between steps."""
    sent: float
    """The same, where it is gathered along fsdp."""
    kept_beside: float
    """Of what is no matrix inside a layer, between steps."""
    sent_beside: float
    """The same, where it is gathered along fsdp."""
    made: float
    """Of the copy in the compute dtype that is made of a quantised matrix after its gather; 0 where none is."""


def base_of(lora: Lora, compute: float) -> Base:
    """The bytes of the base, given those of the compute dtype: what is wider is cast before it is gathered."""
    kept, beside = BASE_DTYPES[lora.base_dtype], BASE_DTYPES[lora.tables_dtype]
    return Base(
        lora=lora, kept=kept, sent=min(kept, compute), kept_beside=beside, sent_beside=min(beside, compute),
        made=compute if lora.quantised else 0.0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """Numbers in the adapters of one layer (the mean of all layers), on one device, before fsdp and ZeRO cut them. One
    entry a row."""

    cut: np.ndarray
    """Those with a side of `embed`, which fsdp and ZeRO cut."""
    whole: np.ndarray
    """The others."""
    routed_cut: np.ndarray
    """As `cut`, of routed experts, which are not in `cut`."""
    routed_whole: np.ndarray
    """As `whole`, of routed experts, which are not in `whole`."""
    reading: float
    """Adapted matrices of a layer, without routed ones, whose input `tensor` cuts."""
    writing: float
    """The same, whose result `tensor` cuts."""

    def local(self, fsdp: np.ndarray, over_data: np.ndarray | float = 1.0, *, routed: bool = True) -> np.ndarray:
        """What one device holds where fsdp and `over_data` devices of ZeRO cut what they can; not `routed`: without the
        experts'."""
        own = self.cut / (fsdp * over_data) + self.whole
        return own + self.routed_cut / (fsdp * over_data) + self.routed_whole if routed else own


def adapters_of(shape: TransformerShape, lora: Lora, size: Mapping[str, np.ndarray]) -> Adapters:
    """The counts of each row, given the sizes of its axes."""
    found: dict[str, Any] = {
        name: np.zeros_like(size["tensor"]) for name in ("cut", "whole", "routed_cut", "routed_whole")
    }
    sides: dict[str, Any] = {"reading": 0.0, "writing": 0.0}
    for matrix in targeted(matrices_of(shape.described), lora):
        for side, name in zip(matrix.sides, matrix.names, strict=True):
            numbers = matrix.count * lora.rank * side / (size["expert"] if matrix.routed else 1.0)
            kind = ("routed_" if matrix.routed else "") + ("cut" if name == "embed" else "whole")
            found[kind] = found[kind] + numbers / (size["tensor"] if name in CUT_BY_TENSOR else 1.0)
        for which, name in zip(sides, matrix.names, strict=True):
            sides[which] += matrix.count * (name in CUT_BY_TENSOR and not matrix.routed)
    return Adapters(**found, **sides)


def _sides(matrix: Matrix, tensor: np.ndarray) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Rows and columns of a matrix on one device, cut along `tensor`."""
    into, out = (
        side / (tensor if name in CUT_BY_TENSOR else 1.0) for side, name in zip(matrix.sides, matrix.names, strict=True)
    )
    return into, out


def targeted(matrices: tuple[Matrix, ...], lora: Lora) -> list[Matrix]:
    """Those that have adapters."""
    return [matrix for matrix in matrices if matrix.name in lora.matrices]


M = TypeVar("M")


def adapter_matmuls(
    kind: LayerKind, d_model: int, lora: Lora, matmul: Callable[..., M], add: Callable[[M, M], M], *,
    tokens: np.ndarray, rows: np.ndarray, slots: np.ndarray, experts: np.ndarray, tensor: np.ndarray,
) -> dict[str, tuple[M, M]]:  # fmt: skip
    """Group of matmuls -> (x A, (x A) B) of one layer and microbatch on one device, all matrices of the group.

    `tokens` of the device; `rows` of them, where the result of a block is cut along the sequence; `slots` of each of
    `experts` routed experts.
    """
    found: dict[str, tuple[M, M]] = {}
    for matrix in targeted(matrices_of_layer(kind, d_model), lora):
        into, out = _sides(matrix, tensor)
        rank, ahead, behind, count = float(lora.rank), tokens, tokens, np.ones(())
        if matrix.routed:
            ahead, behind, count = slots, slots, experts
        elif matrix.names[1] == "embed":
            behind = rows
        both = matmul(ahead, rank, into, count), matmul(behind, out, rank, count)
        group = GROUPS[matrix.name]
        found[group] = both if group not in found else tuple(map(add, found[group], both))  # type: ignore[assignment]
    return found


def added_elements(
    kind: LayerKind, d_model: int, lora: Lora, *, tokens: np.ndarray, rows: np.ndarray, slots: np.ndarray,
    tensor: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Elements of the results that adapters are added to, (forward, backward). `slots`: of all experts of a device."""
    ahead, back = np.zeros_like(tokens), np.zeros_like(tokens)
    for matrix in targeted(matrices_of_layer(kind, d_model), lora):
        into, out = _sides(matrix, tensor)
        read, written = tokens, rows if matrix.names[1] == "embed" else tokens
        if matrix.routed:
            read = written = slots
        ahead, back = ahead + written * out, back + read * into
    return ahead, back
