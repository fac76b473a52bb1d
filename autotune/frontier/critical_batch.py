"""What a larger batch costs: steps against examples, and the critical batch size between the two.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", arXiv 1812.06162. G is the true gradient, Sigma
the covariance of one example's gradient, H the Hessian; a batch may be counted in examples or in tokens throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What it takes to reach one loss: optimizer steps, and examples (or tokens) seen on the way."""

    steps: float
    examples: float


def simple_noise_scale(trace_sigma: float, gradient_norm_squared: float) -> float:
    """B_simple = tr(Sigma) / |G|^2.

    >>> simple_noise_scale(8.0, 2.0)
    4.0
    """
    return trace_sigma / gradient_norm_squared


def noise_scale(trace_hessian_sigma: float, gradient_hessian_gradient: float) -> float:
    """B_noise = tr(H Sigma) / (G^T H G); B_simple where H is a multiple of the identity."""
    return trace_hessian_sigma / gradient_hessian_gradient


def measured_noise_scale(
    small_batch: float, small_norm_squared: float, big_batch: float, big_norm_squared: float
) -> float:
    """B_simple from the squared gradient norms of two batch sizes, averaged over steps (their appendix A.1).

    E|G_B|^2 = |G|^2 + tr(Sigma) / B is one equation for each batch size.

    >>> measured_noise_scale(1, 2 + 8 / 1, 4, 2 + 8 / 4)
    4.0
    """
    if not 0 < small_batch < big_batch:
        raise ValueError(f"small_batch={small_batch} must be above 0 and below big_batch={big_batch}")
    if not 0 < big_norm_squared < small_norm_squared < math.inf:
        raise ValueError(
            f"squared gradient norms: that of the larger batch, {big_norm_squared}, must be above 0 and below that of "
            f"the smaller, {small_norm_squared}; average over more steps"
        )
    gradient = (big_batch * big_norm_squared - small_batch * small_norm_squared) / (big_batch - small_batch)
    trace = (small_norm_squared - big_norm_squared) / (1 / small_batch - 1 / big_batch)
    if gradient <= 0:
        raise ValueError(
            f"measured_noise_scale: the norms give |G|^2={gradient}, which must be above 0; average over more steps"
        )
    return simple_noise_scale(trace, gradient)


def best_learning_rate(maximum: float, batch: float, noise: float) -> float:
    """eps_opt(B) = eps_max / (1 + B_noise / B). The loss gained per step shrinks by the same factor.

    >>> best_learning_rate(1.0, 100, 100)
    0.5
    """
    return maximum / (1 + noise / batch)


def effort(minimum_steps: float, minimum_examples: float, batch: float) -> Effort:
    """Steps and examples at one batch size, from the least of each: (S/S_min - 1)(E/E_min - 1) = 1 with E = B S.

    S = S_min (1 + B_crit/B), E = E_min (1 + B/B_crit), B_crit = E_min/S_min: at B = B_crit twice the least of both.

    >>> effort(10, 1000, 100)
    Effort(steps=20.0, examples=2000.0)
    """
    critical = minimum_examples / minimum_steps
    return Effort(steps=minimum_steps * (1 + critical / batch), examples=minimum_examples * (1 + batch / critical))


def effort_over_minimum(batch: float, critical_batch: float) -> Effort:
    """`effort` as multiples of the least steps and the least examples.

    >>> effort_over_minimum(300, 100).examples
    4.0
    """
    return Effort(steps=1 + critical_batch / batch, examples=1 + batch / critical_batch)
