"""The proof on two hosts of one machine: predict every layout, measure every layout, at several rates of the link.

Root on Linux (see scripts/hosts.py). Prints a table and writes every number as JSON:

    python scripts/two_hosts.py [--quick] [--keep folder]
    python scripts/two_hosts.py --repeat folder
    python scripts/two_hosts.py --read folder

Each host is one JAX process with one CPU device; between them lies a link whose rate is set by traffic control. At each
rate the job is calibrated anew; predictions replay the compiled programs with that calibration; nothing is fitted to a
measured step. "Chosen" is what the tuner chooses: the best measured of the three best predicted. `--repeat` goes on
with the pairs of a kept run whose ratio is not known to PRECISION yet, and measures nothing else.
"""

from __future__ import annotations

import argparse
import json
import lzma
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hosts import TwoHosts, why_not
from validation.link_cases import Pairs, Row, cases, every_layout, table, verdicts

from autotune.analysis.analyse import predict, program_of
from autotune.analysis.limits import binding_limit, elasticities
from autotune.calibrate.calibrate import Sample, fit_tier, op_figures
from autotune.calibrate.hardware_file import hardware_toml
from autotune.calibrate.together import calibrate_together
from autotune.commands.follow import follow
from autotune.compile.compilation import compilation_from_json, to_json
from autotune.measure.agreed_runner import AgreedRunner
from autotune.measure.measure import Budget, Measurement, Prepared, RunFailure, measure
from autotune.meshes.hardware import Hardware, load_hardware, read_hardware
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.route import Route
from autotune.meshes.target import Target
from autotune.meshes.transformer import TransformerShape
from autotune.program import Program
from autotune.reference_workload import transformer_workload
from autotune.replay.replay import Prediction
from autotune.system import job as job_here
from autotune.system.host_memory import keep_freed_memory
from autotune.workload.workload import Workload

MEGABIT = 1e6 / 8
RATES = (50, 100, 4000, 8000)
"""Mbit/s: two slow ones and two fast ones, each pair a doubling. Slow is where every workload waits for the link more
than for anything else: at 200 `tokens` did not, a quarter of its step was the link's (2026-11-25)."""
PAIRED = 8.0
"""Times the seconds of measuring all layouts: the most that the chosen one takes at a rate and its double, in pairs."""
PRECISION, TURN_SECONDS = 0.012, 0.7
"""Standard error of the ratio at which pairs are enough; about how long the timed steps of a turn take."""

LAYOUTS = (
    *("data=2", "data=2,zero=1", "fsdp=2", "tensor=2", "data=2,accumulate=2", "fsdp=2,accumulate=2"),
    *("data=2,remat=full", "fsdp=2,remat=full", "tensor=2,remat=full"),
)


def shape(name: str, layers: int, d_model: int, d_ff: int, vocab: int) -> TransformerShape:
    heads = d_model // 64
    return TransformerShape(
        name=name, layers=layers, d_model=d_model, heads=heads, kv_heads=heads, head_dim=64, d_ff=d_ff, vocab=vocab
    )


