"""The rates of a job's devices, measured by all of its processes at once."""

from __future__ import annotations

from autotune.calibrate.calibrate import calibrate
from autotune.meshes.hardware import Hardware
from autotune.meshes.target import Target
from autotune.system.job import Job


def calibrate_together(job: Job, target: Target, *, tiers_only: bool = False, **hearers) -> Hardware:
    """The calibrated Hardware of this job's devices, every process taking part; `hearers`: as of `calibrate`."""
    job.tell(["calibrate", tiers_only])
    hardware = calibrate(target, agree=job.agree, tiers_only=tiers_only, **hearers)
    job.answers()
    return hardware
