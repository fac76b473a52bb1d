"""Kill `autotune tune` at moments spread over its run, and compare the answer with that of a run nobody disturbed.

`python scripts/kill_series.py --kills 15` kills 15 times each: the tuner, a compile worker, a measuring worker, and one
process of a job of two. A killed worker must not show in the report of the same run. A killed tuner or job is started
again on the same store. Every second tuner dies right after another entry was stored. Linux only.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = "fsdp=8;data=4,tensor=2"
TINY = ("--model", "tiny", "--batch", "8", "--seq", "16")
WORDS = ("--layouts", LAYOUTS, "--compile", "2", "--json")
VICTIMS = ("tuner", "worker", "measurer", "job")
OF_WORKER = {"worker": "autotune.compile.worker", "measurer": "autotune.measure.worker"}
OF_MEASURED = ("of the measured turns are of an earlier run", "terms of the chosen price")
"""Notes that depend on when turns were measured, and on which layout won by its measured time."""
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA flags of every run. On the CPU most of a compile is LLVM's optimiser, and no answer here depends on it."""
STUCK_SECONDS = 600.0
"""A run whose processes neither print nor store nor use the processor for so long hangs. The whole time of a run has no
limit: on a busy machine a run that is right can take any time."""
IDLE_SHARE = 0.01
"""A process that uses a smaller share of one processor than this only waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One run: its exit code, its report (None unless it printed one), its stderr, and how long it took."""

    code: int
    report: dict | None
    said: str
    seconds: float


@click.command()
@click.option("--kills", type=click.IntRange(1), default=15, show_default=True, help="Of each kind of process.")
@click.option("--victims", default=",".join(VICTIMS), show_default=True, help="Which kinds.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--workload", help="package.module:function in place of the model `tiny`.")
def main(kills: int, victims: str, seed: int, workload: str | None) -> None:
    """Run the series; exit 1 where an answer differs."""
    chosen = victims.split(",")
    for victim in chosen:
        if victim not in VICTIMS:
            raise click.UsageError(f"--victims: {victim!r} is not one of {', '.join(VICTIMS)}")
    good = True
    with tempfile.TemporaryDirectory(prefix="autotune-kills-") as folder:
        for victim in chosen:
            words = ("tune", *(("--workload", workload) if workload else TINY), *WORDS)
            good &= series(victim, words, kills, random.Random(seed), Path(folder) / victim)
    sys.exit(0 if good else 1)


def series(victim: str, words: tuple[str, ...], kills: int, randomness: random.Random, folder: Path) -> bool:
    """Kill one kind of process so often; prints a line a kill and one in all. Whether every answer was right."""
    folder.mkdir(parents=True)
    start = started(folder, victim, words)
    seen: list[float] = []
    undisturbed = end(start(folder / "whole"), lambda processes, passed: note(victim, processes, passed, seen))
    if undisturbed.report is None:
        raise click.ClickException(f"{victim}: the undisturbed run failed: {undisturbed.said[-500:]}")
    lifetime = max(seen) - min(seen) if seen else undisturbed.seconds
    files = stored(folder / "whole") - stored(folder / "compiled")
    killed = right = 0
    for number in range(kills):
        store = folder / f"store-{number}"
        moment = (number + randomness.random()) / kills * lifetime
        after, found = None, None
        for _ in range(3):  # a machine that is less busy now may end a run before its moment
            shutil.rmtree(store, ignore_errors=True)
            if (folder / "compiled").exists():
                shutil.copytree(folder / "compiled", store)
            after = stored(store) + 1 + number * files // kills if victim == "tuner" and number % 2 else None
            found = disturbed(victim, start, store, moment, after, number)
            if found is not None:
                break
            moment /= 2
        killed += found is not None
        answer, lives = (found, 1) if found is not None else (None, 0)
        while answer is not None and answer.report is None and lives < 4:
            answer, lives = end(start(store)), lives + 1
        same = answer is not None and answer.report is not None and told(answer.report) == told(undisturbed.report)
        right += same
        when = f"after {after} entries" if after else f"{moment:.1f} s after its start"
        word = "the same answer" if same else "not killed: it had ended" if found is None else "ANOTHER ANSWER"
        click.echo(f"{victim} {number + 1}: killed {when}: {word} ({lives} {'life' if lives == 1 else 'lives'})")
        if not same and answer is not None:
            click.echo(answer.said[-1000:])
            other = told(answer.report) if answer.report is not None else {}
            for part, whole in told(undisturbed.report).items():
                if other.get(part) != whole:
                    click.echo(f"{part} undisturbed: {whole}\n{part} here: {other.get(part)}")
        shutil.rmtree(store, ignore_errors=True)
    click.echo(
        f"{victim}: {kills} moments, {killed} kills, {right} answers as undisturbed ({undisturbed.seconds:.0f} s)"
    )
    return killed > 0 and right == killed


def started(folder: Path, victim: str, words: tuple[str, ...]) -> Callable[[Path], list[subprocess.Popen]]:
    """What starts one run on a store: its processes, the one that reports first."""
    measure = "0" if victim == "worker" else "2"
    if victim == "measurer":  # every run of it goes on from the same compiles
        end(begin([*words, "--target", "cpu:8", "--measure", "0"], folder / "compiled"))
    if victim != "job":
        return lambda store: begin([*words, "--target", "cpu:8", "--measure", measure, "--jobs", "1"], store)

    def both(store: Path) -> list[subprocess.Popen]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        # One device a process: collectives between processes of a busy machine are slow.
        here = ["--layouts", "fsdp=2;data=2", "--measure", "1", "--target", "local"]
        job = [*words, *here, "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process-id"]
        return [one for index in (0, 1) for one in begin([*job, str(index)], store, JAX_NUM_CPU_DEVICES="1")]

    return both


