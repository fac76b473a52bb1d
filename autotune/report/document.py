"""The outcome of a search as the JSON that others read."""

from __future__ import annotations

import dataclasses
from typing import Any

from autotune.meshes.layout import layout_to_json
from autotune.report.findings import Findings, Row, near_capacity


def row_to_json(report: Findings, row: Row) -> dict[str, Any]:
    """One row; unknown is null, never 0. Seconds and bytes are per device and step."""
    analysis, price, measured = row.analysis, row.price, row.measurement
    prediction = analysis.prediction if analysis else None
    chosen = report.ranked[:1] == (row,)
    kept_out = report.kept_out if chosen else None
    return {
        "layout": layout_to_json(row.layout),
        "text": str(row.layout),
        "status": row.status.value,
        "reason": row.reason,
        "step_seconds": {
            "priced": price.step_seconds if price else None,
            "priced_low": price.low_seconds if price else None,
            "priced_high": price.high_seconds if price else None,
            "compiled": prediction.step_seconds if prediction else None,
            "compiled_low": prediction.low_seconds if prediction else None,
            "compiled_high": prediction.high_seconds if prediction else None,
            "measured": measured.median_seconds if measured else None,
            "measured_spread": measured.spread_seconds if measured else None,
            "measured_samples": measured.samples if measured else None,
        },
        "mfu": row.mfu,
        "mfu_causal": row.mfu_causal,
        "tokens_per_second_per_device": row.tokens_per_second_per_device,
        "peak_bytes": row.peak_bytes,
        "peak_bytes_priced": price.peak_bytes if price else None,
        "capacity_bytes": report.target.hardware.capacity_bytes,
        "near_capacity": near_capacity(report, row),
        "memory": dict(row.memory.by_category) if row.memory else None,
        "memory_source": row.memory.source if row.memory else None,
        "largest_buffers": [dataclasses.asdict(buffer) for buffer in row.memory.largest] if row.memory else [],
        "changes_that_fit": [
            {
                "what": change.what,
                "layout": str(change.layout),
                "same_job": change.same_job,
                "peak_bytes": change.peak_bytes,
                "time_change": change.time_change,
                "source": change.source,
            }
            for change in row.changes
        ],
        "binding": {
            "resource": row.limit.resource,
            "elasticity": row.limit.elasticity,
            "runner_up": row.limit.runner_up,
            "margin": row.limit.margin,
            "certain": row.limit.certain,
        }
        if row.limit
        else None,
        "kept_out_by": {
            "constraint": kept_out.constraint if kept_out else None,
            "gain": kept_out.gain if kept_out else None,
            "layout": kept_out.layout if kept_out else None,
        },
        "elasticities": dict(row.elasticities),
        "prices": dict(report.prices) if chosen else None,
        "losses_seconds": dict(row.losses_seconds),
        "losses": [dataclasses.asdict(loss) for loss in analysis.losses] if analysis else None,
        "collectives": [
            {
                "axis": line.axis,
                "tier": line.tier,
                "kind": line.kind,
                "count": line.count,
                "payload_bytes": line.payload_bytes,
                "wire_bytes": line.wire_bytes,
                "seconds": line.seconds,
                "exposed_seconds": line.exposed_seconds,
                "hidden_seconds": line.hidden_seconds,
            }
            for line in prediction.ledger
        ]
        if prediction
        else None,
        "terms_priced": {
            name: {"seconds": term.seconds, "resource": term.resource, "source": term.source}
            for name, term in price.terms.items()
        }
        if price
        else None,
        "compile_seconds": analysis.compile_seconds if analysis else None,
        "warnings": list(analysis.warnings) if analysis else [],
        "not_understood": dict(analysis.not_understood) if analysis else {},
        "log": row.log,
    }


def report_to_json(report: Findings) -> dict[str, Any]:
    """The one JSON document of `tune --json`."""
    ranked = report.ranked
    return {
        "schema": 1,
        "target": report.target.name,
        "devices": report.target.devices,
        "memory_fraction": report.target.memory_fraction,
        "workload": report.workload,
        "in_place_of_plan": list(report.instead),
        "taken": report.taken,
        "ignored": list(report.ignored),
        "not_modelled": list(report.not_modelled),
        "best": row_to_json(report, ranked[0]) if ranked and not report.compilers_word else None,
        "compilers_word": report.compilers_word,
        "interrupted": report.interrupted,
        "rows": [row_to_json(report, row) for row in report.rows],
        "omitted": [
            {
                "reason": item.reason,
                "status": item.status.value,
                "count": item.count,
                "best_step_seconds": item.best_step_seconds,
            }
            for item in report.omitted
        ],
        "counts": dict(report.counts),
        "closest": row_to_json(report, report.closest) if report.closest else None,
        "more_devices": report.more_devices,
        "roomier": {
            "layout": layout_to_json(report.roomier.layout),
            "text": str(report.roomier.layout),
            "peak_bytes": report.roomier.peak_bytes,
            "step_seconds": report.roomier.step_seconds,
            "cost_seconds": report.roomier.cost_seconds,
            "source": report.roomier.source,
        }
        if report.roomier
        else None,
        "option_sets": [
            {
                "name": one.name,
                "text": str(one.layout) if one.layout is not None else None,
                "chosen": one.chosen,
                "step_seconds": one.step_seconds,
                "peak_bytes": one.peak_bytes,
                "reason": one.reason,
            }
            for one in report.option_sets
        ],
        "tied": list(report.tied),
        "rank_correlation": report.rank_correlation,
        "notes": list(report.notes),
        "seconds": dict(report.seconds),
    }
