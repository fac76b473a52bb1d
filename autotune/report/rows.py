"""The Report of a search: a row for what was looked at and the best priced, the rest counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from autotune.analysis.analysis import Analysis
from autotune.analysis.limits import binding_limit, elasticities
from autotune.compile.compilation import Compilation, CompileFailure
from autotune.hlo.memory_by_category import peak_bytes
from autotune.measure.measure import Measurement, tied
from autotune.memory_use import MemoryUse, compiled_use, failed_use, priced_use
from autotune.meshes.compiler_options import REFUSED, as_variable, options_left_out
from autotune.meshes.layout import Layout
from autotune.meshes.option_sets import DEFAULT
from autotune.meshes.target import Target
from autotune.meshes.transformer import NOTABLE_MASK
from autotune.outcomes import Outcomes, fits
from autotune.price.changes_that_fit import Change, devices_needed, smallest_changes
from autotune.price.price import Estimate
from autotune.price.priced_space import PricedSpace, rule_named
from autotune.price.transformer.attention_work import fused_kernel_lacks
from autotune.price.transformer.pipeline_schedules import REFERENCE
from autotune.price.transformer.training_stack import stack_of
from autotune.report.findings import NOT_LISTED, SPARE, Omitted, Roomier, Row, TriedSet, near
from autotune.report.plan_of_report import plan_of
from autotune.report.price_error import price_errors, said
from autotune.report.report import Report
from autotune.report.what_would_help import kept_out_by, prices_of_resources
from autotune.row_status import RowStatus
from autotune.workload.workload import Workload

LISTED_PRICED = 100
"""Rows of the report that were only priced (or priced as too large); the rest is counted by reason."""

EXPLAINED = 3
"""Layouts that were compiled and do not fit for which the smallest changes that would fit are looked up."""

NOT_COMPILABLE = "schedule={} cannot be compiled here: the reference pipeline runs {}"
"""Why a row is priced only, whatever the number of compiles."""


def report_of(workload, target, space: PricedSpace, outcomes: Outcomes, seconds) -> Report:
    capacity = target.hardware.capacity_bytes
    status = np.where(
        space.legal,
        np.where(space.peak_bytes <= capacity, RowStatus.PRICED.rank, RowStatus.OOM.rank),
        RowStatus.ILLEGAL.rank,
    )
    rows: list[Row] = []
    for layout in (*outcomes.analysis, *outcomes.failures):
        row = _examined_row(workload, target, space, layout, outcomes)
        status[space.row_of(layout)] = row.status.rank
        rows.append(row)
    peaks = space.peak_bytes.copy()
    examined = np.zeros(len(status), dtype=bool)
    for row in rows:
        at = space.row_of(row.layout)
        examined[at] = True
        peaks[at] = np.inf if row.peak_bytes is None else row.peak_bytes
    fits_none = not any(word.can_run and (status == word.rank).any() for word in RowStatus)
    misses = (status == RowStatus.OOM.rank) & np.isfinite(peaks)
    closest_row = space.best_by(peaks, misses) if fits_none else None
    omitted = []
    named = space.layouts is not None
    listed = len(status) if named else LISTED_PRICED
    for word in (RowStatus.PRICED, RowStatus.OOM, RowStatus.ILLEGAL):
        members = np.flatnonzero((status == word.rank) & ~examined)
        members = members[np.argsort(space.seconds[members], kind="stable")]
        keep = np.arange(len(members)) < (listed if word is not RowStatus.ILLEGAL or named else 0)
        keep |= members == closest_row
        kept = members[keep]
        prices = [None] * len(kept) if word is RowStatus.ILLEGAL else space.prices.estimates(kept)
        rows += [
            _priced_row(workload, target, space, int(row), word, price) for row, price in zip(kept, prices, strict=True)
        ]
        omitted += _omit(space, members[~keep], word)
    dropped = _dropped(space)
    omitted = _with_dropped(omitted, dropped)
    closest = None if closest_row is None else space.layout(closest_row)
    rows = _with_changes(_ranked(rows), space, outcomes.neighbours, closest)
    runnable = [row for row in rows if row.status.can_run]
    rows = [_with_reason(row, runnable[0]) if row in runnable[1:] else row for row in rows]
    counts = {
        word.value: count
        for word in sorted(RowStatus)
        if (count := int((status == word.rank).sum()) + sum(one.count for one in dropped if one.status is word))
    }
    best = runnable[0] if runnable else None
    report = Report(
        workload=workload.name,
        taken=workload.taken,
        ignored=workload.ignored,
        not_modelled=workload.not_modelled,
        target=target,
        tokens=workload.tokens,
        named=space.layouts or (),
        rows=tuple(rows),
        omitted=tuple(omitted),
        counts=counts,
        prices=prices_of_resources(target, space, runnable) if best else {},
        kept_out=kept_out_by(target, space, runnable, outcomes.failures) if best else None,
        closest=next((row for row in rows if row.layout == closest), None),
        more_devices=devices_needed(space) if closest else None,
        roomier=_roomier(space, runnable, capacity) if best else None,
        tied=_ties(runnable),
        rank_correlation=_rank_correlation(runnable),
        notes=(*_notes(workload, target, space, runnable), *_failed(outcomes), *_kept(outcomes), *outcomes.notes),
        seconds=seconds,
        plan_or_none=None,
        compilers_word=_compilers_word(outcomes),
        compiled=outcomes.compiled.get(best.layout) if best else None,
        option_sets=_option_sets(outcomes, rows),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return replace(report, plan_or_none=plan_of(report, workload)) if best and not report.compilers_word else report


def _option_sets(outcomes: Outcomes, ranked: list[Row]) -> tuple[TriedSet, ...]:
    """The sets that the best layout was compiled under, beginning with its own, and those that were refused."""
    if outcomes.sets_of is None:
        return ()
    rows = {row.layout: row for row in ranked}
    chosen = ranked[0].layout

    def tried(layout: Layout) -> TriedSet:
        row = rows[layout]
        reason = None if row.status.can_run else row.reason
        if row.analysis is not None and reason is None:
            left = [line.removeprefix(REFUSED).strip() for line in row.analysis.warnings if line.startswith(REFUSED)]
            reason = f"left out, since the compiler refuses them: {', '.join(left)}" if left else None
        return TriedSet(
            name=layout.options or DEFAULT,
            layout=layout,
            chosen=layout == chosen,
            step_seconds=row.step_seconds if row.status.can_run else None,
            peak_bytes=row.peak_bytes,
            reason=reason,
        )

    refused = [
        TriedSet(name=one.name, layout=None, chosen=False, step_seconds=None, peak_bytes=None, reason=one.reason)
        for one in outcomes.refused_sets
    ]
    looked_at = [layout for layout in (outcomes.sets_of, *outcomes.tried) if layout in rows]
    return (*map(tried, looked_at), *refused)


def _compilers_word(outcomes: Outcomes) -> str | None:
    """Where nothing compiled and memory was not the reason: how many compiles failed, and what the most of them say."""
    failures = list(outcomes.failures.values())
    if outcomes.analysis or not failures or any(one.kind == "oom" for one in failures):
        return None
    reasons = Counter(one.reason for one in failures)
    reason, count = reasons.most_common(1)[0]
    say_so = f"all {count} compiles failed" if count == len(failures) else f"{len(failures)} compiles failed, {count}"
    return f"no plan, since {say_so if len(failures) > 1 else 'the compile failed'}: {reason}"


def _examined_row(workload, target, space: PricedSpace, layout: Layout, outcomes: Outcomes) -> Row:
    """The row of a layout that was compiled, or tried."""
    price = space.price(space.row_of(layout))
    analysis = outcomes.analysis.get(layout)
    if analysis is None:
        failure = outcomes.failures[layout]
        word = RowStatus.of_failure(failure.kind)
        memory = None
        if failure.kind == "oom":
            memory = failed_use(failure, price, outcomes.smaller.get(layout))
        return _row(workload, target, layout, word, price, reason=failure.reason, log=failure.log_path,
                    peak=failure.needed_bytes, memory=memory)  # fmt: skip
    measurement, run_failure = outcomes.measurements.get(layout), outcomes.run_failures.get(layout)
    peak = analysis.memory.peak_bytes
    if not fits(analysis, target):
        word = RowStatus.OOM
        over = (peak - target.hardware.capacity_bytes) / 2**30
        reason = f"compiled peak {peak / 2**30:.2f} GiB is {over:.2f} GiB over the capacity"
    elif run_failure is not None and run_failure.phase != "run" and run_failure.kind != "oom":
        # What broke is the measuring, before the first step: the compiled figures still hold.
        word, reason = RowStatus.COMPILED, f"not measured: {run_failure.phase}: {run_failure.reason}"
    elif run_failure is not None:
        word = RowStatus.of_failure(run_failure.kind)
        reason = f"{run_failure.phase}: {run_failure.reason}"
    else:
        word, reason = (RowStatus.MEASURED if measurement else RowStatus.COMPILED), None
    return _row(workload, target, layout, word, price, reason=reason, log=analysis.log, peak=peak, analysis=analysis,
                measurement=measurement)  # fmt: skip


def _priced_row(workload, target, space: PricedSpace, row: int, word: RowStatus, price: Estimate | None) -> Row:
    layout = space.layout(row)
    reason = None
    if price is None:
        return _row(workload, target, layout, word, None, reason=space.why_illegal(row))
    if not space.can_be_compiled(row):
        if reasons := workload.priced_only(target.platform):
            reason = f"priced only: {'; '.join(reasons)}"
        else:
            reason = NOT_COMPILABLE.format(layout.schedule, " and ".join(REFERENCE))
    if word is RowStatus.OOM:
        over = (price.peak_bytes - target.hardware.capacity_bytes) / 2**30
        too_large = f"priced peak {price.peak_bytes / 2**30:.2f} GiB is {over:.2f} GiB over the capacity"
        reason = f"{too_large}; {reason}" if reason else too_large
    return _row(workload, target, layout, word, price, reason=reason, peak=price.peak_bytes, shares=price.elasticities)


def _row(
    workload: Workload,
    target: Target,
    layout: Layout,
    status: RowStatus,
    price: Estimate | None,
    *,
    reason: str | None = None,
    log: str | None = None,
    peak: float | None = None,
    analysis: Analysis | None = None,
    measurement: Measurement | None = None,
    memory: MemoryUse | None = None,
    shares: Mapping[str, float] | None = None,
) -> Row:
    """A row with what follows from its numbers: MFU, tokens per second, the limit, the losses."""
    if analysis:
        memory = compiled_use(analysis.memory)
    elif price is not None and memory is None and status in (RowStatus.PRICED, RowStatus.OOM):
        memory = priced_use(price)
    if analysis:
        shares = elasticities(analysis.prediction.by_resource())
    runs = status.can_run
    best = measurement.median_seconds if measurement else None
    if best is None:
        best = analysis.prediction.step_seconds if analysis else (price.step_seconds if price else None)
    return Row(
        layout=layout,
        status=status,
        reason=reason,
        price=price,
        analysis=analysis,
        measurement=measurement,
        peak_bytes=peak,
        memory=memory,
        changes=(),
        mfu=_utilisation(workload.model_flops, workload, target, best) if runs else None,
        mfu_causal=_utilisation(causal_flops(workload), workload, target, best) if runs else None,
        tokens_per_second_per_device=workload.tokens / best / target.devices if runs and best else None,
        limit=binding_limit(shares, certain=not (analysis and analysis.not_understood)) if shares else None,
        elasticities=shares or {},
        losses_seconds=_losses(workload, target, layout, analysis, price),
        log=log,
    )


def causal_flops(workload: Workload) -> float | None:
    """`Workload.model_flops` less what a causal mask hides (the numerator of `mfu_causal`); None without a shape."""
    if workload.transformer is None:
        return None
    assert workload.model_flops is not None
    return workload.model_flops - workload.transformer.masked_flops(workload.sequences, workload.seq)


def _utilisation(flops: float | None, workload: Workload, target: Target, seconds: float | None) -> float | None:
    if flops is None or not seconds:
        return None
    return flops / (seconds * target.devices * target.hardware.peak(workload.dtype))


def _roomier(space: PricedSpace, runnable: list[Row], capacity: float) -> Roomier | None:
    """Where the best row is near the capacity, the best layout of the space that keeps `SPARE` of it free.

    Rows that were compiled or measured answer with their own numbers, all others with the closed form, scaled by what
    is known of the best row; the search chose that row first, so none is taken to be faster.
    """
    best = runnable[0]
    base = best.step_seconds
    if base is None or best.peak_bytes is None or not near(best.peak_bytes, capacity):
        return None
    found = []
    priced = space.legal & (space.peak_bytes <= (1 - SPARE) * capacity)
    for row in runnable:
        if row.status is RowStatus.PRICED:
            continue
        priced[space.row_of(row.layout)] = False
        if row.peak_bytes is not None and row.peak_bytes <= (1 - SPARE) * capacity and row.step_seconds is not None:
            found.append((row.step_seconds, str(row.layout), row.layout, row.peak_bytes, row.status.value))
    at = space.best_by(space.seconds, priced)
    if at is not None:
        trust = base / best.price.step_seconds if best.price else 1.0
        seconds = max(base, float(space.seconds[at]) * trust)
        found.append((seconds, str(space.layout(at)), space.layout(at), float(space.peak_bytes[at]), "priced"))
    if not found:
        return None
    seconds, _, layout, peak, source = min(found, key=lambda one: one[:2])
    return Roomier(layout=layout, peak_bytes=peak, step_seconds=seconds, cost_seconds=seconds - base, source=source)


def _losses(
    workload, target, layout: Layout, analysis: Analysis | None, price: Estimate | None
) -> dict[str, float | None]:
    """Seconds of the step lost to the pipeline bubble, to recomputation, to slots of experts beyond their mean load,
    to FLOPs that several devices repeat, and to slices that wait for the slowest."""
    if analysis is None:
        found: dict[str, float | None] = dict.fromkeys(("bubble", "recompute", "padding", "redundant", "waiting"))
        if price is not None:
            found |= {"bubble": 0.0, "waiting": 0.0}
            found |= {name.partition("[")[0]: one.seconds for name, one in price.terms.items() if one.resource is None}
        return found
    bubble = sum(loss.seconds or 0.0 for loss in analysis.losses if loss.kind == "bubble")
    padding = redundant = None
    if workload.transformer is not None and analysis.flops:
        empty = workload.transformer.padding_flops(workload.sequences, workload.seq)
        matmul = analysis.prediction.by_resource().get("matmul", 0.0)
        padding = matmul * empty / (analysis.flops * target.devices)
    if analysis.traced:
        redundant = sum(loss.seconds or 0.0 for loss in analysis.losses if loss.kind == "redundant")
    recompute = analysis.prediction.losses.get("recompute")
    waiting = analysis.prediction.losses.get("waiting", 0.0)
    return {
        "bubble": bubble, "recompute": recompute, "padding": padding, "redundant": redundant, "waiting": waiting,
    }  # fmt: skip


def _omit(space: PricedSpace, members: np.ndarray, word: RowStatus) -> list[Omitted]:
    """Rows of one status, by index, counted: illegal ones by the rule that they break."""
    if not members.size:
        return []
    if word is not RowStatus.ILLEGAL:
        best = float(space.seconds[members].min())
        return [Omitted(reason=NOT_LISTED[word], count=len(members), best_step_seconds=best, status=word)]
    groups: dict[str, int] = {}
    codes, first, counts = np.unique(space.broken[members], return_index=True, return_counts=True)
    for row, count in zip(members[first], counts, strict=True):  # rules on the same size share a name
        rule = space.rule_of(int(row))
        groups[rule] = groups.get(rule, 0) + int(count)
    return [
        Omitted(reason=f"illegal: {rule}", count=count, best_step_seconds=None, status=word)
        for rule, count in sorted(groups.items(), key=lambda item: (-item[1], item[0]))
    ]


def _dropped(space: PricedSpace) -> list[Omitted]:
    """Layouts of a large space that are in no row, counted by status and reason."""
    if space.dropped is None:
        return []
    counted = [(word, NOT_LISTED[word], count) for word, count in
               ((RowStatus.PRICED, space.dropped.fits), (RowStatus.OOM, space.dropped.oom))]  # fmt: skip
    counted += [(RowStatus.ILLEGAL, f"illegal: {rule_named(code)}", n) for code, n in space.dropped.illegal.items()]
    return [Omitted(reason=reason, count=count, best_step_seconds=None, status=word)
            for word, reason, count in counted if count]  # fmt: skip


def _with_dropped(omitted: list[Omitted], dropped: list[Omitted]) -> list[Omitted]:
    """Both together, by status and reason; rules stay sorted, the most broken first."""
    found = {(item.status, item.reason): item for item in omitted}
    for item in dropped:  # rules on the same size share a name
        known = found.get((item.status, item.reason))
        found[item.status, item.reason] = replace(known, count=known.count + item.count) if known else item
    rules = [item for item in found.values() if item.status is RowStatus.ILLEGAL]
    others = [item for item in found.values() if item.status is not RowStatus.ILLEGAL]
    return others + sorted(rules, key=lambda item: -item.count)


def _ranked(rows: list[Row]) -> list[Row]:
    """Measured before compiled before priced, the faster first; what cannot run comes last. A tie goes to the text."""
    return sorted(rows, key=lambda row: (row.status.rank, row.step_seconds or 0.0, str(row.layout)))


def _with_reason(row: Row, best: Row) -> Row:
    """The runner-up with why it lost: the resources that take longer than in the best, largest first."""
    if row.analysis is None or best.analysis is None:
        if row.reason is None and row.status is RowStatus.PRICED and best.status is not RowStatus.PRICED:
            return replace(row, reason="not compiled: priced slower than those that were")
        return row
    mine, theirs = row.analysis.prediction.by_resource(), best.analysis.prediction.by_resource()
    change = {name: mine.get(name, 0.0) - theirs.get(name, 0.0) for name in {*mine, *theirs}}
    total = row.analysis.prediction.step_seconds - best.analysis.prediction.step_seconds
    parts = sorted(change.items(), key=lambda item: -abs(item[1]))[:3]
    listed = ", ".join(f"{name} {_signed(value)}" for name, value in parts if abs(value) > 1e-3 * abs(total))
    return replace(row, reason=f"{_signed(total)} a step (compiled): {listed}")


def _signed(seconds: float) -> str:
    scale, unit = (1.0, "s") if abs(seconds) >= 1 else (1e3, "ms") if abs(seconds) >= 1e-3 else (1e6, "us")
    return f"{seconds * scale:+.3g} {unit}"


def _with_changes(
    rows: list[Row],
    space: PricedSpace,
    compiled: Mapping[Layout, Compilation | CompileFailure],
    closest: Layout | None,
) -> list[Row]:
    """What would make them fit, of the layouts that were compiled and do not, and of the closest where nothing fits.

    Of a neighbour that was `compiled`, the compiler's word counts.
    """
    wanted = [row for row in rows if row.status is RowStatus.OOM and row.memory and row.memory.source != "priced"][
        :EXPLAINED
    ]
    wanted += [row for row in rows if row.layout == closest and row not in wanted]

    def changes(row: Row) -> Iterator[Change]:
        held = row.memory.by_category if row.memory else None
        for change in smallest_changes(space.workload, space.target, row.layout, held, space.probed):
            outcome = compiled.get(change.layout) if change.same_job else None
            if isinstance(outcome, Compilation):
                yield replace(change, peak_bytes=peak_bytes(outcome), source="compiled")
            elif outcome is None:
                yield change

    return [replace(row, changes=tuple(changes(row))) if row in wanted else row for row in rows]


def _ties(runnable: list[Row]) -> tuple[str, ...]:
    """Layouts whose measured time cannot be told from the best one's."""
    if not runnable or runnable[0].measurement is None:
        return ()
    best = runnable[0].measurement
    return tuple(str(row.layout) for row in runnable[1:] if row.measurement is not None and tied(best, row.measurement))


