"""Ours beside the published measurements: every row answered, and no set worse than what the README says of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import validate  # noqa: E402
from validation import stacks  # noqa: E402
from validation.cases import Case, read_cases  # noqa: E402
from validation.predict import predict  # noqa: E402
from validation.score import Row, correlation, increment, regret, row_of, score, spearman, wrong_pairs  # noqa: E402

from autotune.meshes.layout import parse_layout  # noqa: E402
from autotune.meshes.target import parse_target  # noqa: E402
from autotune.preset import transformer_of  # noqa: E402
from autotune.price.price import estimate  # noqa: E402

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


RMS_GROUP = "flash_attention2 + RMS kernel"


def sweep_groups() -> dict[str, list[Row]]:
    """Attention kernel -> the rows of the layout sweep that ran with it."""
    found: dict[str, list[Row]] = {}
    for row in rows_of("aleph_alpha_13b_64gpu"):
        if row.error is not None:
            found.setdefault(str(row.rank_set).rpartition("/")[2], []).append(row)
    return found


def test_sweep_is_ranked_but_for_one_group():
    groups = sweep_groups()
    assert len(groups) == 5
    assert all(spearman(rows) >= 0.8 for name, rows in groups.items() if name != RMS_GROUP)


@pytest.mark.xfail(
    strict=True,
    reason="0.64: in both groups of flash attention 2, and in no other, steps of two stages take 1.05 + 7.6 / n times "
    "one stage's, as if the pipeline were emptied eight times a step: within 1 % in ten pairs of rows, 3 % in the "
    "eleventh; nothing in that code base's schedule says why",
)
def test_sweep_is_ranked_in_the_group_of_the_rms_kernel():
    assert spearman(sweep_groups()[RMS_GROUP]) >= 0.8


@pytest.mark.xfail(
    strict=True,
    reason="13.6 % in the group of flash attention 2 (microbatch 2 chosen over 1, for the same reason), 6.0 and 6.5 % "
    "with plain attention (two tensor ranks alone chosen over those and two stages: reducing over data took those runs "
    "far longer than the links explain); 0 in the other two",
)
def test_first_choice_of_the_sweep_is_near_the_best():
    assert max(regret(rows) for rows in sweep_groups().values()) <= 0.05


def test_memory_verdicts_of_the_sweep():
    rows = [row for row in rows_of("aleph_alpha_13b_64gpu") if row.oom_measured is not None]
    assert sum(row.oom_measured == row.oom_predicted for row in rows) / len(rows) >= 0.95


def test_a_layer_run_again_is_in_hand_whole_beside_the_logits():
    """What full recomputation holds at once is what the same layer would have kept, and what every layout takes."""
    for case in read_cases(validate.DATA / "aleph_alpha_13b_64gpu.json"):
        if isinstance(case, Case) and case.remat == "full" and case.layout.stage == 1:
            memory = predict(case).estimate.memory
            plain = predict(dataclasses.replace(case, remat="none")).estimate.memory
            one = (plain["activations"] - memory["activations"]) / case.transformer.layers
            assert memory["workspace"] - plain["workspace"] == pytest.approx(one)
            assert memory["logits"] == plain["logits"] > 0


def test_every_group_that_communicates_takes_memory():
    """One communicator of all devices and one along each axis; along `stage` also one with the neighbour."""
    pair, larger = stacks.NCCL_GROUP_BYTES
    piped = "data=2,stage=2,schedule=1f1b,microbatches=2"
    counted = {"data=4": 2 * larger, "data=2,tensor=2": larger + 2 * pair, piped: larger + 3 * pair}
    silent = dataclasses.replace(stacks.ALEPH_RMS, group_bytes=(0.0, 0.0))
    for words, bytes_taken in counted.items():
        shape = (transformer_of("llama3-8b"), 8, 2048, "bfloat16", parse_layout(words), parse_target("a100-80:1x4"))
        peaks = [estimate(*shape, stack).peak_bytes for stack in (stacks.ALEPH_RMS, silent)]
        assert peaks[0] - peaks[1] == pytest.approx(bytes_taken)


def test_no_stage_is_charged_for_another_stages_logits():
    """The sweep's rows of two stages: the first has two microbatches in hand and no logits, the last one and all."""
    for case in read_cases(validate.DATA / "aleph_alpha_13b_64gpu.json"):
        if isinstance(case, Case) and case.layout.stage == 2 and case.layout.microbatches > 1:
            memory = row_of(case).memory
            one = activations_of_one_microbatch(case)
            assert memory is not None and (memory["logits"] == 0 or memory["activations"] == pytest.approx(one))


