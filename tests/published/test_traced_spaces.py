"""Prices of users' steps against spaces of layouts compiled whole: from the trace alone, and with probes."""

from __future__ import annotations

import pytest
import traced_against_compiled as script
from priced_against_compiled import medians
from validation.traced_spaces import CASES, load, probed_in

LIMITS = {"flops": 0.02, "peak": 0.12, "seconds": 0.10} | dict.fromkeys(("data", "fsdp", "tensor", "context"), 0.05)


@pytest.fixture(scope="module")
def compared():
    return list(script.compare_all())


def test_every_figure_is_of_a_case_that_is_still_described():
    assert load().keys() <= {case.name for case in CASES}


@pytest.mark.slow
def test_median_errors_with_probes(compared):
    missed = {name: error for name, error in medians([one[3] for one in compared]).items() if error > LIMITS[name]}
    assert not missed


@pytest.mark.slow
def test_probes_are_better_than_the_trace_alone_in_every_amount(compared):
    traced, probed = (medians([one[place] for one in compared]) for place in (2, 3))
    assert traced.keys() == probed.keys()
    assert all(probed[name] < traced[name] for name in traced)


@pytest.mark.slow
def test_the_best_of_all_compiled_is_among_the_four_best_priced(compared):
    assert all(after.place is not None and after.place <= 4 for _, _, _, after in compared)


def test_saved_probes_give_laws():
    for case in CASES:
        if case.name in load():
            probed = probed_in(load()[case.name]["probes"], case.placed)
            assert probed is not None and set(probed.axes) == set(case.axes.split(","))


@pytest.mark.slow
def test_the_script_prints_every_space(compared, capsys):
    assert script.main([]) == 0
    printed = capsys.readouterr().out
    assert all(case.name in printed for case, _, _, _ in compared)
