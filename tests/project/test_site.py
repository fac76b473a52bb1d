"""The documentation: its site builds without a warning, its new pages run, its glossary is the tool's own."""

import importlib.util
import os
import re
import shlex
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


def commands(page):
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", ["how_to.md", "how_it_works.md"])
def test_commands_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    """Each as it stands; where nothing fits, the exit code says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    for command in commands(page):
        assert run(shlex.split(command)[1:]) in (0, 1), (command, capsys.readouterr().err)
        assert capsys.readouterr().out, command


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
