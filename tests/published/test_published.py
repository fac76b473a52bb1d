"""Ours beside the published measurements: every row answered, and no set worse than what the README says of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import validate
from validation.cases import Case, read_cases
from validation.score import Row, correlation, regret, row_of, score, wrong_pairs

from autotune.price.transformer.training_stack import stack_of

ROOT = Path(__file__).parents[2]


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


def test_sets_meet_their_thresholds():
    rows = [row for name in validate.SETS for row in rows_of(name)]
    scores = [score(group, [row for row in rows if row.group == group]) for group in {row.group for row in rows}]
    assert set(validate.THRESHOLDS) <= {found.group for found in scores}
    assert [miss for found in scores for miss in validate.misses(found)] == []


def test_a_missed_threshold_is_said_in_words():
    rows = [row for row in rows_of("alpa_osdi22_2_4_gpu") if row.oom_measured is not None]
    wrong = [dataclasses.replace(row, oom_predicted=not row.oom_measured) for row in rows]
    assert validate.misses(score("alpa", wrong)) == ["alpa: oom_right 0, at least 1"]


def test_rows_that_the_tool_would_compile_are_priced_with_its_own_stack(tmp_path):
    """A run of JAX on a GPU is no run of another framework on the same GPU."""
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([changed("hardware", name=name) for name in ("H100", "TPU v5p")]))
    for case in read_cases(path):
        assert isinstance(case, Case) and case.stack == stack_of(case.target.hardware, "bfloat16")


@pytest.mark.parametrize(
    "name, file",
    (("A100-SXM4-40GB", "a100-40"), ("A100-40GB", "a100-40"), ("NVIDIA A100 80 GB", "a100-80"), ("A100", "a100-80")),
)
def test_memory_of_the_hardware_is_read_from_its_name(tmp_path, name, file):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([changed("hardware", name=name)]))
    (case,) = read_cases(path)
    assert isinstance(case, Case) and case.target.hardware.name == file


def changed(part: str, **values) -> dict:
    """MaxText's first row with some of one part's values others (None: left out)."""
    row = json.loads((validate.DATA / "maxtext_tpu.json").read_text())[0]
    told = {**row[part], **values}
    return {**row, part: {name: value for name, value in told.items() if value is not None}}


@pytest.mark.parametrize(
    "row",
    (
        changed("layout", kernel="a kernel that nobody knows"),
        changed("layout", recompute=None),
        changed("layout", sequence_parallel=False, zero="distributed optimizer"),
        changed("batch", sequences=None),
        changed("model", experts=8, experts_per_token=2),
        changed("layout", per_device_batch=None, microbatch="8"),
        changed("hardware", topology="two racks"),
    ),
)
def test_unfamiliar_rows_are_predicted(tmp_path, row):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([row]))
    (found,) = map(row_of, read_cases(path))
    assert found.skipped is None and found.predicted


@pytest.mark.parametrize(
    "measured, oom",
    (({"oom": True}, True), ({"oom": False}, False), ({"status": "OOM Error"}, True), ({"status": "done"}, None)),
)
def test_whether_a_run_ended_for_want_of_memory_is_read_in_either_form(tmp_path, measured, oom):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([changed("measured", **measured)]))
    (found,) = map(row_of, read_cases(path))
    assert found.oom_measured is oom


MEGATRON = {"title": "Zero Bubble Pipeline Parallelism (Qi et al., ICLR 2024), Tables 3-5"}


@pytest.mark.parametrize(
    "row, reason",
    (
        (changed("layout", schedule="DualPipe", pp=2, fsdp=8), "schedule 'DualPipe' is not priced"),
        (changed("layout", recompute="selective"), "recompute 'selective' is no policy of a Layout"),
        (changed("layout", per_device_batch=None, microbatch=0), "microbatch 0 must be above 0"),
        (changed("layout", pp=-2), "-2 is no count above 0"),
        (changed("hardware", name="MI300X"), "hardware 'MI300X' has no hardware file"),
        ({**changed("hardware", name="A100"), "source": MEGATRON}, "not known to be a run of a JAX framework (Zero"),
        ({**changed("hardware", name="A100"), "source": {}}, "(its source names none): only what XLA compiles"),
        (changed("model", heads=0), "heads=0"),
        (changed("model", heads=None), "heads is missing"),
        (changed("derived", step_time_s=0), "measured 0.0 s"),
        ({**changed("layout"), "layout": None}, "layout is no object"),
        ({**changed("layout"), "precision": "fp8"}, "precision 'fp8'"),
        ({"model": {}}, "layout is missing"),
        (7, "it is no object"),
    ),
)
def test_rows_that_cannot_be_read_are_skipped_with_the_reason(tmp_path, row, reason):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([row]))
    (found,) = map(row_of, read_cases(path))
    assert found.predicted is None and reason in str(found.skipped)


@pytest.mark.parametrize("name, limit", (("alpa_osdi22_2_4_gpu", 0.05), ("maxtext_tpu", 0.055)))
def test_sets_stay_as_close_as_they_are(name, limit):
    errors = [abs(row.error) for row in rows_of(name) if row.error is not None]
    assert sum(errors) / len(errors) <= limit


def test_scores_of_rows_made_by_hand():
    def row(name, measured, predicted):
        return Row(
            id=name, group="g", rank_set="s", measured=measured, predicted=predicted, oom_measured=None,
            oom_predicted=None, peak_bytes_predicted=None, memory=None, source="priced", skipped=None,
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
    assert found[0]["source"] in ("priced", "compiled") and found[0]["skipped"] is None
    assert "layout not fully given" in found[1]["skipped"] and found[2]["skipped"] == "layout is missing"


def test_runs_of_other_frameworks_are_listed_and_do_not_fail(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([{**changed("hardware", name="A100"), "id": "foreign", "source": MEGATRON}]))
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "validate.py", "--cases", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("foreign "))
    assert "skipped: not known to be a run of a JAX framework" in row


def test_bad_input_is_said_in_one_line(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text("{")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "validate.py", "--cases", path], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not JSON" in done.stderr
