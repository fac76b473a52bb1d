"""Every layout compiled and run in all processes of a job at once; the slowest process counts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from autotune.compile.compilation import Candidate, Compilation, CompileFailure
from autotune.measure.local_runner import LocalRunner
from autotune.measure.measure import Prepared, RunFailure, Turn
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.system.job import Job
from autotune.workload.workload import Workload


class AgreedRunner:
    """A Runner for all processes of a job together, used by process 0: each call is made in every process at once.

    A layout that fails anywhere has failed; a turn took as long as in the slowest process.
    """

    def __init__(self, job: Job, workload: Workload, target: Target, *, timeout_seconds: float = 600.0) -> None:
        self.job = job
        self.local = LocalRunner(workload, target, timeout_seconds=timeout_seconds, resident=True)

    def prepare(self, layouts: Sequence[Layout]) -> list[Prepared | RunFailure]:
        """Compile each layout and run its first steps, one after another, in every process."""
        return [self._prepare(layout) for layout in layouts]

    def turn(self, layout: Layout, steps: int) -> Turn | RunFailure:
        """One untimed step, then `steps` timed ones, in every process."""
        self.job.tell(["turn", str(layout), steps])
        outcomes = [self.local.turn(layout, steps), *(incoming(one) for one in self.job.answers())]
        failures = [one for one in outcomes if isinstance(one, RunFailure)]
        if failures:
            return failures[0]
        peaks = [one.peak_bytes for one in outcomes if one.peak_bytes is not None]
        return Turn(seconds=max(one.seconds for one in outcomes), steps=steps, peak_bytes=max(peaks, default=None))

    def compilation(self, layout: Layout) -> Compilation:
        """What was compiled for a prepared layout (every process compiles the same program)."""
        return self.local.compilation(layout)

    def release(self, layout: Layout) -> None:
        """Drop a layout in every process."""
        self.job.tell(["release", str(layout)])
        self.local.release(layout)

    def close(self) -> None:
        """Drop every layout; the job goes on."""
        for layout in self.local.prepared:
            self.release(layout)

    def _prepare(self, layout: Layout) -> Prepared | RunFailure:
        self.job.tell(["prepare", str(layout)])
        outcomes = [self.local.prepare([layout])[0], *(incoming(one) for one in self.job.answers())]
        failures = [one for one in outcomes if isinstance(one, RunFailure)]
        if failures:
            self.release(layout)
            return failures[0]
        return Prepared(
            compile_seconds=max(one.compile_seconds for one in outcomes),
            step_seconds=max(one.step_seconds for one in outcomes),
        )


def compile_together(job: Job, jobs: Sequence[Candidate]) -> Iterator[tuple[Candidate, Compilation | CompileFailure]]:
    """Yield (Candidate, outcome) for layouts of this job's own devices, compiled in every process at once."""
    for one in jobs:
        runner = AgreedRunner(job, one.workload, one.target)
        prepared = runner.prepare([one.layout])[0]
        if isinstance(prepared, RunFailure):
            yield one, _compile_failure(one, prepared)
        else:
            yield one, runner.compilation(one.layout)
        runner.close()


def _compile_failure(job: Candidate, failure: RunFailure) -> CompileFailure:
    return CompileFailure(
        layout=str(job.layout),
        target=job.target.name,
        kind=failure.kind,
        stage="build" if failure.phase == "build" else "compile",
        reason=failure.reason,
        last_line=None,
        traceback=None,
        source=None,
        log_path=os.devnull,
        seconds=0.0,
        needed_bytes=None,
        available_bytes=None,
        arguments=(),
    )


_TYPES = {kind.__name__: kind for kind in (Prepared, Turn, RunFailure)}


def outgoing(value: Prepared | Turn | RunFailure) -> list[Any]:
    """What a turn or its preparation gave, as a message of a job."""
    return [type(value).__name__, asdict(value)]


def incoming(message: list[Any]) -> Any:
    """Read back what `outgoing` wrote."""
    name, values = message
    return _TYPES[name](**values)
