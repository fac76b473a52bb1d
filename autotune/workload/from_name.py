"""`--workload package.module:function`: the user's own code, imported from the folder the command runs in."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from typing import Any

from autotune.user_code import user_code
from autotune.workload.workload import Workload


def load_workload(text: str) -> Workload:
    """The workload that `package.module:function` names, imported from the current folder as the user's own code.

    It names a Workload, a function that returns one or (step, state, batch), or a builder that takes the layout.
    ValueError names what is wrong with the text; UserCodeError is the user's own.
    """
    module_name, colon, attribute = text.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ValueError(f"workload: {text!r} must be written package.module:function")
    folder = os.getcwd()
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    module = _module(module_name, text, folder)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
                   and getattr(value, "__module__", None) == module_name]  # fmt: skip
            listed = ", ".join(own) or "no functions"
            raise ValueError(f"workload: {module_name} has no {attribute!r}; it has: {listed}")
        found = getattr(found, part)
    return _made(found, text).with_recipe({"workload": text})


def _module(name: str, text: str, folder: str) -> Any:
    parent, found = "", None
    for part in name.split("."):
        full = f"{parent}.{part}" if parent else part
        if found is not None and found.submodule_search_locations is None:
            raise ValueError(f"workload: {text!r}: {parent} is a module, not a package; write {parent}:function")
        with user_code(f"importing {parent}"):
            found = importlib.util.find_spec(full)
        if found is None:
            raise ValueError(f"workload: {text!r}: no module {full!r} in {folder} or where Python looks for modules")
        parent = full
    with user_code(f"importing {name}"):
        return importlib.import_module(name)


def _made(found: Any, text: str) -> Workload:
    if callable(found) and not isinstance(found, Workload):
        given = inspect.signature(found).parameters.values()
        needed = [one for one in given if one.default is inspect.Parameter.empty
                  and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]  # fmt: skip
        if needed:
            return Workload.from_builder(found, name=text)
        with user_code(f"calling {text}"):
            found = found()
    if isinstance(found, Workload):
        return found
    if isinstance(found, tuple) and len(found) == 3:
        return Workload(*found, name=text)
    raise ValueError(f"workload: {text} gives {type(found).__name__}; it must give a Workload or (step, state, batch)")