def _rank_correlation(runnable: list[Row]) -> float | None:
    """Spearman's rank correlation of compiled against measured times; None below three layouts."""
    pairs = [
        (row.analysis.prediction.step_seconds, row.measurement.median_seconds)
        for row in runnable
        if row.analysis and row.measurement
    ]
    if len(pairs) < 3:
        return None
    compiled, measured = (np.argsort(np.argsort(column)) for column in zip(*pairs, strict=True))
    return float(np.corrcoef(compiled, measured)[0, 1])


def _failed(outcomes: Outcomes) -> tuple[str, ...]:
    """A line where compiles failed for another reason than memory and none went through: the prices stand unproved."""
    failed = [failure for failure in outcomes.failures.values() if failure.kind != "oom"]
    if outcomes.analysis or not failed:
        return ()
    return (f"none of {len(failed)} compiles went through, so the choice is by price alone; e.g. {failed[0].reason}",)


def _kept(outcomes: Outcomes) -> tuple[str, ...]:
    """A line where a crash or timeout was not seen now but is an answer of the store."""
    count = len(outcomes.kept_failures)
    if not count:
        return ()
    what = "1 answer is a crash or timeout" if count == 1 else f"{count} answers are crashes or timeouts"
    return (f"{what} kept from an earlier run; --retry tries {'it' if count == 1 else 'them'} again",)


