"""Alpa's V100 runs from our saved programs: who runs out of memory, how fast, how large, in which order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import alpa_cases  # noqa: E402


@pytest.fixture(scope="module")
def rows() -> list[alpa_cases.Row]:
    found = alpa_cases.rows_of(alpa_cases.compiled_cases())
    assert None not in found, "a saved program is missing: scripts/alpa_cases.py --recompile"
    return [row for row in found if row is not None]


def test_every_verdict_on_memory_is_right(rows):
    assert len(rows) == 11 and sum(row.published_seconds is None for row in rows) == 2
    assert [row.id for row in rows if not row.verdict_right] == []


def test_step_times(rows):
    errors = [abs(row.time_error) for row in rows if row.time_error is not None]
    assert sum(errors) / len(errors) < 0.05 and max(errors) < 0.10


def test_order_of_the_layouts(rows):
    """All pairs but data=4 against tensor=4, measured 2.9 % apart."""
    assert len(alpa_cases.pairs(rows)) == 14
    assert {frozenset(pair) for pair in alpa_cases.misordered(rows)} <= {
        frozenset({"alpa_osdi22-003", "alpa_osdi22-005"}),
        frozenset({"alpa_osdi22-016", "alpa_osdi22-005"}),
    }


def test_peaks(rows):
    """Within 10 %, but for four ways of data and fsdp: there Alpa holds every gradient whole, ours a layer's."""
    known = {row.id: row.memory_error for row in rows if row.memory_error is not None}
    missed = {name for name, error in known.items() if abs(error) > alpa_cases.MEMORY_ERROR}
    assert missed <= {"alpa_osdi22-003", "alpa_osdi22-016", "alpa_osdi22-020"}
    assert max(known.values()) < alpa_cases.MEMORY_ERROR


def test_the_script_prints_its_table(capsys):
    assert alpa_cases.main([]) == 0
    assert "verdicts right: 11 of 11" in capsys.readouterr().out
