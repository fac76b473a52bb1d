"""Runs layouts on the devices of this process. The only module of the tool that executes a train step."""

from __future__ import annotations

import functools
import gc
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from autotune.compile.compilation import Compilation
from autotune.compile.jit_step import compile_step, lower_step
from autotune.compile.worker import compilation_of
from autotune.measure.measure import Prepared, RunFailure, Turn
from autotune.meshes.compiler_options import compiler_options
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.meshes.topology import mesh_of
from autotune.system.host_memory import keep_freed_memory
from autotune.workload.workload import Workload

Result = TypeVar("Result")


class LocalRunner:
    """A Runner in this process, for devices that only one process can hold (attached TPUs and GPUs).

    Programs stay loaded; the train state of one layout is on the devices at a time, made anew when another takes its
    turn, unless `resident` (one layout only, or memory for all). A call that takes longer than `timeout_seconds` is
    given up: the device cannot be taken back from it, so every later call fails too.
    """

    def __init__(
        self,
        workload: Workload,
        target: Target,
        *,
        devices: Sequence[Any] | None = None,
        timeout_seconds: float | None = 600.0,
        resident: bool = False,
    ) -> None:
        self.workload, self.target, self.devices = workload, target, devices
        self.timeout_seconds, self.resident = timeout_seconds, resident
        self._steps: dict[Layout, Any] = {}
        self._programs: dict[Layout, Any] = {}
        self._seconds: dict[Layout, tuple[float, float]] = {}
        self._states: dict[Layout, Any] = {}
        self._marks: dict[Layout, int] = {}
        self._seed = 0
        self._stuck: str | None = None
        if target.platform == "cpu":
            keep_freed_memory()

    def prepare(self, layouts: Sequence[Layout]) -> list[Prepared | RunFailure]:
        """Compile each layout and run its first two steps."""
        return [self._guarded(layout, functools.partial(self._prepare, layout)) for layout in layouts]

    def turn(self, layout: Layout, steps: int) -> Turn | RunFailure:
        """One untimed step, then `steps` timed ones on fresh data."""
        return self._guarded(layout, functools.partial(self._turn, layout, steps))

    def compilation(self, layout: Layout) -> Compilation:
        """What was compiled for a prepared layout, as it runs here."""
        lower_seconds, compile_seconds = self._seconds[layout]
        return compilation_of(
            self._programs[layout],
            self._steps[layout],
            layout,
            self.target,
            lower_seconds=lower_seconds,
            compile_seconds=compile_seconds,
            log_path=os.devnull,
        )

    @property
    def prepared(self) -> list[Layout]:
        """Layouts that hold a program."""
        return list(self._programs)

    def release(self, layout: Layout) -> None:
        """Drop the program and the state of a layout."""
        for held in (self._states, self._programs, self._steps, self._seconds):
            held.pop(layout, None)
        gc.collect()

    def close(self) -> None:
        """Drop everything."""
        for layout in self.prepared:
            self.release(layout)

    def _prepare(self, layout: Layout, phase: list[str]) -> Prepared:
        begin = time.perf_counter()
        mesh = mesh_of(layout, self.target, devices=self.devices)
        step = self.workload.build(layout, mesh)
        lowered = lower_step(step)
        phase[0] = "compile"
        lowered_at = time.perf_counter()
        program, _ = compile_step(lowered, layout, self.target.hardware, compiler_options)
        compiled_at = time.perf_counter()
        self._seconds[layout] = (lowered_at - begin, compiled_at - lowered_at)
        phase[0] = "run"
        self._steps[layout], self._programs[layout] = step, program
        warm = self._turn(layout, 1, phase)
        return Prepared(compile_seconds=compiled_at - begin, step_seconds=warm.seconds)

    def _turn(self, layout: Layout, steps: int, phase: list[str]) -> Turn:
        phase[0] = "run"
        step, program = self._steps[layout], self._programs[layout]
        if not self.resident:
            for other in [one for one in self._states if one != layout]:
                del self._states[other]
        peak_before = _peak_bytes(step.mesh)
        state = self._states.pop(layout, None)
        if state is None:
            state = step.initialise(0)
        batches = [step.make_batch(self._next_seed()) for _ in range(steps + 1)]
        jax.block_until_ready((state, batches))
        try:
            state, metrics = program(state, batches[0])
            jax.block_until_ready((state, metrics))
            begin = time.perf_counter()
            for batch in batches[1:]:
                state, metrics = program(state, batch)
                # Simulated CPU devices share one thread pool: two steps in flight there can starve each other's
                # collectives. An accelerator's queue is kept full, as a training loop would.
                if self.target.platform == "cpu":
                    jax.block_until_ready((state, metrics))
            jax.block_until_ready((state, metrics))
            seconds = (time.perf_counter() - begin) / steps
        finally:
            del batches
        self._states[layout] = state
        peak = _peak_bytes(step.mesh)
        # The allocator's mark covers the life of the process: it is this layout's own only if its turns moved it there.
        if peak is not None and peak > (peak_before or 0):
            self._marks[layout] = peak
        return Turn(seconds=seconds, steps=steps, peak_bytes=peak if self._marks.get(layout) == peak else None)

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed

    def _guarded(self, layout: Layout, call: Callable[[list[str]], Result]) -> Result | RunFailure:
        """Run `call` on a thread of its own, and turn what goes wrong into a RunFailure."""
        if self._stuck is not None:
            return RunFailure(kind="timeout", phase="run", reason=f"the devices are still held by {self._stuck}")
        phase, answer = ["build"], []
        thread = threading.Thread(target=lambda: answer.append(_outcome(phase, call)), daemon=True)
        thread.start()
        thread.join(self.timeout_seconds)
        if not answer:
            self._stuck = f"{layout}, which did not end within {self.timeout_seconds:.0f} s"
            return RunFailure(kind="timeout", phase=phase[0], reason=f"did not end within {self.timeout_seconds:.0f} s")
        if isinstance(answer[0], RunFailure):
            self.release(layout)
        return answer[0]


def _outcome(phase: list[str], call: Callable[[list[str]], Result]) -> Result | RunFailure:
    try:
        return call(phase)
    except Exception as error:
        message = " ".join(str(error).split()) or "no message"
        kind = "oom" if "RESOURCE_EXHAUSTED" in message else "failed"
        return RunFailure(kind=kind, phase=phase[0], reason=f"{type(error).__name__}: {message}"[:400])


def _peak_bytes(mesh: Any) -> int | None:
    """The largest high-water mark of this process's devices in the mesh; None where they keep none."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    peaks = [one["peak_bytes_in_use"] for one in stats if one and "peak_bytes_in_use" in one]
    return max(peaks, default=None)
