"""Job files: read back as written, flags win, and what is wrong is one line."""

from __future__ import annotations

import json
import tomllib

import pytest

from autotune.cli import run
from autotune.commands.job_file import WORDS, load_job, save_job
from autotune.meshes.training import WORDS as TRAINING_WORDS

TINY = ["--model", "tiny", "--target", "cpu:8", "--batch", "16", "--seq", "64"]
PRICED = ["--compile", "0", "--json"]


def told(words, capsys):
    assert run(words) == 0
    return json.loads(capsys.readouterr().out)


def test_a_job_that_was_saved_is_the_same_job(tmp_path, capsys):
    """Every word of the flags comes back; the search then finds the same rows."""
    path = tmp_path / "job.toml"
    words = ["--optimizer", "lion", "--weights-dtype", "bfloat16", "--moments-dtype", "bfloat16", "--gradients-dtype",
             "float32", "--fix", "remat=full", "--axes", "data,fsdp"]  # fmt: skip
    first = told(["tune", *TINY, *words, *PRICED, "--save-job", str(path)], capsys)
    written = tomllib.loads(path.read_text())
    assert written == {
        "model": "tiny", "target": "cpu:8", "batch": 16, "seq": 64, "dtype": "float32", "optimizer": "lion",
        "weights-dtype": "bfloat16", "moments-dtype": "bfloat16", "gradients-dtype": "float32", "axes": "data,fsdp",
        "fix": ["remat=full"],
    }  # fmt: skip
    again = told(["tune", "--job", str(path), *PRICED], capsys)
    assert [row["text"] for row in again["rows"]] == [row["text"] for row in first["rows"]]
    assert again["workload"] == first["workload"] and again["in_place_of_plan"] == []
    assert run(["tune", "--job", str(path), "--compile", "0", "--save-job", str(tmp_path / "again.toml")]) == 0
    assert (tmp_path / "again.toml").read_text() == path.read_text()


def test_every_word_of_training_is_a_word_of_the_job_file(tmp_path, capsys):
    assert {word.replace("_", "-") for word in TRAINING_WORDS} <= WORDS.keys()
    path, words = tmp_path / "job.toml", ["--model", "tiny", "--target", "h100:1x2", "--batch", "8", "--seq", "64"]
    assert run(["tune", *words, "--matmul-dtype", "fp8", "--compile", "0", "--save-job", str(path)]) == 0
    assert tomllib.loads(path.read_text())["matmul-dtype"] == "float8"
    capsys.readouterr()
    assert run(["tune", "--job", str(path), "--compile", "0"]) == 0
    assert "float8 matmuls" in capsys.readouterr().out


