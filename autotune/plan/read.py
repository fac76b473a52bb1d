"""Reading a plan file: every field is checked, and what is wrong is said with file, field and rule."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import Layout, layout_to_json, parse_layout
from autotune.meshes.target import Target, parse_target, with_memory_fraction
from autotune.partition import Partition, partition_from_json
from autotune.plan.figures import FIGURES, Figures
from autotune.plan.plan import SCHEMA, Plan


class PlanWarning(UserWarning):
    """The plan was made with other versions than those installed."""


def load_plan(path: Path | str) -> Plan:
    """Read a plan file; ValueError with file, field and rule when it is none. Warns where versions differ."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ValueError(f"plan {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"plan {path}: not a text file") from None
    plan = plan_from_json(text, str(path))
    differences = plan.version_differences()
    if differences:
        warnings.warn(f"plan {path}: made with other versions: {'; '.join(differences)}", PlanWarning, stacklevel=2)
    return plan


def plan_from_json(text: str, where: str = "text") -> Plan:
    """Read back what `Plan.to_json` wrote; ValueError with field and rule when it is not that."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"plan {where}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"plan {where}: must be one JSON object")
    read = _Reader(where, values)
    if read("schema", int) != SCHEMA:
        raise ValueError(f"plan {where}: schema={values['schema']} is not known; this version reads {SCHEMA}")
    layout = _layout(read)
    shape = read.numbers("shape", whole=True)
    order = read.numbers("device_order", whole=True)
    devices = read("devices", int)
    if layout.devices != devices:
        raise ValueError(f"plan {where}: devices={devices} must be the layout's {layout.devices}")
    if sorted(order) != list(range(devices)):
        raise ValueError(f"plan {where}: device_order must name each of the {devices} devices once")
    figures = _figures(read)
    target = _target(read, shape, devices)
    return Plan(
        layout=layout,
        target=target.name,
        hardware=target.hardware.name,
        shape=shape,
        groups=target.groups,
        devices=devices,
        device_order=order,
        versions=read.mapping("versions", str),
        workload=read("workload", str),
        fingerprint=read("fingerprint", str),
        recipe=read.mapping("recipe", (str, int)),
        sequences=read("sequences", int),
        seq=read("seq", int),
        partition=_partition(read),
        figures=figures,
        binding=read("binding", (dict, type(None))),
        kept_out_by=read("kept_out_by", (dict, type(None))),
        runners_up=tuple(read.listed("runners_up", dict)),
        guesses=tuple(read.listed("guesses", str)),
        memory_fraction=target.memory_fraction,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Fields of a JSON object, each checked; ValueError names file, field and rule."""

    where: str
    values: Mapping[str, Any]

    def __call__(self, field: str, kind: Any) -> Any:
        if field not in self.values:
            raise ValueError(f"plan {self.where}: {field} is missing")
        value = self.values[field]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"plan {self.where}: {field}={_short(value)} must be {_kind(kind)}")
        return value

    def listed(self, field: str, kind: Any) -> list[Any]:
        found = self(field, list)
        for value in found:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"plan {self.where}: {field} holds {_short(value)}; each must be {_kind(kind)}")
        return found

    def numbers(self, field: str, *, whole: bool) -> tuple[Any, ...]:
        return tuple(self.listed(field, int if whole else (int, float)))

    def mapping(self, field: str, kind: Any) -> dict[str, Any]:
        found = self(field, dict)
        for key, value in found.items():
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"plan {self.where}: {field}.{key}={_short(value)} must be {_kind(kind)}")
        return found


def _layout(read: _Reader) -> Layout:
    try:
        layout = parse_layout(read("text", str))
    except ValueError as error:
        raise ValueError(f"plan {read.where}: text: {error}") from None
    written = read("layout", dict)
    for key, value in json.loads(json.dumps(layout_to_json(layout))).items():
        if key in written and written[key] != value:
            both = f"layout.{key}={_short(written[key])}, text says {_short(value)}"
            raise ValueError(f"plan {read.where}: {both}; they must agree")
    return layout


def _target(read: _Reader, shape: tuple[int, ...], devices: int) -> Target:
    """The machine, its name and its figures agreeing."""
    name, groups = read("target", str), read("groups", int)
    try:
        hardware = load_hardware(read("hardware", str))
        said = None if name == "local" else parse_target(name, hardware)
        target = Target(name=name, hardware=hardware, shape=shape, groups=groups, attached=said is None)
    except ValueError as error:
        raise ValueError(f"plan {read.where}: {str(error).removeprefix(f'plan {read.where}: ')}") from None
    if said is not None and (said.shape, said.groups) != (shape, groups):
        both = f"shape={list(shape)} and groups={groups}, target {name} says {list(said.shape)} and {said.groups}"
        raise ValueError(f"plan {read.where}: {both}; they must agree")
    fraction = read("memory_fraction", (int, float, type(None))) if "memory_fraction" in read.values else None
    try:
        target = with_memory_fraction(target, fraction)
    except ValueError as error:
        raise ValueError(f"plan {read.where}: {error}") from None
    if target.devices != devices:
        raise ValueError(f"plan {read.where}: devices={devices} must be the target's {target.devices}")
    return target


def _partition(read: _Reader) -> Partition | None:
    values = read("partition", (dict, type(None)))
    if values is None:
        return None
    try:
        return partition_from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"plan {read.where}: partition is not one: {error!r}") from None


def _figures(read: _Reader) -> Figures:
    values = read("figures", dict)
    inside = _Reader(f"{read.where}: figures", values)
    found: dict[str, Any] = {}
    for name in FIGURES:
        if name in ("axis_bytes", "collectives"):
            found[name] = inside.mapping(name, (int, float)) if values.get(name) is not None else None
        else:
            found[name] = inside(name, (int, float, type(None)))
    return Figures(**found)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", dict: "an object", list: "a list",
             type(None): "null"}  # fmt: skip
    return " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
