"""Which source an answer depends on: a digest of some modules and of every module of this tool that they import.

An answer that is kept between runs carries the digest in its key, so an edited source answers anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from functools import cache
from pathlib import Path

_FROM = r"from[ \t]+(autotune[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^#\n]*)"
_IMPORT = re.compile(rf"^[ \t]*(?:{_FROM}|import[ \t]+(autotune[\w.]*))", re.MULTILINE)
_COMMENT = re.compile(r"#.*")
_TYPES_ONLY = re.compile(r"^if TYPE_CHECKING:\n(?:[ \t]+.*\n|\n)+", re.MULTILINE)


@cache
def source_digest(*modules: str) -> str:
    """16 hexadecimal digits of the source of `modules` ("autotune.hlo.read") and of what they import from this tool.

    A package stands for its `__init__` alone. Imports inside functions count; imports under `if TYPE_CHECKING` do not.
    ModuleNotFoundError when a module does not exist.

    >>> len(source_digest("autotune.meshes.layout"))
    16
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources_of(*modules).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def sources_of(*modules: str) -> dict[str, Path]:
    """Module name -> file, of `modules` and of all that they import from this tool."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = _file(name)
        if path is None:
            raise ModuleNotFoundError(f"source_digest: there is no module {name}")
        found[name] = path
        waiting += _imports(path)
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    found = []
    for module, names, alone in _IMPORT.findall(_TYPES_ONLY.sub("", path.read_text(encoding="utf-8"))):
        if alone:
            found.append(alone)
            continue
        single = [name.split(" as ")[0].strip() for name in _COMMENT.sub("", names).strip("() \n").split(",")]
        inner = [f"{module}.{name}" for name in single if name]
        submodules = [name for name in inner if _file(name) is not None]
        found += submodules
        if len(submodules) < len(inner):
            found.append(module)
    return tuple(found)


@cache
def _file(module: str) -> Path | None:
    """The file of one of this tool's modules; None where there is no such module."""
    if (folder := _folder(module)) is not None:
        return folder / "__init__.py"
    package, _, last = module.rpartition(".")
    inside = _folder(package)
    path = inside / f"{last}.py" if inside is not None else None
    return path if path is not None and path.is_file() else None


@cache
def _folder(package: str) -> Path | None:
    """The folder of a package. The import system says where `meshes` and `models` lie: in a checkout at the top."""
    if package in ("autotune", "autotune.meshes", "autotune.models"):
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations if spec is not None else None
        return Path(places[0]) if places else None
    above, _, last = package.rpartition(".")
    outside = _folder(above) if above else None
    return outside / last if outside is not None and (outside / last / "__init__.py").is_file() else None
