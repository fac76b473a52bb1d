"""Compile many layouts at once in worker processes, each answer kept in the store as it comes.

A compile that crashes, hangs or is killed becomes a CompileFailure and takes only its own process with it. JAX is not
imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.compile.compilation import (
    COMPILE_SECONDS,
    RETRIED,
    Candidate,
    Compilation,
    CompileFailure,
    compilation_from_json,
    failure_from_json,
    to_json,
)
from autotune.compile.log import last_useful_line, one_line
from autotune.compile.sent import CannotBeSent, packed
from autotune.compile.worker_process import WorkerProcess, readable, worker_environment
from autotune.meshes.compiler_options import options_of
from autotune.meshes.target import Target
from autotune.store import Key, Store
from autotune.system.death import ATTEMPTS, RAISED
from autotune.system.scratch import delete_scratch, scratch_folder
from autotune.system.source_digest import source_digest
from autotune.system.versions import installed_versions

__all__ = ["Candidate", "Compilation", "CompileEvent", "CompileFailure", "compile_all", "store_key"]

RETIRE_BYTES = 2 * 2**30
"""A worker that still holds so much host memory between jobs is replaced, so that its peak stays bounded."""

COMPILERS = {
    "tpu": ("jax", "jaxlib", "libtpu"),
    "cuda": ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12"),
    "cpu": ("jax", "jaxlib"),
}
SOURCES = ("autotune.compile.worker",)
"""The modules that turn a candidate into a program. After an edit of one of them, or of a module that they import,
stored programs are not used."""

SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_numpy_dtype_promotion": "standard",
}
"""JAX settings of this process that change the program, with JAX's own defaults: workers get them too."""

Outcome = Compilation | CompileFailure
Happening = tuple[int, Outcome | None, float]
"""(index of a task, None, 0) when it starts; (index, its outcome, its seconds) when it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileEvent:
    """For a progress display: one job was answered from the store, has started, or has finished.

    `seconds`: how long the job took (0 when it starts or was stored). `done` of `total` jobs have their answer,
    `running` are being compiled. `outcome` is None when the job starts.
    """

    kind: str
    job: Candidate
    outcome: Outcome | None
    seconds: float
    done: int
    total: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What a worker needs of a job: the pickle, its names, and where its log goes.

    `attempts`: how often earlier runs tried it, and kept that it failed.
    """

    payload: bytes
    layout: str
    target: Target
    log: Path
    attempts: int

    def failure(self, *, kind: str, stage: str, reason: str, seconds: float, transient: bool = False) -> CompileFailure:
        return CompileFailure(
            layout=self.layout,
            target=self.target.name,
            kind=kind,
            stage=stage,
            reason=one_line(reason),
            last_line=last_useful_line(self.log),
            traceback=None,
            source=None,
            log_path=str(self.log),
            seconds=seconds,
            needed_bytes=None,
            available_bytes=None,
            arguments=(),
            transient=transient,
        )


