"""The documentation: its site builds without a warning, its new pages run, its glossary is the tool's own."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli import run
from autotune.commands.words import everything

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("mkdocs", "material", "mkdocstrings", "mkdocs_click")


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason='pip install -e ".[docs]" for the site'
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    # mkdocs-material announces MkDocs 2 with a warning that says nothing about our pages.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, done.stderr
    options = (tmp_path / "site" / "reference_command_line" / "index.html").read_text()
    assert "--timeline" in options and "--coordinator" in options
    names = (tmp_path / "site" / "reference_python" / "index.html").read_text()
    assert "of_call" in names and "batch_shardings" in names


def test_the_tutorial_runs_from_its_first_line_to_its_last(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.S)
    assert len(blocks) == 4
    check = "\nassert losses == sorted(losses, reverse=True) and losses[-1] < losses[0], losses\n"
    check += "assert all(leaf.sharding.mesh.size == 8 for leaf in jax.tree.leaves(state))\n"
    environment = {**os.environ, "AUTOTUNE_STORE": str(tmp_path / "store"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "".join(blocks) + check], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "report.html").stat().st_size > 20_000 and (tmp_path / "step.json").stat().st_size > 2_000


def commands(page: str) -> list[str]:
    """The commands of a page in its order; a command may be continued after a backslash."""
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


CALIBRATE = "autotune calibrate --target local --out mine.toml"
"""It measures for minutes. tests/calibrate runs it on less; here the file of a CPU stands in for what it writes."""


def done(command: str, capsys) -> str:
    """What one command of a page prints, in the current folder. Where nothing fits, the exit code says so."""
    if command == CALIBRATE:
        shutil.copy(ROOT / "meshes" / "hardware_files" / "cpu.toml", "mine.toml")
        return ""
    *assigned, rest = command.partition("autotune ")
    if assigned[1] and "&&" not in command and all("=" in word for word in shlex.split(assigned[0])):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (word.split("=", 1) for word in shlex.split(assigned[0])):
                patch.setenv(name, value)
            code = run(shlex.split(rest))
        printed = capsys.readouterr()
        assert code in (0, 1), (command, printed.err)
        assert printed.out, command
        return printed.out
    assert not re.search(r"\bautotune\b", command), command
    subprocess.run(command, shell=True, check=True)
    return ""


def one_line(text: str) -> str:
    return " ".join(text.split())


RUN_IN_ORDER = (
    "before_booking.md", "out_of_memory.md", "which_axis_binds.md", "other_codebases.md", "ci_gate.md", "calibrate.md",
    "add_an_accelerator.md", "data_movement.md",
)  # fmt: skip
FULL_SIZE = ("data_movement.md",)
"""Pages that compile a model of full size."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in FULL_SIZE else []) for page in RUN_IN_ORDER]
)
def test_commands_of_a_page_run_in_order_and_print_what_it_shows(page, tmp_path, monkeypatch, capsys):
    """Each command as it stands. Every line of the output that a page shows is printed by the block above it.

    A TOML file of the page lies in the folder under its own name. `AUTOTUNE_WRITE_GOLDEN=1` writes the lines anew.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    if any("--plot" in command for command in commands(page)):
        pytest.importorskip("matplotlib")
    text = (DOCS / page).read_text()
    for file in re.findall(r"```toml\n(.*?)```", text, re.S):
        name = re.search(r"^name = \"(.*?)\"", file, re.M)[1]
        (tmp_path / f"{name}.toml").write_text(file)
    printed, made = "", text
    for kind, block in re.findall(r"```(bash|text)\n(.*?)```", text, re.S):
        if kind == "bash":
            printed = "".join(done(line, capsys) for line in block.replace("\\\n", " ").splitlines())
            continue
        for line in block.splitlines():
            if line.startswith("[..."):
                continue
            if os.environ.get("AUTOTUNE_WRITE_GOLDEN"):
                begin = re.match(r"\D*\d?", line)[0]
                made = made.replace(line, next(one.strip() for one in printed.splitlines() if begin in one), 1)
            else:
                assert one_line(line) in one_line(printed), (line, printed)
    if made != text:
        (DOCS / page).write_text(made)


def test_what_stands_in_for_a_calibration_says_what_it_is():
    assert CALIBRATE in commands("calibrate.md")


STEP = """
import jax, jax.numpy as jnp, autotune
jax.config.update("jax_num_cpu_devices", 8)
def train_step(state, batch):
    value, gradient = jax.value_and_grad(lambda w: ((batch["x"] @ w) ** 2).mean())(state)
    return state - 0.1 * gradient, value
