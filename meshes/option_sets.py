"""Named sets of XLA options of a chip, as its hardware file holds them. JAX-free.

```toml
[option_sets]
recommended = ["vmem"]           # what a search compiles the best layout under, in this order

[option_sets.vmem]
meaning = "More of the on-chip memory for one fusion."
source = "where the set is published"
base = "default"                 # it stands on the file's [compiler_options]; "none" (the default): on nothing
holds_for = "libtpu>=0.0.42"     # the compiler that the whole set is for; left out: any

[option_sets.vmem.options]       # each a value, or a figure with value, source and holds_for
xla_tpu_scoped_vmem_limit_kib = 98304
```

Two names are every chip's: `none`, the compiler's own defaults, and `default`, the file's `[compiler_options]`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from packaging.requirements import InvalidRequirement, Requirement

from autotune.meshes.fields import Fields, did_you_mean, short
from autotune.meshes.layout_words import SET_NAME
from autotune.meshes.xla_options import why_not_of_a_file

NONE, DEFAULT = "none", "default"
"""The sets of every chip: no option at all, and the `[compiler_options]` of its file."""

RECOMMENDED = "recommended"
"""The key beside the sets that names those to try."""

MOST_RECOMMENDED = 3
"""Sets that a file may recommend: each is one more compile of the best layout."""

Trying = Literal["auto", "try", "off"]
TRYING: tuple[Trying, ...] = get_args(Trying)
"""When a search compiles the best layout under the recommended sets (`autotune.option_sets`)."""

Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSet:
    """XLA options that are set together on one chip."""

    meaning: str
    """What the set is for: one sentence."""
    options: Mapping[str, Value]
    """Option -> value, without those of the base."""
    base: str = NONE
    """"none", or "default": the set stands on the chip's `compiler_options`, which it can overrule."""
    requires: str | None = None
    """The compiler that the whole set is for ("libtpu>=0.0.42"); None: any."""
    holds_for: Mapping[str, str] = field(default_factory=dict)
    """Option -> the requirement without which it is left out."""


def read_sets(
    fields: Fields, sources: dict[str, str], inherited: Collection[str] = (), inherited_from: str = ""
) -> tuple[dict[str, OptionSet], tuple[str, ...]]:
    """The sets of an `[option_sets]` table, by name, and the names that it recommends.

    `sources` gets the source of each option under its dotted name. `inherited`: the sets of the platform's file, which
    is called `inherited_from` before their sources. ValueError with file, field and rule where one is none.
    """
    found: dict[str, OptionSet] = {}
    for name in fields.values:
        if name == RECOMMENDED:
            continue
        if name in (NONE, DEFAULT):
            raise ValueError(
                f"{fields.where}: {fields.path}{name} is a set of every chip (none: no options, default: "
                "compiler_options); give yours another name"
            )
        if not SET_NAME.fullmatch(name):
            raise ValueError(
                f"{fields.where}: {fields.path}{short(name)}: sets have names of small letters, digits and _, at most "
                "40 of them, a letter first"
            )
        before = inherited_from if name in inherited else ""
        found[name] = _set(fields.inside(name), sources, before)
    recommended: tuple[str, ...] = ()
    if RECOMMENDED in fields.values:
        recommended = tuple(fields.listed(RECOMMENDED, str))
        for name in recommended:
            if name not in (*found, NONE, DEFAULT):
                known = (NONE, DEFAULT, *found)
                raise fields.error(
                    RECOMMENDED, f"names {short(name)}, no set of this file{did_you_mean(name, known)}; it has "
                    + ", ".join(known)
                )  # fmt: skip
        if len(set(recommended)) < len(recommended):
            raise fields.error(RECOMMENDED, "names a set twice")
        if len(recommended) > MOST_RECOMMENDED:
            raise fields.error(RECOMMENDED, f"must name at most {MOST_RECOMMENDED} sets: each is one more compile")
    return found, recommended


def _set(fields: Fields, sources: dict[str, str], before: str) -> OptionSet:
    fields.only(("meaning", "source", "base", "holds_for", "options"))
    meaning = fields.text("meaning")
    base = fields.text("base", (NONE, DEFAULT)) if "base" in fields.values else NONE
    requires = _requirement(fields, "holds_for") if "holds_for" in fields.values else None
    of_set = fields.text("source") if "source" in fields.values else None
    inside = fields.inside("options")
    if not inside.values:
        raise ValueError(
            f"{fields.where}: {inside.path.rstrip('.')} is empty; a set names an option or more (no options at all is "
            f'"{NONE}")'
        )
    options: dict[str, Value] = {}
    holds_for: dict[str, str] = {}
    for name, node in inside.values.items():
        value, source = node, of_set
        if isinstance(node, dict):
            figure = inside.inside(name)
            figure.only(("value", "source", "why", "holds_for"))
            if "value" not in node:
                raise ValueError(f"{fields.where}: {inside.path}{name} has no value; write value = ... in its table")
            value = node["value"]
            source = figure.text("source") if "source" in node else of_set
            if "holds_for" in node:
                holds_for[name] = _requirement(figure, "holds_for")
            if "why" in node:
                source = f"{source or 'given without a source'} (chosen: {figure.text('why')})"
        problem = why_not_of_a_file(name, value)
        if problem:
            raise ValueError(f"{fields.where}: {inside.path}{short(name).strip(chr(39))}={short(value)}: {problem}")
        options[name] = value
        limit = holds_for.get(name, requires)
        told = " ".join(filter(None, [source, limit and f"(holds for {limit})"]))
        if told:
            sources[f"{inside.path}{name}"] = told if told.startswith("inherited from") else before + told
    return OptionSet(meaning=meaning, options=options, base=base, requires=requires, holds_for=holds_for)


def _requirement(fields: Fields, name: str) -> str:
    text: Any = fields.text(name)
    try:
        Requirement(text)
    except InvalidRequirement:
        raise fields.error(name, 'must be written as a requirement, e.g. "libtpu<0.0.48"') from None
    return str(text)
