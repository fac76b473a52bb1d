"""The mark `slow`: declared, left out by default, and no file of tests is slow as a whole without a reason."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

SLOW_FILES = {
    "tests/commands/test_killed_tune.py": "five kills of one search; tests/scripts/test_kill_series.py kills once",
    "tests/published/test_accuracy_file.py": "all published rows again; test_published.py holds their thresholds",
    "tests/scripts/test_one_host.py": "measures for long; tests/test_search.py measures and keeps",
}
"""Files without a test that runs by default, and why they may be."""


def test_the_mark_is_declared_and_left_out_by_default():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert [mark.split(":")[0] for mark in options["markers"]] == ["slow"]
    assert "-m 'not slow'" in options["addopts"] and "--strict-markers" in options["addopts"]


def test_no_other_switch_leaves_tests_out():
    """An environment variable that leaves tests out would be a second mechanism, known to nobody."""
    for path in (ROOT / "tests").rglob("*.py"):
        for condition in re.findall(r"mark\.skipif\((.*?)\)", path.read_text(), re.S):
            assert "environ" not in condition, path


def selected(*words: str) -> dict[str, int]:
    """Tests by file, as pytest selects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    found = re.findall(r"^(tests/\S+\.py): (\d+)$", done.stdout, re.M)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return {file: int(count) for file, count in found}


def test_every_file_has_a_test_that_runs_by_default(request):
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert files - selected().keys() == SLOW_FILES.keys()


def test_a_slow_test_that_is_named_is_selected():
    [file] = [name for name in SLOW_FILES if "killed" in name]
    name = re.search(r"^def (test_\w+)", (ROOT / file).read_text(), re.M)[1]
    assert selected(f"{file}::{name}") == {file: 1}
    none = [sys.executable, "-m", "pytest", "--collect-only", file]
    said = subprocess.run(none, cwd=ROOT, capture_output=True, text=True, timeout=600).stdout
    assert 'run them too with -m ""' in said and "1 deselected" in said
