"""What the command line promises of every word of training: a job and a plan keep it, a bad value is one line."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from autotune.cli import run
from autotune.meshes.training import Training
from autotune.plan.plan import Plan
from autotune.plan.read import load_plan
from autotune.reference_workload import workload_of_plan

TINY = ["tune", "--model", "tiny", "--target", "cpu:8", "--batch", "16", "--seq", "64", "--compile", "0"]
LAYOUTS = ["--layouts", "fsdp=8;data=8"]

MAXTEXT = {
    "model_name": "small", "decoder_block": "llama2", "base_emb_dim": 256, "base_num_query_heads": 4,
    "base_num_kv_heads": 2, "head_dim": 64, "base_mlp_dim": 512, "base_num_decoder_layers": 2, "vocab_size": 512,
    "mlp_activations": ["silu", "linear"],
}  # fmt: skip
"""The keys of a small dense model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a run with some words left behind."""

    screen: str
    job_path: Path
    job: dict
    plan: Plan


def kept_by_job_and_plan(words: list[str], training: Training, tmp_path, capsys, layouts=LAYOUTS) -> Kept:
    """Run with the words: its job file gives the same plan again, and the plan gives a workload trained so."""
    job, path, again = tmp_path / "job.toml", tmp_path / "plan.json", tmp_path / "again.json"
    assert run([*TINY, *layouts, *words, "--save-job", str(job), "--out", str(path)]) == 0
    screen = capsys.readouterr().out
    assert run(["tune", "--job", str(job), "--compile", "0", "--out", str(again)]) == 0
    first, second = load_plan(path), load_plan(again)
    assert first.recipe == second.recipe and first.fingerprint == second.fingerprint
    workload = workload_of_plan(first)
    assert workload.fingerprint == first.fingerprint and workload.training == training
    return Kept(screen=screen, job_path=job, job=tomllib.loads(job.read_text()), plan=first)


def plan_of(words: list[str], path: Path, layouts=LAYOUTS) -> Plan:
    """The plan of a run with the words."""
    assert run([*TINY, *layouts, *words, "--out", str(path)]) == 0
    return load_plan(path)


def refused(words: list[str], capsys) -> str:
    """The one line that a run with bad input says."""
    capsys.readouterr()
    assert run(words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("autotune: ") and "\n" not in said
    return said


def refused_of_job(line: str, tmp_path, capsys) -> str:
    """The one line that a job file with a bad line gets."""
    job = tmp_path / "job.toml"
    job.write_text(f"model = 'tiny'\n{line}\n")
    return refused(["tune", "--job", str(job), "--target", "cpu:8", "--batch", "16", "--seq", "64"], capsys)


def refused_of_plan(words: list[str], changed: dict, tmp_path, capsys) -> set[str]:
    """The lines that commands say of the plan of a run with the words, whose recipe was changed."""
    path = tmp_path / "plan.json"
    plan_of(words, path)
    plan = json.loads(path.read_text())
    plan["recipe"] |= changed
    path.write_text(json.dumps(plan))
    return {refused(command, capsys) for command in (["explain", str(path)], ["emit", str(path), "--for", "maxtext"])}