def compile_all(
    jobs: Iterable[Candidate],
    *,
    workers: int = 2,
    timeout_seconds: float = COMPILE_SECONDS,
    store: Store | None = None,
    on_event: Callable[[CompileEvent], None] | None = None,
    executor: Executor | None = None,
    retry: bool = False,
) -> Generator[tuple[Candidate, Outcome], None, None]:
    """Each job with its Compilation or CompileFailure, as they finish; what the store knows comes first.

    `timeout_seconds` is wall time of one job, from when its worker takes it up. `retry` compiles again what crashed or
    ran out of time before; without it such an answer is taken from the store (of a timeout, unless the limit is longer
    now). Errors raised while the step is built are always tried again.
    A worker that is killed from outside, or for want of memory or disk, tells nothing of its layout: the job is tried
    again, after the others and up to `ATTEMPTS` times, and the death is never kept in the store. After the kernel's
    out-of-memory killer one worker fewer is started.
    `executor`: any `concurrent.futures.Executor` (of a Dask client: `client.get_executor()`); each job then becomes one
    picklable call that starts its worker where it runs. `workers` counts only the processes of this machine.
    Closing the iterator, or any exception, kills the workers.
    """
    if workers < 1:
        raise ValueError(f"compile: workers={workers} must be 1 or more")
    if not timeout_seconds > 0:
        raise ValueError(f"compile: timeout_seconds={timeout_seconds} must be above 0")
    listed = list(jobs)
    done = running = 0

    def tell(kind: str, job: Candidate, outcome: Outcome | None, seconds: float) -> None:
        if on_event:
            total = len(listed)
            on_event(
                CompileEvent(
                    kind=kind, job=job, outcome=outcome, seconds=seconds, done=done, total=total, running=running
                )
            )

    writable = store is not None and os.access(store.logs, os.W_OK)
    logs = store.logs if store and writable else scratch_folder("logs")
    fresh: dict[int, _Task] = {}
    here: dict[int, Callable[[], Outcome]] = {}
    for index, job in enumerate(listed):
        known = _stored(store, job, timeout_seconds, retry) if store else None
        if known is None:
            log = logs / f"{store_key(job).digest}-{os.getpid()}-{index}.log"
            try:
                payload = packed(job)
            except CannotBeSent as error:
                here[index] = _compiler_here(job, log, str(error), remote=executor is not None)
                continue
            fresh[index] = _Task(
                payload=payload, layout=str(job.layout), target=job.target, log=log,
                attempts=_attempts(store, job) if store else 0,
            )  # fmt: skip
            continue
        done += 1
        tell("stored", job, known, 0.0)
        yield job, known

    for index, compile_here in here.items():
        running += 1
        tell("started", listed[index], None, 0.0)
        begin = time.monotonic()
        made = compile_here()
        running -= 1
        done += 1
        if store and _can_be_kept(made):
            kind = "compile" if isinstance(made, Compilation) else "failure"
            store.attempt(store.put, store_key(listed[index]), kind, to_json(made))
        tell("finished", listed[index], made, time.monotonic() - begin)
        yield listed[index], made

    if executor:
        happenings = _on_executor(fresh, executor, timeout_seconds)
    else:
        happenings = _in_processes(fresh, workers, timeout_seconds)
    with contextlib.closing(happenings):
        for together in happenings:
            told = []
            for index, outcome, seconds in together:
                if outcome is None:
                    running += 1
                    tell("started", listed[index], None, 0.0)
                    continue
                running -= 1
                done += 1
                if isinstance(outcome, CompileFailure):
                    outcome = replace(outcome, attempts=outcome.attempts + fresh[index].attempts)
                if store and _can_be_kept(outcome):
                    kind = "compile" if isinstance(outcome, Compilation) else "failure"
                    store.attempt(store.put, store_key(listed[index]), kind, to_json(outcome))
                tell("finished", listed[index], outcome, seconds)
                told.append((listed[index], outcome))
            yield from told


def store_key(job: Candidate) -> Key:
    """What names a compile: equal keys give the same program.

    Of the hardware only what the compiler or the device order can depend on takes part, so that a newly calibrated rate
    does not throw compiles away.
    """
    hardware = job.target.hardware
    shape = {
        "name": hardware.name,
        "platform": hardware.platform,
        "devices_per_chip": hardware.devices_per_chip,
        "compile_fields": {name: str(value) for name, value in sorted(hardware.compile_fields.items())},
        "tiers": [(tier.name, tier.kind) for tier in hardware.tiers],
        "shape": [job.target.shape, job.target.groups, job.target.attached],
    }
    if job.target.memory_fraction is not None:
        shape["memory_fraction"] = job.target.memory_fraction
    if told := options_of(hardware, job.layout.options):
        shape["compiler_options"] = sorted(told.items())
    flags = {name: os.environ[name] for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if os.environ.get(name)}
    return Key(
        workload=job.workload.fingerprint,
        layout=str(job.layout),
        target=job.target.name,
        hardware=hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16],
        versions=installed_versions(COMPILERS[job.target.platform]) | {"autotune": source_digest(*SOURCES)},
        flags=flags | _settings(),
    )


