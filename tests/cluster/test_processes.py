"""Two processes of one JAX job: they measure together, and a lost one ends the job with a clear error."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.measure.measure import Measurement, from_json
from autotune.system.job import LOST, join

HERE = Path(__file__).parent


def start(out: Path, *words: str, **environment: str) -> list[subprocess.Popen]:
    """The two processes, on this host; their output comes by their pipes."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "job.py"), f"127.0.0.1:{port}", str(index), str(out), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
        )
        for index in (0, 1)
    ]


def ended(processes: list[subprocess.Popen]) -> list[str]:
    try:
        return [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_both_processes_run_every_layout_and_one_reports(tmp_path):
    processes = start(tmp_path / "out.json")
    outputs = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["target"] == [2, 2], "two hosts of one device each"
    assert result["all_reduces"] > 0
    assert set(result["outcomes"]) == {"data=2", "fsdp=2", "tensor=2"}
    for outcome in map(from_json, result["outcomes"].values()):
        assert isinstance(outcome, Measurement) and outcome.rounds == 3, outcome


@pytest.mark.slow
def test_a_lost_process_ends_the_job_at_once_and_what_was_kept_is_whole(tmp_path):
    processes = start(tmp_path / "out.json", "die", VICTIM_FILE=str(tmp_path / "victim"))
    outputs = ended(processes)
    assert processes[1].returncode == -9
    assert processes[0].returncode == LOST, outputs[0]
    assert "process 1 of 2 was lost" in outputs[0]
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["turns"] == 5 and isinstance(from_json(kept["outcome"]), Measurement)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", 2, 0), "coordinator: 'nowhere' must be written HOST:PORT"),
        (("host:1", 0, 0), "processes: 0 must be 1 or more"),
        (("host:1", 2, 2), "process-id: 2 must be from 0 to 1"),
    ],
)
def test_bad_flags_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        join(*arguments)
