"""Every layout of a target, as columns: all ways to cut the devices, times every other choice. JAX-free.

Which values of each word are tried is said by `searched` in `autotune.meshes.layout_words`; other values can be asked
for by `--fix` or `--layouts`. Orders of the mesh axes that help are added by `autotune.price.axis_orders`.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autotune.meshes.fields import did_you_mean, one_line, short
from autotune.meshes.layout import AXES, OUTERMOST_FIRST, SCHEDULES, layout_from_words
from autotune.meshes.layout_words import LARGEST_COUNT, LAYOUT_WORDS
from autotune.meshes.target import Target
from autotune.table import LayoutTable, chosen, constant, is_constant

CROSSINGS_AT_ONCE = 256
"""Sizes whose ways to cross the outer tier are worked out together: bounds memory."""

PIPELINE_WORDS = tuple(word.name for word in LAYOUT_WORDS.values() if word.needs_axis == "stage")
"""Words that say something only where there are pipeline stages."""


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
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if text and not parts:
            raise ValueError("fix: names nothing; write e.g. tensor=8")
        for part in parts:
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not value:
                raise ValueError(f"fix: {short(part)} must be written name=value")
            if key in words:
                raise ValueError(f"fix: {one_line(key)} is given twice")
            words[key] = value
    pipeline = {"stage", *PIPELINE_WORDS}
    probe = {key: value for key, value in words.items() if key not in pipeline and not key.startswith("dcn.")}
    layout_from_words(probe)
    for key in words.keys() & pipeline:
        layout_from_words({"stage": "2", "schedule": "gpipe"} | ({} if words[key] == "1" else {key: words[key]}))
    for key, value in words.items():
        if key.startswith("dcn.") and (key[4:] not in AXES or not re.fullmatch("0*[1-9][0-9]{0,6}", value)):
            close = "" if key[4:] in AXES else did_you_mean(key[4:], AXES)
            raise ValueError(f"fix: {one_line(key)}={one_line(value)} must name a mesh axis and a whole number{close}")
    return words


def check_axes(axes: Sequence[str]) -> None:
    """ValueError unless these are mesh axes, each named once."""
    for name in axes:
        if name not in AXES:
            what, close = short(name) if name else "an empty name", did_you_mean(name, AXES)
            raise ValueError(f"axes: {what} is not a mesh axis{close}; axes: {', '.join(AXES)}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"axes: {max(axes, key=list(axes).count)!r} is named twice")


def enumerate_layouts(
    target: Target, axes: tuple[str, ...], batch: int, layers: int | None, fixed: Mapping[str, str]
) -> LayoutTable:
    """Every layout of `target` over `axes`, legal or not, as one table. `fixed` pins words to values.

    Axis sizes multiply to the target's devices; `dcn` factors multiply to its groups. The other words take the values
    that `autotune.meshes.layout_words` says are searched.
    ValueError when a pinned axis cannot be had.
    """
    check_axes(axes)
    meshes = meshes_over(target, axes, fixed)
    if not meshes["data"].size:
        raise no_mesh(target, axes, fixed)
    return with_passes(with_choices(meshes, fixed, target), batch, layers, fixed)


def no_mesh(target: Target, axes: tuple[str, ...], fixed: Mapping[str, str]) -> ValueError:
    """The error where pins leave no mesh."""
    if not axes:
        return ValueError(
            f"target {target.name}: {target.devices} devices, and no array of the workload is cut along any axis: "
            "workload.guesses say what stays whole, and the rules= that would cut it"
        )
    listed = ", ".join(f"{key}={value}" for key, value in fixed.items()) or "none"
    wanted = [name for name in AXES if name in axes or name in fixed]
    return ValueError(
        f"target {target.name}: no mesh over {', '.join(wanted)} multiplies to its {target.devices} devices "
        f"with these pinned: {listed}"
    )


def mesh_count(target: Target, axes: tuple[str, ...], fixed: Mapping[str, str]) -> int:
    """How many meshes the axes (and those pinned) make of a target, pins not looked at: ways to cut one domain times
    ways to cross the domains.

    >>> from autotune.meshes.target import parse_target
    >>> mesh_count(parse_target("h100:512x8"), ("data", "fsdp", "tensor", "stage", "context"), {})
    25025
    """
    parts = len([name for name in AXES if name in axes or name in fixed])
    count = 1
    for number in (target.devices_per_group, target.groups):
        for power in _powers(number):
            count *= math.comb(power + parts - 1, parts - 1) if parts else 0
    return count


def _powers(number: int) -> list[int]:
    """The exponents of a number's prime factors."""
    found, prime = [], 2
    while prime * prime <= number:
        power = 0
        while number % prime == 0:
            number, power = number // prime, power + 1
        found += [power] if power else []
        prime += 1
    return found + ([1] if number > 1 else [])


