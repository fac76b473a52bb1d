"""Predicted against measured train steps on eight simulated CPU devices of this machine, calibrated a minute before.

    python scripts/one_host.py [--keep folder]
    python scripts/one_host.py --read folder

Predictions replay the compiled programs with the calibration; nothing is fitted to a measured step. `--read` measures
nothing: it predicts anew from a folder that `--keep` wrote.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from two_hosts import WORKLOADS, Kept, keep, keepers, read, row_of, say
from validation.link_cases import Row, every_layout

from autotune.analysis.analyse import predict, program_of
from autotune.calibrate.hardware_file import hardware_toml
from autotune.compile.compilation import to_json
from autotune.measure.measure import Budget, RunFailure, measure
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import Target, parse_target
from autotune.reference_workload import transformer_workload
from autotune.system.host_memory import keep_freed_memory

TARGET = "cpu:8"
SEQUENCES = {"weights": 8, "tokens": 16, "balanced": 8, "deep": 8}
"""Of the shapes and lengths of `two_hosts`: one or two for each device."""
LAYOUTS = (
    *("data=8", "data=8,zero=1", "fsdp=8", "data=4,tensor=2", "fsdp=4,tensor=2", "fsdp=8,remat=full"),
    *("data=2,fsdp=2,tensor=2", "data=4,tensor=2,remat=full"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for all that was measured and compiled")
    parser.add_argument("--read", type=Path, help="measure nothing: predict anew from such a folder")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="names, comma separated")
    parser.add_argument("--layouts", default=";".join(LAYOUTS), help="joined by ;")
    parser.add_argument("--seconds", type=float, default=40.0, help="of measuring, for each workload")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    if options.read:
        rows = read(options.read, parse_target(TARGET))
    else:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        rows = run(options.workloads.split(","), options.layouts.split(";"), options.seconds, options.keep)
    print("\n".join([f"{datetime.date.today().isoformat()}, {TARGET}", *every_layout(rows), *errors(rows)]))
    return 0


def errors(rows: Sequence[Row]) -> list[str]:
    """Median and worst error of each workload, and of all."""
    lines = []
    for name in [*dict.fromkeys(row.workload for row in rows), "all"]:
        seen = [row for row in rows if name in (row.workload, "all") and row.measured and row.predicted]
        off = [abs(row.predicted / row.measured - 1) for row in seen]
        if off:
            spread = max(row.measured for row in seen) / min(row.measured for row in seen)
            lines.append(
                f"{name:10s}{len(off):3d} layouts: median error {statistics.median(off):.1%}, worst {max(off):.1%}"
                + (f"; the slowest layout takes {spread:.2f} times the fastest" if name != "all" else "")
            )
    return lines


def run(workloads: Sequence[str], layouts: Sequence[str], seconds: float, folder: Path | None) -> list[Row]:
    """Calibrate, compile, predict and measure; what `read` needs goes to `folder`."""
    from autotune.calibrate.calibrate import calibrate
    from autotune.measure.local_runner import LocalRunner

    target = calibrated(parse_target(TARGET), calibrate, folder)
    rows: list[Row] = []
    for name in workloads:
        shape, _, seq = WORKLOADS[name]
        workload = transformer_workload(shape, batch=SEQUENCES[name], seq=seq, dtype="float32")
        runner = LocalRunner(workload, target, resident=True)
        wanted = [parse_layout(text) for text in layouts]
        ready = Kept(runner, dict(zip(wanted, runner.prepare(wanted), strict=True)))
        compiled = {
            layout: runner.compilation(layout)
            for layout, outcome in ready.prepared.items()
            if not isinstance(outcome, RunFailure)
        }
        outcomes = measure(ready, wanted, Budget(rounds=9, seconds=seconds), on_progress=say)
        runner.close()
        for layout, outcome in outcomes.items():
            prediction = None
            if layout in compiled:
                prediction = predict(program_of(compiled[layout], layout, target), layout, target, target.hardware)
            rows.append(row_of(name, 0, layout, prediction, outcome))
        say("\n".join(every_layout([row for row in rows if row.workload == name])))
        if folder:
            keep(folder / f"{name}.json.xz", {str(layout): to_json(one) for layout, one in compiled.items()})
            (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return rows


def calibrated(target: Target, calibrate, folder: Path | None) -> Target:
    """The target with this machine's rates; they and the timed programs go to `folder`."""
    hardware = calibrate(target, on_progress=say, **(keepers(folder, 0) if folder else {}))
    if folder:
        (folder / "0.toml").write_text(hardware_toml(hardware, f"Calibrated by scripts/one_host.py: {TARGET}"))
    return replace(target, hardware=hardware)


if __name__ == "__main__":
    sys.exit(main())
