"""The check of predictions on eight CPU devices: it measures, keeps, and predicts the same again from what it kept."""

from __future__ import annotations

import one_host
import pytest
import two_hosts

from autotune.meshes.hardware import load_hardware
from autotune.meshes.target import parse_target


@pytest.mark.slow
def test_rows_are_measured_kept_and_predicted_again(monkeypatch, tmp_path):
    monkeypatch.setitem(one_host.WORKLOADS, "tiny", (two_hosts.shape("tiny", 1, 64, 64, 64), 8, 16))
    monkeypatch.setitem(one_host.SEQUENCES, "tiny", 8)
    monkeypatch.setattr(one_host, "calibrated", lambda target, calibrate, folder: target)
    monkeypatch.setattr(two_hosts, "kept_hardware", lambda folder, rate: load_hardware("cpu"))
    rows = one_host.run(["tiny"], ["data=8", "fsdp=8", "data=4,tensor=3"], 2.0, tmp_path)
    good = [row for row in rows if row.failure is None]
    assert [row.layout for row in good] == ["data=8", "fsdp=8"]
    assert all(row.predicted > 0 and row.measured > 0 for row in good)
    again = [row for row in two_hosts.read(tmp_path, parse_target(one_host.TARGET)) if row.failure is None]
    assert [row.predicted for row in again] == pytest.approx([row.predicted for row in good])
    lines = one_host.errors(rows)
    assert [line.split()[0] for line in lines] == ["tiny", "all"] and "2 layouts: median error" in lines[0]
