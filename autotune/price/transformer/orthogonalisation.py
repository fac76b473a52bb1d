"""What Muon's Newton-Schulz iteration costs a step: matmuls, memory traffic, collectives, and what it holds.

Every matrix X of a layer, rows <= columns, goes five times through A = X X^T, B = b A + c A A, X = a X + B X, in
float32, all layers (and experts) of a device in one batched matmul (`optax.contrib.muon`). XLA leaves X cut as the
optimizer's state is (h100:1x8 and v5e:2x2, jax 0.10.2):

- Rows cut: X is gathered along rows for each of the two matmuls with X (on TPUs once), and A for its square; each
  device works on its own rows of all three results.
- Columns cut: A is a sum over devices, all-reduced; every device squares all of it.

What it sends hides beside the matmuls of other matrices as other collectives of its axis do (`rows.hidden_beside`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from autotune.efficiency import matmul_seconds
from autotune.meshes.hardware import Hardware
from autotune.meshes.matrices import Matrix, matrices_of
from autotune.meshes.transformer import TransformerShape

STEPS = 5
"""Steps of the iteration (optax's default)."""

WIDTH = 4.0
"""Bytes of a number of the iteration: float32, as the gradients that the optimizer is given."""

AROUND = 24.0
"""Bytes of memory traffic per parameter around the iteration, beside an update with one moment: the momentum that is
written for it, read for its norm and normalised (16), its result read and scaled (8)."""

TPU_GATHERED = (2.0, 1.0)
"""(bytes of a number that a TPU gathers, how often a step it gathers X): its float32 matmuls round what they read to
bfloat16, the compiler does so before the gather, and both matmuls share one (v5e:2x2, fsdp=4, libtpu 0.0.42)."""

AT_ONCE = 3
"""Matrices that are whole at once: gathers begin long before the matmuls that wait for them (a mixture on h100:1x8,
fsdp=8, jax 0.10.2)."""

OPERATIONS = 5.0
"""Kernels of a step beside its collectives: three matmuls, two sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orthogonalisation:
    """Of one device and step; arrays with one entry a row."""

    flops: np.ndarray
    seconds: np.ndarray
    """Of the matmuls."""
    hbm_bytes: np.ndarray
    """Memory traffic beside the matmuls."""
    launches: float
    """Kernels that are launched."""
    collectives: tuple[tuple[str, str, np.ndarray, np.ndarray], ...]
    """(mesh axis, kind, bytes of the whole array, how often)."""
    parameters: np.ndarray
    """In the matrices of the stage, before fsdp and ZeRO cut them."""
    held_bytes: np.ndarray
    """The most that is held at once beside weights, gradients and state."""


def orthogonalisation_of(
    shape: TransformerShape, hardware: Hardware, size: Mapping[str, np.ndarray], zero: np.ndarray, layers: np.ndarray
) -> Orthogonalisation:
    """What the iteration costs the layers of one stage."""
    matrices = matrices_of(shape.described)
    flops, seconds, hbm_bytes, working = (np.zeros_like(size["tensor"]) for _ in range(4))
    gathered: list[np.ndarray] = []
    collectives: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    over_data = np.where(zero > 0, size["data"], 1.0)
    sent, often = TPU_GATHERED if hardware.platform == "tpu" else (WIDTH, 2.0)
    for matrix in matrices:
        count = matrix.count * layers / np.where(matrix.routed, size["expert"], 1.0)
        (m, n), (short, long) = matrix.sides, matrix.names
        if m > n:
            (m, n), (short, long) = (n, m), (long, short)
        rows, columns = _parts(short, size, over_data), _parts(long, size, over_data)
        own, square = m * n / (rows * columns), m * m / rows
        flops = flops + STEPS * count * 2.0 * m * (2.0 * own + square)
        for width, depth in ((m, n / columns), (m, m), (n / columns, m)):
            seconds = seconds + STEPS * matmul_seconds(hardware, "float32", WIDTH, m / rows, width, depth, count)
        # Beside its matmuls a step adds X to its new value, and A to its square: two arrays read, one written.
        hbm_bytes = hbm_bytes + count * (3.0 * STEPS * WIDTH * (own + square) + AROUND * own)
        whole, whole_square = sent * count * m * n / columns, sent * count * m * m
        for axis in _axes_of(short):
            outside = over_data if axis == "fsdp" else 1.0
            times = np.where((over_data > 1) | (axis != "data"), STEPS, 0.0)
            collectives.append((axis, "all_gather", whole / outside, often * times))
            collectives.append((axis, "all_gather", whole_square / outside, times))
        for axis in _axes_of(long):
            inside = size["fsdp"] if axis == "data" else 1.0
            times = np.where((over_data > 1) | (axis != "data"), STEPS, 0.0)
            collectives.append((axis, "all_reduce", WIDTH * count * square / inside, times))
        working = np.maximum(working, 3.0 * WIDTH * count * (own + square))
        gathered.append(np.where(rows > 1, whole + whole_square, 0.0))
    held = working + np.sum(np.sort(gathered, axis=0)[-AT_ONCE:], axis=0)
    return Orthogonalisation(
        flops=flops, seconds=seconds, hbm_bytes=hbm_bytes, launches=OPERATIONS * STEPS * len(matrices),
        collectives=tuple(collectives), parameters=layers * parameters_in(matrices, size), held_bytes=held,
    )  # fmt: skip


def parameters_in(matrices: tuple[Matrix, ...], size: Mapping[str, np.ndarray]) -> np.ndarray:
    """Parameters of one layer in matrices, on a device, before fsdp and ZeRO cut them."""
    total = np.zeros_like(size["tensor"])
    for matrix in matrices:
        cut = np.where(matrix.routed, size["expert"], 1.0)
        for name in matrix.names:
            cut = cut * (size["tensor"] if _axes_of(name) == ("tensor",) else 1.0)
        total = total + matrix.count * matrix.sides[0] * matrix.sides[1] / cut
    return total


def _parts(name: str, size: Mapping[str, np.ndarray], over_data: np.ndarray) -> np.ndarray | float:
    """Into how many parts the optimizer's state is cut along a side."""
    return {(): 1.0, ("tensor",): size["tensor"], ("fsdp", "data"): size["fsdp"] * over_data}[_axes_of(name)]


def _axes_of(name: str) -> tuple[str, ...]:
    """The mesh axes that may cut a side."""
    return {"embed": ("fsdp", "data"), "heads": ("tensor",), "mlp": ("tensor",)}.get(name, ())
