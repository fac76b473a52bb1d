"""The whole path on a simulated mesh: every layout accounted for, a repeat answered from the store, laws of choice."""

import dataclasses
import itertools
import json
from collections import Counter

import pytest
import toy_steps

import autotune
from autotune.analysis.limits import ARC
from autotune.compile.compile import CompileEvent
from autotune.meshes.hardware import scale
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.price.remat_choices import WINS
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.search import search
from autotune.store import Store

JOBS = {
    "a step": ("cpu:2", ("fsdp=2", "data=2", "tensor=2"), ()),
    "a model": ("cpu:8", ("fsdp=8", "data=4,tensor=2", "data=2,fsdp=4,remat=full"), ("tensor=8",)),
}
"""Target, legal layouts, illegal ones (those of a step of one's own are refused as they are named)."""


@pytest.fixture(scope="module", params=["a step", pytest.param("a model", marks=pytest.mark.slow)])
def job(request):
    return request.param


@pytest.fixture(scope="module")
def workload(job):
    return toy_steps.own_step() if job == "a step" else reference_workload("tiny", batch=16, seq=64, dtype="float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def report(job, workload, store, little_effort):
    target, legal, illegal = JOBS[job]
    layouts = [parse_layout(text) for text in legal + illegal]
    return autotune.tune(workload, target, layouts=layouts, compile=3, measure=3, store=store)


def test_every_named_layout_is_a_row_with_its_status(job, report):
    _, legal, illegal = JOBS[job]
    expected = dict.fromkeys(legal, "measured") | dict.fromkeys(illegal, "illegal")
    assert {str(row.layout): row.status for row in report.rows} == expected
    assert report.counts == dict(Counter(expected.values()))
    for row in report.rows:
        if row.status == "illegal":
            assert row.reason is not None and "heads" in row.reason


def test_compiled_stands_beside_measured_with_the_rank_correlation(report):
    for row in report.ranked:
        assert row.analysis.prediction.low_seconds <= row.analysis.prediction.step_seconds
        assert row.analysis.prediction.step_seconds <= row.analysis.prediction.high_seconds * (1 + 1e-9)
        assert row.measurement.median_seconds > 0 and row.measurement.samples >= 2
        assert sum(row.elasticities.values()) == pytest.approx(1.0)
    assert report.rank_correlation is not None and -1 <= report.rank_correlation <= 1
    medians = [row.measurement.median_seconds for row in report.ranked]
    assert medians == sorted(medians)


def test_no_resource_is_worth_more_than_all_of_the_step_getting_better(report):
    assert report.prices
    for resource, gain in report.prices.items():
        if resource != "capacity":
            assert 0 <= gain <= 1 - 1 / ARC + 1e-9, resource


def test_the_plan_is_the_best_row_and_survives_json(report, tmp_path):
    plan = report.plan
    assert plan.layout == report.best().layout
    plan.save(tmp_path / "plan.json")
    assert autotune.load_plan(tmp_path / "plan.json") == plan


def test_a_repeat_is_answered_from_the_store(job, workload, store, report):
    events = []
    target, legal, illegal = JOBS[job]
    again = autotune.tune(
        workload, target, layouts=[parse_layout(text) for text in legal + illegal], compile=3, measure=3, store=store,
        on_event=events.append,
    )  # fmt: skip
    compiles = [event for event in events if isinstance(event, CompileEvent)]
    assert {event.kind for event in compiles} == {"stored"}
    first, second = report_to_json(report), report_to_json(again)
    first.pop("seconds"), second.pop("seconds")
    assert json.dumps(first) == json.dumps(second)


def priced(target, **options):
    return search(
        reference_workload("llama3-8b", batch=256, seq=4096, dtype="bfloat16"), target, axes=("data", "fsdp", "tensor"),
        layouts=None, fix=(), compile_count=0, measure_count=0, jobs=1, **options,
    )  # fmt: skip


def test_counts_add_up_to_the_space_and_nothing_vanishes():
    report = priced(parse_target("v5e:16x16"))
    space = sum(report.counts.values())
    assert space == len(report.rows) + sum(item.count for item in report.omitted)
    assert report.counts["priced"] and report.counts["illegal"] and report.counts["oom"]


def test_more_memory_never_loses_a_plan_nor_time():
    target = parse_target("v5e:16x16")
    times = []
    for factor in (0.5, 0.75, 1.0, 1.5, 4.0):
        roomy = dataclasses.replace(target, hardware=scale(target.hardware, "capacity", factor))
        report = priced(roomy)
        times.append(report.best().price.step_seconds if report.ranked else float("inf"))
    # A set of arrays is listed only where it beats every policy by a hundredth.
    assert all(WINS * after <= before for before, after in itertools.pairwise(times))


def test_a_user_step_that_fails_is_a_row_not_an_end(store):
    workload = reference_workload("tiny", batch=16, seq=64, dtype="float32")
    broken = autotune.Workload.of(
        name="broken", build=_broken, sequences=16, seq=64, dtype="float32", fingerprint="broken",
        transformer=workload.transformer,
    )  # fmt: skip
    report = autotune.tune(broken, "cpu:8", layouts=[parse_layout("fsdp=8")], compile=1, measure=0, store=store)
    (row,) = report.rows
    assert row.status == "failed" and "wrong on purpose" in row.reason
    with pytest.raises(autotune.NoPlanFits):
        report.best()


def _broken(layout, mesh):
    raise RuntimeError("wrong on purpose")
