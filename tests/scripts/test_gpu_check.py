"""The check of predictions on one accelerator runs anywhere: here a tiny model on one CPU device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.meshes.hardware import read_hardware

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_calibrates_predicts_and_measures_every_setting(tmp_path):
    settings = "4x32;4x32,remat=full;8x32,accumulate=2"
    command = [sys.executable, "scripts/gpu_check.py", "--model", "tiny", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--settings", settings, "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["setting"] for row in rows] == settings.split(";")
    for row in rows:
        assert row["failure"] is None and row["samples"] >= 1
        assert row["from_file"] > 0
        assert 0 < row["low"] <= row["predicted"] <= row["high"]
        assert sum(row["shares"].values()) == pytest.approx(1.0)
        assert 0.1 < row["predicted"] / row["measured"] < 10
    assert rows[2]["predicted"] > rows[0]["predicted"], "twice the tokens"
    assert "median error" in done.stdout and "cpu" in done.stderr
    assert read_hardware(tmp_path / "hardware.toml").sources["launch_seconds"].startswith("autotune calibrate")


def test_a_setting_that_failed_is_a_row_with_its_reason():
    import gpu_check

    row = dict.fromkeys(gpu_check.Row.__dataclass_fields__) | {
        "setting": "4x32",
        "failure": "oom in run: why",
        "shares": {},
    }
    assert "oom in run: why" in gpu_check.table([gpu_check.Row(**row)])[1]
