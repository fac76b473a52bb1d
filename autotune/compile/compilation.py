"""One layout to compile, and what came of it: the compiled program's text and figures, or why there is none.

Plain data with no JAX in it, so that it travels between processes and into the store as JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.workload.workload import Workload

ARGUMENT_CATEGORIES = ("parameters", "frozen", "optimizer_state", "batch", "other")
FAILURES = ("oom", "failed", "crash", "timeout")
RETRIED = ("crash", "timeout")
"""Kinds of failure that `--retry` tries again: the compiler itself said nothing about the layout."""
STAGES = ("start", "build", "compile", "read")
COMPILE_SECONDS = 3600.0
"""What one compile may take unless the user says otherwise. Large models take long: Gemma-3-27B for 256 chips of v6e 28
minutes, DeepSeek-V3 for 128 of TPU7x 54 (libtpu 0.0.42.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One workload under one layout, for the compiler of one target."""

    workload: Workload
    layout: Layout
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One array the step takes. Arguments stand in the order of the entry computation's parameters.

    `name` is its path in (state, batch); `category` one of `ARGUMENT_CATEGORIES` ("frozen":
    weights without a gradient; "other": counters, random keys, batch statistics, caches).
    `shape` and `bytes` are of one device's shard, unpadded; `global_shape` is before sharding; `spec` names the mesh
    axes of each dimension; `memory_kind` is "pinned_host" for what lives in host memory, None for the device's own.
    """

    name: str
    category: str
    dtype: str
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    spec: str
    bytes: int
    memory_kind: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A step that compiled. Bytes are per device.

    `text`: the scheduled HLO module. `memory`: the fields of the backend's memory analysis, named as JAX names them.
    `cost`: the backend's cost analysis, loop bodies counted once; None where the backend has none (GPU).
    `lower_seconds`: tracing and lowering; `compile_seconds`: XLA; both wall time in the worker.
    `worker_peak_rss_bytes`: host memory of the worker process at its largest during this job.
    `warnings`: lines of the compiler's log that a user should see; the whole log is at `log_path`.
    `traced_flops`: of the matmuls of the step before it was cut, whole mesh, by "file.py:line"; None where the trace
    was not at hand.
    """

    layout: str
    target: str
    platform: str
    text: str
    memory: Mapping[str, int]
    cost: Mapping[str, float] | None
    arguments: tuple[Argument, ...]
    lower_seconds: float
    compile_seconds: float
    worker_peak_rss_bytes: int
    versions: Mapping[str, str]
    warnings: tuple[str, ...]
    log_path: str
    traced_flops: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileFailure:
    """A step that did not compile: what kind of failure, why in one line, and where to read on.

    `kind`: "oom" (does not fit in device memory), "failed" (an error was raised), "crash" (the process died),
    "timeout" (stopped after `seconds`). `stage`: "start" (the worker process itself), "build" (the mesh, the user's
    own code, tracing and lowering), "compile" (XLA), "read" (it compiled, and the text of the program cannot be read).
    `last_line`: the last useful line of the log. `traceback`: of an error raised while building; `source`:
    "file.py:line", the innermost frame of the user's code. `needed_bytes`, `available_bytes`: per device, where the
    compiler's message gives them. `arguments`: those of the step, where it was built; () otherwise.
    `transient`: the worker was ended from outside, or this machine lacked memory or disk: it says nothing about the
    layout, and is not kept. `attempts`: how often it was tried, in this run and in earlier ones that kept the failure.
    """

    layout: str
    target: str
    kind: str
    stage: str
    reason: str
    last_line: str | None
    traceback: str | None
    source: str | None
    log_path: str
    seconds: float
    needed_bytes: int | None
    available_bytes: int | None
    arguments: tuple[Argument, ...]
    transient: bool = False
    attempts: int = 1

    def __post_init__(self) -> None:
        if self.kind not in FAILURES:
            raise ValueError(f"CompileFailure: kind={self.kind!r} must be one of {', '.join(FAILURES)}")
        if self.stage not in STAGES:
            raise ValueError(f"CompileFailure: stage={self.stage!r} must be one of {', '.join(STAGES)}")


def to_json(outcome: Compilation | CompileFailure) -> dict[str, Any]:
    """The outcome as JSON-able values; `compilation_from_json` or `failure_from_json` reads it back."""
    return dataclasses.asdict(outcome)


def compilation_from_json(values: Mapping[str, Any]) -> Compilation:
    """The Compilation that `to_json` wrote."""
    return Compilation(**{**values, "arguments": _arguments(values), "warnings": tuple(values["warnings"])})


def failure_from_json(values: Mapping[str, Any]) -> CompileFailure:
    """The CompileFailure that `to_json` wrote."""
    return CompileFailure(**{**values, "arguments": _arguments(values)})


def _arguments(values: Mapping[str, Any]) -> tuple[Argument, ...]:
    return tuple(
        Argument(**{**one, "shape": tuple(one["shape"]), "global_shape": tuple(one["global_shape"])})
        for one in values["arguments"]
    )