WORKLOADS = {
    "weights": (shape("weights", 4, 256, 1024, 512), 4, 64),
    "tokens": (shape("tokens", 2, 128, 512, 256), 16, 256),
    "balanced": (shape("balanced", 3, 256, 512, 512), 8, 128),
    "deep": (shape("deep", 8, 128, 384, 256), 8, 128),
}
"""name -> (shape, sequences, tokens of each): many weights for few tokens, the reverse, both, and a deep thin one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="folder for all that was measured and compiled")
    parser.add_argument("--quick", action="store_true", help="one workload, two rates, three layouts")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="names, comma separated")
    parser.add_argument("--layouts", default=";".join(LAYOUTS), help="joined by ;")
    parser.add_argument("--seconds", type=float, default=100.0, help="of measuring, for each workload and rate")
    parser.add_argument("--read", type=Path, help="measure nothing: predict anew from a folder that --keep wrote")
    parser.add_argument("--repeat", type=Path, help="go on with the pairs that a folder of --keep has too few of")
    parser.add_argument("--full", action="store_true", help="print every layout as well")
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="Mbit/s, comma separated")
    parser.add_argument("--logs", type=Path, help="an existing folder in which both hosts' output may be watched")
    parser.add_argument("--process", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        keep_freed_memory()
        return (repeat_pairs if options.process.pop("repeat") else process)(**options.process)
    if options.read:
        return show_kept(options.read, full=options.full)
    reason = why_not()
    if reason:
        print(f"two hosts cannot be made here: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are taken down
    if options.repeat:
        in_two_hosts({"seconds": options.seconds}, folder=options.repeat, logs=options.logs, repeat=True)
        return show_kept(options.repeat, full=options.full)
    rates = [int(rate) for rate in options.rates.split(",")]
    workloads = [name for name in options.workloads.split(",") if name]
    layouts, seconds = options.layouts.split(";"), options.seconds
    if options.quick:
        rates, workloads, seconds = [200, 8000], workloads[:1], 5.0
        layouts = ["data=2", "fsdp=2", "tensor=2"]
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = run(workloads, rates, layouts, seconds=seconds, logs=options.logs, folder=folder)
        return show(rows, kept_pairs(folder), full=options.full)


def show(rows: Sequence[Row], pairs: Sequence[Pairs], *, full: bool) -> int:
    """Print the table; 1 when something claimed of it does not hold."""
    print("\n".join([*(every_layout(rows) if full else []), *table(rows, pairs)]))
    return 0 if all(passed for _, passed in verdicts(rows, pairs)) else 1


def show_kept(folder: Path, *, full: bool) -> int:
    """`show` for a folder that `run` kept, predicted anew."""
    two = Target(name="local", hardware=load_hardware("cpu"), shape=(1,), groups=2, attached=True)
    return show(read(folder, two), kept_pairs(folder), full=full)


def run(
    workloads: Sequence[str],
    rates: Sequence[int],
    layouts: Sequence[str],
    *,
    seconds: float,
    folder: Path,
    logs: Path | None = None,
) -> list[Row]:
    """Every layout of every workload at every rate, in one job over the two hosts; `folder` gets what `read` needs."""
    order = {"workloads": list(workloads), "rates": list(rates), "layouts": list(layouts), "seconds": seconds}
    in_two_hosts(order, folder=folder, logs=logs, repeat=False)
    return [Row(**row) for row in json.loads((folder / "rows.json").read_text())]


def in_two_hosts(order: dict[str, Any], *, folder: Path, logs: Path | None, repeat: bool) -> None:
    """Make the hosts, and run `process` (or `repeat_pairs`) on both."""
    with TwoHosts() as hosts:
        kept = folder.resolve()
        order |= {"names": hosts.names, "coordinator": f"{hosts.addresses[0]}:12357", "kept": str(kept)}
        commands = [
            [sys.executable, __file__, "--process", json.dumps({**order, "process_id": index, "repeat": repeat})]
            for index in (0, 1)
        ]
        root = str(Path(__file__).resolve().parents[1])
        hosts.run(commands, folder=logs or kept, timeout_seconds=3600, PYTHONPATH=root, JAX_PLATFORMS="cpu")


def process(*, names, coordinator, kept, workloads, rates, layouts, seconds, process_id) -> int:
    """One of the two processes of the job; process 0 decides, and writes the rows."""
    from autotune.meshes.topology import local_target

    hosts, folder = TwoHosts(names=tuple(names)), Path(kept)
    if process_id == 0:
        hosts.set_rate(max(rates) * MEGABIT)
    leads = job_here.join(coordinator, 2, process_id)
    target = local_target()
    wanted = [parse_layout(text) for text in layouts]
    job = job_here.current()
    if not leads:
        for name in ["calibration", *workloads]:
            follow(workload_of(name) if name in WORKLOADS else None, target)
        job.hear()
        job_here.leave()
        return 0
    calibrated: dict[int, Hardware] = {}
    for rate in rates:
        hosts.set_rate(rate * MEGABIT)
        # The rates of a device do not depend on the link: they are measured once.
        known = replace(target, hardware=next(iter(calibrated.values()), target.hardware))
        calibrated[rate] = calibrate_together(
            job,
            known,
            tiers_only=bool(calibrated),
            on_progress=say,
            **keepers(folder, rate),
        )
        heading = f"Calibrated by scripts/two_hosts.py: {rate} Mbit/s"
        (folder / f"{rate}.toml").write_text(hardware_toml(calibrated[rate], heading))
        say(f"{rate} Mbit/s: {calibrated[rate].tier('network')}")
    job.dismiss()
    rows: list[Row] = []
    pairs: list[Pairs] = []
    for name in workloads:
        hosts.set_rate(max(rates) * MEGABIT)
        runner = AgreedRunner(job, workload_of(name), target)
        ready = Kept(runner, dict(zip(wanted, runner.prepare(wanted), strict=True)))
        compiled = {
            layout: runner.compilation(layout)
            for layout, outcome in ready.prepared.items()
            if not isinstance(outcome, RunFailure)
        }
        keep(folder / f"{name}.json.xz", {str(layout): to_json(one) for layout, one in compiled.items()})
        programs = {layout: program_of(one, layout, target) for layout, one in compiled.items()}
        for rate in rates:
            hosts.set_rate(rate * MEGABIT)
            machine = replace(target, hardware=calibrated[rate])
            predictions = {
                layout: predict(program, layout, machine, machine.hardware) for layout, program in programs.items()
            }
            budget = Budget(rounds=15, seconds=seconds)
            outcomes = measure(ready, wanted, budget, on_progress=say)
            rows += [
                row_of(name, rate, layout, predictions.get(layout), outcome) for layout, outcome in outcomes.items()
            ]
            (folder / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
            say("\n".join(every_layout([row for row in rows if (row.workload, row.rate_megabit) == (name, rate)])))
        for case in cases([row for row in rows if row.workload == name]):
            if 2 * case.rate_megabit in rates:
                none = Pairs(workload=case.workload, layout=case.chosen.layout, rate_megabit=case.rate_megabit)
                pairs.append(side_by_side(ready, none, hosts, PAIRED * seconds))
        keep_pairs(folder, pairs)
        runner.close()
        job.dismiss()
    job_here.leave()
    return 0


def repeat_pairs(*, names, coordinator, kept, seconds, process_id) -> int:
    """As `process`, of kept pairs only: more turns where there are too few."""
    from autotune.meshes.topology import local_target

    hosts, folder = TwoHosts(names=tuple(names)), Path(kept)
    known = kept_pairs(folder)
    few = [index for index, one in enumerate(known) if one.standard_error > PRECISION]
    if process_id == 0:
        hosts.set_rate(max(RATES) * MEGABIT)
    leads = job_here.join(coordinator, 2, process_id)
    target, job = local_target(), job_here.current()
    for index in few:
        name, layout = known[index].workload, parse_layout(known[index].layout)
        if not leads:
            follow(workload_of(name), target)
            continue
        runner = AgreedRunner(job, workload_of(name), target)
        [prepared] = runner.prepare([layout])
        known[index] = side_by_side(Kept(runner, {layout: prepared}), known[index], hosts, PAIRED * seconds)
        keep_pairs(folder, known)
        runner.close()
        job.dismiss()
    if not leads:
        job.hear()
    job_here.leave()
    return 0


def side_by_side(runner: Kept, before: Pairs, hosts: TwoHosts, seconds: float) -> Pairs:
    """`before` with more turns of its layout, at its rate and at the double, until the ratio is known to PRECISION."""
    layout, slow, pairs = parse_layout(before.layout), before.rate_megabit, before
    prepared = runner.prepared[layout]
    if isinstance(prepared, RunFailure):
        raise RuntimeError(f"{before.workload} {layout}: {prepared.kind}: {prepared.reason}")
    begin = time.monotonic()
    while pairs is before or (pairs.standard_error > PRECISION and time.monotonic() - begin < seconds):
        turns = {slow: list(pairs.slow_seconds), 2 * slow: list(pairs.fast_seconds)}
        for rate in (slow, 2 * slow) if len(turns[slow]) % 2 else (2 * slow, slow):
            hosts.set_rate(rate * MEGABIT)
            step_seconds = statistics.median(pairs.slow_seconds) if pairs.slow_seconds else prepared.step_seconds
            steps = max(1, round(TURN_SECONDS / step_seconds))
            turn = runner.turn(layout, steps)
            if isinstance(turn, RunFailure):
                raise RuntimeError(f"{before.workload} {layout} at {rate} Mbit/s: {turn.kind}: {turn.reason}")
            turns[rate].append(turn.seconds)
        pairs = replace(pairs, slow_seconds=tuple(turns[slow]), fast_seconds=tuple(turns[2 * slow]))
    say(f"{before.workload} {layout} {slow} to {2 * slow} Mbit/s: {pairs.ratio:.3f} +- {pairs.standard_error:.3f}")
    return pairs


def keepers(folder: Path, rate: int) -> dict[str, Callable[..., None]]:
    """What hears a calibration's timings and writes them down for `read`."""

    def samples(tier: str, timed: Sequence[Sample]) -> None:
        keep(folder / f"{rate}-{tier}.json.xz", [asdict(one) for one in timed])

    return {"on_timings": lambda timed: keep(folder / "timings.json.xz", timed), "on_samples": samples}


