"""Prices of users' steps against the compilers, from the trace alone and with probes: spaces of layouts compiled whole.

    python scripts/traced_against_compiled.py             the saved figures beside today's prices
    python scripts/traced_against_compiled.py --compile   compile what has no saved figures yet; save

Median absolute errors of FLOPs, peak memory, seconds and the bytes along each axis; and the place, by price, of the
layout that compiling everything would choose.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from priced_against_compiled import Found, found_in, median_words, parsed
from validation.traced_spaces import CASES, SAVED, TracedCase, before_and_after, compile_case, load, save

from autotune.store import Store


def compare_all() -> Iterator[tuple[TracedCase, int, Found, Found]]:
    """Every case that has saved figures: its probes, and what its prices were without and with them."""
    saved = load()
    for case in CASES:
        if case.name in saved:
            before, after, rows = before_and_after(case, saved[case.name])
            probes = len(saved[case.name]["probes"])
            yield case, probes, found_in(case, before, rows), found_in(case, after, rows)


def lines(compared: list[tuple[TracedCase, int, Found, Found]]) -> list[str]:
    """Two lines a case, and two for all of each platform."""
    said = []
    for case, probes, before, after in compared:
        said.append(f"{case.name}: {before.fitting} layouts, {probes} probes")
        said += [f"  {words}" for words in _pair([before], [after])]
        said.append(f"  place of the best layout: {before.place or '-'} from the trace, {after.place or '-'} probed")
    for platform in ("cuda", "tpu"):
        some = [one for one in compared if one[0].placed.platform == platform]
        if some:
            count = sum(len(one[2].errors) for one in some)
            said.append(f"median absolute error, {platform}, {len(some)} spaces, {count} layouts:")
            said += [f"  {words}" for words in _pair([one[2] for one in some], [one[3] for one in some])]
    return said


def _pair(before: list[Found], after: list[Found]) -> Iterator[str]:
    for word, found in (("traced", before), ("probed", after)):
        yield f"{word}: {median_words(found)}"


def main(words: list[str]) -> int:
    """Print the table; with --compile, compile and save first."""
    told = parsed(words, __doc__, jobs=2)
    if told.compile:
        saved = load() if SAVED.exists() else {}
        for case in CASES:
            if case.name not in saved:
                saved[case.name] = compile_case(case, Store(told.store), told.jobs)
                save({each.name: saved[each.name] for each in CASES if each.name in saved})
                print(f"{case.name}: {len(saved[case.name]['layouts'])} layouts", file=sys.stderr, flush=True)
    print("\n".join(lines(list(compare_all()))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
