"""How a model is trained, as far as it decides bytes: the optimizer, the dtypes of weights and moments. JAX-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.meshes.chip import Hardware
from autotune.meshes.fields import did_you_mean, short
from autotune.meshes.lora import LORA_WORDS, Lora, lora_of

OPTIMIZERS = {"adamw": 2.0, "adafactor": 0.01, "lion": 1.0, "sgd": 1.0, "muon": 1.0}
"""Optimizer -> numbers of state for each parameter: AdamW two moments; Lion (Chen et al. 2023, arXiv 2302.06675) and
SGD with momentum one; Muon (arXiv 2502.16982) one of each matrix inside a layer, and AdamW's two of all other
parameters (`moment_bytes_beside`); Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) without momentum the means of
rows and columns of each matrix, about 1 % of the parameters."""

DTYPES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
"""Dtype of weights and moments -> bytes of one number."""


MATMUL_DTYPES = ("float8", "int8")
"""To what the operands of linear layers can be quantised."""

DTYPE_WORDS = ("weights_dtype", "moments_dtype", "gradients_dtype", "master_dtype")

WORD_KINDS: dict[str, type] = {
    "optimizer": str, **dict.fromkeys(DTYPE_WORDS, str), "matmul_dtype": str, **dict.fromkeys(LORA_WORDS, str),
    "lora_rank": int, "packing": int, "scan_layers": bool,
}  # fmt: skip
"""Field of `Training`, which is also a word of flags, plans and job files -> the type of its values."""

WORDS = tuple(WORD_KINDS)

MOST_DOCUMENTS = 2**20
"""Of one sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The optimizer and what it keeps. Updates are computed in float32.

    `gradients_dtype`: of the gradients that passes sum and the optimizer takes; None: as the weights. (They are reduced
    over devices in the compute dtype.) `master_dtype`: of a copy of the weights that the optimizer keeps and updates;
    None: there is none. `matmul_dtype`: to which both operands of the linear layers inside the layers are quantised, in
    the forward and the backward pass; None: their matmuls are in the compute dtype. `lora_rank`: above 0, only adapters
    of that rank are trained, beside the matrices that `lora_targets` names (None: all of
    `autotune.meshes.lora.LORA_TARGETS`); all other weights are frozen, in `base_dtype` (None: bfloat16), and the other
    dtypes are those of the adapters. `packing`: above 0, each sequence is so many documents one behind the other, and a
    token attends to its own document only. `scan_layers`: the program of one layer, or of one pattern of layers, runs
    in a loop over stacked weights; False: each layer has weights and a program of its own.

    >>> Training(optimizer="adafactor", weights_dtype="bfloat16").words()
    'adafactor, bfloat16 weights'
    """

    optimizer: str = "adamw"
    weights_dtype: str = "float32"
    moments_dtype: str = "float32"
    gradients_dtype: str | None = None
    master_dtype: str | None = None
    matmul_dtype: str | None = None
    lora_rank: int = 0
    lora_targets: str | None = None
    base_dtype: str | None = None
    packing: int = 0
    scan_layers: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            close = did_you_mean(str(self.optimizer), OPTIMIZERS)
            raise ValueError(f"optimizer={self.optimizer!r} must be one of {', '.join(OPTIMIZERS)}{close}")
        if self.matmul_dtype not in (None, *MATMUL_DTYPES):
            close = did_you_mean(str(self.matmul_dtype), MATMUL_DTYPES)
            raise ValueError(f"matmul_dtype={self.matmul_dtype!r} must be one of {', '.join(MATMUL_DTYPES)}{close}")
        if self.matmul_dtype and self.lora_rank:
            raise ValueError(f"matmul_dtype={self.matmul_dtype!r} does not go with lora_rank={self.lora_rank!r}")
        for field in DTYPE_WORDS:
            value = getattr(self, field)
            if value not in DTYPES and not (value is None and field in DTYPE_WORDS[2:]):
                close = did_you_mean(str(value), DTYPES)
                raise ValueError(f"{field}={value!r} must be one of {', '.join(DTYPES)}{close}")
        packing: Any = self.packing
        if type(packing) is not int or not (packing == 0 or 2 <= packing <= MOST_DOCUMENTS):
            raise ValueError(
                f"packing={short(packing)} must be the documents of a sequence, from 2 to {MOST_DOCUMENTS}, "
                "or 0 for one of each"
            )
        if type(self.scan_layers) is not bool:
            raise ValueError(f"scan_layers={short(self.scan_layers)} must be true or false")
        if self.gradients_dtype == self.weights_dtype:
            object.__setattr__(self, "gradients_dtype", None)
        lora = lora_of(self.lora_rank, self.lora_targets, self.base_dtype)
        if lora is not None:
            if self.optimizer == "muon":
                raise ValueError(
                    "optimizer='muon' with lora_rank: it makes updates of whole matrices orthogonal, not of adapters"
                )
            for field, value in lora.words().items():
                object.__setattr__(self, field, value)

    @property
    def lora(self) -> Lora | None:
        """The adapters; None where all weights are trained."""
        return lora_of(self.lora_rank, self.lora_targets, self.base_dtype)

    @property
    def weight_bytes(self) -> float:
        """Bytes of one parameter."""
        return DTYPES[self.weights_dtype]

    @property
    def gradient_bytes(self) -> float:
        """Bytes of the gradient of one parameter."""
        return DTYPES[self.gradients_dtype or self.weights_dtype]

    @property
    def moment_bytes(self) -> float:
        """Bytes of optimizer state for each parameter, a master copy of it among them.

        optax's Adafactor keeps means of rows and columns only where both sides have 128 or more: no adapter's do."""
        numbers = 1.0 if self.optimizer == "adafactor" and self.lora_rank else OPTIMIZERS[self.optimizer]
        return numbers * DTYPES[self.moments_dtype] + self._master_bytes

    @property
    def moment_bytes_beside(self) -> float:
        """The same of a parameter that is no matrix inside a layer: Muon leaves those to AdamW."""
        if self.optimizer != "muon":
            return self.moment_bytes
        return OPTIMIZERS["adamw"] * DTYPES[self.moments_dtype] + self._master_bytes

    @property
    def update_bytes(self) -> float:
        """Bytes read and written for each parameter by the update: weights and state both ways, gradients once and once
        more for their norm; Adafactor reads them a third time, for the means, and writes and reads the update to clip
        it."""
        passes = 5.0 if self.optimizer == "adafactor" else 2.0
        return 2.0 * self.weight_bytes + 2.0 * self.moment_bytes + passes * self.gradient_bytes

    @property
    def _master_bytes(self) -> float:
        return DTYPES[self.master_dtype] if self.master_dtype else 0.0

    def words(self) -> str:
        """What differs from AdamW with float32 weights and moments, for a heading; empty where nothing does."""
        found = [] if self.optimizer == "adamw" else [self.optimizer]
        if self.weights_dtype != "float32":
            found.append(f"{self.weights_dtype} weights")
        if self.moments_dtype != "float32":
            found.append(f"{self.moments_dtype} moments")
        if self.gradients_dtype:
            found.append(f"{self.gradients_dtype} gradients")
        if self.master_dtype:
            found.append(f"a {self.master_dtype} master copy")
        if self.matmul_dtype:
            found.append(f"{self.matmul_dtype} matmuls")
        if self.packing:
            found.append(f"{self.packing} documents packed into a sequence")
        if not self.scan_layers:
            found.append("layers not scanned")
        return ", ".join([*found, *([self.lora.told()] if self.lora else [])])

    def told(self) -> str:
        """All of it, for a heading.

        >>> Training(weights_dtype="bfloat16").told()
        'bfloat16 weights, float32 moments, adamw with gradient clipping'
        """
        kept = f"{self.weights_dtype} weights, {self.moments_dtype} moments"
        if self.weights_dtype == self.moments_dtype:
            kept = f"{self.weights_dtype} weights and moments"
        if self.gradients_dtype:
            kept += f", {self.gradients_dtype} gradients"
        if self.master_dtype:
            kept += f", a {self.master_dtype} master copy"
        if self.matmul_dtype:
            kept = f"{self.matmul_dtype} matmuls inside the layers, {kept}"
        adapters = f"{self.lora.told()}; adapters: " if self.lora else ""
        packed = f", {self.packing} documents packed into a sequence" if self.packing else ""
        unscanned = "" if self.scan_layers else ", layers not scanned"
        return f"{adapters}{kept}, {self.optimizer} with gradient clipping{packed}{unscanned}"

    def recipe(self) -> dict[str, str | int | bool]:
        """The flags' words that say it again; none that are at their default."""
        plain = Training()
        return {name: getattr(self, name) for name in WORDS if getattr(self, name) != getattr(plain, name)}


def matmul_dtype_problem(training: Training, hardware: Hardware) -> str | None:
    """Why a chip cannot run matmuls in the job's `matmul_dtype`; None where it can, or where the job has none."""
    kind = training.matmul_dtype
    if kind == "int8" and hardware.platform == "cuda":
        # "GEMM is not supported by cublasLt" (jax 0.10.2, h100): it multiplies whole numbers into int32 alone.
        return f"XLA compiles no int8 matmul with a result in the compute dtype for {hardware.name}"
    if kind and kind not in hardware.flops_per_second:
        known = ", ".join(name for name in hardware.flops_per_second if name in MATMUL_DTYPES) or "neither"
        return f"{hardware.name} has no peak for it; of {' and '.join(MATMUL_DTYPES)} it has {known}"
    return None


def training_of(words: Mapping[str, Any]) -> Training:
    """The training that some words say; those that are missing or None are at their default."""
    told: dict[str, Any] = {
        name: str(words[name]) if kind is str else words[name]
        for name, kind in WORD_KINDS.items()
        if words.get(name) is not None
    }
    return Training(**told)
