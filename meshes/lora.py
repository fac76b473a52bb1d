"""Low-rank adapters beside frozen weights (LoRA, Hu et al. 2021, arXiv 2106.09685). JAX-free."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.meshes.fields import did_you_mean, short

LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "q": ("query", "query_down"),
    "k": ("key", "key_value", "key_value_down"),
    "v": ("value", "key_value", "key_value_down"),
    "o": ("output",),
    "gate": ("gate",),
    "up": ("up",),
    "down": ("down",),
}
"""What `lora_targets` may name -> the reference model's matrices. Those are all matrices of attention and of MLPs,
experts among them; a router is none. Latent attention makes keys and values by the same two matrices: either name means
both."""

OTHER_NAMES = {f"{name}_proj": name for name in LORA_TARGETS}
"""PEFT's names (`q_proj`, ..., `down_proj`) -> ours."""

BASE_DTYPES = {"bfloat16": 2.0, "float32": 4.0, "float16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Dtype of the frozen base between steps -> bytes of one weight of a matrix inside a layer.

int8 has one scale for each output channel; the scales are too few to count. nf4 has 4 bits for a weight, an 8-bit scale
for 64 weights, and a float32 for 256 scales (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""

QUANTISED = ("int8", "nf4")
"""Dtypes of the base in which only the matrices inside the layers are kept: tables, norms, routers and biases stay in
`BESIDE_QUANTISED`."""

BESIDE_QUANTISED = "bfloat16"

PRICED_ONLY = {"nf4": "the reference model has no 4-bit weights in blocks"}
"""Dtype of the base that no program here has -> why."""

LARGEST_RANK = 65536

LORA_WORDS = ("lora_rank", "lora_targets", "base_dtype")
"""What says adapters among the words of `autotune.meshes.training.Training`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters of one rank beside some matrices of every layer: x W becomes x W + (x A) B; A and B alone are trained.

    `targets`: of `LORA_TARGETS`. `base_dtype`: of what is frozen, all other weights of the model.
    """

    rank: int
    targets: tuple[str, ...]
    base_dtype: str

    def words(self) -> dict[str, str | None]:
        """Targets and dtype as `Training` keeps them: None at their defaults."""
        targets, dtype = ",".join(self.targets), self.base_dtype
        return {
            "lora_targets": None if self.targets == tuple(LORA_TARGETS) else targets,
            "base_dtype": None if dtype == next(iter(BASE_DTYPES)) else dtype,
        }

    def told(self) -> str:
        """In words, for a heading."""
        beside = "all matrices" if self.targets == tuple(LORA_TARGETS) else ",".join(self.targets)
        return f"LoRA of rank {self.rank} on {beside}, {self.base_dtype} base"

    @property
    def matrices(self) -> tuple[str, ...]:
        """The reference model's names of the matrices that have adapters."""
        return tuple(dict.fromkeys(name for target in self.targets for name in LORA_TARGETS[target]))

    @property
    def quantised(self) -> bool:
        """Whether the base's matrices are integers or codes, with scales."""
        return self.base_dtype in QUANTISED

    @property
    def tables_dtype(self) -> str:
        """Of what is frozen and no matrix inside a layer."""
        return BESIDE_QUANTISED if self.quantised else self.base_dtype


def lora_targets_of(text: str) -> str:
    """Targets as a text of our names, in the order of `LORA_TARGETS`; ValueError in one line where a name is unknown.

    >>> lora_targets_of("v_proj, q_proj")
    'q,v'
    """
    names = [OTHER_NAMES.get(name.strip(), name.strip()) for name in str(text).split(",")]
    for name in names:
        if name not in LORA_TARGETS:
            close = did_you_mean(name, LORA_TARGETS)
            raise ValueError(f"lora_targets: {short(name)} must be one of {', '.join(LORA_TARGETS)}{close}")
    return ",".join(name for name in LORA_TARGETS if name in names)


def lora_of(rank: object, targets: str | None, base_dtype: str | None) -> Lora | None:
    """The adapters that three words say; None where the rank is 0. ValueError names field, value and rule."""
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank <= LARGEST_RANK:
        raise ValueError(f"lora_rank={short(rank)} must be a whole number from 0 to {LARGEST_RANK:,}")
    if base_dtype is not None and base_dtype not in BASE_DTYPES:
        close = did_you_mean(str(base_dtype), BASE_DTYPES)
        raise ValueError(f"base_dtype={short(base_dtype)} must be one of {', '.join(BASE_DTYPES)}{close}")
    if rank == 0:
        for name, value in (("lora_targets", targets), ("base_dtype", base_dtype)):
            if value is not None:
                raise ValueError(
                    f"{name}={short(value)} is of the frozen base under adapters: it needs lora_rank above 0"
                )
        return None
    named = lora_targets_of(targets).split(",") if targets is not None else list(LORA_TARGETS)
    return Lora(rank=rank, targets=tuple(named), base_dtype=base_dtype or next(iter(BASE_DTYPES)))
