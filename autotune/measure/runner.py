"""Which Runner measures a target here."""

from __future__ import annotations

from autotune.compile.sent import CannotBeSent, packed
from autotune.measure.measure import Runner
from autotune.measure.worker_runner import WorkerRunner
from autotune.meshes.target import Target
from autotune.system.job import current
from autotune.workload.workload import Workload


def runner_for(workload: Workload, target: Target, *, jobs: int = 2, timeout_seconds: float = 300.0) -> Runner:
    """The Runner of a measurable target.

    In a job of several processes all of them run each layout together. Attached devices are run from this process,
    which holds them: an accelerator cannot be shared with a worker; so is a step that cannot be sent to one. Simulated
    CPU devices get a worker per layout.
    """
    job = current()
    if job is not None:
        from autotune.measure.agreed_runner import AgreedRunner

        return AgreedRunner(job, workload, target, timeout_seconds=timeout_seconds)
    if target.attached or not _can_be_sent(workload):
        from autotune.measure.local_runner import LocalRunner

        return LocalRunner(workload, target, timeout_seconds=timeout_seconds)
    return WorkerRunner(workload, target, jobs=jobs, timeout_seconds=timeout_seconds)


def _can_be_sent(workload: Workload) -> bool:
    try:
        packed(workload)
    except CannotBeSent:
        return False
    return True
