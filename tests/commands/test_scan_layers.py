"""Layers that are not scanned, in flags, job files, plans, headings, MaxText files and emitted text."""

from __future__ import annotations

import json
import tomllib

import pytest
import yaml

from autotune.cli import run
from autotune.meshes.training import Training
from autotune.model_files.read import read_model
from autotune.plan.emit import CODEBASES, emit
from autotune.plan.read import load_plan
from autotune.reference_workload import workload_of_plan

TINY = ["tune", "--model", "tiny", "--target", "cpu:8", "--batch", "16", "--seq", "64", "--compile", "0"]
LAYOUTS = ["--layouts", "fsdp=8;fsdp=4,stage=2,schedule=gpipe,microbatches=2"]
UNSCANNED = ["--scan-layers", "false"]


def test_a_job_and_a_plan_keep_it_and_stages_are_refused(tmp_path, capsys):
    job, path = tmp_path / "job.toml", tmp_path / "plan.json"
    assert run([*TINY, *LAYOUTS, *UNSCANNED, "--save-job", str(job), "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "adamw with gradient clipping, layers not scanned" in shown
    assert "stage=2 runs the layers of a stage in a loop: scan_layers=false has none" in " ".join(shown.split())
    assert tomllib.loads(job.read_text())["scan-layers"] is False
    again = tmp_path / "again.json"
    assert run(["tune", "--job", str(job), "--compile", "0", "--out", str(again)]) == 0
    first, second = load_plan(path), load_plan(again)
    assert first.recipe == second.recipe and first.fingerprint == second.fingerprint
    workload = workload_of_plan(first)
    assert workload.fingerprint == first.fingerprint and workload.training == Training(scan_layers=False)
    scanned = tmp_path / "scanned.json"
    assert run(["tune", "--job", str(job), "--scan-layers", "true", "--compile", "0", "--out", str(scanned)]) == 0
    assert "scan_layers" not in load_plan(scanned).recipe and load_plan(scanned).fingerprint != first.fingerprint


@pytest.mark.parametrize("value", ["no", "0", "off"])
def test_a_bad_flag_is_one_line(value, capsys):
    assert run([*TINY, *LAYOUTS, "--scan-layers", value]) == 2
    assert capsys.readouterr().err.strip() == f"autotune: --scan-layers={value!r} must be one of true, false"


@pytest.mark.parametrize("value", ["'false'", "0", "1.5"])
def test_a_bad_value_in_a_job_file_is_one_line(value, tmp_path, capsys):
    job = tmp_path / "job.toml"
    job.write_text(f"model = 'tiny'\nscan-layers = {value}\n")
    assert run(["tune", "--job", str(job), "--target", "cpu:8", "--batch", "16", "--seq", "64"]) == 2
    said = capsys.readouterr().err.strip()
    assert "scan-layers=" in said and said.endswith("must be true or false") and "\n" not in said


def test_a_plan_with_a_bad_value_is_one_line(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert run([*TINY, *LAYOUTS, *UNSCANNED, "--out", str(path)]) == 0
    plan = json.loads(path.read_text())
    plan["recipe"]["scan_layers"] = "no"
    path.write_text(json.dumps(plan))
    capsys.readouterr()
    assert run(["explain", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert "scan_layers='no' must be true or false" in said and "\n" not in said


@pytest.mark.parametrize(
    ("said", "scanned"), [({}, None), ({"scan_layers": True}, None), ({"scan_layers": False}, False)]
)
def test_maxtexts_key_is_read(said, scanned, tmp_path):
    path = tmp_path / "small.yml"
    path.write_text(yaml.safe_dump(MAXTEXT | said))
    assert read_model(str(path)).run.get("scan_layers") is scanned


MAXTEXT = {
    "model_name": "small", "decoder_block": "llama2", "base_emb_dim": 256, "base_num_query_heads": 4,
    "base_num_kv_heads": 2, "head_dim": 64, "base_mlp_dim": 512, "base_num_decoder_layers": 2, "vocab_size": 512,
    "mlp_activations": ["silu", "linear"],
}  # fmt: skip


def test_other_codebases_are_told(tmp_path, capsys):
    path, scanned = tmp_path / "plan.json", tmp_path / "scanned.json"
    assert run([*TINY, *LAYOUTS, *UNSCANNED, "--out", str(path)]) == run([*TINY, *LAYOUTS, "--out", str(scanned)]) == 0
    for codebase in CODEBASES:
        text = emit(load_plan(path), codebase)
        assert ("scan_layers=False" if codebase == "maxtext" else "not expressed: scan_layers=false") in text, text
        assert "scan_layers" not in emit(load_plan(scanned), codebase)