def activations_of_one_microbatch(case: Case) -> float:
    """Bytes of activations with a single microbatch in hand."""
    layout = dataclasses.replace(case.layout, microbatches=1)
    alone = dataclasses.replace(case, layout=layout, batch=case.batch // case.layout.microbatches)
    return predict(alone).estimate.memory["activations"]


@pytest.mark.parametrize("group, limit", (("kort", 0.025), ("kort-t4", 0.02), ("sc21-t1", 0.06), ("zb", 0.06)))
def test_groups_stay_as_close_as_they_are(group, limit):
    rows = [row for name in validate.SETS for row in rows_of(name) if row.group == group]
    found = score(group, rows)
    assert found.mean_error is not None and found.mean_error <= limit


def test_what_replicas_add_is_within_a_factor_of_two():
    found = increment(rows_of("korthikanti2022"))
    assert found is not None and 0.7 <= found <= 1.4


def test_collectives_are_slower_across_switches():
    nodes = {
        case.target.groups: case for case in read_cases(validate.DATA / "megatron_sc21.json") if isinstance(case, Case)
    }
    assert nodes[16].target.hardware.tier("network").rate("all_reduce") == 2.25e10
    assert nodes[384].target.hardware.tier("network").rate("all_reduce") == pytest.approx(1.26e10)
    assert nodes[384].target.hardware.tier("network").rate("permute") == 2.25e10


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
    """The sweep's first row with some of one part's values others (None: left out)."""
    row = json.loads((validate.DATA / "aleph_alpha_13b_64gpu.json").read_text())[0]
    told = {**row[part], **values}
    return {**row, part: {name: value for name, value in told.items() if value is not None}}


@pytest.mark.parametrize(
    "row",
    (
        changed("layout", kernel="flash_attention2 + RMS + something new"),
        changed("layout", kernel=None),
        changed("layout", sequence_parallel=True, zero="distributed optimizer"),
        changed("batch", sequences=None),
        changed("measured", oom=None, status="OOM Error"),
        changed("model", experts=8, experts_per_token=2),
        changed("layout", microbatch="8"),
    ),
)
def test_unfamiliar_rows_are_predicted(tmp_path, row):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([row]))
    (found,) = map(row_of, read_cases(path))
    assert found.skipped is None and found.predicted and found.oom_measured is True


@pytest.mark.parametrize(
    "row, reason",
    (
        (changed("layout", schedule="DualPipe"), "schedule 'DualPipe' is not priced"),
        (changed("layout", microbatch=0), "microbatch 0 must be above 0"),
        (changed("layout", pp=-2), "-2 is no count above 0"),
        (changed("hardware", name="MI300X"), "hardware 'MI300X' has no hardware file"),
        (changed("model", heads=0), "heads=0"),
        (changed("model", heads=None), "heads is missing"),
        (changed("measured", step_time_s=0), "measured 0.0 s"),
        ({**changed("layout"), "layout": None}, "layout is no object"),
        ({**changed("layout"), "precision": "fp8"}, "precision 'fp8'"),
        ({**changed("layout"), "model_predicted_bubble_rate": "4 %"}, "'4 %' is no share of a step"),
        ({"model": {}}, "layout is missing"),
        (7, "it is no object"),
    ),
)
def test_rows_that_cannot_be_read_are_skipped_with_the_reason(tmp_path, row, reason):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([row]))
    (found,) = map(row_of, read_cases(path))
    assert found.predicted is None and reason in str(found.skipped)


@pytest.mark.parametrize(
    "name, limit", (("alpa_osdi22_2_4_gpu", 0.05), ("maxtext_tpu", 0.055), ("korthikanti2022", 0.03))
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
    assert found[0]["source"] in ("priced", "compiled") and found[0]["skipped"] is None
    assert "layout not fully given" in found[1]["skipped"] and found[2]["skipped"] == "layout is missing"


def test_bad_input_is_said_in_one_line(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text("{")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "validate.py", "--cases", path], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not JSON" in done.stderr
