"""The closed form against the compilers: spaces of layouts compiled whole, each priced as of today.

    python scripts/priced_against_compiled.py             the saved figures beside today's prices: errors, hits, regret
    python scripts/priced_against_compiled.py --compile   compile the spaces without figures of these compilers; save

Per layout: FLOPs, bytes that one device sends along each axis, peak memory, seconds. Per space: the place, by price, of
the layout that compiling everything would choose, and what compiling only the best-priced would lose.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation.spaces import CASES, NEW_SHAPES, SpaceCase, compile_case, save, saved, saved_versions

from autotune.compile.compile import COMPILERS
from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import AXES, Layout, parse_layout
from autotune.price.priced_space import PricedSpace, price_space
from autotune.search import SLACK, shortlist
from autotune.store import Store
from autotune.system.versions import installed_versions
from autotune.table import LayoutTable

TOPS = (1, 4, 8)
SMALL = 0.01
"""Axes with less than this share of a layout's bytes are left out: sums of a few scalars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """priced / compiled - 1 of one layout; of bytes by mesh axis (infinite where nothing was compiled)."""

    flops: float
    peak: float
    seconds: float
    sent: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One space. `place`: of the layout with the least compiled seconds among the best-priced (from 1); None where the
    price says it does not fit. `tried`: its place in the order in which the tuner compiles. `regret`: how many seconds
    more, relatively, the first `k` of that order hold at best. `chance`: of hitting it among `k` drawn blindly."""

    case: SpaceCase
    layouts: int
    fitting: int
    errors: tuple[Errors, ...]
    best: Layout
    place: int | None
    tried: int | None
    regret: Mapping[int, float]
    chance: Mapping[int, float]


def compare(case: SpaceCase, rows: list[dict[str, Any]]) -> Found:
    """Today's prices of one space beside its saved figures."""
    layouts = [parse_layout(row["layout"]) for row in rows]
    return found_in(case, price_space(case.workload, case.placed, LayoutTable.from_layouts(layouts), layouts), rows)


def found_in(case: SpaceCase, space: PricedSpace, rows: list[dict[str, Any]]) -> Found:
    """The prices of a space, whose layouts are the rows', beside the figures in these."""
    layouts = list(space.layouts)
    figures = dict(zip(layouts, rows, strict=True))
    capacity = case.placed.hardware.capacity_bytes
    compiled = {layout: row for layout, row in figures.items() if "failure" not in row}
    fits = {layout: row["seconds"] for layout, row in compiled.items() if row["peak"] <= capacity}
    best = min(fits, key=lambda layout: (fits[layout], str(layout)))
    order = [space.layout(row) for row in shortlist(space, capacity)]
    hopeful = [row for row in range(len(layouts)) if space.peak_bytes[row] <= SLACK * capacity]
    by_price = [layouts[row] for row in sorted(hopeful, key=lambda row: (space.seconds[row], space.peak_bytes[row]))]
    return Found(
        case=case,
        layouts=len(layouts),
        fitting=len(fits),
        errors=tuple(_errors(space, layout, row) for layout, row in compiled.items()),
        best=best,
        place=by_price.index(best) + 1 if best in by_price else None,
        tried=order.index(best) + 1 if best in order else None,
        regret={k: _regret(order, fits, k) for k in TOPS},
        chance={k: min(k / len(fits), 1.0) for k in TOPS},
    )


def _errors(space, layout: Layout, row: Mapping[str, Any]) -> Errors:
    priced = space.price(space.row_of(layout))
    compiled = sent_by_axis(row["sent"], layout)
    least = SMALL * max(sum(compiled.values()), sum(priced.sent.values()))
    axes = [axis for axis in AXES if max(compiled.get(axis, 0.0), priced.sent.get(axis, 0.0)) > least]
    return Errors(
        flops=priced.flops / row["flops"] - 1,
        peak=priced.peak_bytes / row["peak"] - 1,
        seconds=priced.step_seconds / row["seconds"] - 1,
        sent={
            axis: priced.sent.get(axis, 0.0) / compiled[axis] - 1 if compiled.get(axis) else math.inf for axis in axes
        },
    )


def sent_by_axis(rows: list[list[Any]], layout: Layout) -> dict[str, float]:
    """Bytes of one device by single mesh axis. A collective over several is taken as done axis by axis, the innermost
    first; of one that moves nothing together, all goes to the innermost."""
    found: dict[str, float] = {}
    for names, kind, size in rows:
        axes = names.split("+") if names else []
        shares, left = {}, 1.0
        for axis in reversed(axes):
            count = getattr(layout, axis)
            whole = kind not in ("permute", "all_to_all")
            shares[axis] = float(wire_bytes(kind, left, count)) if whole or not shares else 0.0
            left /= count
        for axis, share in shares.items():
            found[axis] = found.get(axis, 0.0) + size * share / sum(shares.values())
    return found


