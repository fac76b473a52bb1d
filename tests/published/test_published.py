"""Ours beside the published measurements: every row answered, and no set worse than what the README says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import validate  # noqa: E402
from validation.cases import Case, read_cases  # noqa: E402
from validation.score import Row, correlation, regret, row_of, score, wrong_pairs  # noqa: E402

KNOWN_MISSES = {"aleph: spearman", "aleph: regret"}
"""Thresholds that are not met, each with its figure in the README; a set that gets better must be taken out here."""


@cache
def rows_of(name: str) -> tuple[Row, ...]:
    return tuple(row_of(case) for case in read_cases(validate.DATA / f"{name}.json"))


@pytest.mark.parametrize("name", validate.SETS)
def test_every_row_has_an_answer_or_a_reason(name):
    for row in rows_of(name):
        assert (row.predicted is None) == (row.skipped is not None), row.id
        assert row.predicted is None or row.predicted > 0
        if row.memory is not None:
            assert sum(row.memory.values()) == pytest.approx(row.peak_bytes_predicted)


def test_sets_meet_their_thresholds_but_for_those_known():
    rows = [row for name in validate.SETS for row in rows_of(name)]
    missed = set()
    for group in dict.fromkeys(row.group for row in rows):
        missed |= {
            " ".join(miss.split()[:2]) for miss in validate.misses(score(group, [r for r in rows if r.group == group]))
        }
    assert missed == KNOWN_MISSES


@pytest.mark.parametrize(
    "name, limit", (("alpa_osdi22_2_4_gpu", 0.20), ("maxtext_tpu", 0.08), ("korthikanti2022", 0.03))
)
def test_sets_stay_as_close_as_they_are(name, limit):
    errors = [abs(row.error) for row in rows_of(name) if row.error is not None]
    assert sum(errors) / len(errors) <= limit


def test_saved_activations_are_korthikantis():
    """Equation 6 of arXiv 2205.05198: 34 s b h / t a layer with sequence parallelism and selective recomputation."""
    case = next(
        case
        for case in read_cases(validate.DATA / "korthikanti2022.json")
        if isinstance(case, Case) and case.id == "kort-t5-22B-selective+sp"
    )
    row = row_of(case)
    assert row.memory is not None
    assert row.memory["activations"] == pytest.approx(48 * 34 * 2048 * 4 * 6144 / 8, rel=1e-9)


def test_scores_of_rows_made_by_hand():
    def row(name, measured, predicted):
        return Row(
            id=name, group="g", rank_set="s", quantity="step_seconds", measured=measured, predicted=predicted,
            oom_measured=None, oom_predicted=None, peak_bytes_predicted=None, memory=None, bubble_measured=None,
            bubble_predicted=None, schedule=None, source="priced", skipped=None,
        )  # fmt: skip

    rows = [row("a", 1.0, 2.0), row("b", 1.5, 1.8), row("c", 3.0, 4.0)]
    assert regret(rows) == 0.5  # we choose b
    assert wrong_pairs(rows) == 1
    assert correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(0.5)


def test_the_script_prints_one_document_with_the_keys_others_read(tmp_path):
    row = json.loads((validate.DATA / "alpa_osdi22_2_4_gpu.json").read_text())
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([row[0], row[-1], {"id": "broken"}]))
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "validate.py", "--cases", path, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = {"id", "rank_set", "quantity", "measured", "predicted", "error", "oom_measured", "oom_predicted",
            "peak_bytes_predicted", "source", "skipped"}  # fmt: skip
    assert all(keys <= set(entry) for entry in found)
    assert found[0]["source"] == "priced" and found[0]["skipped"] is None
    assert "layout not fully given" in found[1]["skipped"] and found[2]["skipped"] == "layout is missing"


def test_bad_input_is_said_in_one_line(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text("{")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "validate.py", "--cases", path], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not JSON" in done.stderr
