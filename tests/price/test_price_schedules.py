"""Each pipeline schedule has its own memory: as our pipeline runs it, or, where it cannot, as its paper defines it."""

import dataclasses
import itertools

import numpy as np
import pytest

from autotune.meshes.layout import SCHEDULES, parse_layout
from autotune.meshes.target import parse_target
from autotune.price.priced_space import price_space
from autotune.price.transformer.pipeline_schedules import (
    REFERENCE,
    as_published,
    microbatches_held,
    most_microbatches_held,
)
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.report.text import render
from autotune.search import search, shortlist
from autotune.space import enumerate_layouts
from autotune.sweep.fastest import fastest
from autotune.table import LayoutTable
from autotune.tables import lines

GIB = 2**30


def priced(model, target, batch, seq, text):
    workload = reference_workload(model, batch=batch, seq=seq, dtype="bfloat16")
    machine = parse_target(target)
    return price_space(workload, machine, LayoutTable.from_layouts([parse_layout(text)])).price(0)


JOBS = [
    ("llama3-8b", "a100-80:1x8", 256, 4096, "stage=8,remat=full", 64),
    ("llama3-70b", "h100:4x8", 128, 4096, "stage=8,tensor=4,remat=dots", 32),
    ("mixtral-8x7b", "v5p:4x4x4", 64, 8192, "stage=4,fsdp=2,expert=8,remat=attention", 4),
    ("llama3-8b", "h100:2x8", 64, 4096, "stage=4,data=4,remat=none", 16),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job[0]} {job[4]}")
def test_1f1b_and_zero_bubble_hold_as_many_microbatches_as_stages(job):
    model, target, batch, seq, text, count = job
    stages = parse_layout(f"{text},schedule=gpipe,microbatches={count}").stage
    words = f"{text},microbatches={count},schedule="
    found = {name: priced(model, target, batch, seq, words + name) for name in ("gpipe", "1f1b", "zero-bubble")}
    saved = {name: price.memory["activations"] for name, price in found.items()}
    assert saved["1f1b"] == saved["zero-bubble"]
    assert found["1f1b"].peak_bytes <= found["gpipe"].peak_bytes
    # Of as many ticks as GPipe has, no more than `stages` wait; the loop's own arrays go with them.
    ticks = count + stages - 1
    assert saved["1f1b"] <= saved["gpipe"] * stages / ticks * (1 + 1e-9) + GIB / 2


def test_the_given_case():
    """256 x 4096 tokens, 8 stages, 64 microbatches of 4 sequences: 8 of them x 4 layers x 128 MiB of inputs."""
    model, target, batch, seq, text, count = JOBS[0]
    saved = priced(model, target, batch, seq, f"{text},schedule=1f1b,microbatches={count}").memory["activations"]
    inputs = 8 * 4 * (4 * 4096 * 4096 * 2)
    assert inputs <= saved <= inputs + 2 * (4 * 4096 * 4096 * 2)
    gpipe = priced(model, target, batch, seq, f"{text},schedule=gpipe,microbatches={count}")
    assert gpipe.memory["activations"] / GIB == pytest.approx(56.4, abs=0.05)


def test_more_microbatches_of_one_size_cost_1f1b_nothing():
    """Once there are more than stages: only the batch grows."""
    words = "stage=8,remat=full"

    def peak(count: int, schedule: str) -> float:
        text = f"{words},microbatches={count},schedule={schedule}"
        return priced("llama3-8b", "h100:1x8", 4 * count, 4096, text).peak_bytes

    schedules = ("gpipe", "1f1b", "zero-bubble")
    peaks = {schedule: [peak(count, schedule) for count in (8, 16, 64)] for schedule in schedules}
    assert len(set(peaks["1f1b"])) == len(set(peaks["zero-bubble"])) == 1
    assert peaks["gpipe"][0] < peaks["gpipe"][1] < peaks["gpipe"][2]
    few = priced("llama3-8b", "h100:1x8", 16, 4096, "stage=8,remat=full,microbatches=4,schedule=1f1b")
    assert few.peak_bytes < peaks["1f1b"][0], "fewer than stages: all of them wait, and no more"