def _regret(order: list[Layout], fits: Mapping[Layout, float], k: int) -> float:
    """The best of the first `k` that fit, over the best of all, less one: the tuner goes on until `k` fit."""
    fitting = [layout for layout in order if layout in fits][:k]
    return min(fits[layout] for layout in fitting) / min(fits.values()) - 1 if fitting else math.inf


def compare_all(cases: tuple[SpaceCase, ...] = CASES) -> list[Found]:
    """Every space of `cases` that has saved figures."""
    figures = saved()
    return [compare(case, figures[case.name]) for case in cases if case.name in figures]


def medians(found: list[Found]) -> dict[str, float]:
    """Median absolute error of FLOPs, memory and seconds, and of the bytes along each axis, over all layouts."""
    errors = [error for one in found for error in one.errors]
    result = {name: _median([getattr(error, name) for error in errors]) for name in ("flops", "peak", "seconds")}
    for axis in AXES:
        sent = [error.sent[axis] for error in errors if axis in error.sent]
        if sent:
            result[axis] = _median(sent)
    return result


def _median(errors: list[float]) -> float:
    return statistics.median(abs(error) for error in errors)


def hit_rate(found: list[Found], k: int) -> float:
    """Share of spaces whose compiled best is among the `k` best-priced."""
    return sum(one.place is not None and one.place <= k for one in found) / len(found)


def lines(found: list[Found]) -> list[str]:
    """The table, worst place first."""
    said = [f"{'space':112}{'layouts':>8}{'place':>6}{'tried':>6}{'regret 1':>9}{'4':>7}{'8':>7}  median errors"]
    for one in sorted(found, key=lambda one: -(one.place or 10**6)):
        errors = medians([one])
        words = " ".join(f"{name} {100 * value:.1f}" for name, value in errors.items())
        regrets = "".join(f"{100 * one.regret[k]:6.1f}%" for k in TOPS)
        said.append(
            f"{one.case.name:112}{one.fitting:>8}{one.place or '-':>6}{one.tried or '-':>6}  {regrets}  {words}"
        )
    layouts = sum(len(one.errors) for one in found)
    said.append(f"{len(found)} spaces, {layouts} layouts compiled; best layout among the best-priced:")
    for k in TOPS:
        blind = statistics.mean(one.chance[k] for one in found)
        tried = sum(one.tried is not None and one.tried <= k for one in found) / len(found)
        worst = max(one.regret[k] for one in found)
        said.append(
            f"  first {k}: {100 * hit_rate(found, k):.0f} % (in the tuner's order {100 * tried:.0f} %, drawn blindly "
            f"{100 * blind:.0f} %); regret mean {100 * statistics.mean(one.regret[k] for one in found):.1f} %, "
            f"worst {100 * worst:.1f} %"
        )
    for platform in ("cuda", "tpu"):
        some = [one for one in found if one.case.placed.platform == platform]
        if some:
            layouts = sum(len(one.errors) for one in some)
            said.append(f"median absolute error, {platform} ({layouts} layouts): {median_words(some)}")
    return said


def median_words(found: list[Found]) -> str:
    """`medians` in percent, in one line."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in medians(found).items())


def compile_missing(store: Store, workers: int) -> None:
    """Compile the cases without figures of the installed compilers; each is saved as soon as it is whole."""
    versions = installed_versions((*COMPILERS["tpu"], *COMPILERS["cuda"]))
    figures = saved() if saved_versions() == versions else {}
    cases = CASES + NEW_SHAPES
    for case in cases:
        if case.name not in figures:
            figures[case.name] = list(compile_case(case, store, workers))
            save({each.name: figures[each.name] for each in cases if each.name in figures}, versions)
        print(f"{case.name}: {len(figures[case.name])} layouts", file=sys.stderr, flush=True)


def parsed(words: list[str], description: str, jobs: int) -> argparse.Namespace:
    """--compile, --store and --jobs (`jobs` unless told)."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--jobs", type=int, default=jobs)
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Print the table; with --compile, compile and save first."""
    told = parsed(words, __doc__, jobs=1)
    if told.compile:
        compile_missing(Store(told.store), told.jobs)
    print("\n".join(lines(compare_all())))
    if new := compare_all(NEW_SHAPES):
        print("\nmodels of published configs, whose layers differ or have parts of their own")
        print("\n".join(lines(new)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
