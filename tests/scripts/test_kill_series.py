"""`scripts/kill_series.py`, one kill of each kind; the whole series takes many minutes."""

import importlib
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def kill_series(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("kill_series")


@pytest.mark.parametrize(
    "victim", ["worker", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tuner", "measurer", "job"))]
)
def test_whoever_is_killed_the_answer_is_that_of_an_undisturbed_run(kill_series, victim, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent / "tests"))
    small = ["--workload", "toy_steps:own_step"]  # compiles in a second: what is kept does not depend on the model
    done = CliRunner().invoke(kill_series.main, ["--kills", "1", "--victims", victim, *small])
    assert done.exit_code == 0, done.output
    assert f"{victim}: 1 moments, 1 kills, 1 answers as undisturbed" in done.output


def test_another_answer_is_seen(kill_series):
    row = {"text": "fsdp=8", "status": "compiled", "step_seconds": {"priced": 1.0, "compiled": 2.0}, "memory": {}}
    report = {"rows": [row], "counts": {"compiled": 1}, "notes": []}
    for change in ({"status": "failed"}, {"step_seconds": {"priced": 1.0, "compiled": 2.5}}, {"memory": {"a": 1}}):
        assert kill_series.told({**report, "rows": [{**row, **change}]}) != kill_series.told(report)
    assert kill_series.told({**report, "counts": {}}) != kill_series.told(report)
    done = CliRunner().invoke(kill_series.main, ["--victims", "nobody"])
    assert done.exit_code == 2 and "'nobody' is not one of tuner, worker, measurer, job" in done.output


@pytest.mark.parametrize(("does", "hangs"), [("time.sleep(60)", True), ("work(4)", False), ("tell(4)", False)])
def test_a_run_that_hangs_is_told_from_one_that_is_slow(kill_series, tmp_path, monkeypatch, does, hangs):
    """A busy machine can make any run slow; only one that does nothing hangs."""
    monkeypatch.setattr(kill_series, "STUCK_SECONDS", 1.5)
    monkeypatch.setattr(kill_series, "IDLE_SHARE", 0.02)
    program = (
        "import sys, time\n"
        "def work(seconds):\n"
        "    until = time.monotonic() + seconds\n"
        "    while time.monotonic() < until: pass\n"
        "def tell(seconds):\n"
        "    for _ in range(10 * seconds): print('turn', file=sys.stderr, flush=True); time.sleep(0.1)\n"
        f"print('begun', file=sys.stderr, flush=True); {does}"
    )
    started = kill_series.subprocess.Popen
    monkeypatch.setattr(
        kill_series.subprocess, "Popen", lambda _, **rest: started([sys.executable, "-c", program], **rest)
    )
    processes = kill_series.begin(["tune"], tmp_path / "store")
    if not hangs:
        assert kill_series.end(processes).code == 0
        return
    with pytest.raises(click.ClickException, match="a run hangs: .* without a line and without work") as raised:
        kill_series.end(processes)
    assert "process 0 runs; its last words: begun" in raised.value.message
    assert processes[0].poll() is not None
