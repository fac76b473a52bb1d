"""Whether a value that was read back has the types that its dataclass promises."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


def check_types(value: Any, hint: Any = None, where: str = "") -> None:
    """TypeError naming the field where `value` is not of type `hint`; without one, of its own dataclass's fields.

    Knows dataclasses, None, bool, int, float (an int will do), str, unions, tuples, sequences and mappings.

    >>> check_types((1, 2.5), tuple[float, ...])
    >>> check_types({"a": "b"}, Mapping[str, int], "bytes")
    Traceback (most recent call last):
    TypeError: bytes: 'b' is no int
    """
    hint = type(value) if hint is None else hint
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if origin in (types.UnionType, typing.Union):
        if not any(_is(value, one, where) for one in inside):
            raise TypeError(f"{where}: {value!r:.80} is no {hint}")
    elif origin is tuple and Ellipsis not in inside:
        if not isinstance(value, tuple) or len(value) != len(inside):
            raise TypeError(f"{where}: {value!r:.80} is no {hint}")
        for part, one in zip(value, inside, strict=True):
            check_types(part, one, where)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"{where}: {value!r:.80} is no mapping")
        for key, part in value.items():
            check_types(key, inside[0], where)
            check_types(part, inside[1], where)
    elif isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, origin):
            raise TypeError(f"{where}: {value!r:.80} is no {origin.__name__}")
        for part in value:
            check_types(part, inside[0], where)
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, hint):
            raise TypeError(f"{where}: {value!r:.80} is no {hint}")
        for name, one in _fields(hint).items():
            check_types(getattr(value, name), one, name)
    else:
        wanted = (int, float) if hint is float else hint or type(None)
        if not isinstance(value, wanted) or (isinstance(value, bool) and hint in (int, float)):
            raise TypeError(f"{where}: {value!r:.80} is no {getattr(hint, '__name__', hint)}")


def _is(value: Any, hint: Any, where: str) -> bool:
    try:
        check_types(value, hint, where)
    except TypeError:
        return False
    return True


@cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
