"""What a number of tokens takes on a point: days, chip-hours, money, and what the batch costs in data."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.frontier.critical_batch import Effort, effort_over_minimum
from autotune.sweep.point import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`tokens` to train on (None: not said), `device_hour_price` of one JAX device (None: not said),
    `critical_tokens`: the critical batch (None: not said)."""

    tokens: float | None = None
    device_hour_price: float | None = None
    critical_tokens: float | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "device_hour_price", "critical_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a finite number above 0")

    def days(self, point: Point) -> float | None:
        """Days for the tokens, without restarts or evaluation."""
        if self.tokens is None:
            return None
        return self.tokens / (point.tokens_per_second_per_device * point.target.devices) / 86400

    def chip_hours(self, point: Point) -> float | None:
        days = self.days(point)
        return None if days is None else 24 * days * point.chips

    def cost_per_million_tokens(self, point: Point) -> float | None:
        """Of a million tokens, in the money of the price."""
        if self.device_hour_price is None:
            return None
        return 1e6 * self.device_hour_price / 3600 / point.tokens_per_second_per_device

    def cost(self, point: Point) -> float | None:
        """Of all the tokens."""
        each = self.cost_per_million_tokens(point)
        return None if each is None or self.tokens is None else each * self.tokens / 1e6

    def effort(self, batch_tokens: float) -> Effort | None:
        """Steps and tokens to one loss as multiples of the least of each (McCandlish et al. 2018)."""
        return None if self.critical_tokens is None else effort_over_minimum(batch_tokens, self.critical_tokens)
