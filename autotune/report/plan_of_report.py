"""The plan that a report ends in: the best row as a codebase takes it home."""

from __future__ import annotations

from typing import Any

from autotune.meshes.placement import place
from autotune.plan.fields import PACKAGES
from autotune.plan.figures import Figures, axis_bytes_of, collectives_of
from autotune.plan.plan import Plan
from autotune.report.findings import Row
from autotune.report.report import Report
from autotune.system.versions import installed_versions
from autotune.workload.workload import Workload

RUNNERS_UP = 10
"""Runners-up a plan carries."""


def plan_of(report: Report, workload: Workload) -> Plan:
    """The plan of a report's best row."""
    row = report.best()
    target = report.target
    order = place(row.layout, target).device_order()
    return Plan(
        layout=row.layout,
        target=target.name,
        hardware=target.hardware.name,
        shape=target.shape,
        groups=target.groups,
        devices=target.devices,
        device_order=tuple(int(index) for index in order.flat),
        versions=installed_versions(PACKAGES),
        workload=workload.name,
        fingerprint=workload.fingerprint,
        recipe=dict(workload.recipe),
        sequences=workload.sequences,
        seq=workload.seq,
        partition=workload.partition,
        figures=figures_of(row, workload),
        binding=_values(report.best().limit, "resource", "elasticity", "runner_up", "margin"),
        kept_out_by=_values(report.kept_out, "constraint", "layout", "gain"),
        runners_up=tuple(
            {"layout": str(other.layout), "status": other.status, "step_seconds": other.step_seconds,
             "reason": other.reason}
            for other in report.ranked[1 : RUNNERS_UP + 1]
        ),
        guesses=workload.guesses,
        memory_fraction=target.memory_fraction,
        taken=workload.taken,
        ignored=workload.ignored,
        not_modelled=workload.not_modelled,
    )  # fmt: skip


def _values(thing: Any, *names: str) -> dict[str, Any] | None:
    return None if thing is None else {name: getattr(thing, name) for name in names}


def figures_of(row: Row, workload: Workload) -> Figures:
    """What one row of a report says, as a plan keeps it."""
    analysis, measured = row.analysis, row.measurement
    prediction = analysis.prediction if analysis else None
    return Figures(
        priced_seconds=row.price.step_seconds if row.price else None,
        compiled_seconds=prediction.step_seconds if prediction else None,
        compiled_low_seconds=prediction.low_seconds if prediction else None,
        compiled_high_seconds=prediction.high_seconds if prediction else None,
        measured_seconds=measured.median_seconds if measured else None,
        measured_spread_seconds=measured.spread_seconds if measured else None,
        mfu=row.mfu,
        tokens_per_second_per_device=row.tokens_per_second_per_device,
        model_flops=workload.model_flops,
        peak_bytes=row.peak_bytes,
        flops=analysis.flops if analysis else None,
        axis_bytes=axis_bytes_of(prediction.ledger) if prediction else None,
        collectives=collectives_of(prediction.ledger) if prediction else None,
    )