def _compiler_here(job: Candidate, log: Path, why: str, remote: bool) -> Callable[[], Outcome]:
    """Compiles in this process what cannot be sent to a worker; ValueError where this process cannot either.

    A crash of the compiler would end this process, and no time limit holds.
    """
    from autotune.compile.worker import compile_job

    devices = None
    if job.target.platform == "cpu" and not job.target.attached:
        import jax

        devices = len(jax.devices("cpu"))
    if remote or (devices is not None and devices < job.target.devices):
        raise ValueError(
            f"workload {job.workload.name}: {why}; make that object inside the function of Workload.from_builder, "
            "which runs in the worker"
            + (f" (this process has {devices} CPU devices, so it cannot compile for {job.target.name} itself: set "
               f"jax_num_cpu_devices={job.target.devices} before JAX starts)" if devices is not None else "")
        )  # fmt: skip

    def compile_here() -> Outcome:
        added = {
            name: value
            for name, value in worker_environment(job.target).items()
            if name not in os.environ and not name.startswith("JAX_")
        }
        os.environ.update(added)
        try:
            outcome = compile_job(job, str(log), lambda stage: None)
        finally:
            for name in added:
                del os.environ[name]
        note = f"compiled in this process: {why}"
        if isinstance(outcome, Compilation):
            return replace(outcome, warnings=(*outcome.warnings, note))
        return outcome

    return compile_here


def _settings() -> dict[str, str]:
    """The `SETTINGS` that differ from JAX's defaults, as environment variables; set in code or by variable."""
    config = getattr(sys.modules.get("jax"), "config", None)
    if config is None:
        return {name.upper(): os.environ[name.upper()] for name in SETTINGS if name.upper() in os.environ}
    values = {name: getattr(config, name, default) for name, default in SETTINGS.items()}
    return {name.upper(): str(value) for name, value in values.items() if value != SETTINGS[name] and value is not None}


def _can_be_kept(outcome: Outcome) -> bool:
    """Whether an outcome may be kept: a compile, what the compiler said, a signal it raised, or its time limit."""
    return isinstance(outcome, Compilation) or not outcome.transient


def _attempts(store: Store, job: Candidate) -> int:
    """How often earlier runs tried a job whose failure they kept."""
    failure = store.rebuilt(store.get(store_key(job), "failure"), failure_from_json)
    return failure.attempts if failure else 0


def _stored(store: Store, job: Candidate, timeout_seconds: float, retry: bool) -> Outcome | None:
    """The store's answer, unless it is one to try again."""
    key = store_key(job)
    compilation = store.rebuilt(store.get(key, "compile"), compilation_from_json)
    if compilation is not None:
        return compilation
    failure = store.rebuilt(store.get(key, "failure"), failure_from_json)
    if failure is None or failure.transient or _was_killed(failure):
        return None
    if failure.stage == "start" or (failure.stage, failure.kind) == ("build", "failed"):
        return None
    if retry and failure.kind in RETRIED:
        return None
    if failure.kind == "timeout" and failure.seconds < timeout_seconds:
        return None
    return failure


def _was_killed(failure: CompileFailure) -> bool:
    """Whether an entry of an earlier version keeps a death from outside, which it told in words alone."""
    killed = re.search(r"killed by (SIG\w+)", failure.reason) if failure.kind == "crash" else None
    return killed is not None and killed[1] not in {one.name for one in RAISED}


