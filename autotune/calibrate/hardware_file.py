"""A Hardware as a file that `autotune.meshes.hardware.read_hardware` reads back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from autotune.meshes.hardware import Hardware


def hardware_toml(hardware: Hardware, heading: str) -> str:
    """The TOML text; each figure that has a source stands beside it. `heading` becomes the first comment."""
    lines = [f"# {line}" for line in heading.splitlines()]
    plain, tables = [], []
    for spec in dataclasses.fields(hardware):
        value = getattr(hardware, spec.name)
        if spec.name in ("tiers", "sources") or value is None:
            continue
        if isinstance(value, Mapping):
            tables += ["", f"[{spec.name}]", *_entries(value, spec.name, hardware.sources)]
        else:
            plain += _entries({spec.name: value}, "", hardware.sources)
    for tier in hardware.tiers:
        values = {spec.name: getattr(tier, spec.name) for spec in dataclasses.fields(tier)}
        inner = {name: value for name, value in values.items() if isinstance(value, Mapping)}
        path = f"tiers.{tier.name}"
        outer = {name: value for name, value in values.items() if name not in inner}
        tables += ["", "[[tiers]]", *_entries(outer, path, hardware.sources)]
        for name, value in inner.items():
            if value:
                tables += [f"[tiers.{name}]", *_entries(value, f"{path}.{name}", hardware.sources)]
    return "\n".join([*lines, *plain, *tables]) + "\n"


def _entries(values: Mapping[str, object], path: str, sources: Mapping[str, str]) -> list[str]:
    entries = []
    for name, value in values.items():
        source = sources.get(f"{path}.{name}" if path else name)
        text = _literal(value)
        sourced = f"{{ value = {text}, source = {json.dumps(source)} }}"
        entries.append(f"{name} = {sourced if source else text}")
    return entries


def _literal(value: object) -> str:
    """A TOML value: JSON's spelling is TOML's for strings, booleans, lists and these numbers."""
    return repr(value) if isinstance(value, float) else json.dumps(value)
