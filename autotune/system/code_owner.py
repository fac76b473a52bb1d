"""Whose code a source file is: the tool's, a reference model's, a library's, or the user's.

In a checkout the folders `meshes` and `models` lie at the top of the repository, in a wheel inside the package: the
import system says where. Programs that another installation compiled name files of that installation: these
are recognised by "autotune/meshes/" and "autotune/models/" in their path.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal

Owner = Literal["autotune", "reference model", "library", "user"]

_ELSEWHERE: dict[str, Owner] = {"autotune/models/": "reference model", "autotune/meshes/": "autotune"}
"""Part of a path of another installation of this tool -> whose code it is."""


@cache
def owner_of(file: str) -> Owner:
    """Whose code `file` is; a file name in brackets ("<string>") is nobody's and counts as a library.

    >>> owner_of("/home/me/project/model.py"), owner_of("/usr/lib/python3/site-packages/flax/nnx/graph.py")
    ('user', 'library')
    >>> import autotune.meshes.layout
    >>> owner_of(autotune.meshes.layout.__file__), owner_of("autotune/models/mlp.py")
    ('autotune', 'reference model')
    """
    if file.startswith("<"):
        return "library"
    for folder, owner in _folders():
        if file.startswith(folder):
            return owner
    for part, owner in _ELSEWHERE.items():
        if part in file:
            return owner
    if any(part in file for part in ("site-packages/", "dist-packages/")):
        return "library"
    return "user"


def short_name(file: str) -> str:
    """The file as reports show it: one of this tool by its module path ("autotune/models/mlp.py"), another as it is."""
    for folder, name in _packages():
        if file.startswith(folder):
            return name + file[len(folder) :]
    return file


@cache
def _packages() -> tuple[tuple[str, str], ...]:
    """(folder, module path) of this tool's packages, both with a slash at the end, the deepest folder first."""
    found = []
    for package in ("autotune.models", "autotune.meshes", "autotune"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, package
        name = package.replace(".", "/") + "/"
        for place in spec.submodule_search_locations:
            found += [(f"{folder}/", name) for folder in {place, str(Path(place).resolve())}]
    return tuple(sorted(found, key=lambda one: -len(one[0])))


@cache
def _folders() -> tuple[tuple[str, Owner], ...]:
    owners: dict[str, Owner] = {"autotune/models/": "reference model"}
    ours = [(folder, owners.get(name, "autotune")) for folder, name in _packages()]
    paths = sysconfig.get_paths()
    libraries = {f"{paths[key]}/" for key in ("purelib", "platlib", "stdlib", "platstdlib")}
    libraries |= {f"{Path(path).resolve()}/" for path in libraries}
    return (*ours, *((folder, "library") for folder in sorted(libraries)))
