"""Where nothing fits: what misses by least, and how many devices it takes, are said of the whole space."""

import json
import math

import pytest

from autotune.cli import run
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.target import parse_target
from autotune.price.priced_space import price_space
from autotune.reference_workload import reference_workload
from autotune.search import search
from autotune.space import enumerate_layouts
from autotune.sweep.fastest import NothingFits, fastest

TOO_SMALL = [
    ("llama3-8b", "a100-40:1x4", 64, 4096, ("data", "fsdp", "tensor")),
    ("mixtral-8x7b", "h100:1x8", 32, 2048, ("fsdp", "expert")),
    ("llama3-8b", "v5e:2x2", 8, 8192, ("fsdp", "tensor", "context")),
]
"""Jobs of which no layout fits: on a switch, with experts, and on a torus."""


def report_of(model, target, batch, seq, axes, fix=()):
    return search(
        reference_workload(model, batch=batch, seq=seq, dtype="bfloat16"), parse_target(target),
        axes=axes, layouts=None,
        fix=fix, compile_count=0, measure_count=0, jobs=1,
    )  # fmt: skip


@pytest.fixture(scope="module", params=TOO_SMALL, ids=lambda job: f"{job[0]} on {job[1]}")
def job(request):
    return request.param


@pytest.fixture(scope="module")
def report(job):
    return report_of(*job)


@pytest.fixture(scope="module")
def one_by_one(job):
    """Every legal layout of the space with its own price: the brute force."""
    model, target, batch, seq, axes = job
    workload, machine = reference_workload(model, batch=batch, seq=seq, dtype="bfloat16"), parse_target(target)
    table = enumerate_layouts(machine, axes, workload.sequences, workload.transformer.layers, {})
    space = price_space(workload, machine, table)
    return [(space.layout(row), space.price(row)) for row in range(len(table)) if space.legal[row]]


def test_the_closest_needs_no_more_than_any_layout_of_the_space(report, one_by_one):
    assert report.closest in report.rows
    assert len(one_by_one) == report.counts["oom"] > 50
    least = min(price.peak_bytes for _, price in one_by_one)
    assert report.closest.peak_bytes == pytest.approx(least, rel=1e-12)


def test_sweep_finds_the_same(job, report):
    model, target, batch, seq, axes = job
    workload = reference_workload(model, batch=batch, seq=seq, dtype="bfloat16")
    found = fastest(workload, parse_target(target), axes, {})
    assert isinstance(found, NothingFits)
    assert found.least_bytes == pytest.approx(report.closest.peak_bytes, rel=1e-9)


def test_fixing_a_word_never_brings_a_closer_one(job, report):
    platform = parse_target(job[1]).platform
    words = [word for word in LAYOUT_WORDS.values() if word.kind in ("choice", "flag") and word.searched]
    pins = [f"{word.name}={word.text(word.searched_on(platform)[-1])}" for word in words]
    for pin in [*pins, "remat=full", "fsdp=2", "accumulate=4", str(report.closest.layout)]:
        try:
            closer = report_of(*job, fix=(pin,))
        except ValueError:  # no layout of the space has it
            continue
        assert closer.closest is None or closer.closest.peak_bytes >= report.closest.peak_bytes * (1 - 1e-12), pin


def test_the_devices_that_are_said_to_be_needed_hold_the_least_state_of_any_layout(report, one_by_one):
    capacity, devices = report.target.hardware.capacity_bytes, report.target.devices
    state = ("parameters", "gradients", "optimizer_state")
    least = min(
        sum(price.transformer.peak_memory[name] for name in state)
        * math.prod((layout.fsdp, layout.tensor, layout.expert, layout.data if layout.zero else 1))
        for layout, price in one_by_one
        if layout.stage == 1
    )
    needed = math.ceil(least / capacity)
    if report.more_devices is None:
        assert needed <= devices
    else:
        said = int(report.more_devices.split()[0])
        assert devices < said <= needed


def test_changes_start_from_the_closest(tmp_path, capsys):
    command = "tune --model llama3-8b --target a100-80:1x8 --batch 64 --seq 2048 --compile 0 --json --axes data"
    command += " --fix zero=0"
    assert run([*command.split(), "--store", str(tmp_path)]) == 1
    document = json.loads(capsys.readouterr().out)
    closest = document["closest"]
    least = min(row["peak_bytes"] for row in document["rows"] if row["status"] == "oom")
    assert closest["peak_bytes"] == least
    assert closest["changes_that_fit"], "fsdp in place of data fits"
    assert all(change["peak_bytes"] <= closest["capacity_bytes"] for change in closest["changes_that_fit"])
    assert closest in document["rows"]
