"""The table of the two hosts: what it claims holds for numbers that hold it, and fails for others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from two_hosts import MEGABIT, PRECISION, Kept, side_by_side
from validation.link_cases import Pairs, Row, doublings, table, verdicts

from autotune.measure.measure import Prepared, RunFailure, Turn
from autotune.meshes.layout import parse_layout

SLOW = Row(
    workload="w", rate_megabit=100, layout="data=2", predicted=1.05, measured=1.0, standard_error=0.01, samples=9,
    binding="network:data@network", link_share=0.8, failure=None,
)  # fmt: skip
FAST = replace(SLOW, rate_megabit=4000, predicted=0.32, measured=0.3, binding="latency", link_share=0.1)
ROWS = [SLOW, replace(SLOW, rate_megabit=200, predicted=0.65, measured=0.6), FAST]
PAIRS = [
    Pairs(
        workload="w",
        layout="data=2",
        rate_megabit=100,
        slow_seconds=(1.0, 1.02, 2.0, 1.0),
        fast_seconds=(0.6, 0.612, 1.2, 0.61),
    )
]


def test_a_machine_that_drifts_moves_both_of_a_pair():
    assert PAIRS[0].ratio == pytest.approx(0.6)
    assert PAIRS[0].standard_error < 0.01
    assert replace(PAIRS[0], slow_seconds=(1.0,), fast_seconds=(0.6,)).standard_error == math.inf


def test_both_changes_are_over_the_measured_step():
    (found,) = doublings(ROWS, PAIRS)
    assert found.measured == pytest.approx(0.4)
    assert found.predicted == pytest.approx((1.05 - 0.65) / 1.01)


def test_what_is_claimed_holds_or_fails_by_the_numbers():
    assert all(passed for _, passed in verdicts(ROWS, PAIRS))
    assert sum(line.startswith("holds") for line in table(ROWS, PAIRS)) == 6
    wrong = {
        "slow link named": [replace(SLOW, binding="matmul"), *ROWS[1:]],
        "fast link not named": [*ROWS[:2], replace(FAST, binding="network:data@network")],
        "median error": [replace(row, predicted=1.4 * row.measured) for row in ROWS],
        "rate doubled": [replace(SLOW, predicted=1.3), *ROWS[1:]],
        "chosen within": [*ROWS, *(replace(FAST, layout=f"fsdp=2,accumulate={n}", predicted=p, measured=m)
                                   for n, p, m in ((1, 0.31, 0.5), (2, 0.315, 0.5), (4, 0.33, 0.2)))],
    }  # fmt: skip
    for claim, rows in wrong.items():
        failed = [text for text, passed in verdicts(rows, PAIRS) if not passed]
        assert any(text.startswith(claim) for text in failed), (claim, failed)
    noisy = [replace(PAIRS[0], fast_seconds=(0.5, 0.7, 1.2, 0.61))]
    assert any(text.startswith("standard error") for text, passed in verdicts(ROWS, noisy) if not passed)


class Link:
    """Hosts and runner in one: a step takes 1 s at the lower rate and 0.6 at the double, give or take its noise."""

    def __init__(self, noise):
        self.noise, self.rates = iter(noise), []

    def set_rate(self, rate):
        self.rates.append(round(rate / MEGABIT))

    def turn(self, layout, steps):
        noise = next(self.noise, None)
        if noise is None:
            return RunFailure(kind="crash", phase="run", reason="the link is down")
        return Turn(seconds=(1.0 if self.rates[-1] == 100 else 0.6) * (1 + noise), steps=steps, peak_bytes=None)


def turns(link: Link, before: Pairs) -> Pairs:
    prepared = {parse_layout("data=2"): Prepared(compile_seconds=1.0, step_seconds=1.0)}
    return side_by_side(Kept(link, prepared), before, link, seconds=60.0)


def test_pairs_go_on_from_where_they_are_until_the_ratio_is_known():
    before = replace(PAIRS[0], slow_seconds=(1.0, 1.0), fast_seconds=(0.5, 0.7))
    link = Link([0.001, -0.001] * 100)
    found = turns(link, before)
    assert before.standard_error > PRECISION >= found.standard_error
    assert found.slow_seconds[:2] == (1.0, 1.0) and len(found.slow_seconds) == len(found.fast_seconds) > 2
    assert link.rates[:4] == [200, 100, 100, 200], "which rate comes first takes turns"
    assert found.ratio == pytest.approx(0.6, rel=0.01)


def test_a_turn_that_fails_ends_the_pairs_with_its_reason():
    with pytest.raises(RuntimeError, match=r"w data=2 at 200 Mbit/s: crash: the link is down"):
        turns(Link([]), PAIRS[0])
