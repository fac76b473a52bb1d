"""Predicted against measured train steps on one accelerator: calibrate it, then run several settings of one model.

    python scripts/gpu_check.py [--model llama3-1b] [--settings "8x2048;8x2048,remat=full;..."] [--out folder]

Each setting is [MODEL:]BATCHxSEQ and a layout's other words. Predictions replay the program compiled on this device,
once with the rates calibrated on it a minute before and once with those of the chip's hardware file; nothing is fitted
to a measured step. `--profile` also sets each instruction's seconds beside what a profile of the run shows. Every row
is written at once, and none is begun after `--seconds`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autotune.measure.measure import Budget, Measurement, measure
from autotune.meshes.hardware import Hardware, read_hardware
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import Target
from autotune.program import Program
from autotune.workload.workload import Workload

SETTINGS = (
    *(
        "8x2048",
        "8x2048,remat=full",
        "4x4096,remat=dots",
        "16x2048,accumulate=2,remat=full",
        "16x512",
        "2x8192,remat=full",
    ),
    *("32x1024,accumulate=4", "8x2048,remat=minimal"),
)
"""What differs: tokens a step, sequence length, what is recomputed, and passes over slices of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting. Seconds of one step; bytes per device; `failure` says why there is no measurement."""

    setting: str
    predicted: float | None
    from_file: float | None
    """Seconds by the rates of the chip's hardware file, not calibrated."""
    low: float | None
    high: float | None
    measured: float | None
    standard_error: float | None
    samples: int
    binding: str | None
    shares: dict[str, float]
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None
    compile_seconds: float | None
    failure: str | None

    @property
    def error(self) -> float | None:
        """Predicted over measured seconds, less one."""
        return self.predicted / self.measured - 1 if self.predicted and self.measured else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama3-1b", help="a preset or a JSON file with a shape")
    parser.add_argument("--settings", default=";".join(SETTINGS), help="BATCHxSEQ[,layout words] joined by ;")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=420.0, help="begin no setting after this long")
    parser.add_argument("--out", type=Path, help="folder for rows.json and the calibrated hardware.toml")
    parser.add_argument("--hardware", type=Path, help="a hardware.toml calibrated before: do not calibrate again")
    parser.add_argument("--profile", action="store_true", help="compare instructions; programs and profiles to --out")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()

    import jax

    from autotune.meshes.topology import local_target
    from autotune.reference_workload import reference_workload

    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    target = local_target()
    if target.devices != 1:
        raise SystemExit(f"gpu_check: wants one device, this process has {target.devices}")
    say(f"{datetime.date.today().isoformat()}, jax {jax.__version__}, {jax.devices()[0].device_kind}, {options.model}")
    listed = target.hardware
    if options.hardware:
        target = replace(target, hardware=read_hardware(options.hardware))
    else:
        target = calibrated(target, options.out)
    rows: list[Row] = []
    for setting in options.settings.split(";"):
        if time.perf_counter() - begin > options.seconds:
            say(f"{setting}: not begun, {options.seconds:.0f} s are over")
            continue
        shape, _, words = setting.partition(",")
        model, _, shape = shape.rpartition(":")
        batch, seq = (int(size) for size in shape.split("x"))
        workload = reference_workload(model or options.model, batch=batch, seq=seq, dtype=options.dtype)
        layout = parse_layout(words or "data=1")
        rows.append(check(setting, workload, layout, target, listed, options.out if options.profile else None))
        say(table(rows[-1:])[1])
        if options.out:
            (options.out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print("\n".join(table(rows)))
    errors = [abs(row.error) for row in rows if row.error is not None]
    if errors:
        print(f"median error {statistics.median(errors):.1%}, worst {max(errors):.1%}, {len(errors)} settings")
    return 0 if errors else 1


def calibrated(target: Target, out: Path | None) -> Target:
    """The target with this device's own rates; written to `out`/hardware.toml."""
    from autotune.calibrate.calibrate import calibrate
    from autotune.calibrate.hardware_file import hardware_toml

    hardware = calibrate(target, on_progress=say)
    if out:
        (out / "hardware.toml").write_text(
            hardware_toml(hardware, f"Calibrated by scripts/gpu_check.py: {target.name}")
        )
    return replace(target, hardware=hardware)


def check(
    setting: str, workload: Workload, layout: Layout, target: Target, listed: Hardware, profiles: Path | None
) -> Row:
    """Compile one setting on the device, predict it from what was compiled, and run it.

    `listed`: the rates of the chip's hardware file. `profiles`: a folder for the program and its profiled instructions.
    """
    from autotune.analysis.analyse import predict, program_of
    from autotune.analysis.limits import binding_limit, elasticities
    from autotune.measure.local_runner import LocalRunner

    runner = LocalRunner(workload, target, timeout_seconds=300.0, resident=True)
    prediction = from_file = program = None
    trouble = ""

    def predicted() -> None:
        nonlocal prediction, from_file, program
        program = program_of(runner.compilation(layout), layout, target)
        prediction = predict(program, layout, target, target.hardware)
        from_file = predict(program, layout, target, listed)

    outcome = measure(runner, [layout], Budget(rounds=5, turn_seconds=1.5, seconds=20.0, precision=0.002))[layout]
    if isinstance(outcome, Measurement):
        try:
            predicted()
            if profiles is not None:
                profile_ops(setting, runner, layout, target, program, profiles)
        except Exception as error:  # a program the reader cannot read is a row, not the end of a lease
            trouble = f"prediction: {type(error).__name__}: {error}"
    runner.close()
    shares = elasticities(prediction.by_resource()) if prediction else {}
    measured = outcome if isinstance(outcome, Measurement) else None
    return Row(
        setting=setting,
        predicted=prediction.step_seconds if prediction else None,
        from_file=from_file.step_seconds if from_file else None,
        low=prediction.low_seconds if prediction else None,
        high=prediction.high_seconds if prediction else None,
        measured=measured.median_seconds if measured else None,
        standard_error=measured.standard_error if measured else None,
        samples=measured.samples if measured else 0,
        binding=binding_limit(shares).resource if shares else None,
        shares=shares,
        predicted_peak_bytes=program.memory.peak_bytes if program else None,
        measured_peak_bytes=measured.peak_bytes if measured else None,
        compile_seconds=measured.compile_seconds if measured else None,
        failure=trouble or (None if measured else f"{outcome.kind} in {outcome.phase}: {outcome.reason}"),
    )


def profile_ops(setting: str, runner, layout: Layout, target: Target, program: Program, folder: Path) -> None:
    """Profile three steps and their warm-up; print classes of work, keep program and instructions in programs.zip."""
    from op_profile import by_kernel_lines, compare_ops, profiled_ops, recorded

    with tempfile.TemporaryDirectory() as scratch:
        with recorded(Path(scratch)):
            turn = runner.turn(layout, 3)
        ops = compare_ops(program, target.hardware, profiled_ops(Path(scratch)), steps=turn.steps + 1)
    for line in by_kernel_lines(ops):
        say(line)
    compilation = runner.compilation(layout)
    kept = {
        "setting": setting,
        "profiled_step_seconds": turn.seconds,
        "ops": [asdict(op) for op in ops],
        "text": compilation.text,
    }
    with zipfile.ZipFile(folder / "programs.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{setting.replace(':', ',')}.json", json.dumps(kept))


def table(rows: Sequence[Row]) -> list[str]:
    """Heading and one line a row."""
    lines = [
        f"{'setting':34s}{'predicted':>12s}{'by file':>12s}{'measured':>12s}{'error':>8s}{'+-':>7s}"
        f"{'peak GiB':>16s}  binding"
    ]
    for row in rows:
        if row.measured is None or row.predicted is None:
            lines.append(f"{row.setting:34s}{row.failure}")
            continue
        peaks = "/".join(
            "?" if one is None else f"{one / 2**30:.2f}" for one in (row.predicted_peak_bytes, row.measured_peak_bytes)
        )
        lines.append(
            f"{row.setting:34s}{row.predicted * 1e3:9.2f} ms{(row.from_file or 0.0) * 1e3:9.2f} ms"
            f"{row.measured * 1e3:9.2f} ms{row.error:8.1%}"
            f"{(row.standard_error or 0.0) / row.measured:7.2%}{peaks:>16s}  {row.binding}"
        )
    return lines


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
