"""LoRA in flags, job files, plans, headings and emitted text; bad words are one line."""

from __future__ import annotations

import json

import pytest
from training_words import LAYOUTS, TINY, kept_by_job_and_plan, plan_of, refused, refused_of_job, refused_of_plan

from autotune.cli import run
from autotune.meshes.lora import LORA_TARGETS
from autotune.meshes.training import Training, training_of
from autotune.plan.emit import CODEBASES, emit

LORA = ["--lora-rank", "4", "--lora-targets", "v_proj,q", "--base-dtype", "s8"]


def test_a_job_and_a_plan_keep_the_adapters(tmp_path, capsys):
    training = Training(lora_rank=4, lora_targets="q,v", base_dtype="int8")
    kept = kept_by_job_and_plan(LORA, training, tmp_path, capsys)
    assert "taken: float32 compute, LoRA of rank 4 on q,v, int8 base; adapters: float32 weights" in kept.screen
    assert (kept.job["lora-rank"], kept.job["lora-targets"], kept.job["base-dtype"]) == (4, "q,v", "int8")


def test_words_are_read_back():
    for words in ({"lora_rank": 8}, {"lora_rank": 64, "base_dtype": "nf4", "lora_targets": "down,o"}):
        training = Training(**words)
        assert training_of(training.recipe()) == training
    assert Training(lora_rank=8, base_dtype="bfloat16", lora_targets=",".join(LORA_TARGETS)) == Training(lora_rank=8)
    assert Training(lora_rank=8).recipe() == {"lora_rank": 8} and Training().lora is None


BAD = {
    "--lora-targets q": "lora_targets='q' is of the frozen base under adapters: it needs lora_rank above 0",
    "--base-dtype int8": "base_dtype='int8' is of the frozen base under adapters: it needs lora_rank above 0",
    "--lora-rank 4 --lora-targets q,vv": "'vv' must be one of q, k, v, o, gate, up, down; did you mean 'v'?",
    "--lora-rank 4 --lora-targets q,": "'' must be one of q, k, v, o, gate, up, down",
    "--lora-rank -1": "--lora-rank=-1 must be 0 or more",
    "--lora-rank 1.5": "--lora-rank=1.5 must be a whole number",
    "--lora-rank 100000": "--lora-rank=100000 must be at most 65,536",
    "--lora-rank 4 --base-dtype int4": "--base-dtype='int4' must be one of bfloat16, float32, float16, int8, nf4",
    "--lora-rank 4 --optimizer muon": "optimizer='muon' with lora_rank",
    "--lora-rank 4 --model tiny-encoder --lora-targets gate": "lora_targets=gate: model tiny-encoder has no",
}


@pytest.mark.parametrize("words", BAD, ids=lambda words: words.replace("--", "").replace(" ", "-"))
def test_a_bad_word_is_one_line(words, capsys):
    assert BAD[words] in refused([*TINY, *LAYOUTS, *words.split()], capsys)


@pytest.mark.parametrize("value", ["'4'", "4.5", "true", "0"])
def test_a_bad_rank_of_a_job_file_is_one_line(value, tmp_path, capsys):
    said = refused_of_job(f"lora-rank = {value}", tmp_path, capsys)
    assert "lora-rank=" in said and "must be a whole number" in said


def test_a_plan_with_a_bad_rank_is_one_line(tmp_path, capsys):
    for said in refused_of_plan(LORA, {"lora_rank": "many"}, tmp_path, capsys):
        assert "lora_rank='many' must be a whole number from 0 to 65,536" in said


def test_nf4_is_priced_only(capsys):
    assert run([*TINY, *LAYOUTS, "--lora-rank", "4", "--base-dtype", "nf4", "--compile", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["reason"] for row in rows} == {"priced only: the reference model has no 4-bit weights in blocks"}
    assert {row["status"] for row in rows} == {"priced"}


def test_other_codebases_are_told_that_adapters_alone_are_trained(tmp_path, capsys):
    adapted, plain = plan_of(LORA, tmp_path / "plan.json"), plan_of([], tmp_path / "plain.json")
    for codebase in CODEBASES:
        assert "adapters alone are trained" in emit(adapted, codebase)
        assert "adapters" not in emit(plain, codebase)
    text = emit(adapted, "maxtext")
    assert "maxtext.trainers.post_train.sft.train_sft" in text and "pre_train" not in text
    assert "lora.lora_rank=4" in text and "lora.lora_weight_qtype=int8" in text
