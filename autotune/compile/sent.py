"""What travels to a worker process: a value, and the data that the user's modules hold now.

A worker imports the user's modules anew, so what `main()` set in them is back at its default there. The data of the
modules that the value can reach is sent along and put back after the import; classes and functions come from the
import, because JAX knows a pytree class only where the module that registers it has run. Modules that a worker cannot
import travel by value, the script itself among them; their pytree classes are registered anew
(`autotune.compile.pytree_classes`). JAX is not imported here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pickletools
import sys
import types
from collections.abc import Iterator
from typing import Any

import cloudpickle

from autotune.compile.pytree_classes import NotKnown, pickled_with_classes, register, registrations
from autotune.system.code_owner import owner_of
from autotune.system.module_imports import imports_of
from autotune.workload.pickled import can_be_pickled

DATA_BYTES = 2**20
"""A global whose pickle is larger is left to the import: the worker's trace shows whether it mattered."""


class CannotBeSent(ValueError):
    """A value that cannot be pickled; the message names the object."""


def packed(value: Any) -> bytes:
    """The pickle of `value` and of the data of the user's modules that it reaches; CannotBeSent when there is none."""
    with _by_value():
        try:
            body, by_value = pickled_with_classes(value)
        except Exception as error:
            raise CannotBeSent(f"cannot be sent to a worker process: {culprit(value)}: {error}") from error
        try:
            classes = cloudpickle.dumps(registrations(by_value))
        except NotKnown as error:
            raise CannotBeSent(
                f"cannot be sent to a worker process: {error}; it can where the class stands in a module that is "
                "imported"
            ) from error
        reached = _reached(body)
        modules = {name: data for name, module in reached.items() if _importable(module) and (data := _data(module))}
        return cloudpickle.dumps((modules, _flags(), classes, body))


def unpacked(payload: bytes) -> Any:
    """The value of `packed`, after the user's modules are imported and hold the data that they held there."""
    modules, flags, classes, body = cloudpickle.loads(payload)
    if flags:
        _set_flags(flags)
    for name, data in modules.items():
        # A script's module may refuse to run a second time; what the step needs of it, the value's own pickle imports.
        with contextlib.suppress(Exception):
            _restore(importlib.import_module(name), data)
    register(cloudpickle.loads(classes))
    value = cloudpickle.loads(body)
    if flags:
        _set_flags(flags)  # flags that the user's modules defined as they were imported
    return value


