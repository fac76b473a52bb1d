"""One training run of the limits model: the model's shape, its batch and its data, and the rules that scale them.

Equations: arXiv 2411.01137, sections on the workload and on scaling assumptions; the fits are the ones it cites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WORD_BYTES = 2
"""FP16 for parameters, gradients and everything sent."""
SEQUENCE_TOKENS = 2048
"""Only to count a batch in sequences."""
TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022, on total parameters (also of sparse models)."""
BATCH_RULES = ("default", "fixed", "deepseek")
FIXED_BATCH_TOKENS = 2**22

_NEAR = sorted({k * 2**i for k in (1, 3, 5, 7, 9) for i in range(60)})


def near(x: float) -> int:
    """The element of {k * 2^i: k in 1, 3, 5, 7, 9, i < 60} closest to x, the smaller of two equally close.

    >>> near(11), near(191.6), near(0.2)
    (10, 192, 1)
    """
    return min(_NEAR, key=lambda element: (abs(element - x), element))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What is trained: `layers` blocks of two d_model x d_ff matrices, each `experts` times, one expert a token.

    Attention, embeddings, norms and pointwise operations are not in the model. `batch_tokens` is the global batch.
    """

    d_model: int
    d_ff: int
    layers: int
    experts: int
    batch_tokens: int

    def __post_init__(self) -> None:
        for field in ("d_model", "d_ff", "layers", "experts", "batch_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"TrainingRun: {field}={getattr(self, field)} must be at least 1")
        if self.layers < 2:
            raise ValueError(f"TrainingRun: layers={self.layers} must be at least 2, a pipeline's links are counted")

    @property
    def params(self) -> int:
        """P: all parameters, every expert's."""
        return 2 * self.d_model * self.d_ff * self.layers * self.experts

    @property
    def active_params(self) -> int:
        """Parameters one token meets."""
        return 2 * self.d_model * self.d_ff * self.layers

    @property
    def tokens(self) -> float:
        """D: training data, in tokens."""
        return float(TOKENS_PER_PARAMETER * self.params)

    @property
    def flop(self) -> float:
        """C = 6 * active parameters * tokens: the whole run, without padding or recomputation."""
        return 6 * self.active_params * self.tokens

    @property
    def batches(self) -> float:
        """Optimizer steps, not rounded."""
        return self.tokens / self.batch_tokens

    @property
    def batch_flop(self) -> float:
        return 6 * self.active_params * float(self.batch_tokens)


def depth(d_model: int, d_ff: int, scale: float = 1.0) -> int:
    """Layers of a model this wide: a power law fitted to Hoffmann et al. 2022, times `scale`.

    >>> depth(12288, 49152), depth(12288, 49152, scale=0.25)
    (192, 48)
    """
    return near(0.10056 * (d_model * d_ff) ** 0.3751 * scale)


def sparsity(d_model: int, d_ff: int) -> int:
    """Experts of a sparse model this wide: linear in width, 8 at 12288.

    >>> sparsity(12288, 49152), sparsity(24576, 98304)
    (8, 16)
    """
    return near(8 * math.sqrt(d_model * d_ff / (4 * 12288**2)))


def rule_batch_tokens(rule: str, flop: float, experts: int) -> float:
    """Global batch in tokens that a rule asks for, before it is rounded to a number that divides well.

    default: 4 Mi tokens at 3e23 FLOP (GPT-3), growing as C^(1/6) and as the square root of the experts.
    fixed: 4 Mi tokens, whatever the run. deepseek: 0.2920 C^0.3271 (Bi et al. 2024), times the same square root.
    """
    if rule == "default":
        return math.sqrt(experts) * (flop / 3e23) ** (1 / 6) * 2048 * 2048
    if rule == "fixed":
        return FIXED_BATCH_TOKENS
    if rule == "deepseek":
        return math.sqrt(experts) * 0.2920 * flop**0.3271
    raise ValueError(f"batch_rule={rule!r} must be one of {', '.join(BATCH_RULES)}")


def round_batch_tokens(tokens: float, experts: int) -> int:
    """The nearest batch of whole sequences that the experts share equally and that has few prime factors."""
    return experts * near(tokens / SEQUENCE_TOKENS / experts) * SEQUENCE_TOKENS


def scaled_run(
    d_model: int,
    *,
    sparse: bool = False,
    batch_rule: str = "default",
    batch_tokens: float | None = None,
    batch_scale: float = 1.0,
    layers: int | None = None,
) -> TrainingRun:
    """The run that the scaling rules give for one width: d_ff = 4 d_model, depth, experts and batch follow.

    `batch_tokens` replaces the rule's batch, `batch_scale` multiplies it, `layers` replaces the rule's depth.

    >>> scaled_run(12288).batch_tokens, scaled_run(12288).layers
    (7340032, 192)
    """
    d_ff = 4 * d_model
    layers = depth(d_model, d_ff) if layers is None else layers
    experts = sparsity(d_model, d_ff) if sparse else 1
    flop = TrainingRun(d_model=d_model, d_ff=d_ff, layers=layers, experts=experts, batch_tokens=1).flop
    wanted = rule_batch_tokens(batch_rule, flop, experts) if batch_tokens is None else batch_tokens
    return TrainingRun(
        d_model=d_model,
        d_ff=d_ff,
        layers=layers,
        experts=experts,
        batch_tokens=round_batch_tokens(wanted * batch_scale, experts),
    )


def widths() -> list[int]:
    """The 55 widths of a curve: {k * 2^i: k odd up to 15, i in 11..21} from 12288 to 128 * 12288."""
    grid = {k * 2**i for k in range(1, 16, 2) for i in range(11, 22)}
    return sorted(d for d in grid if 12288 <= d <= 128 * 12288)
