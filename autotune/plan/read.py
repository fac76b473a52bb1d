"""Reading a plan file: every field is checked, and what is wrong is said with file, field and rule.

A plan is data that may come from somebody else: its texts hold no control characters, its numbers are finite and
bounded, and of XLA's options it may set switches, sizes and thresholds (`autotune.meshes.xla_options`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autotune.meshes.compiler_options import check_set
from autotune.meshes.dtypes import ALIASES, dtype_of
from autotune.meshes.fields import Fields, json_object, one_line, read_text, short
from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import AXES, Layout, layout_to_json, parse_layout
from autotune.meshes.target import LARGEST_TARGET, Target, parse_target, with_memory_fraction
from autotune.meshes.transformer import LARGEST_STEP, check_step
from autotune.meshes.xla_options import why_not_of_a_file
from autotune.partition import BOTH, CONTEXTS, Leaf, Partition, extra_name
from autotune.plan.fields import SCHEMA
from autotune.plan.figures import FIGURES, Figures
from autotune.plan.plan import Plan

LARGEST_FIGURE = 1e30
"""Of the seconds, bytes and FLOPs of a plan."""

ROLES = ("parameters", "frozen", "mutable", "optimizer", "batch", "other")
"""What an array of a plan's partition may be."""


class PlanWarning(UserWarning):
    """The plan was made with other versions than those installed."""


def load_plan(path: Path | str) -> Plan:
    """Read a plan file; ValueError with file, field and rule when it is none. Warns where versions differ."""
    plan = plan_from_json(read_text(path, "plan"), one_line(path))
    differences = plan.version_differences()
    if differences:
        warnings.warn(f"plan {path}: made with other versions: {'; '.join(differences)}", PlanWarning, stacklevel=2)
    return plan


def plan_from_json(text: str, where: str = "text") -> Plan:
    """Read back what `Plan.to_json` wrote; ValueError with field and rule when it is not that."""
    values = json_object(text, f"plan {where}")
    read = Fields(f"plan {where}", values)
    if read("schema", int) != SCHEMA:
        raise ValueError(f"plan {where}: schema={short(values['schema'])} is not known; this version reads {SCHEMA}")
    layout = _layout(read)
    shape = tuple(read.listed("shape", int))
    order = tuple(read.listed("device_order", int))
    devices = read.whole("devices", 1, LARGEST_TARGET)
    if layout.devices != devices:
        raise ValueError(f"plan {where}: devices={devices} must be the layout's {layout.devices}")
    if len(order) != devices or sorted(order) != list(range(devices)):
        raise ValueError(f"plan {where}: device_order must name each of the {devices} devices once")
    figures = _figures(read)
    target = _target(read, shape, devices)
    try:
        check_set(layout.options, target.hardware)
    except ValueError as error:
        raise ValueError(f"plan {where}: text: {error}") from None
    sequences, seq = read.whole("sequences", 1, LARGEST_STEP), read.whole("seq", 1, LARGEST_STEP)
    try:
        check_step(sequences, seq)
    except ValueError as error:
        raise ValueError(f"{read.where}: {error}") from None
    # what a plan of an earlier version does not say
    later = Fields(read.where, {"taken": None, "ignored": [], "not_modelled": []} | dict(read.values))
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
        recipe=_recipe(read, sequences, seq),
        sequences=sequences,
        seq=seq,
        partition=_partition(read),
        figures=figures,
        binding=read("binding", (dict, type(None))),
        kept_out_by=read("kept_out_by", (dict, type(None))),
        runners_up=tuple(read.listed("runners_up", dict)),
        guesses=tuple(read.listed("guesses", str)),
        memory_fraction=target.memory_fraction,
        taken=later("taken", (str, type(None))),
        ignored=tuple(later.listed("ignored", str)),
        not_modelled=tuple(later.listed("not_modelled", str)),
    )


def _layout(read: Fields) -> Layout:
    text = read("text", str)
    try:
        layout = parse_layout(text)
    except ValueError as error:
        raise ValueError(f"{read.where}: text: {error}") from None
    for name, value in layout.compiler_options:
        problem = why_not_of_a_file(name, value)
        if problem:
            raise ValueError(f"{read.where}: text: xla.{name}={short(value)} {problem}")
    written = read("layout", dict)
    for key, value in json.loads(json.dumps(layout_to_json(layout))).items():
        if key in written and written[key] != value:
            both = f"layout.{key}={short(written[key])}, text says {short(value)}"
            raise ValueError(f"{read.where}: {both}; they must agree")
    return layout


def _recipe(read: Fields, sequences: int, seq: int) -> dict[str, Any]:
    """The words that build the step again; those of a reference model are whole and say what the plan says."""
    recipe = read.mapping("recipe", (str, int, bool))
    inside = read.inside("recipe")
    for name in recipe.keys() & {"model", "workload", "dtype"}:
        inside.text(name)
    for name, value in (("batch", sequences), ("seq", seq)):
        if (name in recipe or "model" in recipe) and inside(name, int) != value:
            raise inside.error(name, f"must be the plan's {value}")
    if "dtype" in recipe or "model" in recipe:
        try:
            recipe["dtype"] = dtype_of(inside("dtype", str), tuple(ALIASES))
        except ValueError as error:
            raise ValueError(f"{read.where}: recipe.{error}") from None
    return recipe


