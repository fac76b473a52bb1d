"""The keys of one model file, and what became of each: used, without effect on cost, not modelled, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autotune.meshes.fields import did_you_mean, nearest, short
from autotune.meshes.transformer import LARGEST_SIZE

REQUIRED = object()
"""Default of a key that must be there."""

MOST_LAYERS = 10_000
"""Layers of a model, of which each is looked at alone."""


class Keys:
    """The keys of one file while it is read. `where` names the file in errors.

    Every `take` counts its key as used. `sort` puts the keys that nothing took among the ignored or the not modelled.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = dict(values), where
        self.used: set[str] = set()
        self.ignored: list[str] = []
        self.not_modelled: list[str] = []

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a key; `default` where it is missing or null. ValueError where a required key is missing."""
        self.used.add(name)
        value = self.values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            near = nearest(name, set(self.values) - self.used)
            meant = "" if near is None else f"; is {near!r} meant to be it?"
            raise ValueError(f"{self.where}: missing key {name!r}{meant}")
        return default

    def rename(self, names: Mapping[str, str]) -> None:
        """Put what keys of other names say (theirs -> ours) under our names."""
        for theirs, ours in names.items():
            value = self.take(theirs, None)
            if value is not None:
                self.values[ours] = value
                self.used.add(ours)

    def whole(self, name: str, default: Any = REQUIRED, *, least: int = 1) -> Any:
        """A whole number of `least` or more; `default` as it is where the key is missing."""
        value = self.take(name, default)
        if name in self.values and self.values[name] is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                rule = "a whole number above 0" if least == 1 else f"a whole number, {least} or more"
                raise ValueError(f"{self.where}: {name}={short(value)} must be {rule}")
            if value > LARGEST_SIZE:
                raise ValueError(f"{self.where}: {name}={short(value)} must be at most {LARGEST_SIZE:,}")
        return value

    def layers(self, name: str, default: Any = REQUIRED) -> int:
        """How many layers there are: a whole number from 1 to `MOST_LAYERS`."""
        value: int = self.whole(name, default)
        if value > MOST_LAYERS:
            raise ValueError(f"{self.where}: {name}={value} must be at most {MOST_LAYERS:,}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: {name}={short(value)} must be true or false")
        return value

    def texts(self, name: str, count: int) -> list[str] | None:
        """A list of `count` words, or None where the key is missing."""
        value = self.take(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{self.where}: {name} must be a list of {count} words, one a layer")
        return value

    def note(self, name: str, cost: str) -> None:
        """Name a key as not modelled, with what it may cost."""
        self.used.add(name)
        self.not_modelled.append(f"{name}: {cost}")

    def sort(
        self, neutral: Callable[[str, Any], bool], costs: Callable[[str, Any], str | None], asked: tuple[str, ...] = ()
    ) -> None:
        """Sort the keys that nothing took. `neutral(key, value)`: whether it changes nothing in cost. `costs(key,
        value)`: what a key that is not modelled may cost. A key that neither knows is named as unknown; one of `asked`,
        which somebody set by hand, is refused then."""
        for name, value in self.values.items():
            if name in self.used:
                continue
            cost = costs(name, value)
            if cost is not None:
                self.not_modelled.append(f"{name}: {cost}")
            elif (value is None and name not in asked) or neutral(name, value):
                self.ignored.append(name)
            elif name in asked:
                close = did_you_mean(name, self.used | set(self.values) - {name})
                raise ValueError(f"{self.where}: --set {name}: is no key that such a file has{close}")
            else:
                close = did_you_mean(name, self.used - {name})
                self.not_modelled.append(f"{name}: unknown key; it may change parameters, FLOPs or memory{close}")
