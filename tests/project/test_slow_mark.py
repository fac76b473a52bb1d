"""The mark `slow`: declared, left out by default, and no file of tests is slow as a whole without a reason."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

SLOW_FILES = {
    "tests/commands/test_killed_tune.py": "five kills of one search; tests/scripts/test_kill_series.py kills once",
    "tests/models/test_architectures_compiled.py": "large compiles; test_kernels.py holds the kernels' numbers",
    "tests/models/test_tiled_loss_compiled.py": "large compiles; tests/laws and tests/price hold numbers and price",
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


def runs_by_default(path: Path) -> bool:
    """Whether the file has a test function that is not slow as a whole; rows of one may be."""
    tree = ast.parse(path.read_text())
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    slow = [node for node in tests if "pytest.mark.slow" in map(ast.unparse, node.decorator_list)]
    return len(tests) > len(slow)


def test_every_file_has_a_test_that_runs_by_default():
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    assert {str(path.relative_to(ROOT)) for path in paths if not runs_by_default(path)} == SLOW_FILES.keys()


def test_a_slow_test_is_left_out_with_its_file_and_run_where_it_is_named():
    """The test is `tests/published/test_accuracy_file.py`'s only one."""
    file = "tests/published/test_accuracy_file.py"
    for words, said in (
        ([file], "1 deselected"),
        ([f"{file}::test_accuracy_file_is_what_the_script_prints"], "1 test collected"),
        ([file, "-m", ""], "1 test collected"),
    ):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert said in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
        assert ('run them too with -m ""' in done.stdout) == (said == "1 deselected")
