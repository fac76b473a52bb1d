"""Whether a step asks for the devices of this machine while it is traced, and where."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax

from autotune.system.code_owner import owner_of

ASKED = ("devices", "local_devices", "device_count", "local_device_count", "default_backend")
"""Functions of `jax` that tell of devices."""


@contextlib.contextmanager
def devices_asked() -> Iterator[list[str]]:
    """List where the user's code calls these functions: "jax.devices() at file.py:12", each place once.

    The names under which the user's modules imported them (`from jax import devices`) are listed too.
    """
    asked: list[str] = []
    real: dict[str, Callable[..., Any]] = {name: getattr(jax, name) for name in ASKED}
    listed = {name: _listed(name, function, asked) for name, function in real.items()}
    names = {id(function): name for name, function in real.items()}
    places = [(vars(jax), name, name) for name in ASKED]
    places += [
        (held, own, names[id(value)]) for held in _globals() for own, value in list(held.items()) if id(value) in names
    ]
    for held, own, name in places:
        held[own] = listed[name]
    try:
        yield asked
    finally:
        for held, own, name in places:
            held[own] = real[name]


def _globals() -> list[dict[str, Any]]:
    """The globals of the user's modules."""
    modules = [one for one in list(sys.modules.values()) if isinstance(one, types.ModuleType)]
    return [vars(one) for one in modules if (file := getattr(one, "__file__", None)) and owner_of(str(file)) == "user"]


def _listed(name: str, function: Callable[..., Any], asked: list[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        caller = sys._getframe(1)
        word = f"jax.{name}() at {caller.f_code.co_filename}:{caller.f_lineno}"
        if owner_of(caller.f_code.co_filename) == "user" and word not in asked:
            asked.append(word)
        return function(*arguments, **named)

    return call


def notes_on(asked: list[str]) -> list[str]:
    """The line that says so."""
    if not asked:
        return []
    more = f" and {len(asked) - 1} more" if len(asked) > 1 else ""
    return [
        f"the step asks {asked[0]}{more} while it is traced: the answer is of this machine ({jax.default_backend()}), "
        "and so is what the step decides by it; hand the platform or the count to the step as an argument"
    ]
