"""`autotune tune` killed with SIGKILL at random moments and started again: nothing kept is done twice, the report is
that of a search that nobody killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.measure.session import unfinished
from autotune.store import Key, Store

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    *(sys.executable, "-m", "autotune", "tune", "--workload", "toy_steps:own_step", "--target", "cpu:2"),
    *("--layouts", "data=2;fsdp=2;tensor=2", "--compile", "3", "--measure", "2", "--jobs", "1", "--json", "--store"),
)
"""Of a step that compiles in a second: what is kept, and in which order, does not depend on the model."""
KILLS = 5


def begin(store: Path) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*COMMAND, str(store)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def whole(store: Path) -> dict:
    process = begin(store)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out)


def compiles(folder: Path) -> dict[str, int]:
    """What was compiled: its key, and when the file was written."""
    return {
        json.dumps(entry.key, sort_keys=True): entry.path.stat().st_mtime_ns
        for entry in Store(folder).entries()
        if entry.kind == "compile"
    }


def turns(folder: Path) -> dict[str, list[float]]:
    """Seconds of the turns of each layout, finished or not."""
    store = Store(folder)
    found = {}
    for text in compiles(folder):
        key = Key(**json.loads(text))
        kept = store.measurements(key)[-1:] or [store.get_blob(unfinished(key))]
        found[key.layout] = list(kept[0]["turn_seconds"]) if kept[0] else []
    return found


def wait_until_more_is_kept(folder: Path, process: subprocess.Popen) -> None:
    """Until one more compile or turn is kept than at the start of this life."""

    def kept() -> tuple[int, int]:
        return len(compiles(folder)), sum(map(len, turns(folder).values()))

    before, limit = kept(), time.monotonic() + 300
    while kept() == before:
        assert process.poll() is None and time.monotonic() < limit, "this life has kept nothing"
        time.sleep(0.1)


def without_times(report: dict) -> dict:
    """What does not depend on when it ran: the layouts, their status, what was compiled and predicted."""
    rows = {
        row["text"]: [row["status"], row["step_seconds"]["priced"], row["step_seconds"]["compiled"], row["memory"]]
        for row in report["rows"]
    }
    return {"rows": rows, "counts": report["counts"]}


@pytest.mark.slow
def test_a_search_killed_at_random_moments_ends_with_the_same_report(tmp_path):
    began = time.monotonic()
    undisturbed = whole(tmp_path / "undisturbed")
    seconds = time.monotonic() - began
    folder = tmp_path / "killed"
    randomness = random.Random(6)
    kept: dict[str, int] = {}
    timed: dict[str, list[float]] = {}
    for kill in range(KILLS):
        process = begin(folder)
        # The first life ends in its start or its first compile. However busy the machine, each later one keeps a thing
        # and then lives on for a moment: the last ones are killed among their turns.
        if kill:
            wait_until_more_is_kept(folder, process)
            time.sleep(randomness.uniform(0.0, 1.0))
        else:
            time.sleep(seconds * randomness.uniform(0.0, 0.3))
        assert process.poll() is None, "killed while it works"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now, timed_now = compiles(folder), turns(folder)
        assert all(now[key] == written for key, written in kept.items()), "what was compiled is not compiled again"
        for layout, before in timed.items():
            assert timed_now[layout][: len(before)] == before, "turns that were kept are not run again"
        kept, timed = now, timed_now
    assert kept and any(timed.values()), "no turn was kept before the last kill: the test's own timing is off"
    report = whole(folder)
    after, ended = compiles(folder), turns(folder)
    assert all(after[key] == written for key, written in kept.items())
    assert all(ended[layout][: len(before)] == before for layout, before in timed.items())
    assert without_times(report) == without_times(undisturbed)
    assert {row["text"] for row in report["rows"] if row["status"] == "measured"} == {
        row["text"] for row in undisturbed["rows"] if row["status"] == "measured"
    }
    again = whole(folder)
    assert again["rows"] == report["rows"], "a repeat is answered from the store"
    assert compiles(folder) == after
