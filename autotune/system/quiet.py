"""What JAX prints on stderr while it starts on a machine without accelerators is kept from the user; nothing else is.

Where the CUDA plugin is installed without a driver, each of its libraries says so as it is loaded; where libtpu is
installed without a TPU, it asks a metadata server that is not there. Neither is news to who compiles for another
machine. Only the lines of `NOISE` are dropped, and only while `jax` is imported and the CUDA plugin is loaded.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOISE = re.compile(
    rb"All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|cudart_stub\.cc:\d+\] Could not find cuda drivers on your machine"
)
LOUD = ("jax", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
"""Modules that print as they are imported, or in their function `initialize`."""
DEVICE_FILES = ("nvidia*", "accel*", "vfio/*", "kfd", "dri/*", "dxg", "nvhost*")
"""Below /dev: what an accelerator's driver makes there."""


def quiet_start() -> None:
    """In a process of the tool, before JAX is imported: no start-up noise, and no search for accelerators that are not
    there. Costs nothing until JAX is imported."""
    if "jax" not in sys.modules:
        sys.meta_path.insert(0, _QuietImports())


def no_accelerator(dev: Path = Path("/dev")) -> bool:
    """Whether this machine surely has no accelerator: no driver's device file, and no plugin for JAX but NVIDIA's."""
    from importlib.metadata import entry_points

    plugins = {one.name for one in entry_points(group="jax_plugins")}
    if not sys.platform.startswith("linux") or plugins - {"xla_cuda12", "xla_cuda13"}:
        return False
    return not any(True for pattern in DEVICE_FILES for _ in dev.glob(pattern))


@contextmanager
def without_noise() -> Iterator[None]:
    """What is written to stderr inside, by C++ code too, appears at the end, but for the lines of `NOISE`."""
    import tempfile

    sys.stderr.flush()
    theirs = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(theirs, 2)
            os.close(theirs)
            held.seek(0)
            for line in held:
                if not NOISE.search(line):
                    os.write(2, line)


class _QuietImports(importlib.abc.MetaPathFinder):
    """Finds the modules of `LOUD` as Python would, and has them loaded `without_noise`."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in LOUD:
            return None
        if name == "jax" and "JAX_PLATFORMS" not in os.environ and no_accelerator():
            os.environ["JAX_PLATFORMS"] = "cpu"
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._loader  # whoever asks finds Python's own
        with without_noise():
            self._loader.exec_module(module)
        initialize = getattr(module, "initialize", None)
        if callable(initialize):
            module.initialize = _quiet(initialize)


def _quiet(call: Callable[..., Any]) -> Callable[..., Any]:
    def quiet(*arguments: Any, **keywords: Any) -> Any:
        with without_noise():
            return call(*arguments, **keywords)

    return quiet