state, batch = jnp.ones((16, 16)), {"x": jnp.ones((16, 16))}
workload = autotune.Workload(train_step, state, batch)
"""


@pytest.mark.parametrize("page", ["commands.md", "python.md"])
def test_python_of_a_reference_page_runs(page, tmp_path):
    """With a step of its own in front, and on simulated devices."""
    [block] = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    less = re.sub(r'target="[^"]*"', 'target="cpu:8", compile=1, measure=0, probe=False', block)
    assert less != block
    environment = {**os.environ, "AUTOTUNE_STORE": str(tmp_path / "store"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", STEP + less + "\nassert report.plan.layout.devices == 8\n"], cwd=tmp_path,
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_job_file_of_the_commands_page_is_one(tmp_path, monkeypatch, capsys):
    [block] = re.findall(r"```toml\n(.*?)```", (DOCS / "commands.md").read_text(), re.S)
    (tmp_path / "job.toml").write_text(block)
    (tmp_path / "qwen3-8b").mkdir()
    shutil.copy(ROOT / "tests" / "data" / "models" / "qwen3-8b.json", tmp_path / "qwen3-8b" / "config.json")
    monkeypatch.chdir(tmp_path)
    assert run(["tune", "--job", "job.toml", "--compile", "0", "--quiet"]) == 0
    assert "v5p:4x4x4" in capsys.readouterr().out


RUN_BY = {
    "accuracy.md": "tests/published/test_accuracy_file.py",
    "examples.md": "tests/examples/test_examples.py",
    "gpu_check.md": "tests/scripts/test_gpu_check.py",
    "models.md": "tests/model_files/test_model_files.py",
    "processes.md": "tests/cluster/test_processes.py",
    "reading_a_report.md": "tests/project/test_readme.py",
    "reference_hardware.md": "tests/project/test_json_reference.py",
    "scaling.md": "tests/project/test_readme.py",
    "your_step.md": "tests/workload_call/test_docs.py",
    **dict.fromkeys((*RUN_IN_ORDER, "commands.md", "python.md", "tutorial.md"), "tests/project/test_site.py"),
}
"""Page with blocks of code or output -> the test that runs them, or the script that they name."""


def test_every_page_with_code_has_a_test_that_runs_it():
    with_code = {page.name for page in DOCS.glob("*.md") if re.search(r"^```\w", page.read_text(), re.M)}
    assert with_code == RUN_BY.keys()
    assert all((ROOT / test).is_file() for test in RUN_BY.values())


def test_a_how_to_page_is_one_or_two_screens():
    for page in RUN_IN_ORDER[:-1]:
        prose = re.sub(r"```toml\n.*?```", "", (DOCS / page).read_text(), flags=re.S)
        assert len(prose.splitlines()) <= 70, page


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere():
    navigation = (ROOT / "mkdocs.yml").read_text().split("nav:\n")[-1]
    pages = sorted(DOCS.glob("*.md"))
    assert sorted(re.findall(r"(\w+\.md)$", navigation, re.M)) == [page.name for page in pages]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert link.startswith("http") or (DOCS / link).is_file(), f"{page.name}: {link}"


def glossary() -> str:
    parts = ["# Glossary\n\nThe words of layouts and reports, as `autotune words` says them.\n"]
    for section, words in everything().items():
        parts.append(f"\n## {section[0].upper()}{section[1:]}\n\n| word | meaning |\n|---|---|\n")
        parts += [f"| `{word}` | {text} |\n".replace("a|b", "a\\|b") for word, text in words.items()]
    return "".join(parts)


def test_the_glossary_is_what_the_tool_says():
    """`AUTOTUNE_WRITE_GOLDEN=1` writes it anew."""
    path = DOCS / "glossary.md"
    if os.environ.get("AUTOTUNE_WRITE_GOLDEN"):
        path.write_text(glossary())
    assert path.read_text() == glossary()
