"""The worker process: builds and compiles one job after another, and dies alone when the compiler does.

Started by `autotune.compile.worker_process`, never imported by the tool itself. The only module that calls
`memory_analysis` and `cost_analysis`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import json
import math
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from autotune.compile.compilation import Argument, Candidate, Compilation, CompileFailure
from autotune.compile.flops_by_line import flops_by_source
from autotune.compile.jit_step import compile_step, trace_step
from autotune.compile.log import memory_needed, one_line, warnings_in
from autotune.compile.sent import unpacked
from autotune.mesh_context import mesh_set
from autotune.meshes.compiler_options import REFUSED, options_to_read
from autotune.meshes.layout import Layout
from autotune.meshes.target import Target
from autotune.meshes.topology import mesh_of
from autotune.system.code_owner import owner_of
from autotune.system.death import is_shortage
from autotune.system.parent_death import when_parent_dies
from autotune.system.versions import installed_versions
from autotune.workload.workload import Workload

MEMORY_FIELDS = (
    "argument_size_in_bytes",
    "output_size_in_bytes",
    "alias_size_in_bytes",
    "temp_size_in_bytes",
    "peak_memory_in_bytes",
    "generated_code_size_in_bytes",
    "host_argument_size_in_bytes",
    "host_output_size_in_bytes",
    "host_alias_size_in_bytes",
    "host_temp_size_in_bytes",
)
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")


def serve(jobs_fd: int, replies_fd: int) -> None:
    """Take jobs (JSON lines naming files) until the other end closes; each answer is one JSON line."""
    when_parent_dies(jobs_fd, lambda: os.killpg(0, signal.SIGKILL))  # the compiler's own children too
    faulthandler.enable(all_threads=False)
    with os.fdopen(jobs_fd, "rb") as jobs, os.fdopen(replies_fd, "wb") as replies:
        for line in jobs:
            order = json.loads(line)
            try:
                log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.close(log)
                _reset_peak_rss()
                with open(order["job"], "rb") as file:
                    payload = file.read()
                outcome = compile_job(payload, order["log"], functools.partial(_reply, replies))
                with contextlib.suppress(OSError):  # a disk too full for the log
                    sys.stdout.flush()
                    sys.stderr.flush()
                with open(order["outcome"], "wb") as file:
                    pickle.dump(outcome, file)
            except OSError as error:  # the files between us and the parent: nothing about the layout
                with contextlib.suppress(OSError):
                    print(f"autotune: the worker cannot do its work: {error}", file=sys.stderr, flush=True)
                os._exit(os.EX_TEMPFAIL)
            del outcome, payload
            _free()
            _reply(replies, "finished")


def compile_job(
    payload: bytes | Candidate, log_path: str, enter: Callable[[str], None]
) -> Compilation | CompileFailure:
    """Build, lower and compile a Candidate in this process; every Python error becomes a failure.

    A packed job is one of another process: its step is compared with the trace made there.

    `enter` is told each stage ("build", "compile") as it begins, so that a crash can say in which it came.
    """
    begin = time.perf_counter()
    names = {"layout": "", "target": ""}
    arguments: tuple[Argument, ...] = ()
    stage = "build"
    enter(stage)
    try:
        job: Candidate = payload if isinstance(payload, Candidate) else unpacked(payload)
        names = {"layout": str(job.layout), "target": job.target.name}
        target = job.target
        if target.platform == "tpu":  # attached chips belong to the process that runs on them, never to a compiler's
            target = replace(target, attached=False)
        if not isinstance(payload, Candidate):
            check_program(job.workload)
        mesh = mesh_of(job.layout, target)
        step = job.workload.build(job.layout, mesh)
        arguments = arguments_of(step)
        with mesh_set(step.mesh, step.mesh_context):
            traced = trace_step(step)
            lowered = traced.lower()
        stage = "compile"
        enter(stage)
        lowered_at = time.perf_counter()
        compiled, refused = compile_step(lowered, job.layout, job.target.hardware, options_to_read)
        compiled_at = time.perf_counter()
        sys.stderr.flush()
        return compilation_of(
            compiled,
            step,
            job.layout,
            job.target,
            lower_seconds=lowered_at - begin,
            compile_seconds=compiled_at - lowered_at,
            log_path=log_path,
            traced_flops=flops_by_source(traced.jaxpr.jaxpr),
            refused_options=refused,
        )
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # a disk too full for the log
            print(trace, file=sys.stderr)
        message = str(error)
        needed, available = memory_needed(message)
        out_of_memory = stage == "compile" and "RESOURCE_EXHAUSTED" in message
        if short := is_shortage(error):  # of this machine, not of the device
            out_of_memory = False
        return CompileFailure(
            layout=names["layout"],
            target=names["target"],
            kind="oom" if out_of_memory else "failed",
            stage=stage,
            reason=one_line(f"{type(error).__name__}: {message}"),
            last_line=one_line(message.strip().splitlines()[-1]) if message.strip() else None,
            traceback=trace if stage == "build" else None,
            source=_source(error),
            log_path=log_path,
            seconds=time.perf_counter() - begin,
            needed_bytes=needed if out_of_memory else None,
            available_bytes=available if out_of_memory else None,
            arguments=arguments,
            transient=short,
        )


_CHECKED: set[str] = set()


def check_program(workload: Workload) -> None:
    """Raise AnotherProgram when the step, traced in this process, is not the one the workload was made from.

    Once per process and workload. Steps that the tool builds itself have nothing to compare.
    """
    check = getattr(workload.build, "check", None)
    if check is not None and workload.fingerprint not in _CHECKED:
        check()
        _CHECKED.add(workload.fingerprint)


def compilation_of(
    compiled: Any,
    step: Any,
    layout: Layout,
    target: Target,
    *,
    lower_seconds: float,
    compile_seconds: float,
    log_path: str,
    traced_flops: Mapping[str, float] | None = None,
    refused_options: Sequence[str] = (),
) -> Compilation:
    """What JAX tells about a step it compiled in this process; `log_path` may name no file."""
    text = compiled.as_text()
    if text is None:
        raise RuntimeError("the compiler gave no text of the program")
    memory = compiled.memory_analysis()
    return Compilation(
        layout=str(layout),
        target=target.name,
        platform=target.platform,
        text=text,
        memory={field: int(getattr(memory, field)) for field in MEMORY_FIELDS if hasattr(memory, field)},
        cost=_cost(compiled),
        arguments=arguments_of(step),
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        worker_peak_rss_bytes=_peak_rss(),
        versions=installed_versions(PACKAGES),
        warnings=(*warnings_in(Path(log_path)), *(f"{REFUSED} {name}" for name in refused_options)),
        log_path=log_path,
        traced_flops=traced_flops,
    )


def arguments_of(step: Any) -> tuple[Argument, ...]:
    """What the step takes, leaf by leaf in the order in which `jax.jit` flattens (state, batch)."""
    told: dict[int, str] = {}
    for category, pick in (("other", step.mutable), ("frozen", step.frozen), ("parameters", step.parameters)):
        told |= {id(leaf): category for leaf in jax.tree.leaves(pick(step.state))}
    leaves = jax.tree_util.tree_flatten_with_path((step.state, step.batch))[0]
    return tuple(_argument(path, leaf, told.get(id(leaf))) for path, leaf in leaves)


def _argument(path: tuple[Any, ...], leaf: Any, told: str | None) -> Argument:
    if path[0].idx == 1:
        category = "batch"
    elif told is not None:
        category = told
    elif jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) or not leaf.shape:
        category = "other"
    else:
        category = "optimizer_state"
    shape = tuple(leaf.sharding.shard_shape(leaf.shape))
    kind = leaf.sharding.memory_kind
    return Argument(
        name=("state", "batch")[path[0].idx] + jax.tree_util.keystr(path[1:]),
        category=category,
        dtype=str(leaf.dtype),
        shape=shape,
        global_shape=tuple(leaf.shape),
        spec=str(tuple(leaf.sharding.spec)),
        bytes=math.prod(shape) * leaf.dtype.itemsize,
        memory_kind=kind if kind and "host" in kind and kind != "unpinned_host" else None,
    )


def _cost(compiled: Any) -> dict[str, float] | None:
    cost = compiled.cost_analysis()
    if not cost:
        return None
    return {name: float(value) for name, value in cost.items() if "{" not in name}


def _source(error: BaseException) -> str | None:
    """The innermost frame of the user's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if owner_of(frame.filename) == "user"]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _reply(replies: Any, stage: str) -> None:
    replies.write(json.dumps({"stage": stage, "rss_bytes": _status("VmRSS")}).encode() + b"\n")
    replies.flush()


def _free() -> None:
    """Give the last job's memory back, so that the next one starts small."""
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak_rss() -> None:
    """Forget earlier jobs' peak; where the kernel refuses, the peak is the process's own since it started."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int:
    """Bytes of one field of /proc/self/status; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
