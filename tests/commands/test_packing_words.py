"""Packed documents in flags, job files, plans, headings, MaxText files and emitted text; bad words are one line."""

from __future__ import annotations

import pytest
import yaml
from training_words import (
    LAYOUTS,
    MAXTEXT,
    TINY,
    kept_by_job_and_plan,
    plan_of,
    refused,
    refused_of_job,
    refused_of_plan,
)

from autotune.cli import run
from autotune.meshes.training import Training, training_of
from autotune.model_files.read import read_model
from autotune.plan.emit import CODEBASES, emit
from autotune.plan.read import load_plan

PACKED = ["--packing", "4"]


def test_a_job_and_a_plan_keep_the_documents(tmp_path, capsys):
    kept = kept_by_job_and_plan(PACKED, Training(packing=4), tmp_path, capsys)
    assert "adamw with gradient clipping, 4 documents packed into a sequence" in kept.screen
    assert kept.job["packing"] == 4
    plain = tmp_path / "plain.json"
    assert run(["tune", "--job", str(kept.job_path), "--packing", "0", "--compile", "0", "--out", str(plain)]) == 0
    assert "packing" not in load_plan(plain).recipe and load_plan(plain).fingerprint != kept.plan.fingerprint


def test_words_are_read_back():
    training = Training(packing=8)
    assert training.recipe() == {"packing": 8} and training_of(training.recipe()) == training
    assert Training(packing=0) == Training() and Training().recipe() == {}


BAD = {
    "--packing 1": "packing=1 must be the documents of a sequence, from 2 to",
    "--packing -1": "--packing=-1 must be 0 or more",
    "--packing 1.5": "--packing=1.5 must be a whole number",
    "--packing many": "--packing=many must be a whole number",
    "--packing 10000000": "--packing=10000000 must be at most 1,048,576",
    "--packing 65": "packing=65 documents have a token each at least: seq=64 has fewer",
    "--workload a.b:c --packing 4": "--packing is of a --model",
}


@pytest.mark.parametrize("words", BAD, ids=lambda words: words.replace("--", "").replace(" ", "-"))
def test_a_bad_word_is_one_line(words, capsys):
    base = ["tune", "--target", "cpu:8"] if "--workload" in words else [*TINY, *LAYOUTS]
    assert BAD[words] in refused([*base, *words.split()], capsys)


@pytest.mark.parametrize("value", ["'4'", "4.5", "true", "0", "1"])
def test_a_bad_number_in_a_job_file_is_one_line(value, tmp_path, capsys):
    said = refused_of_job(f"packing = {value}", tmp_path, capsys)
    assert "packing=" in said and "must be" in said


def test_a_plan_with_a_bad_number_is_one_line(tmp_path, capsys):
    for said in refused_of_plan(PACKED, {"packing": "many"}, tmp_path, capsys):
        assert "packing='many' must be the documents of a sequence" in said


def test_chunks_begin_anew_in_each_document_and_are_refused(tmp_path, capsys):
    chunked = {
        "model_name": "chunky", "decoder_block": "llama4", "base_emb_dim": 256, "base_num_query_heads": 4,
        "base_num_kv_heads": 2, "head_dim": 64, "base_mlp_dim": 512, "base_num_decoder_layers": 4, "vocab_size": 512,
        "mlp_activations": ["silu", "linear"], "chunk_attn_window_size": 32, "nope_layer_interval": 4,
    }  # fmt: skip
    path = tmp_path / "chunky.yml"
    path.write_text(yaml.safe_dump(chunked))
    words = [*TINY[:1], "--model", str(path), *TINY[3:], *LAYOUTS]
    assert run(words) == 0
    said = refused([*words, *PACKED], capsys)
    assert "packing=4: " in said and "attention in chunks, which begin anew in each document" in said


@pytest.mark.parametrize(
    ("said", "documents", "noted"),
    [
        ({}, None, ()),
        ({"packing": True}, None, ()),
        ({"packing": True, "max_segments_per_seq": -1}, None, ()),
        ({"max_segments_per_seq": 1}, None, ()),
        ({"max_segments_per_seq": 32}, 32, ("max_segments_per_seq",)),
        ({"packing": False, "max_segments_per_seq": 32}, None, ()),
        ({"max_segments_per_seq": 32, "dataset_type": "synthetic"}, None, ()),
        ({"max_segments_per_seq": 32, "context_parallel_strategy": "ring"}, None, ("packing",)),
    ],
)
def test_maxtext_packs_real_data_where_it_says_how_many_documents(said, documents, noted, tmp_path):
    """Without a number `packing` is of the data alone, and its default, true, changes no price."""
    path = tmp_path / "small.yml"
    path.write_text(yaml.safe_dump(MAXTEXT | said))
    model = read_model(str(path))
    assert model.run.get("packing") == documents
    assert tuple(note.partition(":")[0] for note in model.not_modelled) == noted
    ignored = {"packing", "max_segments_per_seq"} & said.keys() & set(model.ignored)
    assert ignored == (set() if noted else {"packing", "max_segments_per_seq"} & said.keys())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"packing": "yes"}, "packing='yes' must be true or false"),
        ({"max_segments_per_seq": "32"}, "max_segments_per_seq='32' must be a whole number, or -1"),
        ({"max_segments_per_seq": -2}, "max_segments_per_seq=-2 must be a whole number, or -1"),
    ],
)
def test_a_bad_value_of_maxtext_is_named(said, words, tmp_path):
    path = tmp_path / "small.yml"
    path.write_text(yaml.safe_dump(MAXTEXT | said))
    with pytest.raises(ValueError, match=words):
        read_model(str(path))


def test_other_codebases_are_told_of_the_documents(tmp_path, capsys):
    packed, plain = plan_of(PACKED, tmp_path / "plan.json"), plan_of([], tmp_path / "plain.json")
    for codebase in CODEBASES:
        text = emit(packed, codebase)
        assert ("max_segments_per_seq=4" if codebase == "maxtext" else "not expressed: packing=4") in text
        assert "packing" not in emit(plain, codebase)
