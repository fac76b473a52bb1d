"""What the processes of a job do that do not decide: as process 0 says."""

from __future__ import annotations

from autotune.calibrate.calibrate import calibrate
from autotune.measure.agreed_runner import outgoing
from autotune.measure.local_runner import LocalRunner
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import Target
from autotune.system.job import current, leave
from autotune.workload.workload import Workload


def follow(workload: Workload | None, target: Target, *, timeout_seconds: float = 600.0) -> int:
    """What every process but 0 does: carry out process 0's orders until it is dismissed or the job ends. Returns 0.

    `workload` is None in a job that only calibrates.
    """
    job = current()
    assert job is not None and not job.leads
    runner = None
    if workload is not None:
        runner = LocalRunner(workload, target, timeout_seconds=timeout_seconds, resident=True)
    while True:
        order, *arguments = job.hear()
        if order == "leave":
            leave()
            return 0
        if order == "dismiss":
            return 0
        if order == "calibrate":
            calibrate(target, agree=job.agree, tiers_only=arguments[0])
            job.answer(None)
            continue
        assert runner is not None, order
        layout = parse_layout(arguments[0])
        if order == "prepare":
            job.answer(outgoing(runner.prepare([layout])[0]))
        elif order == "turn":
            job.answer(outgoing(runner.turn(layout, arguments[1])))
        else:
            assert order == "release", order
            runner.release(layout)