def culprit(value: Any) -> str:
    """The innermost object that cannot be pickled, as the attributes that lead to it."""
    path, seen = type(value).__name__, {id(value)}
    while True:
        for name, part in _parts(value):
            if id(part) not in seen and not can_be_pickled(part):
                seen.add(id(part))
                value, path = part, f"{path}.{name}"
                break
        else:
            return f"{path} (a {type(value).__module__}.{type(value).__qualname__})"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds: items, attributes, and of a function its closure and the object it is bound to."""
    if isinstance(value, dict):
        yield from ((str(key), part) for key, part in list(value.items()))
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), part) for index, part in enumerate(value))
    if isinstance(value, types.MethodType):
        yield "__self__", value.__self__
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a cell that nothing was put into yet
                yield name, cell.cell_contents
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield name, value.__globals__[name]
    if not isinstance(value, (type, types.ModuleType, types.FunctionType)):
        slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ()) if isinstance(name, str)]
        for name in dict.fromkeys((*getattr(value, "__dict__", ()), *slots)):
            if not name.startswith("__") and hasattr(value, name):
                yield name, getattr(value, name)


def _reached(body: bytes) -> dict[str, types.ModuleType]:
    """The user's modules that a pickle names, and those that they import or hold, in the order of `sys.modules`.

    A module that nothing of the value imports stays out: a second run of it in the worker could do anything.
    """
    users = dict(_modules())
    found: set[str] = set()
    waiting = {word for _, text, _ in pickletools.genops(body) if isinstance(text, str) for word in text.split()}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        parent = name.rpartition(".")[0]
        if parent:
            waiting.add(parent)
        if name in users:
            found.add(name)
            waiting |= imports_of(users[name])
            waiting |= {_home(held) for held in list(vars(users[name]).values())} - found
    return {name: module for name, module in users.items() if name in found}


def _home(held: Any) -> str:
    """The module that a global is, or that its class or function comes from."""
    name = getattr(held, "__name__" if isinstance(held, types.ModuleType) else "__module__", None)
    return name if isinstance(name, str) else type(held).__module__


def _modules() -> Iterator[tuple[str, types.ModuleType]]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name != "__main__" and isinstance(module, types.ModuleType) and file and owner_of(str(file)) == "user":
            if getattr(module, "__name__", None) == name:
                yield name, module


def _importable(module: types.ModuleType) -> bool:
    """Whether an import by this name finds this file."""
    try:
        spec = importlib.util.find_spec(module.__name__)
    except (ImportError, ValueError, AttributeError):
        return False
    return spec is not None and (spec.loader is not None) and _found_by_path(module)


def _found_by_path(module: types.ModuleType) -> bool:
    """`find_spec` answers from `sys.modules`; only the path says what another process would find."""
    from importlib.machinery import PathFinder

    package, _, _ = module.__name__.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", None) if package else None
    if package and path is None:
        return False
    spec = PathFinder.find_spec(module.__name__, path)
    return spec is not None and spec.origin == getattr(module, "__file__", None)


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """Inside, modules that another process cannot import are pickled with what they hold."""
    known = cloudpickle.list_registry_pickle_by_value()
    added = [module for name, module in _modules() if name not in known and not _importable(module)]
    for module in added:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _data(module: types.ModuleType) -> dict[str, bytes]:
    """The pickles of a module's globals that are data, and of the data of its classes ("Class.attribute")."""
    found: dict[str, bytes] = {}
    for name, value in list(vars(module).items()):
        if name.startswith("__"):
            continue
        if isinstance(value, type):
            if value.__module__ == module.__name__:
                for one, held in list(vars(value).items()):
                    if not one.startswith("_") and _plain(held) and (made := _pickle(held)) is not None:
                        found[f"{name}.{one}"] = made
        elif not callable(value) or type(value).__module__ == module.__name__:
            if not isinstance(value, types.ModuleType) and (made := _pickle(value)) is not None:
                found[name] = made
    return found


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_plain(one) for one in value)
    if isinstance(value, dict):
        return all(_plain(one) for one in (*value, *value.values()))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes))


def _pickle(value: Any) -> bytes | None:
    """None for what cannot be pickled or is large."""
    try:
        made = cloudpickle.dumps(value)
    except Exception:
        return None
    return made if len(made) <= DATA_BYTES else None


def _restore(module: types.ModuleType, data: dict[str, bytes]) -> None:
    """Dictionaries and lists are changed in place: other modules may hold them too."""
    for name, made in data.items():
        owner: Any = module
        *outer, last = name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        value = cloudpickle.loads(made)
        here = getattr(owner, last, None)
        if type(here) is dict and type(value) is dict:
            here.clear()
            here.update(value)
        elif type(here) is list and type(value) is list:
            here[:] = value
        elif hasattr(here, "__dict__") and type(here) is type(value) and _changeable(here):
            vars(here).clear()
            vars(here).update(vars(value))
        else:
            setattr(owner, last, value)


def _changeable(here: Any) -> bool:
    """Whether all that an object holds stands in its `__dict__`."""
    return owner_of_type(here) == "user" and not hasattr(type(here), "__slots__") and type(here).__bases__ == (object,)


def owner_of_type(value: Any) -> str:
    """Whose code the class of a value is."""
    module = sys.modules.get(type(value).__module__)
    file = getattr(module, "__file__", None)
    return owner_of(str(file)) if file else "library"


def _flags() -> dict[str, Any]:
    """The values of absl's flags, where the user's program parsed any."""
    flags = getattr(sys.modules.get("absl.flags"), "FLAGS", None)
    if flags is None or not flags.is_parsed():
        return {}
    return {name: value for name, value in flags.flag_values_dict().items() if _plain(value)}


def _set_flags(values: dict[str, Any]) -> None:
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    for name, value in values.items():
        if name in flags.FLAGS and flags.FLAGS[name].value != value:
            flags.FLAGS[name].value = value