def _target(read: Fields, shape: tuple[int, ...], devices: int) -> Target:
    """The machine, its name and its figures agreeing."""
    name, groups = read.text("target"), read.whole("groups", 1, LARGEST_TARGET)
    try:
        hardware = load_hardware(read("hardware", str))
        said = None if name == "local" else parse_target(name, hardware)
    except ValueError as error:
        raise ValueError(f"{read.where}: {str(error).removeprefix(f'{read.where}: ')}") from None
    if not shape or min(shape) < 1 or max(shape) > LARGEST_TARGET:
        raise read.error("shape", f"must hold whole numbers from 1 to {LARGEST_TARGET}")
    if said is not None and (said.shape, said.groups) != (shape, groups):
        both = (
            f"shape={short(list(shape))} and groups={groups}, target {name} says {list(said.shape)} and {said.groups}"
        )
        raise ValueError(f"{read.where}: {both}; they must agree")
    target = said or Target(name=name, hardware=hardware, shape=shape, groups=groups, attached=True)
    fraction = read("memory_fraction", (int, float, type(None))) if "memory_fraction" in read.values else None
    try:
        target = with_memory_fraction(target, fraction)
    except ValueError as error:
        raise ValueError(f"{read.where}: {error}") from None
    if target.devices != devices:
        raise ValueError(f"{read.where}: devices={devices} must be the target's {target.devices}")
    return target


def _partition(read: Fields) -> Partition | None:
    if read("partition", (dict, type(None))) is None:
        return None
    try:
        inside = read.inside("partition")
        mesh_names = inside.mapping("mesh_names", str)
        inside.inside("mesh_names").only(AXES)
        given = {"mesh_context": BOTH, "extra_axes": {}, "limits": {}, "only_axes": [], "unusable": {}, "apart": {}}
        given |= dict(inside.values)
        later = Fields(inside.where, given, inside.path)  # what a plan of an earlier version does not say
        extra_axes = later.mapping("extra_axes", str)
        for name in extra_axes:
            later.inside("extra_axes").text(name, AXES)
        limits = later.mapping("limits", int)
        first = {mesh_names.get(kind, kind) for kind in extra_axes.values()}
        later.inside("limits").only((*extra_axes, *first))
        for name in limits:
            later.inside("limits").number(name, 1, 2**53)
        rules = tuple(_rule(inside, pair, extra_axes) for pair in inside.listed("rules", list))
        later.inside("unusable").only(AXES)
        later.inside("apart").only(tuple(f"{one},{other}" for one in AXES for other in AXES))
        return Partition(
            rules=rules,
            mesh_names=mesh_names,
            explicit=inside("explicit", bool),
            mesh_context=later.text("mesh_context", CONTEXTS),
            extra_axes=extra_axes,
            limits=limits,
            only_axes=tuple(later.listed("only_axes", str)),
            unusable=later.mapping("unusable", str),
            apart=later.mapping("apart", str),
            state={path: _leaf(inside.inside("state"), path) for path in inside("state", dict)},
            batch={path: _leaf(inside.inside("batch"), path) for path in inside("batch", dict)},
        )
    except ValueError as error:
        told = str(error).removeprefix(f"{read.where}: ")
        raise ValueError(f"{read.where}: partition is not one: {told}") from None


def _rule(inside: Fields, pair: list[Any], extra_axes: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """A logical name with the mesh axes that it rides."""
    known = {*AXES, *map(extra_name, extra_axes)}
    if (
        len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], list)
        and all(one in known for one in pair[1])
    ):
        return pair[0], tuple(pair[1])
    raise ValueError(f"{inside.where}: rules holds {short(pair)}; each must be a name and a list of mesh axes")


def _leaf(leaves: Fields, path: str) -> Leaf:
    leaf = leaves.inside(path)
    names, shape = leaf("names", list), leaf.listed("shape", int)
    if len(names) != len(shape) or any(not 0 <= extent < 2**53 for extent in shape):
        raise leaf.error("shape", "must be the array's, with a name for each dimension")
    for name in names:
        parts = name if isinstance(name, list) else [name]
        if not all(isinstance(part, str) or (part is None and part is name) for part in parts):
            raise leaf.error("names", "must hold texts, lists of texts and null")
    return Leaf(
        names=tuple(tuple(name) if isinstance(name, list) else name for name in names),
        shape=tuple(shape),
        role=leaf.text("role", ROLES),
        guessed=leaf("guessed", bool),
    )


def _figures(read: Fields) -> Figures:
    inside = Fields(f"{read.where}: figures", read("figures", dict))
    found: dict[str, Any] = {}
    for name in FIGURES:
        if name in ("axis_bytes", "collectives"):
            found[name] = None
            if inside.values.get(name) is not None:
                found[name] = inside.mapping(name, (int, float))
                amounts = inside.inside(name)
                for key in found[name]:
                    amounts.number(key, 0, LARGEST_FIGURE)
        else:
            found[name] = inside(name, (int, float, type(None)))
            if found[name] is not None:
                inside.number(name, 0, LARGEST_FIGURE)
    return Figures(**found)
