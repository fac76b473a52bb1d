"""The order of the whole search: enumerate, price, compile the best, replay, measure the best of those, name the limit.

The only place that knows this order. Every layout ends with one status; counts add up to the space.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from autotune.compile.compilation import Compilation, CompileFailure, CompileJob
from autotune.compile.compile import CompileEvent, compile_all, store_key
from autotune.measure.measure import Measurement, RunFailure, measure
from autotune.measure.measure import from_json as measurement_from_json
from autotune.measure.measure import to_json as measurement_to_json
from autotune.measure.runner import runner_for
from autotune.memory_use import BY_BATCH, Smaller, failed_use
from autotune.meshes.fields import one_line
from autotune.meshes.installed import why_no_compiler
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target, parse_target
from autotune.outcomes import Outcomes, fitting
from autotune.price.blocks import SLACK, Blocks, large_space, price_in_blocks
from autotune.price.changes import price_one, scaled_peak
from autotune.price.orders import with_best_orders
from autotune.price.space import PricedSpace, price_space, why_illegal
from autotune.probes.choose import learned, probing
from autotune.probes.fit import probe_of
from autotune.read_compilation import evidence_of
from autotune.report.report import Report
from autotune.report.rows import LISTED_PRICED, report_of
from autotune.space import check_axes, complete, enumerate_layouts, parse_fix
from autotune.store import Key, Store
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
    on_event: Callable[[CompileEvent], None] | None = None,
    probe: bool = True,
) -> Report:
    """The report on every layout of `workload` on `target`; `report.plan` is what to take home.

    `compile` best-priced layouts are compiled (`jobs` at a time, or on `executor`), `measure` of them run where the
    target has devices (None: 3 there). `axes` bounds the search, `fix` pins parts ("tensor=8"), `layouts` names all.
    `probe`: of a step of your own, small compiles tell how its amounts scale before the space is priced.
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
    )


def explain(workload: Workload, target: Target | str, layout: Layout | str, **options) -> Report:
    """The same report for one layout, without a search."""
    from autotune.meshes.layout import parse_layout

    chosen = parse_layout(layout) if isinstance(layout, str) else layout
    return tune(workload, target, layouts=(chosen,), compile=1, probe=False, **options)


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
    timeout_seconds: float = 900.0,
    retry: bool = False,
    store: Store | None = None,
    executor: Executor | None = None,
    on_event: Callable[[CompileEvent], None] | None = None,
    probe: bool = True,
    say: Callable[[str], None] | None = None,
) -> Report:
    """`tune` with every option; see there. `say` hears what a long pricing is doing, a line at a time."""
    clock = _Clock()
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
    space = _space(workload, target, axes, layouts, fix, say)
    listed = space.layouts
    if not space.legal.any():
        raise ValueError(_nothing_legal(workload, target, space))
    outcomes = Outcomes(evidence={}, failures={}, measurements={}, run_failures={}, smaller={}, neighbours={})
    busy = _Busy(on_event)

    def compiled(work: Sequence[CompileJob]) -> Iterable[tuple[CompileJob, Compilation | CompileFailure]]:
        together = current_job() if target.attached else None
        if together is not None:
            from autotune.measure.agreed_runner import compile_together

            return compile_together(together, work)
        return compile_all(
            work, workers=jobs, timeout_seconds=timeout_seconds, store=store, on_event=busy, executor=executor,
            retry=retry,
        )  # fmt: skip

    clock.lap("pricing")
    if probe and workload.transformer is None:
        space = _probe(space, compile_count, compiled, store)
        clock.lap("probing")
    if listed is None and "order" not in {**parse_fix(fix), **workload.fixed}:
        space = with_best_orders(space, LISTED_PRICED, SLACK * target.hardware.capacity_bytes)
        clock.lap("pricing")
    _compile(space, workload, target, compile_count, compiled, store, outcomes)
    if compile_count and not fitting(outcomes, target):
        _compile_smaller(space, workload, target, compiled, outcomes)
    clock.lap("compiling and reading")
    clock.laps["compilers running"] = busy.seconds
    if wanted:
        _measure(workload, target, wanted, store, outcomes)
        clock.lap("measuring")
    return report_of(workload, target, space, outcomes, clock.laps)


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


class _Busy:
    """Passes events on, and adds up the wall time during which at least one compile was running."""

    def __init__(self, on_event: Callable[[CompileEvent], None] | None) -> None:
        self.seconds = 0.0
        self._on_event = on_event
        self._since: float | None = None

    def __call__(self, event: CompileEvent) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if event.running else None
        if self._on_event:
            self._on_event(event)


