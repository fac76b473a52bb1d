"""Every example in a docstring shows what the code really gives."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path.relative_to(ROOT)
    for folder in ("autotune", "meshes", "models", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>>" in path.read_text()
]


def module_of(path: Path) -> str:
    """`meshes` and `models` are installed inside `autotune`; scripts are imported by their own name."""
    folder, *rest = path.with_suffix("").parts
    return ".".join(rest if folder == "scripts" else (*(() if folder == "autotune" else ("autotune",)), folder, *rest))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_examples_of_docstrings(path):
    assert not doctest.testmod(importlib.import_module(module_of(path))).failed
