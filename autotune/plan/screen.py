"""A Plan for a reader: its headline and its lines. The figures carry the word that says where they are from."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.plan.fields import PlanFields
from autotune.units import bytes_text, percent, seconds_text


def plan_headline(plan: PlanFields) -> str:
    """Layout, machine, step time and its source, in one line."""
    return f"{plan.layout} for {plan.workload} on {plan.target} ({plan.devices} devices): {_step(plan)}"


def plan_entries(plan: PlanFields) -> Iterator[tuple[str, str]]:
    """(name, words) of what the plan says: layout, job, machine, figures, limit, runners-up, versions, guesses."""
    figures, binding, kept_out = plan.figures, plan.binding, plan.kept_out_by
    yield "layout", str(plan.layout)
    yield "job", f"{plan.workload}: {plan.sequences:,} sequences of {plan.seq:,} tokens in one step"
    if plan.taken:
        yield "taken", plan.taken
    yield "machine", f"{plan.target}: {plan.devices} devices ({plan.hardware})"
    yield "step", _step(plan)
    if figures.mfu is not None:
        yield "MFU", percent(figures.mfu)
    if figures.tokens_per_second_per_device is not None:
        yield "rate", f"{figures.tokens_per_second_per_device:,.0f} tokens/s/device"
    if figures.peak_bytes is not None:
        yield "memory", f"{bytes_text(figures.peak_bytes)} of {bytes_text(plan.machine().hardware.capacity_bytes)}"
    if binding is not None and isinstance(binding.get("elasticity"), (int, float)):
        yield "binds", f"{binding.get('resource')} {percent(binding['elasticity'])}"
    if kept_out is not None and kept_out.get("layout"):
        yield "excluded", f"{kept_out['layout']}, by {kept_out.get('constraint')}"
    for other in plan.runners_up:
        seconds, why = other.get("step_seconds"), other.get("reason")
        time = f", {seconds_text(seconds)} a step" if isinstance(seconds, (int, float)) else ""
        yield "runner-up", f"{other.get('layout')}{time} ({other.get('status')}){f': {why}' if why else ''}"
    yield "made with", ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    for guess in plan.guesses:
        yield "guess", guess
    for note in plan.not_modelled:
        yield "note", f"not modelled: {note}"


def _step(plan: PlanFields) -> str:
    figures = plan.figures
    known = {
        "measured": figures.measured_seconds,
        "compiled": figures.compiled_seconds,
        "priced": figures.priced_seconds,
    }
    said = [f"{seconds_text(value)} a step ({word})" for word, value in known.items() if value is not None]
    return ", ".join(said) or "step time not known"
