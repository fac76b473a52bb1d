"""Whether a step asks for the devices of this machine while it is traced, or its modules on import, and where."""

from __future__ import annotations

import ast
import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax

from autotune.system.code_owner import owner_of
from autotune.system.module_imports import imports_of

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


def notes_on(asked: list[str], step: Callable[..., Any]) -> list[str]:
    """A line on what a step asked while it was traced, and one on what its modules asked on import."""
    return [*_while_traced(asked), *_on_import(step)]


def _while_traced(asked: list[str]) -> list[str]:
    if not asked:
        return []
    more = f" and {len(asked) - 1} more" if len(asked) > 1 else ""
    return [
        f"the step asks {asked[0]}{more} while it is traced: the answer is of this machine ({jax.default_backend()}), "
        "and so is what the step decides by it; hand the platform or the count to the step as an argument"
    ]


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _on_import(step: Callable[..., Any]) -> list[str]:
    """A line on the calls of these functions that ran while the step's modules were imported. Globals hold the answers,
    and functions read those globals.

    Looked at are the module of the step and the user's modules that it imports. [] where no function reads a global
    that such a call gave a value.
    """
    trees = _sources(step)
    read = {name for tree in trees.values() for name in _read_in_functions(tree)}
    places = []
    for file, tree in trees.items():
        names = _names_of_asking(tree)
        tainted: dict[str, str] = {}
        for statement in _run_on_import(tree):
            targets = [one for one in _assigned(statement) if one]
            if not targets:
                continue
            value = statement.value  # type: ignore[attr-defined]
            call = next((word for node in ast.walk(value) if (word := _call(node, names))), None)
            held = next(
                (tainted[node.id] for node in ast.walk(value) if isinstance(node, ast.Name) and node.id in tainted),
                None,
            )
            if call is not None or held is not None:
                tainted |= dict.fromkeys(targets, held or f"{call} at {file}:{value.lineno}")
        places += [f"{said} ({name})" for name, said in tainted.items() if name in read]
    if not places:
        return []
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return [
        f"a module of the step asks {places[0]}{more} as it is imported, and functions read the answer: it is of this "
        f"machine ({jax.default_backend()}), and so is what the step decides by it; ask inside the step's caller and "
        "hand it to the step as an argument"
    ]


def _sources(step: Callable[..., Any]) -> dict[str, ast.Module]:
    """File -> syntax tree of the module of the step and of the user's modules that it imports."""
    inner: Any = step
    while hasattr(inner, "func") or hasattr(inner, "__wrapped__") or hasattr(inner, "__func__"):
        inner = getattr(inner, "func", None) or getattr(inner, "__wrapped__", None) or inner.__func__
    waiting, seen = [getattr(inner, "__module__", None)], set()
    texts: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name) if isinstance(name, str) and name not in seen else None
        seen.add(name)
        file = getattr(module, "__file__", None)
        if module is None or not file or owner_of(str(file)) != "user":
            continue
        with contextlib.suppress(OSError, ValueError), open(file, encoding="utf-8") as source:  # a compiled module
            texts[str(file)] = source.read()
        waiting += sorted(imports_of(module))
    if not any(word in text for text in texts.values() for word in ASKED):
        return {}
    found = {}
    for file, text in texts.items():
        with contextlib.suppress(SyntaxError, ValueError):  # a file that was edited since its import
            found[file] = ast.parse(text)
    return found


def _run_on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that an import runs: those of the module itself, also inside `if`, `with`, `try` and loops."""
    waiting: list[Any] = list(tree.body)
    while waiting:
        statement = waiting.pop(0)
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            continue
        if isinstance(statement, ast.If) and "__main__" in ast.dump(statement.test):
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            waiting += getattr(statement, name, None) or []
        for handler in getattr(statement, "handlers", ()):
            waiting += handler.body


def _assigned(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Assign):
        targets: list[ast.expr] = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)) and statement.value is not None:
        targets = [statement.target]
    else:
        return []
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def _names_of_asking(tree: ast.Module) -> dict[str, str]:
    """The names under which a module imported these functions (`from jax import devices as all_of_them`)."""
    return {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "jax"
        for alias in node.names
        if alias.name in ASKED
    }


def _call(node: ast.AST, names: dict[str, str]) -> str | None:
    """ "jax.devices()" where a node is such a call."""
    if not isinstance(node, ast.Call):
        return None
    called = node.func
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        return f"jax.{called.attr}()" if called.value.id == "jax" and called.attr in ASKED else None
    return f"jax.{names[called.id]}()" if isinstance(called, ast.Name) and called.id in names else None


def _read_in_functions(tree: ast.Module) -> Iterator[str]:
    """Names and attributes that functions of a module read."""
    for function in ast.walk(tree):
        if isinstance(function, FUNCTIONS):
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                    yield node.id
                elif isinstance(node, ast.Attribute):
                    yield node.attr