def begin(words: list[str], store: Path, **environment: str) -> list[subprocess.Popen]:
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), QUICK]).strip()
    known = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TMPDIR": str(store.parent), "XLA_FLAGS": flags}
    out = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "autotune", *words, "--store", str(store)],
        stdout=out[0], stderr=out[1], env={**os.environ, **known, **environment},
    )  # fmt: skip
    process.output = out  # type: ignore[attr-defined]
    return [process]


def end(
    processes: list[subprocess.Popen], watch: Callable[[list[subprocess.Popen], float], bool] = lambda *_: False
) -> Ended:
    """Wait for a run. `watch` sees it every few milliseconds until it says True. A run that hangs is an error."""
    since, watching, texts = time.monotonic(), True, []
    moved, before = since, progress(processes)
    try:
        while any(process.poll() is None for process in processes):
            passed = time.monotonic() - since
            if since + passed > moved + STUCK_SECONDS:
                now = progress(processes)
                if now.printed == before.printed and now.seconds - before.seconds < IDLE_SHARE * STUCK_SECONDS:
                    raise click.ClickException(hung(processes, passed))
                moved, before = since + passed, now
            watching = watching and not watch(processes, passed)
            time.sleep(0.005 if watching else 0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            for file in process.output:  # type: ignore[attr-defined]
                file.seek(0)
                texts.append(file.read())
                file.close()
    try:  # gloo prints on stdout too
        report = json.loads(texts[0][texts[0].index("{\n") :]) if processes[0].returncode in (0, 1) else None
    except ValueError:
        report = None
    return Ended(code=processes[0].returncode, report=report, said="".join(texts[1:]), seconds=time.monotonic() - since)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is: the bytes that its processes printed, and the processor seconds of them and their children."""

    printed: int
    seconds: float


def progress(processes: list[subprocess.Popen]) -> Progress:
    """How far a run is now."""
    files = [file for process in processes for file in process.output]  # type: ignore[attr-defined]
    alive = [process.pid for process in processes if process.poll() is None]
    return Progress(
        printed=sum(os.fstat(file.fileno()).st_size for file in files),
        seconds=sum(processor_seconds(pid) for pid in [*alive, *children(alive)]),
    )


def processor_seconds(pid: int) -> float:
    """What a process and the children that it has waited for took of the processors; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(one) for one in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def hung(processes: list[subprocess.Popen], passed: float) -> str:
    """What is said of a run that hangs: which of its processes live, and the last that each printed."""
    said = [f"after {passed:.0f} s a run hangs: {STUCK_SECONDS:.0f} s without a line and without work"]
    for number, process in enumerate(processes):
        file = process.output[1]  # type: ignore[attr-defined]
        file.seek(0)
        state = "runs" if process.poll() is None else f"ended with {process.returncode}"
        said.append(f"process {number} {state}; its last words: {file.read()[-500:]}")
    return "\n".join(said)


def note(victim: str, processes: list[subprocess.Popen], passed: float, seen: list[float]) -> bool:
    """Note when a victim is there."""
    if victims_of(victim, processes, 0):
        seen.append(passed)
    return False


def disturbed(
    victim: str,
    start: Callable[[Path], list[subprocess.Popen]],
    store: Path,
    moment: float,
    after: int | None,
    which: int,
) -> Ended | None:
    """A run whose victim is killed so many seconds after one is seen, or once so many entries are stored; None where it
    ended before."""
    done: list[int] = []
    seen: list[float] = []

    def kill(processes: list[subprocess.Popen], passed: float) -> bool:
        found = victims_of(victim, processes, which)
        if found:
            seen.append(passed)
        ready = stored(store) >= after if after else seen and passed - seen[0] >= moment
        for process in found[:1] if ready else []:
            try:
                os.kill(process, signal.SIGKILL)
                done.append(process)
            except ProcessLookupError:
                pass
        return bool(done)

    found = end(start(store), kill)
    return found if done else None


def victims_of(victim: str, processes: list[subprocess.Popen], which: int) -> list[int]:
    """Process ids that may be killed now."""
    alive = [process.pid for process in processes if process.poll() is None]
    if victim == "tuner":
        return alive
    if victim == "job":
        return [processes[which % 2].pid] if len(alive) == 2 else []
    return [pid for pid in children(alive) if OF_WORKER[victim] in command(pid)]


def children(parents: list[int]) -> list[int]:
    found = []
    for parent in parents:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(word) for word in path.read_text().split()]
            except OSError:
                continue
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def stored(store: Path) -> int:
    """Entries in a store, without opening it."""
    return sum(1 for _ in (store / "entries").glob("??/*"))


def told(report: dict) -> dict:
    """What of a report does not depend on when it ran: the layouts, their status, what was compiled and predicted."""
    rows = {
        row["text"]: [row["status"], row["step_seconds"]["priced"], row["step_seconds"]["compiled"], row["memory"]]
        for row in report["rows"]
    }
    notes = [note for note in report["notes"] if not any(words in note for words in OF_MEASURED)]
    return {"rows": rows, "counts": report["counts"], "notes": sorted(notes)}


if __name__ == "__main__":
    main()
