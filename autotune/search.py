"""The order of the whole search: enumerate, price, compile the best, replay, measure the best of those, name the limit.

The only place that knows this order. Every layout ends with one status; counts add up to the space.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from autotune.analysis.analyse import analysis_or_failure, unread
from autotune.analysis.analysis import Analysis
from autotune.compile.compilation import COMPILE_SECONDS, RETRIED, Candidate, Compilation, CompileFailure
from autotune.compile.compile import CompileEvent, compile_all, store_key
from autotune.hlo.memory_by_category import read_memory
from autotune.hlo.unreadable import UnreadableProgram
from autotune.measure.measure import Measurement, RunFailure, measure
from autotune.measure.runner import runner_for
from autotune.measure.session import measured_together, session_of
from autotune.memory_use import BY_BATCH, Smaller, failed_use
from autotune.meshes.compiler_options import check_set
from autotune.meshes.fields import one_line, short
from autotune.meshes.installed import why_no_compiler
from autotune.meshes.layout import Layout
from autotune.meshes.layout_words import LAYOUT_WORDS, RematWord
from autotune.meshes.option_sets import TRYING, Trying
from autotune.meshes.placement import default_dcn
from autotune.meshes.target import Target, parse_target
from autotune.option_sets import LEAST, cannot_win, sets_of, with_sets
from autotune.outcomes import Outcomes, fitting
from autotune.price.axis_orders import with_best_orders
from autotune.price.blocks import SLACK, Blocks, large_space, price_in_blocks, priced_again
from autotune.price.changes_that_fit import price_one, scaled_peak
from autotune.price.deferred_reduction import with_deferred_reduction
from autotune.price.priced_space import PricedSpace, price_space, why_illegal
from autotune.price.remat_choices import with_best_sets
from autotune.price.vocabulary_tiles import with_vocabulary_tiles
from autotune.probes.choose import learned, probing
from autotune.probes.fit import probe_of
from autotune.report.comparison import Comparison
from autotune.report.report import Report
from autotune.report.rows import LISTED_PRICED, report_of
from autotune.search_events import (
    EarlyAnswer,
    LayoutCompiled,
    LayoutMeasured,
    Listener,
    Pricing,
    SearchEvent,
    announce,
)
from autotune.space import check_axes, enumerate_layouts, parse_fix
from autotune.store import Store
from autotune.system.job import current as current_job
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

MOST_SIMULATED = 4096
"""Devices of a `cpu:N` target for which programs are compiled: each is threads and buffers of one process."""

PER_MESH = 2
"""Layouts compiled of the same axis sizes before another mesh has its turn: near-copies must leave room for others."""


def tune(
    workload: Workload,
    target: Target | str,
    *,
    axes: Sequence[str] | None = None,
    layouts: Iterable[Layout] | None = None,
    fix: Sequence[str] = (),
    compile: int = 6,
    measure: int | None = None,
    jobs: int = 2,
    store: Store | None = None,
    executor: Executor | None = None,
    on_event: Listener | None = None,
    probe: bool = True,
    option_sets: Trying = "auto",
) -> Report:
    """The report on every layout of `workload` on `target`; `report.plan` is the chosen layout, to be saved and
    applied.

    `compile` best-priced layouts are compiled (`jobs` at a time, or on `executor`), `measure` of them run where the
    target has devices (None: 3 there). `axes` bounds the search, `fix` pins parts ("tensor=8"), `layouts` names all.
    `probe`: of a step of your own, small compiles tell how its amounts scale before the space is priced.
    `option_sets`: whether the best layout is compiled again under the sets of XLA options that its hardware file
    recommends: "auto", as far as the layouts leave compiles over; "try", beyond `compile`; "off".
    `on_event` is called with each event of `autotune.search_events` as it happens; the logger "autotune" gets the text
    of each event at level INFO.
    ValueError names what is wrong with the input.
    """
    return search(
        workload,
        parse_target(target) if isinstance(target, str) else target,
        axes=tuple(axes) if axes is not None else None,
        layouts=tuple(layouts) if layouts is not None else None,
        fix=tuple(fix),
        compile_count=compile,
        measure_count=measure,
        jobs=jobs,
        store=store,
        executor=executor,
        on_event=on_event,
        probe=probe,
        option_sets=option_sets,
    )


def explain(
    workload: Workload, target: Target | str, layout: Layout | str, *, compile: int = 1, **options: Any
) -> Report:
    """The same report for one layout ("fsdp=8,remat=full" or a Layout), without a search.

    `compile`: 1 compiles it, 0 does not. `options`: `measure`, `jobs`, `store`, `executor`, `option_sets` and
    `on_event`, as of `tune`. ValueError as there.
    """
    from autotune.meshes.layout import parse_layout

    chosen = parse_layout(layout) if isinstance(layout, str) else layout
    return tune(workload, target, layouts=(chosen,), compile=compile, probe=False, **options)


def compare(
    workload: Workload, target: Target | str, first: Layout | str, second: Layout | str, *, compile: int = 2,
    **options: Any,
) -> Comparison:  # fmt: skip
    """Two layouts of `workload` on `target` side by side: where the seconds and the bytes went.

    `compile`: 2 compiles both, 0 none: then the prices are compared. A layout is a Layout, or words
    ("fsdp=8,remat=full"). `options`: `jobs`, `store`, `executor` and `on_event`, as of `tune`. ValueError names what is
    wrong with the input.
    """
    from autotune.meshes.layout import parse_layout

    machine = parse_target(target) if isinstance(target, str) else target
    if compile == 1:
        raise ValueError("compare: compile=1 must be 2 (both layouts) or 0 (their prices)")
    pair = [default_dcn(parse_layout(one) if isinstance(one, str) else one, machine) for one in (first, second)]
    report = tune(workload, machine, layouts=pair, compile=compile, measure=0, probe=False, **options)
    rows = {row.layout: row for row in report.rows}
    return Comparison(report=report, first=rows[pair[0]], second=rows[pair[1]])


def search(
    workload: Workload,
    target: Target,
    *,
    axes: tuple[str, ...] | None,
    layouts: tuple[Layout, ...] | None,
    fix: tuple[str, ...],
    compile_count: int,
    measure_count: int | None,
    jobs: int,
    timeout_seconds: float = COMPILE_SECONDS,
    retry: bool = False,
    store: Store | None = None,
    executor: Executor | None = None,
    on_event: Listener | None = None,
    probe: bool = True,
    option_sets: Trying = "auto",
    report_on_interrupt: bool = False,
) -> Report:
    """`tune` with every option; see there.

    `report_on_interrupt`: Ctrl-C while layouts are compiled or measured ends the search with the report on what is
    known by then (`Report.interrupted`); without it KeyboardInterrupt is raised.
    """
    clock, capacity = _Clock(), target.hardware.capacity_bytes
    if option_sets not in TRYING:
        raise ValueError(f"option_sets={short(option_sets)} must be one of {', '.join(TRYING)}")
    wanted = measure_count if measure_count is not None else (3 if target.measurable else 0)
    if wanted and not target.measurable:
        raise ValueError(f"measure: {target.name} has no devices here; only cpu:N and local can be measured")
    if compile_count and target.platform == "cpu" and target.devices > MOST_SIMULATED:
        raise ValueError(
            f"target {target.name}: at most {MOST_SIMULATED:,} simulated devices are compiled for; --compile 0 prices "
            f"{target.devices:,}"
        )
    problem = why_no_compiler(target.platform, target.name) if compile_count and not target.attached else None
    if problem and executor is None:
        raise ValueError(problem)
    space = _space(workload, target, axes, layouts, fix, on_event)
    listed = space.layouts
    if not space.legal.any():
        raise ValueError(_nothing_legal(workload, target, space))
    outcomes = Outcomes(analysis={}, failures={}, measurements={}, run_failures={}, smaller={}, neighbours={})
    events = _Events(on_event, outcomes.kept_failures)

    def compiled(work: Sequence[Candidate]) -> Iterable[tuple[Candidate, Compilation | CompileFailure]]:
        together = current_job() if target.attached else None
        if together is not None:
            from autotune.measure.agreed_runner import compile_together

            return compile_together(together, work)
        return compile_all(
            work, workers=jobs, timeout_seconds=timeout_seconds, store=store, on_event=events, executor=executor,
            retry=retry,
        )  # fmt: skip

    clock.lap("pricing")
    if not compile_count and workload.transformer is None and not (space.legal & (space.peak_bytes <= capacity)).any():
        note = "no layout fits by the trace alone, which can say several times what a compile says: compile one or more"
        space = replace(space, notes=(*space.notes, note))
    if probe and workload.transformer is None:
        space = _probe(space, compile_count, compiled, store)
        clock.lap("probing")
    if listed is None:
        pinned = {*parse_fix(fix), *workload.fixed}
        if "order" not in pinned:
            space = with_best_orders(space, LISTED_PRICED, SLACK * target.hardware.capacity_bytes)
        if "vocab_tiles" not in pinned:
            space = with_vocabulary_tiles(space, LISTED_PRICED)
        if "reduce" not in pinned:
            space = with_deferred_reduction(space, LISTED_PRICED)
        if "remat" not in pinned:
            space = with_best_sets(space, LISTED_PRICED)
        clock.lap("pricing")
    eta = _Eta(workload, target, jobs, store)
    early = _early_answer(space, target, compile_count, eta)
    if early is not None:
        events(early)
    interrupted = False
    try:
        names = _sets_to_try(target, fix, listed, option_sets, outcomes)
        spared = len(names) if option_sets == "auto" and compile_count >= LEAST else 0
        left = _compile(space, workload, target, compile_count, spared, compiled, store, outcomes, eta, events)
        if names:
            most = len(names) if option_sets == "try" else left
            space = _compile_sets(
                space, workload, target, names[:most], compile_count, compiled, store, outcomes, eta, events
            )
        if compile_count and not fitting(outcomes, target):
            _compile_smaller(space, workload, target, compiled, outcomes)
        clock.lap("compiling and reading")
        clock.laps["compilers running"] = events.busy_seconds
        if wanted:
            _measure(workload, target, wanted, store, outcomes, events, retry)
            clock.lap("measuring")
    except KeyboardInterrupt:
        if not report_on_interrupt:
            raise
        interrupted = True
    report = report_of(workload, target, space, outcomes, clock.laps)
    if not interrupted:
        return report
    note = "interrupted before every layout was compiled or measured; the same command goes on from here"
    return replace(report, interrupted=True, notes=(note, *report.notes))


def _early_answer(space: PricedSpace, target: Target, compile_count: int, eta: _Eta) -> EarlyAnswer | None:
    """The fastest layout by price among those that fit; None where none is priced to fit."""
    capacity = target.hardware.capacity_bytes
    fit = np.flatnonzero(space.legal & (space.peak_bytes <= capacity))
    if not len(fit):
        return None
    row = int(fit[np.argmin(space.seconds[fit])])
    price = space.price(row)
    resource, share = next(iter(price.elasticities.items()))
    to_compile = min(compile_count, int((space.legal & space.compilable).sum()))
    return EarlyAnswer(
        layout=str(space.layout(row)),
        step_seconds=price.step_seconds,
        peak_bytes=price.peak_bytes,
        capacity_bytes=capacity,
        binds=f"{resource} {100 * share:.0f} % of the step",
        priced=int(space.legal.sum()),
        to_compile=to_compile,
        left_seconds=eta.left(to_compile),
    )


class _Eta:
    """How long compiles take, from those of the same target in the store and from those of this search."""

    MOST = 8
    """Kept compiles that are read: enough for a median, few enough to take no time."""

    def __init__(self, workload: Workload, target: Target, jobs: int, store: Store | None) -> None:
        self._jobs = jobs
        self._seconds: list[float] = []
        self._workload, self._target, self._store = workload, target, store

    @functools.cached_property
    def _earlier(self) -> list[float]:
        """Seconds of kept compiles; the store is read only where nothing nearer is known."""
        if self._store is None:
            return []
        kept = [
            one for one in self._store.entries() if one.kind == "compile" and one.key.get("target") == self._target.name
        ]
        own = [one for one in kept if one.key.get("workload") == self._workload.fingerprint]
        values = [self._store.value_of(entry) for entry in (own or kept)[-self.MOST :]]
        return [float(value["lower_seconds"]) + float(value["compile_seconds"]) for value in values if value]

    def took(self, outcome: Compilation | CompileFailure) -> float:
        """Take note of a compile of this search; its seconds."""
        if isinstance(outcome, Compilation):
            seconds = outcome.lower_seconds + outcome.compile_seconds
        else:
            seconds = outcome.seconds
        self._seconds.append(seconds)
        return seconds

    def left(self, compiles: int) -> float | None:
        """Expected wall seconds of so many compiles; None where nothing is known."""
        known = (self._seconds or self._earlier) if compiles else []
        if not known:
            return None
        return float(np.median(known)) * -(-compiles // self._jobs)


def _nothing_legal(workload: Workload, target: Target, space: PricedSpace) -> str:
    """One line: the rule that most layouts break, and what one of them says."""
    rules, counts = np.unique(space.broken, return_counts=True)
    if space.dropped:
        counts += [space.dropped.illegal.get(int(rule), 0) for rule in rules]
    row = int(np.flatnonzero(space.broken == rules[np.argmax(counts)])[0])
    every = f"none of {len(space)} layouts is legal; e.g. " if len(space) > 1 else ""
    return f"{workload.name} on {target.name}: {every}{space.layout(row)}: {space.why_illegal(row)}"


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._since
        self._since = now


class _Events:
    """Passes events on. It also records which compiles the store answered, which of the stored answers are a crash or a
    timeout, and for how long a compiler ran."""

    def __init__(self, listener: Listener | None, kept_failures: set[Layout]) -> None:
        self.busy_seconds = 0.0
        self.from_store: set[Layout] = set()
        self._kept_failures = kept_failures
        self._listener = listener
        self._since: float | None = None

    def __call__(self, event: SearchEvent) -> None:
        if isinstance(event, CompileEvent):
            now = time.perf_counter()
            if self._since is not None:
                self.busy_seconds += now - self._since
            self._since = now if event.running else None
            if event.kind == "stored":
                self.from_store.add(event.job.layout)
                if isinstance(event.outcome, CompileFailure) and event.outcome.kind in RETRIED:
                    self._kept_failures.add(event.job.layout)
        announce(event, self._listener)


def _space(workload, target, axes, layouts, fix, on_event: Listener | None) -> PricedSpace:
    """The layouts to judge, judged and priced."""
    for layout in layouts or ():
        check_set(layout.options, target.hardware)
    if layouts is not None:
        if not layouts:
            raise ValueError('layouts: names none; write e.g. "fsdp=8;data=4,tensor=2"')
        completed = tuple(dict.fromkeys(default_dcn(layout, target) for layout in layouts))
        for layout in completed:
            problem = workload.problem(layout)
            if problem:
                raise ValueError(f"layout {layout}: {problem}")
        return price_space(workload, target, LayoutTable.from_layouts(completed), completed)
    wanted = axes if axes is not None else workload.axes
    check_axes(wanted)
    useless = [name for name in wanted if name not in workload.axes]
    if useless:
        known = workload.partition.unusable if workload.partition else {}
        why = f": {known[useless[0]]}" if useless[0] in known else ""
        raise ValueError(
            f"axes: {workload.name} makes no use of {useless[0]!r}{why}; it can use "
            f"{', '.join(workload.axes) or 'none'}"
        )
    fixed = {**parse_fix(fix), **workload.fixed}
    check_set(fixed.get("options"), target.hardware)
    if large_space(workload, target, wanted, fixed):
        blocks = Blocks(axes=wanted, fixed=fixed, orders="order" not in fixed)
        return price_in_blocks(workload, target, blocks, say=lambda line: announce(Pricing(text=line), on_event))
    layers = workload.transformer.layers if workload.transformer else None
    return price_space(workload, target, enumerate_layouts(target, wanted, workload.sequences, layers, fixed))


def shortlist(space: PricedSpace, capacity: float) -> list[int]:
    """Row numbers worth compiling, best-priced first, at most `PER_MESH` of one mesh before others had their turn. Of
    two at one price the one that needs less memory comes first: only one is compiled early.

    Layouts that the user named come last, not never, where they are priced as too large. Those whose schedule the
    reference models cannot be compiled with are left out. Of a search, remat policies and sets of arrays take turns,
    the kind of the best row first: prices of sets are less sure, and no set keeps the best policies from being
    compiled.
    """
    small = space.peak_bytes <= SLACK * capacity
    hopeful = np.flatnonzero(space.legal & space.compilable & (small | (space.layouts is not None)))
    ranked = hopeful[np.lexsort((space.peak_bytes[hopeful], space.seconds[hopeful], ~small[hopeful]))]
    if space.layouts is not None:
        return _meshes_in_turns(space, ranked)
    word = LAYOUT_WORDS["remat"]
    assert isinstance(word, RematWord)
    named = ~word.unnamed(space.table.remat[ranked])
    begins = bool(named[:1].all())
    kinds = [_meshes_in_turns(space, ranked[named == kind]) for kind in (begins, not begins)]
    return [row for turn in itertools.zip_longest(*kinds) for row in turn if row is not None]


def _meshes_in_turns(space: PricedSpace, ranked: np.ndarray) -> list[int]:
    """Ranked rows, at most `PER_MESH` of one mesh before others had their turn, and twins behind all others."""
    first: list[int] = []
    later: list[int] = []
    seen: dict[tuple[int, ...], int] = {}
    priced: set[tuple] = set()
    ranked = ranked[: 50 * LISTED_PRICED]
    unordered = [getattr(space.table, name)[ranked].tolist() for name in LayoutTable.columns() if name != "order"]
    for row, *choices in zip(ranked, *unordered, strict=True):
        mesh = space.mesh_of(int(row))
        # e.g. remat=full and remat=offload; the same in another order
        twins: set[tuple] = {(mesh, float(space.seconds[row])), tuple(choices)}
        new = not twins & priced
        if new:
            seen[mesh] = seen.get(mesh, 0) + 1
        (first if new and seen[mesh] <= PER_MESH else later).append(int(row))
        priced |= twins
    return first + later


_Compiler = Callable[[Sequence[Candidate]], Iterable[tuple[Candidate, Compilation | CompileFailure]]]


def _probe(space: PricedSpace, compile_count: int, compiled: _Compiler, store: Store | None) -> PricedSpace:
    """The space priced anew with what small compiles tell, and notes on what was probed and what was not."""
    if current_job() is not None:
        return replace(space, notes=(*space.notes, "no probe compiles in a job of several processes"))
    plan = probing(space, compile_count)
    if not plan.jobs:
        return replace(space, notes=(*space.notes, *plan.notes))
    outcomes = {job.layout: (job, outcome) for job, outcome in compiled(plan.jobs)}
    probes, failures = [], []
    for job, outcome in (outcomes[job.layout] for job in plan.jobs):  # not as they finish: sums depend on the order
        read = _read(outcome, job, store)
        if isinstance(read, CompileFailure):
            failures.append(read)
        else:
            probes.append(probe_of(job.layout, read))
    probed, line = learned(probes, failures, space.target)
    space = priced_again(space, probed)
    return replace(space, notes=(*space.notes, line, *plan.notes))


def _read(outcome: Compilation | CompileFailure, job: Candidate, store: Store | None) -> Analysis | CompileFailure:
    """What a compile says of its layout; a program that cannot be read is a failure too."""
    if isinstance(outcome, CompileFailure):
        return outcome
    return analysis_or_failure(outcome, job.layout, job.target, store)


def _compile(
    space, workload, target, count: int, spared: int, compiled: _Compiler, store, outcomes: Outcomes, eta: _Eta,
    events: _Events,
) -> int:  # fmt: skip
    """Compile down the shortlist until `count` layouts compiled and fit, in at most 3 x `count` attempts.

    Of the last `spared` layouts those that cannot win are passed over. What is returned is how many of the `count`
    compiles no layout needed.
    Of a user's own step, a trace alone does not say that nothing fits: its peak was seen at 4 times the compiled one.
    Where no layout of the shortlist fits, those priced as too large are compiled, the closest first, in as many
    attempts.
    """
    waiting = shortlist(space, target.hardware.capacity_bytes) if count else []
    attempts = _compile_down(
        space, workload, target, count - spared, 3 * count, waiting, compiled, store, outcomes, eta, events
    )
    if spared:
        waiting = waiting[attempts:]
        hopeless = cannot_win(space, target, outcomes, waiting)
        passed = len(hopeless.intersection(waiting[:spared]))
        able = [row for row in waiting if row not in hopeless]
        attempts += _compile_down(
            space, workload, target, count - passed, 3 * count - attempts, able, compiled, store, outcomes, eta, events
        )
    if count and workload.transformer is None and not fitting(outcomes, target):
        tried = {*outcomes.analysis, *outcomes.failures}
        near = [row for row in closest_first(space) if space.layout(row) not in tried]
        attempts += _compile_down(
            space, workload, target, count, 3 * count, near, compiled, store, outcomes, eta, events
        )
    return max(min(count - len(fitting(outcomes, target)), 3 * count - attempts), 0)


def _sets_to_try(
    target: Target, fix: tuple[str, ...], listed: tuple[Layout, ...] | None, option_sets: Trying, outcomes: Outcomes
) -> tuple[str, ...]:
    """The option sets to compile the best layout under: none where the user pinned the set, and beside layouts that the
    user named only where they are asked for."""
    if option_sets == "off" or (option_sets == "auto" and listed is not None):
        return ()
    if "options" in parse_fix(fix) or any(layout.options is not None for layout in listed or ()):
        if option_sets == "try":
            outcomes.notes.append("no other option set was tried: the word options is given")
        return ()
    names, outcomes.refused_sets = sets_of(target.hardware)
    if option_sets == "try" and not target.hardware.recommended_sets:
        outcomes.notes.append(f"the hardware file of {target.hardware.name} recommends no option sets")
    return names


def _compile_sets(
    space: PricedSpace, workload: Workload, target: Target, names: Sequence[str], count: int, compiled: _Compiler,
    store: Store | None, outcomes: Outcomes, eta: _Eta, events: _Events,
) -> PricedSpace:  # fmt: skip
    """The space with the best compiled layout under each option set, which are compiled."""
    able = fitting(outcomes, target)
    if not able or not names:
        return space
    best = min(able, key=lambda layout: (outcomes.analysis[layout].prediction.step_seconds, str(layout)))
    space, layouts = with_sets(space, best, names)
    outcomes.sets_of, outcomes.tried = best, layouts
    rows = [space.row_of(layout) for layout in layouts]
    done = len(able)
    _compile_down(
        space, workload, target, done + len(rows), len(rows), rows, compiled, store, outcomes, eta, events,
        wanted=max(count, done + len(rows)),
    )  # fmt: skip
    return space


def closest_first(space: PricedSpace) -> list[int]:
    """Row numbers of legal layouts, the least priced peak first, of equal ones the fastest."""
    rows = np.flatnonzero(space.legal & space.compilable)
    return [int(row) for row in rows[np.lexsort((space.seconds[rows], space.peak_bytes[rows]))][: 50 * LISTED_PRICED]]


def _compile_down(
    space, workload, target, count: int, most: int, waiting: list[int], compiled: _Compiler, store, outcomes: Outcomes,
    eta: _Eta, events: _Events, wanted: int | None = None,
) -> int:  # fmt: skip
    """Compile the waiting rows in their order until `count` layouts fit, in at most `most` attempts; their number.

    `wanted`: what the events say is wanted in all; None: `count`.
    """
    attempts = 0
    while waiting and len(fitting(outcomes, target)) < count and attempts < most:
        missing = count - len(fitting(outcomes, target))
        batch, waiting = waiting[:missing], waiting[missing:]
        attempts += len(batch)
        work = [Candidate(workload=workload, layout=space.layout(row), target=target) for row in batch]
        for answered, (job, outcome) in enumerate(compiled(work), 1):
            read = _read(outcome, job, store)
            if isinstance(read, CompileFailure):
                _check_options(job.layout, target, read)
                outcomes.failures[job.layout] = read
            else:
                assert isinstance(outcome, Compilation)
                outcomes.analysis[job.layout] = read
                outcomes.compiled[job.layout] = outcome
            took = None if job.layout in events.from_store else eta.took(outcome)
            possible = len(batch) - answered + min(len(waiting), most - attempts)
            events(_layout_compiled(space, target, job.layout, wanted or count, possible, outcomes, took, eta))
    return attempts


def _layout_compiled(
    space: PricedSpace, target: Target, layout: Layout, count: int, possible: int, outcomes: Outcomes,
    took: float | None, eta: _Eta,
) -> LayoutCompiled:  # fmt: skip
    """The event of one compiled layout. `possible`: how many layouts can still be compiled after it."""
    found, failure = outcomes.analysis.get(layout), outcomes.failures.get(layout)
    able = fitting(outcomes, target)
    best = min(able, key=lambda one: outcomes.analysis[one].prediction.step_seconds, default=None)
    fits_here = layout in able
    problem = failure.reason if failure is not None else None if fits_here else "does not fit"
    return LayoutCompiled(
        layout=str(layout),
        step_seconds=found.prediction.step_seconds if found is not None and fits_here else None,
        priced_seconds=float(space.seconds[space.row_of(layout)]),
        peak_bytes=found.memory.peak_bytes if found is not None else None,
        problem=problem,
        took_seconds=took,
        done=len(able),
        wanted=count,
        best=str(best) if best is not None else None,
        best_seconds=outcomes.analysis[best].prediction.step_seconds if best is not None else None,
        left_seconds=eta.left(min(max(count - len(able), 0), possible)),
    )


def _check_options(layout: Layout, target: Target, failure: CompileFailure) -> None:
    """ValueError where the compiler refuses an option that the layout itself gives."""
    for name, value in layout.compiler_options:
        told = name in failure.reason and (
            "No such compile option" in failure.reason or "not a valid" in failure.reason
        )
        if told:
            raise ValueError(
                f"layout {layout}: xla.{name}={value}: the compiler of {target.name} says: {one_line(failure.reason)}"
            )


def _compile_smaller(
    space: PricedSpace, workload: Workload, target: Target, compiled: _Compiler, outcomes: Outcomes
) -> None:
    """Of the layout that the compiler finds too large by least, the same step on a smaller piece of the batch; where
    that does not fit either, with full recomputation.

    The compiler of a TPU says how much such a step needs and nothing else; the smaller one's program says what for.
    """
    failed = {layout: one.needed_bytes for layout, one in outcomes.failures.items() if one.needed_bytes is not None}
    if not failed:
        return
    layout = min(failed, key=lambda one: (failed[one], str(one)))
    base = price_one(workload, target, layout, space.probed)
    held = failed_use(outcomes.failures[layout], base, None).by_category
    tries: list[tuple[Layout, tuple[str, ...]]]
    tries = [(replace(layout, accumulate=times * layout.accumulate), BY_BATCH) for times in (2, 4, 8, 16)]
    tries.append((replace(layout, remat="full"), ("activations",)))
    for other, less in tries:
        if other == layout or workload.problem(other) or why_illegal(workload, target, other):
            continue
        if (
            scaled_peak(held, base, price_one(workload, target, other, space.probed))
            > SLACK * target.hardware.capacity_bytes
        ):
            continue
        [(_, outcome)] = compiled([Candidate(workload=workload, layout=other, target=target)])
        if isinstance(outcome, Compilation):
            try:
                read_memory(outcome)
            except UnreadableProgram as error:
                outcome = unread(outcome, error)
        outcomes.neighbours[other] = outcome
        if isinstance(outcome, Compilation):
            outcomes.smaller[layout] = Smaller(layout=other, compilation=outcome, less=less)
        if isinstance(outcome, Compilation) or outcome.kind != "oom":
            return


def _measure(
    workload: Workload,
    target: Target,
    count: int,
    store: Store | None,
    outcomes: Outcomes,
    events: _Events,
    retry: bool,
) -> None:
    """Run the best compiled layouts in turns; what one earlier session measured of all of them is not run again.

    A crash or timeout that is kept from an earlier run is an answer too, unless `retry`.
    """
    best = sorted(fitting(outcomes, target), key=lambda layout: outcomes.analysis[layout].prediction.step_seconds)[
        :count
    ]
    if not best:
        return
    keys = {layout: store_key(Candidate(workload=workload, layout=layout, target=target)) for layout in best}
    known = measured_together(store, keys, retry=retry) if store is not None else None
    if known is not None:
        crashed = [one for one, ran in known.items() if isinstance(ran, RunFailure) and ran.kind in RETRIED]
        outcomes.kept_failures.update(crashed)
    else:
        session = session_of(store, keys)
        if session.earlier:
            turns = sum(one.samples for one in session.earlier.values())
            outcomes.notes.append(f"{turns} of the measured turns are of an earlier run that was stopped")

        def keep(layout: Layout, outcome: Measurement | RunFailure) -> None:
            if store is not None:
                session.keep_turn(store, layout, outcome)

        runner = runner_for(workload, target)
        try:
            known = measure(runner, best, earlier=session.earlier, on_outcome=keep)
        finally:
            runner.close()
        if store is not None:
            session.keep(store, known)
    for layout, outcome in known.items():
        outcomes.ran(layout, outcome)
        events(_layout_measured(layout, outcome, outcomes.analysis[layout].prediction.step_seconds))


def _layout_measured(layout: Layout, outcome: Measurement | RunFailure, compiled_seconds: float) -> LayoutMeasured:
    """The event of one layout that was run."""
    if isinstance(outcome, RunFailure):
        median, spread, problem = None, None, outcome.reason
    else:
        median, spread, problem = outcome.median_seconds, outcome.spread_seconds, None
    return LayoutMeasured(
        layout=str(layout),
        median_seconds=median,
        spread_seconds=spread,
        problem=problem,
        compiled_seconds=compiled_seconds,
    )
