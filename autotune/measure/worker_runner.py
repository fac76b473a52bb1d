"""Runs layouts on simulated CPU devices, each layout in a worker process of its own. JAX-free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cloudpickle

from autotune.compile.log import last_useful_line
from autotune.compile.sent import packed
from autotune.measure.measure import Prepared, RunFailure, Turn
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.system.death import ATTEMPTS, death
from autotune.system.scratch import delete_scratch, scratch_folder
from autotune.workload.workload import Workload

ROOT = Path(__file__).resolve().parents[2]

WORKER = "import sys; sys.path[:] = {path!r}; from autotune.measure.worker import main; main()"


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A worker process and this end of its pipe; its output goes to `log`."""

    process: subprocess.Popen
    pipe: Connection
    log: Path


class WorkerRunner:
    """A Runner for `cpu:N`: crashes and hangs cost one worker, and every layout's state stays warm between its turns.

    `jobs` workers compile at a time. A call that takes longer than `timeout_seconds` has its worker killed. A worker
    that was ended from outside is started again, up to `ATTEMPTS` times a layout.
    """

    def __init__(self, workload: Workload, target: Target, *, jobs: int = 2, timeout_seconds: float = 300.0) -> None:
        if target.platform != "cpu":
            raise ValueError(f"WorkerRunner: target={target.name} must be cpu: two processes cannot share a device")
        self.workload, self.target, self.jobs, self.timeout_seconds = workload, target, jobs, timeout_seconds
        self._workers: dict[Layout, _Worker] = {}
        self._deaths: Counter[Layout] = Counter()
        self._logs = scratch_folder("measure")

    def prepare(self, layouts: Sequence[Layout]) -> list[Prepared | RunFailure]:
        """Start a worker for each layout, `jobs` at a time, and wait until each has compiled and warmed up."""
        outcomes: dict[Layout, Prepared | RunFailure] = {}
        waiting = deque(layouts)
        deadlines: dict[Layout, float] = {}
        while waiting or deadlines:
            while waiting and len(deadlines) < max(1, self.jobs):
                layout = waiting.popleft()
                self._start(layout)
                deadlines[layout] = time.monotonic() + self.timeout_seconds
            pipes = {self._workers[layout].pipe: layout for layout in deadlines}
            ready = wait(list(pipes), timeout=max(0.0, min(deadlines.values()) - time.monotonic()))
            for pipe in ready:
                layout = pipes[pipe]  # type: ignore[index]
                outcomes[layout] = self._receive(layout, deadlines.pop(layout), "compile")
                if self._again(layout, outcomes[layout]):
                    waiting.append(layout)
            for layout in [one for one, deadline in deadlines.items() if time.monotonic() >= deadline]:
                outcomes[layout] = self._receive(layout, deadlines.pop(layout), "compile")
        return [outcomes[layout] for layout in layouts]

    def turn(self, layout: Layout, steps: int) -> Turn | RunFailure:
        """One untimed step in the layout's worker, then `steps` timed ones."""
        while True:
            try:
                self._workers[layout].pipe.send_bytes(cloudpickle.dumps(steps))
            except OSError:
                pass  # the worker is gone; receiving says how
            outcome = self._receive(layout, time.monotonic() + self.timeout_seconds, "run")
            if not self._again(layout, outcome):
                return outcome
            prepared = self.prepare([layout])[0]
            if isinstance(prepared, RunFailure):
                return prepared

    def release(self, layout: Layout) -> None:
        """End the layout's worker."""
        worker = self._workers.pop(layout, None)
        if worker is not None:
            worker.process.kill()
            worker.process.wait()
            worker.pipe.close()

    def close(self) -> None:
        """End every worker."""
        for layout in list(self._workers):
            self.release(layout)
        delete_scratch(self._logs)

    def _again(self, layout: Layout, outcome: Prepared | Turn | RunFailure) -> bool:
        """Whether a layout's worker was ended from outside and has attempts left; counts them."""
        if not isinstance(outcome, RunFailure) or not outcome.transient:
            return False
        self._deaths[layout] += 1
        return self._deaths[layout] < ATTEMPTS

    def _start(self, layout: Layout) -> None:
        ours, theirs = Pipe()
        log = self._logs / f"{len(os.listdir(self._logs))}.log"
        # The user's path as it is: a `models` of theirs comes before one that lies beside this package.
        path = [*(entry or os.getcwd() for entry in sys.path)]
        code = WORKER.format(path=path if str(ROOT) in path else [*path, str(ROOT)])
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
        theirs.close()
        self._workers[layout] = _Worker(process=process, pipe=ours, log=log)
        try:
            ours.send_bytes(cloudpickle.dumps(self.target.devices))
            ours.send_bytes(packed((self.workload, self.target, layout)))
        except OSError:
            pass  # the worker died already; receiving says how

    def _receive(self, layout: Layout, deadline: float, phase: str):
        """The worker's answer; a RunFailure, and no worker any more, when it crashed or took too long."""
        worker = self._workers[layout]
        try:
            if worker.pipe.poll(max(0.0, deadline - time.monotonic())):
                answer = cloudpickle.loads(worker.pipe.recv_bytes())
                if isinstance(answer, RunFailure):
                    self.release(layout)
                return answer
            failure = RunFailure(
                kind="timeout", phase=phase, reason=f"stopped: did not end within {self.timeout_seconds:g} s"
            )
        except (EOFError, OSError):
            cause = death(worker.process.wait(), worker.log)
            failure = RunFailure(
                kind="crash",
                phase=phase,
                reason=f"{cause.reason}: {last_useful_line(worker.log) or 'it said nothing'}",
                transient=cause.transient,
            )
        self.release(layout)
        return failure