def _space(workload, target, axes, layouts, fix, say) -> PricedSpace:
    """The layouts to judge, judged and priced."""
    if layouts is not None:
        if not layouts:
            raise ValueError('layouts: names none; write e.g. "fsdp=8;data=4,tensor=2"')
        completed = tuple(dict.fromkeys(complete(layout, target) for layout in layouts))
        for layout in completed:
            problem = workload.problem(layout)
            if problem:
                raise ValueError(f"layout {layout}: {problem}")
        return price_space(workload, target, LayoutTable.from_layouts(completed), completed)
    wanted = axes if axes is not None else workload.axes
    check_axes(wanted)
    useless = [name for name in wanted if name not in workload.axes]
    if useless:
        raise ValueError(
            f"axes: {workload.name} makes no use of {useless[0]!r}; it can use {', '.join(workload.axes) or 'none'}"
        )
    fixed = {**parse_fix(fix), **workload.fixed}
    if large_space(workload, target, wanted, fixed):
        blocks = Blocks(axes=wanted, fixed=fixed, orders="order" not in fixed)
        return price_in_blocks(workload, target, blocks, say=say)
    layers = workload.transformer.layers if workload.transformer else None
    return price_space(workload, target, enumerate_layouts(target, wanted, workload.sequences, layers, fixed))


def shortlist(space: PricedSpace, capacity: float) -> list[int]:
    """Row numbers worth compiling, best-priced first, at most `PER_MESH` of one mesh before others had their turn. Of
    two at one price the one that needs less memory comes first: only one is compiled early.

    Layouts that the user named come last, not never, where they are priced as too large.
    """
    small = space.peak_bytes <= SLACK * capacity
    hopeful = np.flatnonzero(space.legal & (small | (space.layouts is not None)))
    ranked = hopeful[np.lexsort((space.peak_bytes[hopeful], space.seconds[hopeful], ~small[hopeful]))]
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


_Compiler = Callable[[Sequence[CompileJob]], Iterable[tuple[CompileJob, Compilation | CompileFailure]]]


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
        if isinstance(outcome, Compilation):
            probes.append(probe_of(job.layout, evidence_of(outcome, job.layout, job.target, store)))
        else:
            failures.append(outcome)
    probed, line = learned(probes, failures, space.target)
    space = space.priced_with(probed)
    return replace(space, notes=(*space.notes, line, *plan.notes))


def _compile(space, workload, target, count: int, compiled: _Compiler, store, outcomes: Outcomes) -> None:
    """Compile down the shortlist until `count` layouts compiled and fit, in at most 3 x `count` attempts."""
    waiting = shortlist(space, target.hardware.capacity_bytes) if count else []
    attempts = 0
    while waiting and len(fitting(outcomes, target)) < count and attempts < 3 * count:
        missing = count - len(fitting(outcomes, target))
        batch, waiting = waiting[:missing], waiting[missing:]
        attempts += len(batch)
        work = [CompileJob(workload=workload, layout=space.layout(row), target=target) for row in batch]
        for job, outcome in compiled(work):
            if isinstance(outcome, Compilation):
                outcomes.evidence[job.layout] = evidence_of(outcome, job.layout, target, store)
            else:
                _check_options(job.layout, target, outcome)
                outcomes.failures[job.layout] = outcome


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
        [(_, outcome)] = compiled([CompileJob(workload=workload, layout=other, target=target)])
        outcomes.neighbours[other] = outcome
        if isinstance(outcome, Compilation):
            outcomes.smaller[layout] = Smaller(layout=other, compilation=outcome, less=less)
        if isinstance(outcome, Compilation) or outcome.kind != "oom":
            return


def _measure(workload: Workload, target: Target, count: int, store: Store | None, outcomes: Outcomes) -> None:
    """Run the best compiled layouts in turns; what was measured before on this machine is not run again."""
    best = sorted(fitting(outcomes, target), key=lambda layout: outcomes.evidence[layout].prediction.step_seconds)[
        :count
    ]
    keys = {layout: store_key(CompileJob(workload=workload, layout=layout, target=target)) for layout in best}
    missing = list(best)
    if store is not None:
        known = {layout: store.measurements(keys[layout]) for layout in best}
        # All or none: times of one session can be compared, those of two days cannot.
        if all(known.values()):
            for layout in best:
                outcome = measurement_from_json(known[layout][-1])
                outcomes.ran(layout, outcome)
            missing = []
    if not missing:
        return
    earlier = {}
    if store is not None:
        found = {layout: store.get_blob(_unfinished(keys[layout])) for layout in missing}
        outcomes_before = {layout: measurement_from_json(value) for layout, value in found.items() if value}
        earlier = {layout: one for layout, one in outcomes_before.items() if isinstance(one, Measurement)}

    def keep(layout: Layout, outcome: Measurement | RunFailure) -> None:
        if store is not None:
            store.attempt(store.put_blob, _unfinished(keys[layout]), measurement_to_json(outcome))

    runner = runner_for(workload, target)
    try:
        for layout, outcome in measure(runner, missing, earlier=earlier, on_outcome=keep).items():
            outcomes.ran(layout, outcome)
            if store is not None:
                store.attempt(store.add_measurement, keys[layout], measurement_to_json(outcome))
    finally:
        runner.close()


def _unfinished(key: Key) -> str:
    """Where the turns of a session are kept while it runs, so that a killed one loses only the turn in flight."""
    return f"measuring {key.digest}"
