"""Every layout of a target, as columns: all ways to cut the devices, times every other choice. JAX-free.

Nothing is left out silently: what this file does not enumerate is listed in `DEFAULTS` and can be asked for by
`--fix` or `--layouts`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from autotune.meshes.layout import AXES, REMAT, SCHEDULES, WORDS, Layout, layout_from_words
from autotune.meshes.target import Target
from autotune.table import LayoutTable

DEFAULTS = {"sequence_parallel": "1", "offload": "none", "order": ">".join(AXES)}
"""Choices the search keeps at one value unless they are pinned to another."""

RUNNABLE_SCHEDULES = ("gpipe", "circular")
"""Pipeline schedules the reference models can be compiled with; the others are priced when asked for by name."""


def axis_sizes(devices: int, axes: tuple[str, ...], fixed: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Every way to write `devices` as a product of sizes of `axes`; `fixed` pins some.

    >>> [tuple(sizes.values()) for sizes in axis_sizes(4, ("data", "tensor"), {})]
    [(1, 4), (2, 2), (4, 1)]
    """
    if not axes:
        if devices == 1:
            yield {}
        return
    name, rest = axes[0], axes[1:]
    sizes = (fixed[name],) if name in fixed else divisors(devices)
    for size in sizes:
        if devices % size == 0:
            for others in axis_sizes(devices // size, rest, fixed):
                yield {name: size, **others}


def divisors(number: int) -> tuple[int, ...]:
    """Divisors of a number, rising."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}))


def parse_fix(texts: tuple[str, ...]) -> dict[str, str]:
    """`--fix tensor=8 --fix remat=full,zero=1` as words; ValueError names the word that no layout has."""
    words: dict[str, str] = {}
    for text in texts:
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"fix: {part!r} must be written name=value")
            words[key.strip()] = value.strip()
    pipeline = {"schedule", "microbatches", "virtual_stages"}
    probe = {key: value for key, value in words.items() if key not in pipeline and not key.startswith("dcn.")}
    layout_from_words(probe)
    for key in words.keys() & pipeline:
        layout_from_words({"stage": "2", "schedule": "gpipe", key: words[key]})
    for key, value in words.items():
        if key.startswith("dcn.") and (key[4:] not in WORDS or not value.isdigit() or value == "0"):
            raise ValueError(f"fix: {key}={value} must name a mesh axis and a whole number")
    return words


def enumerate_layouts(
    target: Target, axes: tuple[str, ...], batch: int, layers: int | None, fixed: Mapping[str, str]
) -> LayoutTable:
    """Every layout of `target` over `axes`, legal or not, as one table. `fixed` pins words to values.

    Axis sizes multiply to the target's devices; `dcn` factors multiply to its groups. Gradient accumulation takes
    powers of two up to the batch; the pipeline takes 1, 2, 4 or 8 microbatches a stage.
    ValueError when a pinned axis cannot be had.
    """
    unknown = [name for name in axes if name not in WORDS]
    if unknown:
        raise ValueError(f"axes: {unknown[0]!r} is not a mesh axis; axes: {', '.join(WORDS)}")
    pinned = {name: int(fixed[name]) for name in WORDS if name in fixed}
    wanted = tuple(name for name in WORDS if name in axes or name in pinned)
    meshes = [
        (sizes, outer)
        for sizes in axis_sizes(target.devices, wanted, pinned)
        for outer in outer_factors(sizes, target.groups, fixed)
    ]
    if not meshes:
        listed = ", ".join(f"{key}={value}" for key, value in fixed.items()) or "none"
        raise ValueError(
            f"target {target.name}: no mesh over {', '.join(wanted)} multiplies to its {target.devices} devices "
            f"with these pinned: {listed}"
        )
    base = {name: np.array([sizes.get(name, 1) for sizes, _ in meshes]) for name in WORDS}
    base |= {f"dcn_{name}": np.array([outer.get(name, 1) for _, outer in meshes]) for name in WORDS}
    tables = []
    for staged in (False, True):
        rows = np.flatnonzero((base["stage"] > 1) == staged)
        if rows.size:
            tables.append(_choices(staged, base, rows, batch, layers, fixed, target))
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    order = tuple(fixed["order"].split(">")) if "order" in fixed else AXES
    return LayoutTable(orders=(order,), order=np.zeros(len(columns["data"]), dtype=np.int64), **columns)


def outer_factors(sizes: Mapping[str, int], groups: int, fixed: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Every way the axes can cross `groups` outer domains: factors that divide the axes and multiply to `groups`."""
    names = [name for name, size in sizes.items() if size > 1]
    options = []
    for name in names:
        possible = [d for d in divisors(math.gcd(sizes[name], groups))]
        if f"dcn.{name}" in fixed:
            possible = [d for d in possible if d == int(fixed[f"dcn.{name}"])]
        options.append(possible)
    for factors in itertools.product(*options):
        if math.prod(factors) == groups:
            yield dict(zip(names, factors, strict=True))


def _choices(staged, base, rows, batch, layers, fixed, target) -> dict[str, np.ndarray]:
    """The cross product of some meshes with every other choice, without those that mean the same layout twice."""

    def options(name: str, values: list[int]) -> np.ndarray:
        if name not in fixed:
            return np.array(values)
        known = {"remat": REMAT, "schedule": SCHEDULES, "context_attention": ("gather", "ring"),
                 "offload": ("none", "optimizer")}.get(name)  # fmt: skip
        return np.array([known.index(fixed[name]) if known else int(fixed[name])])

    doubling = [2**power for power in range(batch.bit_length())]
    remats = [index for index, name in enumerate(REMAT) if name != "offload" or target.platform == "tpu"]
    parts = {
        "mesh": rows,
        "remat": options("remat", remats),
        "zero": options("zero", [0, 1, 2]),
        "context_attention": options("context_attention", [0, 1]),
        "accumulate": options("accumulate", [1] if staged else doubling),
        "sequence_parallel": options("sequence_parallel", [1]),
        "offload": options("offload", [0]),
    }
    if staged:
        parts["per_stage"] = options("microbatches", [1, 2, 4, 8])
        parts["schedule"] = options("schedule", [SCHEDULES.index(name) for name in RUNNABLE_SCHEDULES])
        parts["virtual_stages"] = options("virtual_stages", [1, 2, 4, 8])
    grid = np.indices([len(values) for values in parts.values()]).reshape(len(parts), -1)
    columns = {name: values[index] for (name, values), index in zip(parts.items(), grid, strict=True)}
    mesh = columns.pop("mesh")
    columns |= {name: column[mesh] for name, column in base.items()}
    keep = np.ones(mesh.size, dtype=bool)
    if "zero" not in fixed:
        keep &= (columns["zero"] == 0) | (columns["data"] > 1)
    if "context_attention" not in fixed:
        keep &= (columns["context_attention"] == 0) | (columns["context"] > 1)
    if "accumulate" not in fixed:
        shards = columns["data"] * columns["fsdp"] * columns["expert"]
        keep &= (columns["accumulate"] == 1) | (columns["accumulate"] * shards <= batch)
    if staged:
        per_stage = columns.pop("per_stage")
        columns["microbatches"] = per_stage if "microbatches" in fixed else per_stage * columns["stage"]
        circular = columns["schedule"] == SCHEDULES.index("circular")
        if "virtual_stages" not in fixed:
            keep &= circular == (columns["virtual_stages"] > 1)
            if layers is not None:
                keep &= columns["virtual_stages"] * columns["stage"] <= layers
    else:
        columns |= {"microbatches": np.ones_like(mesh), "virtual_stages": np.ones_like(mesh)}
        columns["schedule"] = np.full_like(mesh, -1)
        if fixed.keys() & {"schedule", "microbatches", "virtual_stages"}:
            keep &= False
    return {name: column[keep] for name, column in columns.items()}


def complete(layout: Layout, target: Target) -> Layout:
    """The user's layout with its `dcn` factors filled in where it gives none: the outermost axes cross first.

    ValueError when its devices are not the target's, or when its factors do not multiply to the target's groups.
    """
    if layout.devices != target.devices:
        words = " x ".join(f"{name}={size}" for name, size in layout.axes.items() if size > 1) or "data=1"
        raise ValueError(f"layout: {words} = {layout.devices} devices, {target.name} has {target.devices}")
    if math.prod(layout.dcn_axes.values()) == target.groups:
        return layout
    if layout.dcn:
        given = " x ".join(f"dcn.{name}={size}" for name, size in layout.dcn)
        raise ValueError(f"layout: {given} must multiply to the {target.groups} outer domains of {target.name}")
    left, factors = target.groups, []
    for name in layout.order:
        factor = math.gcd(getattr(layout, name), left)
        factors.append((name, factor))
        left //= factor
    if left > 1:
        raise ValueError(f"layout: its axes cannot be split over the {target.groups} outer domains of {target.name}")
    return dataclasses.replace(layout, dcn=tuple(factors))