def test_a_flag_wins_and_the_heading_says_so(tmp_path, capsys):
    path = tmp_path / "job.toml"
    save_job(path, {"model": "tiny", "target": "cpu:8", "batch": 16, "seq": 64, "optimizer": "lion"})
    assert run(["tune", "--job", str(path), "--batch", "32", "--seq", "64", "--compile", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"in place of what the job file says: --batch 32 ({path} says 16)"
    assert lines[1].startswith("tiny, batch 32 x 64 tokens") and "lion with gradient clipping" in lines[2]


def test_paths_are_relative_to_the_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "configs" / "mine").mkdir(parents=True)
    shape = {"layers": 2, "d_model": 64, "heads": 4, "kv_heads": 4, "d_ff": 128, "vocab": 256}
    (tmp_path / "configs" / "mine" / "shape.json").write_text(json.dumps(shape))
    monkeypatch.chdir(tmp_path)
    words = ["--target", "cpu:8", "--batch", "16", "--seq", "64", "--compile", "0"]
    assert run(["tune", "--model", "configs/mine/shape.json", *words, "--save-job", "configs/job.toml"]) == 0
    assert tomllib.loads((tmp_path / "configs" / "job.toml").read_text())["model"] == "mine/shape.json"
    monkeypatch.chdir("/")
    assert run(["tune", "--job", str(tmp_path / "configs" / "job.toml"), "--compile", "0"]) == 0
    assert "shape, batch 16 x 64" in capsys.readouterr().out


BAD = {
    "bacth = 3": "bacth is not known; did you mean 'batch'?",
    "weights_dtype = 'bfloat16'": "did you mean 'weights-dtype'?",
    "batch = '3'": "batch='3' must be a whole number",
    "batch = true": "batch=True must be a whole number",
    "batch = 0": "batch=0 must be a whole number from 1",
    "seq = 1.5": "seq=1.5 must be a whole number",
    "model = 3": "model=3 must be a text",
    "model = ''": "model='' must be a text of printable characters",
    'model = "a\\u001b[2Jb"': "must be a text of printable characters",
    'fix = "tensor=2"': "fix='tensor=2' must be a list",
    "set = [1]": "set holds 1; each must be a text",
    "[model]\nname = 1": "must be a text",
    "memory-fraction = 2.0": "memory-fraction=2.0 must be at most 1",
    "dtype = 1979-05-27": "must be a text",
    "model = ": "not TOML: Invalid value",
    "batch = 1\nbatch = 2": "'batch' is given twice, the second time in line 2",
    "a = " + "[" * 5000: "not TOML",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
@pytest.mark.parametrize("command", ["tune", "sweep"])
def test_a_bad_file_is_one_line(text, command, tmp_path, capsys):
    path = tmp_path / "job.toml"
    path.write_text(text)
    assert run([command, "--job", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert BAD[text] in said and said.startswith(f"autotune: job {path}") and "\n" not in said and "\x1b" not in said


def test_no_file_and_a_folder_are_one_line(tmp_path, capsys):
    for path, words in ((tmp_path / "none.toml", "No such file"), (tmp_path, "is a folder")):
        assert run(["tune", "--job", str(path)]) == 2
        assert words in capsys.readouterr().err


def test_a_bad_value_of_a_file_is_said_as_that_of_a_flag(tmp_path, capsys):
    path = tmp_path / "job.toml"
    save_job(path, {"model": "tiny", "target": "cpu:8", "batch": 16, "seq": 64, "optimizer": "adamax"})
    assert run(["tune", "--job", str(path), "--compile", "0"]) == 2
    assert "adamax" in capsys.readouterr().err


def test_sweep_reads_the_batch_as_tokens(tmp_path, capsys):
    path = tmp_path / "job.toml"
    save_job(path, {"model": "llama3-1b", "target": "h100", "batch": 512, "seq": 4096, "optimizer": "adafactor",
                    "weights-dtype": "bfloat16"})  # fmt: skip
    found = told(["sweep", "--job", str(path), "--chips", "8", "--json"], capsys)
    assert found["batch_tokens"] == 512 * 4096 and "bfloat16 weights" in found["taken"]
    plain = told(["sweep", "--model", "llama3-1b", "--target", "h100", "--chips", "8", "--batch-tokens", "2097152",
                  "--seq", "4096", "--json"], capsys)  # fmt: skip
    assert found["targets"][0]["points"][0]["peak_bytes"] < plain["targets"][0]["points"][0]["peak_bytes"]


def test_every_word_is_a_flag_of_a_command_and_is_read_back(tmp_path):
    """The words are the flags': no word of a file that no command takes."""
    from autotune.commands.explain import explain
    from autotune.commands.tune import tune

    flags = {option.removeprefix("--") for command in (tune, explain) for one in command.params for option in one.opts}
    assert set(WORDS) <= flags
    one_of = {list: ["a=b"], float: 0.5, int: 3, str: "text", bool: False}
    values = {word: one_of[kind] for word, kind in WORDS.items()}
    save_job(tmp_path / "job.toml", values)
    read = load_job(tmp_path / "job.toml")
    assert read == values | {"hardware": str(tmp_path / "text")}
