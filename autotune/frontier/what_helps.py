"""What would move the end of linear scaling and the latency wall: the same curve with one thing made better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.closed_forms import latency_wall_flop, linear_scaling_end_flop, step_latency_seconds
from autotune.frontier.curve import Curve, curve
from autotune.frontier.gpu import Gpu

Change = Callable[[Gpu, Assumptions], tuple[Gpu, Assumptions]]

CHANGES: dict[str, Change] = {
    "network bandwidth x2": lambda gpu, a: (gpu.scaled(network_bandwidth=2), a),
    "HBM bandwidth x2": lambda gpu, a: (gpu.scaled(hbm_bandwidth=2), a),
    "L2 bandwidth x2": lambda gpu, a: (gpu.scaled(l2_bandwidth=2), a),
    "matmul latency /2": lambda gpu, a: (gpu.scaled(matmul_latency=0.5), a),
    "network latency /2": lambda gpu, a: (gpu.scaled(network_latency=0.5), a),
    "both latencies /2": lambda gpu, a: (gpu.scaled(matmul_latency=0.5, network_latency=0.5), a),
    "batch x2": lambda gpu, a: (gpu, replace(a, batch_scale=2 * a.batch_scale)),
    "memory x2": lambda gpu, a: (gpu.scaled(memory=2), a),
    "arithmetic x2": lambda gpu, a: (gpu.scaled(arithmetic=2), a),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far one curve goes, in training FLOP.

    The simulated figures lie on the grid of widths (a step is a factor of 1.2 to 1.8), so small gains may not show;
    the closed forms are smooth but know nothing of memory, L2 or the bubble. None: not met on the curve.
    """

    change: str
    linear_scaling_ends_flop: float | None
    last_feasible_flop: float | None
    first_infeasible_flop: float | None
    closed_form_linear_end_flop: float
    closed_form_wall_flop: float


def reach(change: str, simulated: Curve) -> Reach:
    """Ends of one curve, and its closed forms at the dense exponent for the same deadline and batch scale."""
    gpu, assumptions = simulated.gpu, simulated.assumptions
    end, last = simulated.linear_scaling_end, simulated.last_feasible
    common = {"months": assumptions.months, "batch_scale": assumptions.batch_scale}
    return Reach(
        change=change,
        linear_scaling_ends_flop=None if end is None else end.run.flop,
        last_feasible_flop=None if last is None else last.run.flop,
        first_infeasible_flop=None if simulated.wall is None else simulated.wall.flop,
        closed_form_linear_end_flop=linear_scaling_end_flop(gpu, **common),
        closed_form_wall_flop=latency_wall_flop(step_latency_seconds(gpu), **common),
    )


def what_helps(base: Curve) -> list[Reach]:
    """The base curve's reach first, then that of each change made alone."""
    rows = [reach("as it is", base)]
    for name, change in CHANGES.items():
        gpu, assumptions = change(base.gpu, base.assumptions)
        rows.append(reach(name, curve(gpu, assumptions)))
    return rows
