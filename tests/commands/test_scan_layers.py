"""Layers that are not scanned, in flags, job files, plans, headings, MaxText files and emitted text."""

from __future__ import annotations

import pytest
import yaml
from training_words import MAXTEXT, TINY, kept_by_job_and_plan, plan_of, refused, refused_of_job, refused_of_plan

from autotune.cli import run
from autotune.meshes.training import Training
from autotune.model_files.read import read_model
from autotune.plan.emit import CODEBASES, emit
from autotune.plan.read import load_plan

STAGED = ["--layouts", "fsdp=8;fsdp=4,stage=2,schedule=gpipe,microbatches=2"]
UNSCANNED = ["--scan-layers", "false"]


def test_a_job_and_a_plan_keep_it_and_stages_are_refused(tmp_path, capsys):
    kept = kept_by_job_and_plan(UNSCANNED, Training(scan_layers=False), tmp_path, capsys, STAGED)
    assert "adamw with gradient clipping, layers not scanned" in kept.screen
    shown = " ".join(kept.screen.split())
    assert "stage=2 runs the layers of a stage in a loop: scan_layers=false has none" in shown
    assert kept.job["scan-layers"] is False
    scanned = tmp_path / "scanned.json"
    words = ["tune", "--job", str(kept.job_path), "--scan-layers", "true", "--compile", "0", "--out", str(scanned)]
    assert run(words) == 0
    assert "scan_layers" not in load_plan(scanned).recipe and load_plan(scanned).fingerprint != kept.plan.fingerprint


@pytest.mark.parametrize("value", ["no", "0", "off"])
def test_a_bad_flag_is_one_line(value, capsys):
    said = refused([*TINY, *STAGED, "--scan-layers", value], capsys)
    assert said == f"autotune: --scan-layers={value!r} must be one of true, false"


@pytest.mark.parametrize("value", ["'false'", "0", "1.5"])
def test_a_bad_value_in_a_job_file_is_one_line(value, tmp_path, capsys):
    said = refused_of_job(f"scan-layers = {value}", tmp_path, capsys)
    assert "scan-layers=" in said and said.endswith("must be true or false")


def test_a_plan_with_a_bad_value_is_one_line(tmp_path, capsys):
    for said in refused_of_plan(UNSCANNED, {"scan_layers": "no"}, tmp_path, capsys):
        assert "scan_layers='no' must be true or false" in said


@pytest.mark.parametrize(
    ("said", "scanned"), [({}, None), ({"scan_layers": True}, None), ({"scan_layers": False}, False)]
)
def test_maxtexts_key_is_read(said, scanned, tmp_path):
    path = tmp_path / "small.yml"
    path.write_text(yaml.safe_dump(MAXTEXT | said))
    assert read_model(str(path)).run.get("scan_layers") is scanned


def test_other_codebases_are_told(tmp_path):
    unscanned, scanned = plan_of(UNSCANNED, tmp_path / "plan.json"), plan_of([], tmp_path / "scanned.json")
    for codebase in CODEBASES:
        text = emit(unscanned, codebase)
        assert ("scan_layers=False" if codebase == "maxtext" else "not expressed: scan_layers=false") in text, text
        assert "scan_layers" not in emit(scanned, codebase)