def meshes_in_blocks(
    target: Target, axes: tuple[str, ...], fixed: Mapping[str, str], most: int
) -> Iterator[dict[str, np.ndarray]]:
    """The meshes of `meshes_over`, in another order, at most `most` at a time: sizes inside a domain times factors that
    cross the domains."""
    pinned = {name: int(fixed[name]) for name in AXES if name in fixed}
    wanted = tuple(name for name in AXES if name in axes or name in pinned)
    inner, outer = _splits(target.devices_per_group, len(wanted)), _splits(target.groups, len(wanted))
    for begin in range(0, len(inner) * len(outer), most):
        pair = np.arange(begin, min(begin + most, len(inner) * len(outer)))
        crossing = outer[pair // len(inner)]
        sizes = inner[pair % len(inner)] * crossing
        keep = np.ones(len(pair), dtype=bool)
        for column, name in enumerate(wanted):
            if name in pinned:
                keep &= sizes[:, column] == pinned[name]
            if f"dcn.{name}" in fixed:
                keep &= (sizes[:, column] == 1) | (crossing[:, column] == int(fixed[f"dcn.{name}"]))
        if keep.any():
            sizes, crossing = sizes[keep], crossing[keep]
            columns = {name: constant(1, len(sizes)) for name in AXES}
            columns |= {f"dcn_{name}": constant(1, len(sizes)) for name in AXES}
            columns |= {name: sizes[:, column] for column, name in enumerate(wanted)}
            yield columns | {f"dcn_{name}": crossing[:, column] for column, name in enumerate(wanted)}


def meshes_over(target: Target, axes: tuple[str, ...], fixed: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Every way the axes (and those pinned) cut the devices of `target`: a column a size and a `dcn_` factor."""
    return with_crossings(sizes_over(target, axes, fixed), target, fixed)


def sizes_over(target: Target, axes: tuple[str, ...], fixed: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Every way the axes (and those pinned) multiply to the devices of `target`: a column a size, rows rising."""
    pinned = {name: int(fixed[name]) for name in AXES if name in fixed}
    wanted = tuple(name for name in AXES if name in axes or name in pinned)
    sizes = _splits(target.devices, len(wanted))
    for column, name in enumerate(wanted):
        if name in pinned:
            sizes = sizes[sizes[:, column] == pinned[name]]
    columns = {name: constant(1, len(sizes)) for name in AXES}
    return columns | {name: sizes[:, column] for column, name in enumerate(wanted)}


def with_crossings(sizes: Mapping[str, np.ndarray], target: Target, fixed: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Sizes times every way they can cross the outer tier: `dcn_` factors that divide them, rows still rising."""
    wanted = [name for name in AXES if (sizes[name] > 1).any()]
    outer = _splits(target.groups, len(wanted))
    found = []
    for begin in range(0, len(sizes["data"]), CROSSINGS_AT_ONCE):
        possible = np.ones((min(CROSSINGS_AT_ONCE, len(sizes["data"]) - begin), len(outer)), dtype=bool)
        for column, name in enumerate(wanted):
            size, number = np.unique(sizes[name][begin : begin + CROSSINGS_AT_ONCE], return_inverse=True)
            allowed = size[:, None] % outer[None, :, column] == 0
            if f"dcn.{name}" in fixed:
                allowed &= (size[:, None] == 1) | (outer[None, :, column] == int(fixed[f"dcn.{name}"]))
            possible &= allowed[number]
        rows, factors = np.nonzero(possible)
        found.append((rows + begin, factors))
    rows = np.concatenate([part[0] for part in found] or [np.empty(0, dtype=np.int64)])
    factors = np.concatenate([part[1] for part in found] or [np.empty(0, dtype=np.int64)])
    columns = {name: chosen(column, rows) for name, column in sizes.items()}
    columns |= {f"dcn_{name}": constant(1, len(rows)) for name in AXES}
    if target.groups == 1:
        return columns
    return columns | {f"dcn_{name}": outer[factors, column] for column, name in enumerate(wanted)}


def _splits(number: int, parts: int) -> np.ndarray:
    """Every way to write a number as a product of so many factors, in order: (ways, parts)."""
    ways = _ways(number, parts)
    return np.array(ways, dtype=np.int64).reshape(len(ways), parts)


@functools.cache
def _ways(number: int, parts: int) -> tuple[tuple[int, ...], ...]:
    if parts == 0:
        return ((),) if number == 1 else ()
    return tuple((first, *rest) for first in divisors(number) for rest in _ways(number // first, parts - 1))


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


def with_choices(meshes: Mapping[str, np.ndarray], fixed: Mapping[str, str], target: Target) -> dict[str, np.ndarray]:
    """Meshes times every choice that does not cut the batch, without those that mean the same layout twice."""
    names = ("remat", "zero", "reduce", "context_attention", "sequence_parallel", "vocab_tiles", "offload")
    columns = _times(meshes, **{name: _options(fixed, name, target.platform) for name in names})
    keep = np.ones(len(columns["data"]), dtype=bool)
    for word in (LAYOUT_WORDS[name] for name in names):
        if word.needs_axis and word.name not in fixed:
            keep &= (columns[word.name] == word.code(word.default)) | (columns[word.needs_axis] > 1)
    return _where(columns, keep)


def with_passes(
    columns: Mapping[str, np.ndarray], batch: int, layers: int | None, fixed: Mapping[str, str]
) -> LayoutTable:
    """Those choices times every way to cut the batch into passes: accumulation, or microbatches of a pipeline."""
    columns = pass_columns(columns, batch, layers, fixed)
    told = layout_from_words({word: value for word, value in fixed.items() if word.startswith(("xla.", "rule."))})
    return LayoutTable(
        orders=(order_of(fixed),),
        order=constant(0, len(columns["data"])),
        option_sets=(fixed.get("options"),),
        options=constant(0, len(columns["data"])),
        compiler_options=told.compiler_options,
        rules=told.rules,
        **columns,
    )


def pass_columns(
    columns: Mapping[str, np.ndarray], batch: int, layers: int | None, fixed: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """`with_passes` as columns, with whatever other columns the choices came with."""
    staged = columns["stage"] > 1
    parts = [_accumulated(_where(columns, ~staged), batch, fixed), _pipelined(_where(columns, staged), layers, fixed)]
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Columns one after the other; those that are one number stay one."""
    some = [part for part in parts if len(part)] or parts[:1]
    if len(some) == 1:
        return some[0]
    if all(is_constant(part) and part[0] == some[0][0] for part in some):
        return constant(some[0][0], sum(map(len, some)))
    return np.concatenate(some)


def order_of(fixed: Mapping[str, str]) -> tuple[str, ...]:
    """The physical order of the axes, outermost first: as pinned, or the default."""
    return tuple(fixed["order"].split(">")) if "order" in fixed else OUTERMOST_FIRST


def _accumulated(columns: dict[str, np.ndarray], batch: int, fixed: Mapping[str, str]) -> dict[str, np.ndarray]:
    doubling = [2**power for power in range(min(batch, LARGEST_COUNT).bit_length())]
    columns = _times(
        columns,
        accumulate=_codes(fixed, "accumulate", doubling),
        **{name: np.array([LAYOUT_WORDS[name].code(LAYOUT_WORDS[name].default)]) for name in PIPELINE_WORDS},
    )
    pinned = fixed.keys() & {"schedule", "microbatches"} or fixed.get("virtual_stages", "1") != "1"
    keep = np.full(len(columns["data"]), not pinned)
    if "accumulate" not in fixed:
        shards = columns["data"] * columns["fsdp"] * columns["expert"]
        keep &= (columns["accumulate"] == 1) | (columns["accumulate"] * shards <= batch)
    return _where(columns, keep)


def _pipelined(columns: dict[str, np.ndarray], layers: int | None, fixed: Mapping[str, str]) -> dict[str, np.ndarray]:
    accumulate, default = _codes(fixed, "accumulate", (1,)), LAYOUT_WORDS["accumulate"].default
    if accumulate[0] != LAYOUT_WORDS["accumulate"].code(default) and not fixed.keys() & {"stage", *PIPELINE_WORDS}:
        # A search accumulates only where it does not pipeline. A pin of `accumulate` alone keeps a part of that space.
        columns = _where(columns, np.zeros(len(columns["data"]), dtype=bool))
    columns = _times(
        columns,
        accumulate=accumulate,
        **{name: _options(fixed, name) for name in PIPELINE_WORDS},
    )
    if "microbatches" not in fixed:
        columns["microbatches"] = columns["microbatches"] * columns["stage"]
    keep = np.ones(len(columns["data"]), dtype=bool)
    if "virtual_stages" not in fixed:
        keep &= (columns["schedule"] == SCHEDULES.index("circular")) == (columns["virtual_stages"] > 1)
        if layers is not None:
            keep &= columns["virtual_stages"] * columns["stage"] <= layers
    elif fixed["virtual_stages"] == "1" and "schedule" not in fixed:
        keep &= columns["schedule"] != SCHEDULES.index("circular")
    return _where(columns, keep)


def _options(fixed: Mapping[str, str], name: str, platform: str = "tpu") -> np.ndarray:
    """The codes of the values of a word that are searched on a platform, or of the one it is pinned to."""
    return _codes(fixed, name, LAYOUT_WORDS[name].searched_on(platform))


def _codes(fixed: Mapping[str, str], name: str, values: Sequence[Any]) -> np.ndarray:
    word = LAYOUT_WORDS[name]
    return np.array([word.code(value) for value in ((word.parse(fixed[name]),) if name in fixed else values)])


def _times(columns: Mapping[str, np.ndarray], **choices: np.ndarray) -> dict[str, np.ndarray]:
    """Every row with every combination of the choices; the last choice runs fastest."""
    rows = len(columns["data"])
    combinations = np.meshgrid(*choices.values(), indexing="ij")
    count = combinations[0].size
    each = np.arange(rows).repeat(count)
    return {name: chosen(column, each) for name, column in columns.items()} | {
        name: constant(values[0], rows * count) if len(values) == 1 else np.tile(grid.ravel(), rows)
        for (name, values), grid in zip(choices.items(), combinations, strict=True)
    }


def _where(columns: Mapping[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: chosen(column, keep) for name, column in columns.items()}
