"""Our prediction of one published case."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from validation.cases import Case

from autotune.price.price import Estimate, price_transformer
from autotune.price.remat import POLICIES
from autotune.table import LayoutTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """`seconds` of the case's quantity; `fits`: whether the memory of one device suffices.

    `bubble`: share of the step that stages wait for each other. `source`: "priced" or "compiled".
    """

    seconds: float
    bubble: float
    peak_bytes: float
    fits: bool
    source: str
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a saved program of a case says. `peak_bytes`, `fits`: None where its memory is not asked."""

    seconds: float
    peak_bytes: float | None
    fits: bool | None


def compiled_prediction(case: Case) -> Compiled | None:
    """The saved compiled program of this case, replayed; None where none is kept.

    MaxText's runs: `scripts/compiled_cases.py` looks for a program of the same model, slice, remat and batch. Alpa's:
    `scripts/alpa_cases.py`, of the same model, layout, GPUs and batch.
    """
    if case.stack.name == "alpa":
        import alpa_cases

        row = alpa_cases.row_of(alpa_cases.as_alpa(case), None)
        if row is None:
            return None
        return Compiled(seconds=row.seconds, peak_bytes=row.peak_bytes, fits=row.peak_bytes <= row.capacity_bytes)
    if case.target.platform != "tpu":
        return None
    import compiled_cases

    try:
        found = compiled_cases.read_case(case.told)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None  # not a row of that format
    prediction = compiled_cases.predict_case(found)
    if prediction is None:
        return None
    # At the rate of the program that ran, the FLOPs of the shape by which the row makes seconds of the published rate.
    seconds = prediction.step_seconds * found.told_flops / found.flops
    return Compiled(seconds=seconds, peak_bytes=None, fits=None)


def predict(case: Case) -> Predicted:
    """The closed form's answer, or the compiled program's where one is at hand."""
    table = LayoutTable.from_layouts([case.layout])
    table = dataclasses.replace(table, remat=np.array([POLICIES.index(case.remat)]))
    prices = price_transformer(case.transformer, case.batch, case.seq, case.dtype, table, case.target, case.stack)
    found = prices.estimate(0)
    seconds, source = found.step_seconds, "priced"
    if case.quantity == "layer_seconds":
        seconds = _layer_seconds(case, found)
    peak, fits = found.peak_bytes, found.peak_bytes <= capacity_bytes(case)
    compiled = compiled_prediction(case)
    if compiled is not None:
        seconds, source = compiled.seconds, "compiled"
        peak = peak if compiled.peak_bytes is None else compiled.peak_bytes
        fits = fits if compiled.fits is None else compiled.fits
    # In 1F1B a stage waits for its neighbours' transfers in every microbatch: that is part of its bubble.
    counted = ("bubble", "[stage]") if case.layout.schedule == "1f1b" else ("bubble",)
    waits = [term.seconds for name, term in found.terms.items() if any(part in name for part in counted)]
    bubble = sum(waits) / found.step_seconds
    return Predicted(
        seconds=seconds,
        bubble=bubble,
        peak_bytes=peak,
        fits=fits,
        source=source,
        estimate=found,
    )


def capacity_bytes(case: Case) -> float:
    """What one process can have: all of the device's memory under PyTorch; XLA sets its own limit."""
    hardware = case.target.hardware
    return hardware.capacity_bytes if case.stack.name.startswith("xla") else hardware.hbm_bytes


OF_THE_STEP = (
    "matmul.logits", "recompute.logits", "loss", "optimizer", "gradient_copies", "accumulation", "bubble",
)  # fmt: skip
"""Terms that are not a layer's."""


def _layer_seconds(case: Case, found: Estimate) -> float:
    """One layer, forward and backward, of one microbatch."""
    parts = {name: term.seconds for name, term in found.terms.items() if name not in OF_THE_STEP}
    passes = case.layout.accumulate * case.layout.microbatches
    return sum(parts.values()) / passes / case.transformer.layers * case.layout.stage