@pytest.mark.parametrize("stages, microbatches, virtual", list(itertools.product((2, 4, 8), (4, 8, 64), (1, 2))))
def test_the_fullest_stage_is_the_first_of_the_formulas(stages, microbatches, virtual):
    codes = np.arange(len(SCHEDULES))
    found = most_microbatches_held(
        codes, stages=stages * np.ones(4), microbatches=microbatches * np.ones(4), virtual_stages=virtual * np.ones(4)
    )
    for code, name in enumerate(SCHEDULES):
        word = "zero-bubble-1p" if name == "zero-bubble" else name
        held = microbatches_held(word, stages=stages, microbatches=microbatches, virtual_stages=virtual)
        assert found[code] == held[0] == max(held), name
    assert [name for code, name in zip(as_published(codes), SCHEDULES, strict=True) if code] == ["1f1b", "zero-bubble"]
    assert set(REFERENCE) == {"gpipe", "circular"}


def test_times_do_not_change_with_the_memory():
    """The time of 1F1B is GPipe's: the same work, the same bubble."""
    for model, target, batch, seq, text, count in JOBS:
        one, other = (
            priced(model, target, batch, seq, f"{text},microbatches={count},schedule={name}")
            for name in ("gpipe", "1f1b")
        )
        assert one.step_seconds == other.step_seconds and one.flops == other.flops


LAYOUTS = [f"stage=8,remat=full,microbatches=64,schedule={name}" for name in ("1f1b", "zero-bubble", "gpipe")]


def report_of(*texts, compile_count=0, **options):
    return search(
        reference_workload("llama3-8b", batch=256, seq=4096, dtype="bfloat16"), parse_target("a100-80:1x8"), axes=None,
        layouts=tuple(map(parse_layout, texts)), fix=(), compile_count=compile_count, measure_count=0, jobs=1,
        **options,
    )  # fmt: skip


def test_a_row_says_that_its_schedule_cannot_be_compiled_here():
    report = report_of(*LAYOUTS)
    rows = {row.layout.schedule: row for row in report.rows}
    for name in ("1f1b", "zero-bubble"):
        assert rows[name].status == "priced"
        assert (
            rows[name].reason
            == f"schedule={name} cannot be compiled here: the reference pipeline runs gpipe and circular"
        )
    assert "cannot" not in (rows["gpipe"].reason or "")
    screen = " ".join(" ".join(lines(render(report))).split())
    assert screen.count("cannot be compiled here") >= 2
    document = report_to_json(report)
    assert sum("cannot be compiled here" in (row["reason"] or "") for row in document["rows"]) == 2


def test_such_a_layout_is_not_given_to_the_compiler(monkeypatch):
    given = []

    def compile_all(jobs, **options):
        given.extend(jobs)
        return iter(())

    monkeypatch.setattr("autotune.search.compile_all", compile_all)
    report_of(*LAYOUTS, compile_count=3, executor=object())
    assert [job.layout.schedule for job in given] == ["gpipe"]
    workload = reference_workload("llama3-8b", batch=256, seq=4096, dtype="bfloat16")
    layouts = list(map(parse_layout, LAYOUTS))
    space = price_space(workload, parse_target("a100-80:1x8"), LayoutTable.from_layouts(layouts), layouts)
    assert [space.layout(row).schedule for row in shortlist(space, 1e12)] == ["gpipe"]
    own = dataclasses.replace(space, workload=workload._with(transformer=None))
    assert own.compilable.all(), "a user's own pipeline may run any schedule"


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble", "gpipe"])
@pytest.mark.parametrize(("target", "batch"), [("h100:1x8", 64), ("a100-40:1x8", 32)])
def test_sweep_finds_what_pricing_the_whole_space_finds(schedule, target, batch):
    workload, machine = reference_workload("llama3-8b", batch=batch, seq=4096, dtype="bfloat16"), parse_target(target)
    axes, fixed = ("data", "fsdp", "stage"), {"schedule": schedule}
    space = price_space(workload, machine, enumerate_layouts(machine, axes, batch, 32, fixed))
    fits = space.legal & (space.peak_bytes <= machine.hardware.capacity_bytes)
    found = fastest(workload, machine, axes, fixed)
    if fits.any():
        assert found.estimate.step_seconds == pytest.approx(space.seconds[fits].min(), rel=1e-12)
    else:
        assert found.least_bytes == pytest.approx(space.peak_bytes[space.legal].min(), rel=1e-12)