def kept_hardware(folder: Path, rate: int) -> Hardware:
    """The calibrated hardware of one rate, fitted anew to what was timed."""
    hardware = read_hardware(folder / f"{rate}.toml")
    sources = dict(hardware.sources)
    op_seconds = op_figures(load(folder / "timings.json.xz"), "kept", sources)
    tiers = []
    for tier in hardware.tiers:
        path = folder / f"{rate}-{tier.name}.json.xz"
        timed = [Sample(**{**one, "route": Route(**one["route"])}) for one in load(path)] if path.exists() else []
        tiers.append(fit_tier(tier, timed, "kept", sources) if timed else tier)
    return replace(hardware, op_seconds=op_seconds, tiers=tuple(tiers), sources=sources)


def load(path: Path) -> Any:
    """What `keep` wrote."""
    return json.loads(lzma.decompress(path.read_bytes()))


def keep(path: Path, values: Any) -> None:
    """Write JSON-able values, compressed."""
    path.write_bytes(lzma.compress(json.dumps(values).encode()))


def keep_pairs(folder: Path, pairs: Sequence[Pairs]) -> None:
    """Write them for `kept_pairs`."""
    (folder / "pairs.json").write_text(json.dumps([asdict(one) for one in pairs], indent=1))


def kept_pairs(folder: Path) -> list[Pairs]:
    """The paired turns that `run` kept."""
    told = json.loads((folder / "pairs.json").read_text())
    return [
        Pairs(**{**one, "slow_seconds": tuple(one["slow_seconds"]), "fast_seconds": tuple(one["fast_seconds"])})
        for one in told
    ]


