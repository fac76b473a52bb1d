"""A layout: how one train step is cut over a mesh. Plain hashable data with no devices in it.

In words (`str(layout)`, `parse_layout(text)`):
`data=2,fsdp=16,tensor=4,dcn.data=2,zero=1,remat=full,accumulate=2,microbatches=8,schedule=circular,virtual_stages=2`.
Axis sizes are totals over all tiers; `dcn.<axis>` is the factor of that axis which crosses the outer tier (DCN between
TPU slices, the network between NVLink domains).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.meshes.fields import did_you_mean, one_line, short
from autotune.meshes.layout_words import LARGEST_COUNT, LAYOUT_WORDS, WORD_FAMILIES, whole_number
from autotune.meshes.remat_sets import places_of
from autotune.meshes.xla_options import NAME

OUTERMOST_FIRST: tuple[str, ...] = LAYOUT_WORDS["order"].default
"""Mesh axes, outermost first: the default physical order, so that `tensor` rides the nearest neighbours."""

AXES = tuple(word.name for word in LAYOUT_WORDS.values() if word.kind == "axis")
"""The order axes are written in."""

REMAT: tuple[str, ...] = LAYOUT_WORDS["remat"].values
"""Recomputation policies, the one that saves most first: names of sets (`autotune.meshes.remat_sets`)."""

SCHEDULES: tuple[str, ...] = LAYOUT_WORDS["schedule"].values
"""Pipeline schedules that a layout can name."""


def _default(name: str) -> Any:
    return LAYOUT_WORDS[name].default


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Axis sizes per tier, and every other choice that changes the compiled program.

    `LAYOUT_WORDS` says for each field that a single word writes what it means and which values it may have.
    `schedule` is None when `stage` is 1.
    """

    data: int = _default("data")
    fsdp: int = _default("fsdp")
    tensor: int = _default("tensor")
    stage: int = _default("stage")
    context: int = _default("context")
    expert: int = _default("expert")
    dcn: tuple[tuple[str, int], ...] = ()
    """(axis, factor of it that crosses the outer tier) pairs; factors of 1 are left out."""
    zero: int = _default("zero")
    remat: str = _default("remat")
    accumulate: int = _default("accumulate")
    reduce: str = _default("reduce")
    microbatches: int = _default("microbatches")
    schedule: str | None = _default("schedule")
    virtual_stages: int = _default("virtual_stages")
    sequence_parallel: bool = _default("sequence_parallel")
    context_attention: str = _default("context_attention")
    vocab_tiles: int = _default("vocab_tiles")
    offload: str = _default("offload")
    options: str | None = _default("options")
    order: tuple[str, ...] = OUTERMOST_FIRST
    compiler_options: tuple[tuple[str, str], ...] = ()
    """(name, value) pairs for XLA."""
    rules: tuple[tuple[str, tuple[str, ...]], ...] = field(default=())
    """(logical axis, mesh axes) pairs that replace the defaults of `autotune.meshes.sharding`."""

    def __post_init__(self) -> None:
        for word in LAYOUT_WORDS.values():
            if word.kind in ("axis", "count"):
                word.check(getattr(self, word.name))
        object.__setattr__(self, "remat", LAYOUT_WORDS["remat"].parse(self.remat))
        if self.devices > LARGEST_COUNT:
            raise ValueError(
                f"layout: its axes multiply to {self.devices:,} devices; at most {LARGEST_COUNT:,} may be had"
            )
        outer = dict(self.dcn)
        for name, factor in self.dcn:
            if name not in AXES:
                close = did_you_mean(name, AXES)
                raise ValueError(f"layout: dcn.{one_line(name)} is not a mesh axis; axes: {', '.join(AXES)}{close}")
            if not isinstance(factor, int) or factor < 1 or getattr(self, name) % factor:
                raise ValueError(f"layout: dcn.{name}={factor} must divide {name}={getattr(self, name)}")
        if len(outer) != len(self.dcn):
            raise ValueError("layout: dcn names an axis twice")
        object.__setattr__(self, "dcn", tuple((name, outer[name]) for name in AXES if outer.get(name, 1) > 1))
        for word in LAYOUT_WORDS.values():
            if word.values or word.kind == "name":
                word.check(getattr(self, word.name))
        if sorted(self.order) != sorted(OUTERMOST_FIRST):
            raise ValueError(
                f"layout: order={short('>'.join(self.order))} must name each of {', '.join(OUTERMOST_FIRST)} once"
                + next((did_you_mean(name, OUTERMOST_FIRST) for name in self.order if name not in OUTERMOST_FIRST), "")
            )
        for prefix, pairs in (("xla", self.compiler_options), ("rule", self.rules)):
            names = [name for name, _ in pairs]
            if len(set(names)) != len(names):
                raise ValueError(f"layout: {prefix} names {max(names, key=names.count)!r} twice")
        for name, value in (*self.compiler_options, *((name, "") for name, _ in self.rules)):
            if not name or any(sign in name or sign in value for sign in ", ;\t\n") or "=" in name:
                raise ValueError(
                    f"layout: {short(name)}={short(value)} holds a comma or space, which no layout text can say"
                )
            if not (name + value).isprintable():
                raise ValueError(f"layout: {short(name)}={short(value)} holds a control character")
        for name, value in self.compiler_options:
            if not NAME.fullmatch(name):
                raise ValueError(f"layout: xla.{name}: options have names of small letters, digits and _")
            if not value:
                raise ValueError("layout: a compiler option has no value")
        for logical, axes in self.rules:
            for axis in axes:
                if axis not in OUTERMOST_FIRST:
                    raise ValueError(
                        f"layout: rule.{logical}={short(axis)} is not a mesh axis; axes: {', '.join(AXES)}, none"
                        f"{did_you_mean(str(axis), (*AXES, 'none'))}"
                    )
        if self.stage == 1 and (self.schedule, self.microbatches, self.virtual_stages) != (None, 1, 1):
            raise ValueError("layout: schedule, microbatches and virtual_stages need stage above 1")
        if self.stage > 1 and self.schedule is None:
            raise ValueError(f"layout: stage={self.stage} needs a schedule, one of {', '.join(SCHEDULES)}")

    @property
    def axes(self) -> dict[str, int]:
        """Total size of every mesh axis, in writing order."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def dcn_axes(self) -> dict[str, int]:
        """The factor of every mesh axis that crosses the outer tier, in writing order."""
        outer = dict(self.dcn)
        return {name: outer.get(name, 1) for name in AXES}

    @property
    def mesh_shape(self) -> dict[str, int]:
        """Axis name -> total size, outermost first: the shape of the `jax.sharding.Mesh` (all six axes, ones too)."""
        return {name: getattr(self, name) for name in self.order}

    @property
    def devices(self) -> int:
        """JAX devices the mesh takes."""
        total = 1
        for size in self.axes.values():
            total *= size
        return total

    @property
    def batch_shards(self) -> int:
        """Pieces the batch dimension is cut into over devices: data x fsdp x expert."""
        return self.data * self.fsdp * self.expert

    @property
    def codes(self) -> dict[str, int]:
        """Every word but `order` and `options` as the whole number that a column of a table of layouts holds."""
        return {
            word.name: word.code(getattr(self, word.name))
            for word in LAYOUT_WORDS.values()
            if word.kind not in ("order", "name")
        }

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.words().items()) or "data=1"

    def words(self) -> dict[str, str]:
        """What differs from the defaults, as the words of a layout text."""
        words = {name: str(size) for name, size in self.axes.items() if size > 1}
        words |= {f"dcn.{name}": str(size) for name, size in self.dcn}
        for word in LAYOUT_WORDS.values():
            value = getattr(self, word.name)
            if word.kind not in ("axis", "order") and value != word.default:
                words[word.name] = word.text(value)
        words |= {f"xla.{name}": value for name, value in self.compiler_options}
        if self.order != OUTERMOST_FIRST:
            words["order"] = LAYOUT_WORDS["order"].text(self.order)
        words |= {f"rule.{logical}": "+".join(axes) or "none" for logical, axes in self.rules}
        return words


def parse_layout(text: str) -> Layout:
    """The layout that a text such as "fsdp=64,tensor=4,remat=full" describes.

    ValueError names the word that is wrong and the rule.

    >>> str(parse_layout("tensor=4, fsdp=8,remat=full"))
    'fsdp=8,tensor=4,remat=full'
    """
    words: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"layout: {short(part)} must be written name=value")
        if key in words:
            raise ValueError(f"layout: {one_line(key)} is given twice")
        words[key] = value
    if not words:
        raise ValueError("layout: is empty; write e.g. fsdp=64,tensor=4")
    return layout_from_words(words)


def layout_from_words(words: Mapping[str, str]) -> Layout:
    """The layout of already split words (the inverse of `Layout.words`)."""
    arguments: dict[str, object] = {}
    dcn, options, rules = [], [], []
    for key, value in words.items():
        prefix, _, rest = key.partition(".")
        if prefix == "dcn" and rest:
            dcn.append((rest, whole_number(key, value)))
        elif prefix == "xla" and rest:
            options.append((rest, value))
        elif prefix == "rule" and rest:
            rules.append((rest, tuple(axis for axis in value.split("+") if axis != "none")))
        elif key in LAYOUT_WORDS:
            arguments[key] = LAYOUT_WORDS[key].parse(value)
        else:
            known = f"; known: {', '.join((*LAYOUT_WORDS, *WORD_FAMILIES))}"
            words_known = [*LAYOUT_WORDS, *(f"dcn.{axis}" for axis in AXES)]
            raise ValueError(f"layout: {short(key)} is not known{known}{did_you_mean(key, words_known)}")
    return Layout(dcn=tuple(dcn), compiler_options=tuple(options), rules=tuple(rules), **arguments)  # type: ignore[arg-type]


def layout_to_json(layout: Layout) -> dict[str, object]:
    """The layout as the JSON of rows and plans has it.

    `remat_arrays`: array -> "device", "host" or "recompute" (`autotune.meshes.remat_sets`).
    """
    return {
        "axes": layout.axes,
        "dcn_axes": layout.dcn_axes,
        "zero": layout.zero,
        "remat": layout.remat,
        "remat_arrays": dict(places_of(layout.remat)),
        "accumulate": layout.accumulate,
        "reduce": layout.reduce,
        "microbatches": layout.microbatches,
        "schedule": layout.schedule,
        "virtual_stages": layout.virtual_stages,
        "sequence_parallel": layout.sequence_parallel,
        "context_attention": layout.context_attention,
        "vocab_tiles": layout.vocab_tiles,
        "offload": layout.offload,
        "options": layout.options,
        "order": list(layout.order),
        "compiler_options": dict(layout.compiler_options),
    }


def default_outer_factors(mesh_shape: Mapping[str, int], groups: int) -> dict[str, int]:
    """The factor of each axis that crosses slices or domains where nobody says: the outermost axes take them.

    `mesh_shape`: axis sizes, outermost first. Where the sizes multiply to a multiple of `groups`, the factors multiply
    to `groups`.

    >>> default_outer_factors({"data": 4, "fsdp": 16}, 8)
    {'data': 4, 'fsdp': 2}
    """
    left, outer = groups, {}
    for axis, size in mesh_shape.items():
        outer[axis] = math.gcd(size, left)
        left //= outer[axis]
    return outer