def _sources(price: Estimate) -> str:
    """What each term of a price is known from, in one line."""
    named: dict[str, list[str]] = {}
    for name, term in price.terms.items():
        if term.resource is not None:
            named.setdefault(term.source, []).append(name)
    return "terms of the chosen price, " + "; ".join(f"{word}: {', '.join(names)}" for word, names in named.items())


def _attention_notes(workload: Workload, target: Target) -> list[str]:
    """What of a reference model's attention runs in another way than in the fastest public kernel for the chip."""
    shape = workload.transformer
    if shape is None:
        return []
    stack = stack_of(target.hardware, workload.dtype)
    packed = workload.training.packing > 0
    if target.platform == "tpu" and packed:
        return ["scores between packed documents are computed and masked: splash attention skips no tile for them"]
    if not stack.flash or target.platform == "tpu":
        return []
    layers, sinks = 0, 0
    lacking: list[str] = []
    for kind, count in shape.described.kinds:
        found = fused_kernel_lacks(stack, kind.attention.head_dim, kind.attention)
        layers, lacking = layers + (count if found else 0), lacking + found
        sinks += count if kind.attention.sinks and not found else 0
    notes = []
    if layers:
        notes.append(
            f"attention of {layers} of {shape.layers} layers runs as plain matmuls: JAX's call to cuDNN does not take "
            f"{', '.join(dict.fromkeys(lacking))}; a kernel that does is faster"
        )
    if sinks:
        notes.append(
            f"attention sinks of {sinks} layers cost one more attention in the backward pass: JAX's call to cuDNN has "
            "none"
        )
    if packed and layers < shape.layers:
        notes.append(
            "packed documents reach cuDNN as a mask of queries times keys, and scores between documents are computed: "
            "a kernel for packed documents (Transformer Engine's THD layout) computes each alone"
        )
    return notes


