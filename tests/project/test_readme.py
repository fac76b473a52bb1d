"""Every command that the README shows is run here, as it stands or with less work; a new one must be added."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NAMES = ("scaling.md", "reading_a_report.md", "commands.md", "accuracy.md")
PAGES = {"README.md": README} | {name: (ROOT / "docs" / name).read_text() for name in NAMES}
"""The pages whose commands are run here."""

LESS = {
    "autotune tune --model llama3-8b --target h100:2x8 --batch 64 --seq 4096 --compile 3": ("--compile", "1"),
    "autotune tune --model llama3-8b --target v5e:16x16 --batch 256 --seq 4096 --out plan.json": ("--compile", "1"),
    "autotune tune --model tiny --target cpu:8 --batch 16 --seq 64 --axes data,fsdp,tensor --compile 4 --measure 3": (
        "--compile", "2", "--measure", "2",
    ),
}  # fmt: skip
"""The whole search compiles for minutes; here it compiles less of the same space."""

QUICK = {
    "autotune sweep --model llama3-8b --target v5p --chips 64..1024 --batch-tokens 4M --seq 4096 --tokens 1T"
    " --min-mfu 0.5": (
        "v5p: best layout by size",
        "largest size at 50 % of peak or more",
        "at 512 chips the largest loss beside compute changes from memory bandwidth to network:fsdp@ici",
        "nothing was compiled",
    ),
}
"""Commands that are run as they stand, and what they say."""

RUN_ELSEWHERE = (
    "python3 -m venv", ". .venv/bin/activate", "pip install", "python -m pytest", "python scripts/",
    'eval "$(_AUTOTUNE_COMPLETE=',
)  # fmt: skip
"""Installing and testing is what `.ci/run` does; scripts and completion have tests of their own."""


def shown() -> list[str]:
    blocks = [block for page in PAGES.values() for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)]
    lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
    return [line for line in lines if line and not line.startswith(("#", *RUN_ELSEWHERE))]


def test_no_command_is_untried():
    assert set(shown()) == LESS.keys() | QUICK.keys()


@pytest.mark.parametrize(
    "command", [pytest.param(text, marks=[] if "h100:2x8" in text else [pytest.mark.slow]) for text in LESS]
)
def test_command(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    words = shlex.split(command)
    assert run([*words[1:], *LESS[command]]) == 0, capsys.readouterr().err
    screen = capsys.readouterr().out
    assert (
        "chosen: " in screen
        and "what binds: " in screen
        and "What keeps better layouts out: " in screen.replace("\n  ", " ")
    )
    if "--out" in words:
        assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("command", QUICK)
def test_quick_command(command, capsys):
    assert run(shlex.split(command)[1:]) == 0
    screen = capsys.readouterr().out
    for words in QUICK[command]:
        assert words in screen, words
    assert all(words in "".join(PAGES.values()) for words in QUICK[command])


def test_the_python_block_runs_as_it_stands(tmp_path):
    [block] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    environment = {**os.environ, "AUTOTUNE_STORE": str(tmp_path / "store"), "JAX_PLATFORMS": "cpu"}
    check = "\nassert all(leaf.sharding.mesh.size == 8 for leaf in jax.tree.leaves(state)), state\n"
    done = subprocess.run(
        [sys.executable, "-c", block + check],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "chosen: " in done.stdout and "note: guessed: params/up" in done.stdout


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 175 and len(README.split()) <= 1500


def test_links_of_the_pages_lead_to_files():
    for name, page in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\(([^)#]+)\)", page):
            assert link.startswith("http") or (folder / link).is_file(), f"{name}: {link}"


def test_every_subcommand_is_in_the_table():
    from autotune.cli import COMMANDS

    for name in COMMANDS:
        assert re.search(rf"`(?:autotune )?{name}\b", README), name
        assert re.search(rf"`autotune {name}\b", PAGES["commands.md"]), name


def test_folders_named_in_the_map_exist():
    root = Path(__file__).parents[2]
    table = (root / "docs" / "development.md").read_text().split("## Where things are")[1].split("\n\n")[1]
    named = [name for name in re.findall(r"`([\w./]+?)/?`", table) if "." not in name]
    assert {"meshes", "models", "autotune", "scripts", "tests"} <= set(named)
    inside = [path.name for path in (root / "autotune").iterdir() if path.is_dir() and not path.name.startswith("_")]
    assert set(inside) <= set(named), "every package of autotune/ is on the map"
    for name in named:
        folders = (root, root / "autotune", root / "tests", root / "meshes")
        assert any((folder / end).exists() for folder in folders for end in (name, f"{name}.py")), name
