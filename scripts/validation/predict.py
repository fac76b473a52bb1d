"""Our prediction of one published case."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from validation.cases import Case

from autotune.analysis.analyse import analyse
from autotune.compile.compilation import Candidate, CompileFailure
from autotune.compile.compile import compile_all
from autotune.price.price import Estimate, price_transformer
from autotune.reference_workload import transformer_workload
from autotune.store import Store
from autotune.table import LayoutTable

COMPILE_SECONDS = 3600.0
"""The most that one compile may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Our answer to one case, per device."""

    seconds: float | None
    """Of a step; None where the compiler finds that it does not fit."""
    peak_bytes: float
    """At the worst moment of a step."""
    fits: bool
    """Whether the memory of one device suffices."""
    source: str
    """"priced" or "compiled": where `seconds` is from."""
    estimate: Estimate
    """The closed form's price with its terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a saved program of a case says, per device."""

    seconds: float | None
    """Of a step; None where the compiler finds that it does not fit."""
    peak_bytes: float | None
    """None where the memory of the program is not asked."""
    fits: bool | None
    """None where the memory of the program is not asked."""


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


def compile_cases(cases: Sequence[Case], store: Store) -> Iterator[tuple[Case, Compiled | str]]:
    """Each case with what its compiled step says, or why it did not compile; what the store has is not compiled anew.

    The step is our reference step of the case's model, under the case's layout, remat and options. An option of the run
    that this compiler does not know any more is left out; the case that is given back says so (`differs`).
    """
    again: list[Case] = []
    jobs = [
        Candidate(
            workload=transformer_workload(case.transformer, batch=case.batch, seq=case.seq, dtype=case.dtype),
            layout=case.layout,
            target=case.target,
        )
        for case in cases
    ]
    for job, outcome in compile_all(jobs, workers=1, timeout_seconds=COMPILE_SECONDS, store=store):
        case = next(case for one, case in zip(jobs, cases, strict=True) if one is job)
        if isinstance(outcome, CompileFailure):
            if known := without_unknown_option(case, outcome.reason):
                again.append(known)
                continue
            if outcome.kind == "oom":
                needed = outcome.needed_bytes
                yield case, Compiled(seconds=None, peak_bytes=needed, fits=False)
            else:
                yield case, f"{outcome.kind}: {outcome.reason}"
            continue
        analysis = analyse(outcome, case.layout, case.target, store)
        peak = analysis.memory.peak_bytes
        fits = peak <= case.target.hardware.capacity_bytes
        yield case, Compiled(seconds=analysis.prediction.step_seconds, peak_bytes=peak, fits=fits)
    if again:
        yield from compile_cases(again, store)


def without_unknown_option(case: Case, reason: str) -> Case | None:
    """The case without the option of its layout that the compiler says it does not know; None for another reason."""
    told = re.search(r"No such compile option: '(\w+)'", reason)
    options = dict(case.layout.compiler_options)
    if told is None or told[1] not in options:
        return None
    left = f"without {told[1]}={options.pop(told[1])}, which this compiler does not know"
    layout = dataclasses.replace(case.layout, compiler_options=tuple(options.items()))
    return dataclasses.replace(case, layout=layout, differs=(*case.differs, left))


def predict(case: Case, compiled: Compiled | None = None) -> Predicted:
    """The closed form's answer, or the compiled program's where one is given or at hand."""
    table = LayoutTable.from_layouts([case.layout])
    prices = price_transformer(case.transformer, case.batch, case.seq, case.dtype, table, case.target, case.stack)
    found = prices.estimate(0)
    seconds: float | None = found.step_seconds
    source = "priced"
    peak, fits = found.peak_bytes, found.peak_bytes <= case.target.hardware.capacity_bytes
    compiled = compiled or compiled_prediction(case)
    if compiled is not None:
        seconds, source = compiled.seconds, "compiled"
        peak = peak if compiled.peak_bytes is None else compiled.peak_bytes
        fits = fits if compiled.fits is None else compiled.fits
    return Predicted(
        seconds=seconds,
        peak_bytes=peak,
        fits=fits,
        source=source,
        estimate=found,
    )