def _notes(workload: Workload, target: Target, space: PricedSpace, runnable: list[Row]) -> tuple[str, ...]:
    notes = [*workload.guesses, *filter(None, [workload.model_note]), *space.notes]
    ratios = [
        row.analysis.prediction.step_seconds / row.price.step_seconds for row in runnable if row.analysis and row.price
    ]
    if ratios:
        notes.append(
            f"compiled time over priced time, {len(ratios)} layouts: {min(ratios):.2f} to {max(ratios):.2f}; "
            "layouts that were only priced rank below all compiled ones"
        )
    elif runnable and runnable[0].reason:
        notes.append(f"{runnable[0].layout}: {runnable[0].reason}; its numbers are closed-form prices")
    elif runnable and target.platform != "cpu":
        notes.append("nothing was compiled: these are closed-form prices")
    flops, shown = workload.model_flops, causal_flops(workload)
    if flops and shown and 1 - shown / flops > NOTABLE_MASK:
        notes.append(
            f"MFU counts attention in full, as is usual: {100 * (1 - shown / flops):.0f} % of the model's FLOPs here "
            "are what a causal mask hides and a fused kernel does not compute; causal MFU leaves them out"
        )
    notes += _attention_notes(workload, target)
    if workload.transformer is None and runnable:
        errors = said(price_errors(runnable), "the trace and probes" if space.probed else "the trace")
        notes += [_sources(runnable[0].price)] if runnable[0].price else []
        notes += [errors] if errors else []
    chosen = runnable[0].layout.options if runnable else None
    left_out = options_left_out(target.hardware, chosen) if not target.attached else {}
    notes += [
        f"compiler option {name} of the {target.hardware.name} file is left out: it holds for {requirement}"
        for name, requirement in left_out.items()
    ]
    flags = as_variable(runnable[0].layout, target.hardware) if runnable and not target.attached else None
    notes += [f"the compiler was told, and a run elsewhere needs: {flags}"] if flags else []
    if target.memory_fraction is not None and not target.attached:
        notes.append(f"a run needs: XLA_PYTHON_CLIENT_MEM_FRACTION={target.memory_fraction:g}")
    notes += sorted({warning for row in runnable[:1] if row.analysis for warning in row.analysis.warnings})
    return tuple(notes)
