"""What a curve assumes beside the hardware: sparsity, the batch rule, the deadline, what overlaps."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.frontier.batch import Overlap
from autotune.frontier.run import BATCH_RULES, TrainingRun, depth, scaled_run

YEAR_SECONDS = 3.154e7
"""The simulation's year. The closed forms use 365.25 days: see closed_forms.py."""
MONTH_SECONDS = YEAR_SECONDS / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """How runs scale and how long they may take.

    `batch_tokens` replaces the rule's batch for every size (None: the rule decides); `batch_scale` multiplies it.
    `depth_scale` multiplies the depth rule: below 1 is shorter and, at equal parameters, fatter.
    """

    sparse: bool = False
    batch_rule: str = "default"
    batch_tokens: float | None = None
    batch_scale: float = 1.0
    depth_scale: float = 1.0
    months: float = 3.0
    overlap: Overlap = Overlap()

    def __post_init__(self) -> None:
        if self.batch_rule not in BATCH_RULES:
            raise ValueError(f"batch_rule={self.batch_rule!r} must be one of {', '.join(BATCH_RULES)}")
        if not 0 < self.months <= 1e6:
            raise ValueError(f"months={self.months} must be above 0 and at most 1e6")
        if self.batch_tokens is not None and not 1 <= self.batch_tokens <= 1e15:
            raise ValueError(f"batch_tokens={self.batch_tokens} must be from 1 to 1e15")
        if not 1e-6 <= self.batch_scale <= 1e6:
            raise ValueError(f"batch_scale={self.batch_scale} must be from 1e-6 to 1e6")
        if not 1 / 64 <= self.depth_scale <= 64:
            raise ValueError(f"depth_scale={self.depth_scale} must be from 1/64 to 64")

    @property
    def deadline_seconds(self) -> float:
        return self.months / 12 * YEAR_SECONDS

    def run(self, d_model: int, layers: int | None = None) -> TrainingRun:
        """The run of this width (and, if given, this depth instead of the rule's)."""
        return scaled_run(
            d_model,
            sparse=self.sparse,
            batch_rule=self.batch_rule,
            batch_tokens=self.batch_tokens,
            batch_scale=self.batch_scale,
            layers=depth(d_model, 4 * d_model, self.depth_scale) if layers is None else layers,
        )