def _in_processes(
    tasks: dict[int, _Task], workers: int, timeout_seconds: float
) -> Generator[list[Happening], None, None]:
    """What happens next, in worker processes of ours; a finished worker has its next job before anyone is told."""
    pending = deque(tasks)
    attempts = dict.fromkeys(tasks, 0)
    busy: dict[WorkerProcess, int] = {}
    idle: list[WorkerProcess] = []
    settings = _settings()

    def start() -> list[Happening]:
        started: list[Happening] = []
        while pending and len(busy) < workers:
            index = pending.popleft()
            task = tasks[index]
            environment = worker_environment(task.target)
            fitting = [one for one in idle if one.alive and one.environment == environment]
            if fitting:
                worker = fitting[0]
                idle.remove(worker)
            else:
                while idle:  # never more than `workers` processes
                    idle.pop().kill()
                worker = WorkerProcess(task.target, settings, task.log)
            busy[worker] = index
            worker.send(task.payload, task.log, timeout_seconds)
            attempts[index] += 1
            if attempts[index] == 1:
                started.append((index, None, 0.0))
        return started

    def ended(index: int, outcome: Outcome, seconds: float) -> list[Happening]:
        """What is told of a job that ended: nothing yet where it is to be tried again, after all others."""
        if not isinstance(outcome, CompileFailure):
            return [(index, outcome, seconds)]
        if outcome.transient and attempts[index] < ATTEMPTS:
            pending.append(index)
            return []
        reason = outcome.reason
        if outcome.transient:
            reason = one_line(f"{reason}; tried {attempts[index]} times")
        return [(index, replace(outcome, reason=reason, attempts=attempts[index]), seconds)]

    def died(worker: WorkerProcess, kind: str, reason: str, transient: bool) -> list[Happening]:
        index, seconds = busy.pop(worker), worker.seconds
        worker.kill()
        failure = tasks[index].failure(
            kind=kind, stage=worker.stage, reason=reason, seconds=seconds, transient=transient
        )
        return ended(index, failure, seconds)

    try:
        yield start()
        while busy:
            finished: list[Happening] = []
            for worker in readable(list(busy), seconds=0.25):
                state = worker.receive()
                if state == "dead":
                    cause = worker.cause_of_death()
                    if cause.out_of_memory:
                        workers = max(1, workers - 1)
                    finished += died(worker, "crash", cause.reason, cause.transient)
                elif state == "finished":
                    index = busy.pop(worker)
                    outcome, seconds = pickle.loads(worker.outcome_path.read_bytes()), worker.seconds
                    if worker.rss_bytes > RETIRE_BYTES:
                        worker.kill()
                    else:
                        idle.append(worker)
                    finished += ended(index, outcome, seconds)
            for worker in [one for one in busy if one.overdue]:
                limit = "without having started" if worker.stage == "start" else "the limit of one compile"
                finished += died(worker, "timeout", f"stopped after {worker.seconds:.0f} s, {limit}", False)
            if happened := finished + start():
                yield happened
    finally:
        for worker in (*busy, *idle):
            worker.kill()


def _on_executor(
    tasks: dict[int, _Task], executor: Executor, timeout_seconds: float
) -> Generator[list[Happening], None, None]:
    """As `_in_processes`, on machines of the executor's choosing. All count as started once submitted."""
    futures = {executor.submit(compile_elsewhere, task, timeout_seconds): index for index, task in tasks.items()}
    try:
        yield [(index, None, 0.0) for index in tasks]
        while futures:
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                index = futures.pop(future)
                task = tasks[index]
                try:
                    outcome, seconds, log = future.result()
                except Exception as error:  # the executor's own: a lost machine, a broken pool
                    reason = f"the executor lost the job: {type(error).__name__}: {error}"
                    yield [
                        (
                            index,
                            task.failure(kind="crash", stage="start", reason=reason, seconds=0.0, transient=True),
                            0.0,
                        )
                    ]
                    continue
                task.log.write_bytes(log)
                yield [(index, replace(outcome, log_path=str(task.log)), seconds)]
    finally:
        for future in futures:
            future.cancel()


def compile_elsewhere(task: _Task, timeout_seconds: float) -> tuple[Outcome, float, bytes]:
    """One task in a worker process of the machine this is called on: (outcome, seconds, the log)."""
    folder = scratch_folder("compile")
    try:
        here = replace(task, log=folder / task.log.name)
        *_, (_, outcome, seconds) = (
            last for together in _in_processes({0: here}, 1, timeout_seconds) for last in together
        )
        if outcome is None:
            raise RuntimeError("the worker gave no answer")
        return outcome, seconds, here.log.read_bytes() if here.log.exists() else b""
    finally:
        delete_scratch(folder)
