"""A Hardware as a file that `autotune.meshes.hardware.read_hardware` reads back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from autotune.meshes.hardware import Hardware, Tier
from autotune.meshes.option_sets import OptionSet


def hardware_toml(hardware: Hardware, heading: str) -> str:
    """The TOML text; each figure that has a source stands beside it. `heading` becomes the first comment.

    Figures that were inherited are written out, and their sources still say so.
    """
    parts = _parts(hardware)
    del parts["sources"]
    tiers = parts.pop("tiers")
    sets, recommended = parts.pop("option_sets"), parts.pop("recommended_sets", ())
    lines = [*(f"# {line}" for line in heading.splitlines()), *_table("", parts, "", hardware.sources)]
    if sets or recommended:
        lines += ["", "[option_sets]", f"recommended = {_literal(list(recommended))}"]
    for name, one in sets.items():
        lines += _option_set(name, one, hardware.sources)
    for tier in tiers:
        lines += ["", "[[tiers]]", *_table("tiers", _parts(tier), f"tiers.{tier.name}", hardware.sources)]
    return "\n".join(lines) + "\n"


DEFAULTS = {
    field.name: field.default
    for kind in (Hardware, Tier)
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING
}
"""What a figure is where a file does not give it."""


def _option_set(name: str, one: OptionSet, sources: Mapping[str, str]) -> list[str]:
    """One set of XLA options, as `autotune.meshes.option_sets` reads it."""
    path = f"option_sets.{name}"
    lines = ["", f"[{path}]", f"meaning = {_literal(one.meaning)}", f"base = {_literal(one.base)}"]
    lines += [f"holds_for = {_literal(one.requires)}"] if one.requires else []
    lines += ["", f"[{path}.options]"]
    for option, value in one.options.items():
        limit = one.holds_for.get(option)
        source = sources.get(f"{path}.options.{option}", "").removesuffix(f"(holds for {limit or one.requires})")
        said = {"value": value, "source": source.rstrip(), "holds_for": limit}
        given = ", ".join(f"{key} = {_literal(told)}" for key, told in said.items() if told or key == "value")
        lines.append(f"{option} = {{ {given} }}")
    return lines


def _parts(value: Any) -> dict[str, Any]:
    """Name -> value of a mapping, or of a dataclass less the fields that hold nothing."""
    if isinstance(value, Mapping):
        return dict(value)
    named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: part for name, part in named.items() if part is not None and part != ()}


def _table(header: str, parts: dict[str, Any], path: str, sources: Mapping[str, str]) -> list[str]:
    """The figures of a table, then the tables inside it, each under its header; empty ones are left out."""
    lines, tables = [], []
    for name, value in parts.items():
        where = f"{path}.{name}" if path else name
        if not isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            source, text = sources.get(where), _literal(value)
            if source is None and name in DEFAULTS and value == DEFAULTS[name]:
                continue
            sourced = f"{{ value = {text}, source = {json.dumps(source)} }}"
            lines.append(f"{name} = {sourced if source else text}")
        elif _parts(value):
            below = f"{header}.{name}" if header else name
            tables += ["", f"[{below}]", *_table(below, _parts(value), where, sources)]
    return lines + tables


def _literal(value: object) -> str:
    """A TOML value: JSON's spelling is TOML's for strings, booleans, lists and these numbers."""
    return repr(value) if isinstance(value, float) else json.dumps(value)
