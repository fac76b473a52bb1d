"""`explain` and `compare` with `--compile 0`, and `check --store`: what is compiled, and where it is kept."""

import json

import pytest
from effort import slow

from autotune.cli import run
from autotune.compile import worker_process
from autotune.meshes.layout import parse_layout
from autotune.reference_workload import reference_workload
from autotune.report.comparison import source_of
from autotune.search import compare, explain

JOB = ("--model", "tiny", "--batch", "16", "--seq", "64", "--target", "cpu:4")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def document(capsys, *words):
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_explain_without_a_compile_says_the_price(capsys, tmp_path):
    found = document(capsys, "explain", "--layout", "data=4", *JOB, "--compile", "0")
    assert found["counts"] == {"priced": 1} or found["counts"]["priced"] == 1
    seconds = found["best"]["step_seconds"]
    assert seconds["priced"] > 0 and seconds["compiled"] is None and seconds["measured"] is None
    report = explain(reference_workload("tiny", batch=16, seq=64, dtype="float32"), "cpu:4", "data=4", compile=0)
    assert report.best().step_seconds == seconds["priced"]
    assert run(["explain", "--layout", "data=4", *JOB, "--compile", "0", "--timeline", str(tmp_path / "t.json")]) == 2
    assert "--compile is 0" in capsys.readouterr().err


def test_compare_without_a_compile_compares_prices(capsys):
    found = document(capsys, "compare", "data=4", "fsdp=4", *JOB, "--compile", "0")
    assert found["source"] == "priced"
    first, second = found["first"], found["second"]
    for place, row in enumerate((first, second)):
        assert sum(pair[place] for pair in found["seconds"].values()) == pytest.approx(row["step_seconds"]["priced"])
        assert sum(pair[place] for pair in found["memory_bytes"].values()) == pytest.approx(row["peak_bytes"])
    assert run(["compare", "data=4", "fsdp=4", *JOB, "--compile", "0"]) == 0
    text = capsys.readouterr().out
    assert "(priced)" in text and "A = data=4" in text and "axis" in text


def test_compare_says_which_of_two_prices_does_not_fit(capsys):
    words = ["--model", "llama3-8b", "--batch", "16", "--seq", "4096", "--target", "v5e:4x4", "--compile", "0"]
    assert run(["compare", "data=16", "fsdp=16,remat=full", *words]) == 1
    text = capsys.readouterr().out
    assert "A does not fit" in text and "B does not fit" not in text and "(priced)" in text


def test_one_of_two_is_not_compiled_alone(capsys):
    assert run(["compare", "data=4", "fsdp=4", *JOB, "--compile", "1"]) == 2
    assert "both layouts, or with --compile 0 none" in capsys.readouterr().err
    workload = reference_workload("tiny", batch=16, seq=64, dtype="float32")
    with pytest.raises(ValueError, match="compile=1 must be 2"):
        compare(workload, "cpu:4", "data=4", "fsdp=4", compile=1)


def test_prices_and_compiles_are_not_mixed():
    workload = reference_workload("tiny", batch=16, seq=64, dtype="float32")
    rows = explain(workload, "cpu:4", parse_layout("data=4"), compile=0).rows
    assert source_of(rows[0], rows[0]) == "priced"


@pytest.mark.parametrize(
    ("job", "layout", "named"),
    [
        (("--workload", "toy_steps:own_step", "--target", "cpu:2"), "data=2", ["--workload", "toy_steps:own_step"]),
        *slow([(JOB, "data=4", [])]),
    ],
    ids=["a step of one's own", "a model"],
)
def test_check_compiles_into_its_store_once(tmp_path, capsys, monkeypatch, job, layout, named):
    plan, kept = tmp_path / "plan.json", tmp_path / "kept"
    assert run(["tune", *job, "--layouts", layout, "--compile", "1", "--measure", "0", "--out", str(plan)]) == 0
    assert run(["check", str(plan), *named, "--store", str(kept)]) == 0
    assert run(["store", "list", "--store", str(kept)]) == 0
    assert layout in capsys.readouterr().out

    def never(*arguments, **words):
        raise AssertionError("compiled again")

    monkeypatch.setattr(worker_process.subprocess, "Popen", never)
    assert run(["check", str(plan), *named, "--store", str(kept)]) == 0
    assert "holds" in capsys.readouterr().out
