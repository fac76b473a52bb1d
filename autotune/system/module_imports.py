"""Which modules a module's source imports, read without running it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import types
from pathlib import Path


def imports_of(module: types.ModuleType) -> frozenset[str]:
    """Every module that a module's source may import, and its packages."""
    found = _imported(Path(str(module.__file__)), module.__name__, hasattr(module, "__path__"))
    return found | {name.rpartition(".")[0] for name in (*found, module.__name__) if "." in name}


@functools.cache
def _imported(path: Path, module: str, package: bool) -> frozenset[str]:
    """Every module that a source file may import, inside its functions too."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a compiled module, or an edited file
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(base, module if package else module.rpartition(".")[0])
            except ImportError:  # it leads above the outermost package
                continue
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(found)
