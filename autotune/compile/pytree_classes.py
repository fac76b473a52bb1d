"""Pytree classes that travel by value: JAX knows a class only in the process that registered it.

A class of the user's script (`__main__`), or of a module that a worker cannot import, is made anew in the worker from
its pickle, and nobody registers it there: its objects would be leaves. What the registration says of the fields is
found out here and travels along.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

import cloudpickle

OWN_HOOKS = ("builtins", "typing", "abc", "enum", "collections.abc")
"""Modules whose `__init_subclass__` registers nothing."""


class NotKnown(ValueError):
    """How a class is registered cannot be found out; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How JAX takes an object apart. `by`: "methods" (`tree_flatten` and `tree_unflatten` of the class), "static" (no
    array inside), or "fields": `data` fields are children, `meta` fields are part of the structure."""

    cls: type
    by: str
    data: tuple[str, ...] = ()
    meta: tuple[str, ...] = ()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Notes the classes that are pickled by value."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.classes: list[type] = []

    def reducer_override(self, obj: Any) -> Any:
        made = super().reducer_override(obj)
        if isinstance(obj, type) and made is not NotImplemented and obj.__module__ != "builtins":
            self.classes.append(obj)
        return made


def pickled_with_classes(value: Any) -> tuple[bytes, tuple[type, ...]]:
    """(the pickle of `value`, the classes that it holds by value)."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), tuple(pickler.classes)


def registrations(classes: Iterable[type]) -> list[Registration]:
    """Those of the classes that JAX knows as nodes of a tree; NotKnown where nothing says how one is taken apart."""
    found = []
    for cls in classes:
        if _is_node(cls) and not _registers_itself(cls):
            found.append(_registration(cls))
    return found


def register(known: Sequence[Registration]) -> None:
    """Register the classes here, but for those that are registered already."""
    import jax

    for one in known:
        if _is_node(one.cls):
            continue
        if one.by == "methods":
            if hasattr(one.cls, "tree_flatten_with_keys"):
                jax.tree_util.register_pytree_with_keys_class(one.cls)
            else:
                jax.tree_util.register_pytree_node_class(one.cls)
        elif one.by == "static":
            jax.tree_util.register_static(one.cls)
        else:
            jax.tree_util.register_dataclass(one.cls, data_fields=one.data, meta_fields=one.meta)


def _is_node(cls: type) -> bool:
    import jax

    try:
        made: Any = cls.__new__(cls)  # type: ignore[call-overload]
    except TypeError:  # it wants arguments: named tuples, enumerations, classes of a library written in C
        return False
    if isinstance(made, (tuple, list, dict)):
        return False  # JAX knows named tuples without a registration
    return not jax.tree_util.all_leaves([made])


def _registers_itself(cls: type) -> bool:
    """Whether the class is registered as it is made anew: every NNX object is, the same for all fields.

    NotKnown where a base class registers the fields that the class has then, which are not there yet when a pickle
    makes it (`flax.struct.PyTreeNode`, so a subclass of `TrainState`; Equinox).
    """
    from flax import nnx

    if issubclass(cls, nnx.Pytree):
        return True
    hooks = [base for base in cls.__mro__[1:] if "__init_subclass__" in vars(base) and base.__module__ not in OWN_HOOKS]
    if hooks or type(cls).__module__ not in OWN_HOOKS:
        raise NotKnown(f"the pytree class {cls.__qualname__} of {cls.__module__} is registered by its base class")
    return False


def _registration(cls: type) -> Registration:
    import jax

    if hasattr(cls, "tree_flatten") and hasattr(cls, "tree_unflatten"):
        return Registration(cls=cls, by="methods")
    unknown = NotKnown(
        f"the pytree class {cls.__qualname__} of {cls.__module__} is registered with functions of its own"
    )
    fields = [one.name for one in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    made: Any = cls.__new__(cls)  # type: ignore[call-overload]
    marks = {name: object() for name in fields}
    try:
        for name, mark in marks.items():
            object.__setattr__(made, name, mark)
        children = jax.tree.leaves(made, is_leaf=lambda one: one is not made)
    except Exception:  # of the user's function, which may look into the fields
        raise unknown from None
    names = {id(mark): name for name, mark in marks.items()}
    data = tuple(names[id(child)] for child in children if id(child) in names)
    if len(data) != len(children) or (not fields and children):
        raise unknown
    if not data:
        return Registration(cls=cls, by="static")
    return Registration(cls=cls, by="fields", data=data, meta=tuple(name for name in fields if name not in data))