def read(folder: Path, target: Target) -> list[Row]:
    """The rows that `run` kept, each predicted anew by today's reader and today's fit of what the calibration timed."""
    kept = [Row(**row) for row in json.loads((folder / "rows.json").read_text())]
    machines = {
        rate: replace(target, hardware=kept_hardware(folder, rate)) for rate in {row.rate_megabit for row in kept}
    }
    programs: dict[tuple[str, str], Program] = {}
    for name in dict.fromkeys(row.workload for row in kept):
        for text, values in load(folder / f"{name}.json.xz").items():
            programs[name, text] = program_of(compilation_from_json(values), parse_layout(text), target)
    rows = []
    for row in kept:
        program, machine = programs.get((row.workload, row.layout)), machines[row.rate_megabit]
        prediction = predict(program, parse_layout(row.layout), machine, machine.hardware) if program else None
        rows.append(replace(row, **_predicted(prediction)))
    return rows


def workload_of(name: str) -> Workload:
    transformer, sequences, seq = WORKLOADS[name]
    return transformer_workload(transformer, batch=sequences, seq=seq, dtype="float32")


class Kept:
    """A Runner whose layouts were prepared before and stay so: one compilation serves every rate."""

    def __init__(self, runner, prepared: dict[Layout, Prepared | RunFailure]) -> None:
        self.prepared, self.turn = prepared, runner.turn

    def prepare(self, layouts: Sequence[Layout]) -> list[Prepared | RunFailure]:
        return [self.prepared[layout] for layout in layouts]

    def release(self, layout: Layout) -> None:
        pass

    def close(self) -> None:
        pass


def row_of(name: str, rate: int, layout: Layout, prediction: Prediction | None, outcome) -> Row:
    measured = outcome if isinstance(outcome, Measurement) else None
    return Row(
        workload=name,
        rate_megabit=rate,
        layout=str(layout),
        measured=measured.median_seconds if measured else None,
        standard_error=measured.standard_error if measured else None,
        samples=measured.samples if measured else 0,
        failure=None if measured else f"{outcome.kind}: {outcome.reason}",
        **_predicted(prediction),
    )


def _predicted(prediction: Prediction | None) -> dict[str, Any]:
    shares = elasticities(prediction.by_resource()) if prediction else {}
    return {
        "predicted": prediction.step_seconds if prediction else None,
        "binding": binding_limit(shares).resource if shares else None,
        "link_share": sum(share for resource, share in shares.items() if resource.endswith("@network")),
    }


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S "), line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
