"""One worker process as its parent sees it: started with an unlimited stack, given jobs, killed with its children."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from autotune.meshes.installed import DEVICELESS_ENVIRONMENT
from autotune.meshes.target import Target
from autotune.system.death import Death, death
from autotune.system.scratch import delete_scratch, scratch_folder

START_SECONDS = 300.0
"""How long a worker may take to import JAX before it counts as hung (2 s on an idle machine)."""

UNLIMITED_STACK = 'ulimit -s unlimited 2>/dev/null || ulimit -s "$(ulimit -H -s)"; exec "$0" "$@"'
"""libtpu's cost model overflows the usual 8 MiB stack on large programs and takes the process with it. A shell sets the
limit because a `preexec_fn` can deadlock in a parent that has threads."""

WORKER = "import sys; sys.path[:] = {path!r}; from autotune.compile.worker import serve; serve({jobs}, {replies})"

DEVICELESS = {"JAX_PLATFORMS": "cpu", **DEVICELESS_ENVIRONMENT}
"""Compilers without their devices."""


def worker_environment(target: Target) -> dict[str, str]:
    """The environment variables a worker for this target adds to ours; targets with equal ones can share a worker."""
    # The user's modules are imported there: a mesh that one makes on import finds as many devices as here.
    asked = int(getattr(getattr(sys.modules.get("jax"), "config", None), "jax_num_cpu_devices", 0))
    if target.platform == "cpu":
        return DEVICELESS | {"JAX_NUM_CPU_DEVICES": str(max(target.devices, asked))}
    if target.platform == "cuda" and target.attached:
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return DEVICELESS | ({"JAX_NUM_CPU_DEVICES": str(asked)} if asked > 0 else {})


class WorkerProcess:
    """A running worker. `job` names files only; the pipes carry one JSON line each way, the files the rest."""

    def __init__(self, target: Target, settings: Mapping[str, str], log: Path) -> None:
        self.environment = worker_environment(target)
        self.scratch = scratch_folder("compile")
        self.log = log
        self.limit_seconds = START_SECONDS
        self.stage = "start"
        self.rss_bytes = 0
        self.since = time.monotonic()
        self._oom_kills = _oom_kills()
        jobs_read, self._jobs = os.pipe()
        self.replies, replies_write = os.pipe()
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        code = WORKER.format(path=sys.path, jobs=jobs_read, replies=replies_write)
        try:
            with open(log, "ab") as output:
                self.process = subprocess.Popen(
                    ["/bin/sh", "-c", UNLIMITED_STACK, sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(jobs_read, replies_write),
                    start_new_session=True,
                    env={**os.environ, "XLA_FLAGS": flags, **settings, **self.environment},
                )
        except BaseException:
            os.close(self._jobs)
            os.close(self.replies)
            delete_scratch(self.scratch)
            raise
        finally:
            os.close(jobs_read)
            os.close(replies_write)
        self._unread = b""

    @property
    def outcome_path(self) -> Path:
        """Where the worker leaves the pickled outcome of its job."""
        return self.scratch / "outcome"

    def send(self, payload: bytes, log: Path, limit_seconds: float) -> None:
        """Hand over a cloudpickled Candidate; its log is appended to `log`, its time limit starts when it does."""
        self.log, self.limit_seconds = log, limit_seconds
        self.stage = "start"
        self.since = time.monotonic()
        self._oom_kills = _oom_kills()
        (self.scratch / "job").write_bytes(payload)
        self.outcome_path.unlink(missing_ok=True)
        order = {"job": str(self.scratch / "job"), "outcome": str(self.outcome_path), "log": str(log)}
        try:
            os.write(self._jobs, json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            pass  # it died idle: its end of `replies` says so

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def seconds(self) -> float:
        """Since the job began, or since the worker was started for it."""
        return time.monotonic() - self.since

    @property
    def overdue(self) -> bool:
        """Whether the job (or before it, the start of the process) has used up its time."""
        return self.seconds > (self.limit_seconds if self.stage != "start" else START_SECONDS)

    def receive(self) -> str:
        """What the worker says, once `replies` is readable: "working", "finished", or "dead"."""
        data = os.read(self.replies, 65536)
        if not data:
            return "dead"
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            reply = json.loads(line)
            self.rss_bytes = reply["rss_bytes"]
            if reply["stage"] == "finished":
                return "finished"
            if reply["stage"] == "build":
                self.since = time.monotonic()
            self.stage = reply["stage"]
        return "working"

    def cause_of_death(self) -> Death:
        """How the process ended."""
        code = self.process.wait()
        return death(code, self.log, killed_for_memory=_oom_kills() > self._oom_kills)

    def kill(self) -> None:
        """End the process and everything it started; returns when it is gone."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        os.close(self._jobs)
        os.close(self.replies)
        delete_scratch(self.scratch)


def readable(workers: list[WorkerProcess], seconds: float) -> list[WorkerProcess]:
    """The workers that have something to say (or are dead), waiting at most so long for the first."""
    by_descriptor = {worker.replies: worker for worker in workers}
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(max(seconds, 0.0) * 1000)]


def _oom_kills() -> int:
    """Processes this machine's kernel has killed for memory since it started; 0 where it does not say."""
    try:
        counters = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), 0)
