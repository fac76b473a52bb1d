"""A sharding for arrays that nobody annotated: tensor parallelism along axes between two matmuls, FSDP for the rest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.partition import Name
from autotune.workload.dimensions import Dimensions

LISTED = 8
"""Guesses said one by one; the rest is counted."""


def guess_names(
    dimensions: tuple[Dimensions, list[tuple[int, ...]]],
    shapes: Mapping[str, tuple[int, ...]],
    parameters: Mapping[str, int],
    batch: Mapping[int, int],
    mutable: Mapping[str, int],
) -> dict[str, tuple[Name, ...]]:
    """Mesh axes for each dimension of each parameter, and of each `mutable` array that has any.

    `dimensions`: those of the step's jaxpr (`dimensions_of`); `shapes`: path -> shape. `parameters`, `mutable`: path
    -> which input of the jaxpr it is; `batch`: input -> its dimension that is the batch.
    A mutable array (a cache) is cut where the batch is, and along the axis that its parameters have on `tensor`.

    Cutting an axis saves the matmuls along it and costs a reduction of every matmul result that was summed over it.
    Axes with the most FLOPs saved per element reduced go to `tensor`, as long as no parameter is cut twice: in a
    transformer these are MLP width, heads and vocabulary (as in Megatron-LM, arXiv 1909.08053). `fsdp` cuts the
    largest dimension left of every matrix.
    """
    found, inputs = dimensions
    axis = found.axis
    # The batch and its length: the dimension after it, or before it where time comes first.
    data = {axis(dimension) for index, at in batch.items() for dimension in inputs[index][max(at - 1, 0) :][:2]}
    stacked = {axis(dimension) for dimension in found.stacked}
    saved: dict[int, float] = {}
    reduced: dict[int, float] = {}
    for contraction in found.contractions:
        summed = {axis(dimension) for dimension in contraction.summed}
        result = {axis(dimension) for dimension in contraction.result}
        for one in summed | result:
            saved[one] = saved.get(one, 0.0) + contraction.flops
        for one in summed - result:
            reduced[one] = reduced.get(one, 0.0) + contraction.result_elements
    arrays = {path: [axis(dimension) for dimension in inputs[index]] for path, index in parameters.items()}
    candidates = {one for axes in arrays.values() for one in axes} & saved.keys() - data - stacked
    chosen: set[int] = set()
    for one in sorted(candidates, key=lambda one: (-saved[one] / max(reduced.get(one, 0.0), 1.0), one)):
        if all(sum(each in chosen or each == one for each in axes) <= 1 for axes in arrays.values()):
            chosen.add(one)
    names = {}
    for path, axes in arrays.items():
        cut: list[Name] = ["tensor" if one in chosen else None for one in axes]
        free = [index for index, one in enumerate(axes) if one not in chosen and one not in stacked]
        matrix = sum(one not in stacked for one in axes) >= 2
        if matrix and free:
            # A dimension that some matmul sums over, rather than one that is only looked up (a vocabulary).
            cut[max(free, key=lambda index: (axes[index] in saved, shapes[path][index], -index))] = "fsdp"
        names[path] = tuple(cut)
    rows = {axis(inputs[index][at]) for index, at in batch.items()}
    for path, index in mutable.items():
        axes = [axis(dimension) for dimension in inputs[index]]
        kept = ["batch" if one in rows else "tensor" if one in chosen else None for one in axes]
        once: list[Name] = [one if one is None or kept.index(one) == place else None for place, one in enumerate(kept)]
        if any(once):
            names[path] = tuple(once)
    return names


def describe(names: Mapping[str, tuple[Name, ...]], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """What was guessed and how to pin it, largest arrays first; layers alike are one line, the small fry counted."""
    alike: dict[tuple[str, tuple[Name, ...], tuple[int, ...]], list[str]] = {}
    for path in names:
        alike.setdefault((kind_of(path), names[path], shapes[path]), []).append(path)
    ranked = sorted(alike, key=lambda one: (-len(alike[one]) * math.prod(one[2]), one[0]))
    lines = []
    for kind, cut, shape in ranked[:LISTED]:
        paths = alike[kind, cut, shape]
        rule = rule_for(paths, names)
        more = f" and {len(paths) - 1} like it" if len(paths) > 1 else ""
        lines.append(
            f"guessed: {paths[0]}{more}, {list(shape)}, cut over {_words(cut)}; pin with rules=[(r'{rule}$', {cut!r})]"
        )
    rest = sum(len(alike[one]) for one in ranked[LISTED:])
    if rest:
        lines.append(f"guessed: {rest} smaller arrays likewise; workload.partition lists them all")
    return tuple(lines)


def kind_of(path: str) -> str:
    """A regex for the paths that differ from this one in their numbers alone: layers of one kind.

    >>> kind_of("params/encoderblock_3/mlp/0"), kind_of("w1")
    ('params/encoderblock_\\\\d+/mlp/\\\\d+', 'w\\\\d+')
    """
    return re.sub(r"\d+", r"\\d+", re.escape(path))


def rule_for(paths: Sequence[str], known: Mapping[str, Any]) -> str:
    """A regex for these paths and, of the known ones, no others: numbers that differ are any number, or these."""
    columns = [sorted(set(column)) for column in zip(*(path.split("/") for path in paths), strict=True)]
    rule = "/".join(re.escape(one[0]) if len(one) == 1 else kind_of(one[0]) for one in columns)
    if any(re.search(f"{rule}$", path) for path in known if path not in paths):
        return "/".join(re.escape(one[0]) if len(one) == 1 else f"({'|'.join(map(re.escape, one))})" for one in columns)
    return rule


def _words(names: tuple[Name, ...]) -> str:
    return "(" + ", ".join(str(name) if name else "-" for name in names) + ")"
