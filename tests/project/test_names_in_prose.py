"""What docstrings, comments and documents name exists: modules and their members in backticks, and paths of files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("autotune/**/*.py", "meshes/*.py", "models/*.py", "scripts/**/*.py", "tests/**/*.py", "docs/**/*.md", "*.md")
FILES = sorted(path for pattern in PLACES for path in ROOT.glob(pattern) if path.name != "CHANGELOG.md")
MEMBER = re.compile(r"`(autotune\.[A-Za-z_][\w.]*\w)(?:\([^`]*\))?`")
PATH = re.compile(r"(?<![\w/.-])((?:autotune|meshes|models|scripts|tests|docs)/[\w./-]*\.(?:py|md|toml|json|html))\b")


def on_disk(path: str) -> Path:
    """Where a path of the installed package stands in the repository."""
    return ROOT / re.sub(r"^autotune/(meshes|models)(?=/|$)", r"\1", path)


def resolves(name: str) -> bool:
    """Whether `autotune.a.b.c` is a module, or a module and a name that stands in it."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        place = on_disk("/".join(parts[:cut]))
        for module in (place.with_suffix(".py"), place / "__init__.py"):
            if module.exists():
                rest = parts[cut:]
                return not rest or re.search(rf"\b{re.escape(rest[0])}\b", module.read_text()) is not None
    return False


def missing(text: str) -> list[str]:
    """Names of modules, members and files in a text that do not exist."""
    return [name for name in MEMBER.findall(text) if not resolves(name)] + [
        path for path in PATH.findall(text) if not on_disk(path).exists()
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_in_prose_exist(file):
    assert not missing(file.read_text())


def test_a_name_that_does_not_exist_is_found():
    assert not missing("`autotune.hlo.opcodes.KNOWN`, `autotune.meshes.layout`, " + "scripts/" + "train.py")
    wrong = ["autotune." + "price_" + "remat", "autotune.hlo.opcodes." + "UNKNOWN_NAME", "scripts/" + "absent.py"]
    assert missing(f"`{wrong[0]}` and `{wrong[1]}` and {wrong[2]}") == wrong
