"""Which sets of XLA options the best compiled layout is compiled under again, and what that may cost. JAX-free.

A price does not know the options, so a set is only judged by a compile. `--compile K` bounds the layouts that are
compiled; `auto` spends on sets only what these layouts leave over, so that no search ends with a worse layout than one
that tries no sets:

- compiles for which the space has no layout left;
- of K = `LEAST` or more, those of the last layouts that cannot win: even with all communication hidden, their price is
  above the best compiled time (`cannot_win`).

`try` compiles the best layout under every recommended set, beyond K. `off` tries none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotune.meshes.compiler_options import options_of, told_by
from autotune.meshes.hardware import Hardware
from autotune.meshes.installed import meets
from autotune.meshes.layout import Layout
from autotune.meshes.option_sets import DEFAULT
from autotune.meshes.target import Target
from autotune.outcomes import Outcomes, Refused, fitting
from autotune.price.priced_space import PricedSpace

LEAST = 6
"""The fewest compiles of a search of which `auto` takes those of layouts that cannot win."""


def sets_of(hardware: Hardware, base: str | None = None) -> tuple[tuple[str, ...], tuple[Refused, ...]]:
    """(names of the recommended sets that say something new to the installed compiler, the others with the reason).

    `base`: the set that the best layout was compiled under; None: the default one.
    """
    known = {repr(sorted(options_of(hardware, base).items())): base or DEFAULT}
    names, refused = [], []
    for name in hardware.recommended_sets:
        one = hardware.option_sets.get(name)
        told = options_of(hardware, name)
        text = repr(sorted(told.items()))
        if one is not None and one.requires is not None and meets(one.requires) is False:
            refused.append(Refused(name=name, reason=f"holds for {one.requires}, which is not installed here"))
        elif text in known:
            left = len(told_by(hardware, name)[0]) - len(told)
            why = f", less {left} that the installed compiler refuses" if left else ""
            refused.append(Refused(name=name, reason=f"the same options as {known[text]}{why}"))
        else:
            known[text] = name
            names.append(name)
    return tuple(names), tuple(refused)


def cannot_win(space: PricedSpace, target: Target, outcomes: Outcomes, rows: Sequence[int]) -> set[int]:
    """Those of the rows that cannot beat the best compiled layout by the interval of their price.

    The low end of an interval is the price with all communication hidden. It is moved down by as much as the compiled
    time of any layout of this search came out below its own low end.
    """
    able = fitting(outcomes, target)
    if not able:
        return set()
    low = space.prices.low_seconds
    times = {layout: outcomes.analysis[layout].prediction.step_seconds for layout in able}
    least = min([1.0, *(seconds / float(low[space.row_of(layout)]) for layout, seconds in times.items())])
    return {row for row in rows if float(low[row]) * least > min(times.values())}


def with_sets(space: PricedSpace, layout: Layout, names: Sequence[str]) -> tuple[PricedSpace, tuple[Layout, ...]]:
    """The space with a further row for the layout under each set, at its price, and those layouts; a layout that the
    space has already is not added again."""
    row = space.row_of(layout)
    wanted = [replace(layout, options=name) for name in names]
    new = [one for one in wanted if not _has(space, one)]
    if not new:
        return space, tuple(wanted)
    rows = [row] * len(new)
    return space.again(rows, new), tuple(wanted)


def _has(space: PricedSpace, layout: Layout) -> bool:
    try:
        space.row_of(layout)
    except (KeyError, ValueError):
        return False
    return True
