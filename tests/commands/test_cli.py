"""Bad input gets one line on stderr and exit 2; nothing is written; `--help` imports no jax."""

import json
import subprocess
import sys

import pytest

from autotune.cli import COMMANDS, run
from autotune.meshes import installed

JOB = ("--model", "tiny", "--batch", "16", "--seq", "64")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", *JOB), "--target is missing"),
        (("tune", *JOB, "--target", "v9:4x4"), "'v9' is not known; known: a100-40"),
        (("tune", *JOB, "--target", "v5e"), "has no shape; write e.g. v5e:4x4"),
        (("tune", *JOB, "--target", "v5e:4x4x4"), "2 dimensions"),
        (("tune", *JOB, "--target", "h100:0x8"), "h100:0x8"),
        (("tune", "--model", "llama9", "--batch", "16", "--seq", "64", "--target", "cpu:8"), "'llama9' is no preset"),
        (("tune", "--model", "nowhere.json", "--batch", "16", "--seq", "64", "--target", "cpu:8"), "nowhere.json"),
        (("tune", "--model", "tiny", "--seq", "64", "--target", "cpu:8"), "--batch is missing"),
        (
            ("tune", "--model", "tiny", "--batch", "0", "--seq", "64", "--target", "cpu:8"),
            "--batch=0 must be 1 or more",
        ),
        (("tune", "--target", "cpu:8"), "give one of --model and --workload"),
        (("tune", *JOB, "--target", "cpu:8", "--axes", "data,modle"), "'modle' is not a mesh axis"),
        (("tune", *JOB, "--target", "cpu:8", "--layouts", "fsdp=4"), "= 4 devices, cpu:8 has 8"),
        (("tune", *JOB, "--target", "cpu:8", "--layouts", "fsdp=eight"), "fsdp='eight' must be a whole number"),
        (("tune", *JOB, "--target", "cpu:8", "--fix", "tensor=3"), "multiplies to its 8 devices"),
        (("tune", *JOB, "--target", "v5e:2x2", "--compile", "0", "--measure", "1"), "no devices here"),
        (("tune", *JOB, "--target", "cpu:8", "--out", "/nowhere/plan.json"), "folder /nowhere does not exist"),
        (("tune", *JOB, "--target", "cpu:8", "--timeline", "/nowhere/step.json"), "folder /nowhere does not exist"),
        (("tune", *JOB, "--target", "v5e:2x2", "--timeline", "s.json", "--compile", "0"), "of a compiled layout"),
        (("tune", *JOB, "--target", "cpu:8", "--hardware", "none.toml"), "none.toml"),
        (("tune", *JOB, "--target", "cpu:8", "--compile", "-1"), "--compile"),
        (("tune", *JOB, "--target", "cpu:8", "--processes", "2"), "belong together"),
        (("tune", *JOB, "--target", "cpu:8", "--colour"), "--colour"),
        (("explain", *JOB, "--target", "cpu:8"), "give one of PLAN and --layout"),
        (("explain", "missing.json"), "missing.json"),
        (("compare", "fsdp=8", "fsdp=4", *JOB, "--target", "cpu:8"), "= 4 devices, cpu:8 has 8"),
        (("tunes",), "tunes"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    assert run(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1, output.err
    assert said in output.err
    assert "Traceback" not in output.err


def test_broken_model_file_names_the_field(tmp_path, capsys):
    path = tmp_path / "model.json"
    for text, said in (("{", "not JSON"), ('{"layers": 2}', "missing key"), ('{"layers": 2, "width": 3}', "'width'")):
        path.write_text(text)
        assert run(["tune", "--model", str(path), "--batch", "8", "--seq", "64", "--target", "cpu:8"]) == 2
        assert said in capsys.readouterr().err


def test_a_batch_that_no_layout_divides_is_said(capsys, tmp_path):
    arguments = [
        "tune",
        "--model",
        "tiny",
        "--batch",
        "3",
        "--seq",
        "64",
        "--target",
        "cpu:8",
        "--axes",
        "data",
        "--json",
        "--compile",
        "0",
        "--measure",
        "0",
        "--store",
        str(tmp_path),
    ]
    code = run(arguments)
    output = capsys.readouterr()
    assert code == 2
    assert "batch 3" in output.err and output.out == ""


def test_a_model_too_large_for_every_layout_is_exit_1_with_the_closest_miss(capsys, tmp_path):
    arguments = [
        "tune",
        "--model",
        "llama3-405b",
        "--batch",
        "8",
        "--seq",
        "4096",
        "--target",
        "v5e:2x2",
        "--compile",
        "0",
        "--store",
        str(tmp_path),
    ]
    assert run(arguments) == 1
    screen = capsys.readouterr().out
    assert "no layout fits v5e:2x2" in screen
    assert "closest: " in screen and "GiB over" in screen and "devices of this kind or more" in screen


def test_a_compiler_that_is_not_installed_is_said_with_what_works_without(capsys, monkeypatch):
    monkeypatch.setattr(installed, "installed_version", lambda package: None)
    for target, package in (("v5e:4x4", "libtpu"), ("h100:1x8", "jax-cuda12-plugin")):
        assert run(["tune", "--model", "tiny", "--batch", "16", "--seq", "128", "--target", target]) == 2
        said = capsys.readouterr().err
        assert package in said and "--target cpu:8" in said and said.count("\n") == 1


def test_help_imports_neither_jax_nor_numpy():
    """In one process: what no command has imported at the end, none imports."""
    every = [["--help"], *([name, "--help"] for name in COMMANDS)]
    probe = (
        "import sys, autotune.cli\n"
        f"for words in {every!r}:\n"
        "    code = autotune.cli.run(words)\n"
        "    if code or {'jax', 'numpy'} & sys.modules.keys():\n"
        "        sys.exit(f'{words}: exit code {code}, or jax or numpy is imported')\n"
    )
    outcome = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr[-500:]
    assert outcome.stdout.count("Usage: ") == len(every)


def test_catalogues_are_one_json_document(capsys):
    for words in (["targets"], ["targets", "v5e"], ["models"]):
        assert run([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert run(words) == 0
        capsys.readouterr()
