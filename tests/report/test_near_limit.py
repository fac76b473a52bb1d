"""A chosen layout that fills the memory says so first, with the best layout that leaves room; MFU with and without what
a causal mask hides."""

import json
import math

import pytest

from autotune.cli import run
from autotune.meshes.target import parse_target
from autotune.price.priced_space import NEAR_CAPACITY, price_space
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.report.findings import SPARE
from autotune.report.text import render
from autotune.search import search
from autotune.space import enumerate_layouts
from autotune.tables import lines

JOBS = [
    ("llama3-8b", "v5e:8x8", 128, 4096, ("fsdp", "tensor")),
    ("llama3-8b", "h100:1x8", 64, 8192, ("data", "fsdp", "tensor")),
    ("mixtral-8x7b", "a100-80:4x8", 128, 2048, ("fsdp", "expert")),
]


def report_of(model, target, batch, seq, axes, **options):
    return search(
        reference_workload(model, batch=batch, seq=seq, dtype="bfloat16"), parse_target(target),
        axes=axes, layouts=None,
        compile_count=0, measure_count=0, jobs=1, **{"fix": (), **options},
    )  # fmt: skip


def first_lines(report) -> str:
    """What stands before the table of layouts, line ends left out."""
    screen = "\n".join(lines(render(report))).partition("best layouts")[0]
    return " ".join(screen.split())


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job[0]} on {job[1]}")
def test_a_chosen_layout_near_the_limit_names_the_best_that_is_not(job):
    model, target, batch, seq, axes = job
    machine = parse_target(target)
    report = report_of(*job, fix=("order=stage>data>fsdp>context>expert>tensor",))
    best, capacity = report.best(), machine.hardware.capacity_bytes
    workload = reference_workload(model, batch=batch, seq=seq, dtype="bfloat16")
    table = enumerate_layouts(machine, axes, workload.sequences, workload.transformer.layers, {})
    space = price_space(workload, machine, table)
    roomy = [
        float(space.seconds[row])
        for row in range(len(table))
        if space.legal[row] and space.peak_bytes[row] <= (1 - SPARE) * capacity
    ]
    head = first_lines(report)
    if best.peak_bytes < NEAR_CAPACITY * capacity:
        assert report.roomier is None and "may not fit" not in head
        return
    assert report.roomier.step_seconds == pytest.approx(min(roomy))
    assert report.roomier.cost_seconds == pytest.approx(min(roomy) - best.step_seconds)
    assert report.roomier.peak_bytes <= (1 - SPARE) * capacity
    assert "the chosen layout takes 9" in head and "% of the memory and may not fit" in head
    assert str(report.roomier.layout) in head
    document = report_to_json(report)
    assert document["roomier"]["text"] == str(report.roomier.layout)
    assert document["best"]["near_capacity"]


def test_the_jobs_above_have_both_kinds():
    near = [report_of(*job).roomier is not None for job in JOBS]
    assert any(near)


def test_where_no_layout_leaves_room_that_is_said():
    report = report_of(*JOBS[0], fix=("remat=attention", "fsdp=64", "accumulate=1"))
    assert report.roomier is None and report.best().peak_bytes >= NEAR_CAPACITY * report.target.hardware.capacity_bytes
    assert "no layout of the space keeps 10 % of it free" in first_lines(report)


@pytest.mark.parametrize("model, seq", [("llama3-8b", 131072), ("llama3-8b", 4096), ("mixtral-8x7b", 16384)])
def test_mfu_causal_leaves_out_the_pairs_that_the_mask_hides(model, seq):
    workload = reference_workload(model, batch=1, seq=seq, dtype="bfloat16")
    shape = workload.transformer
    one = seq if seq <= 4096 else 4096  # counted pair by pair on a short sequence, scaled as S (S - 1)
    hidden = sum(1 for query in range(one) for key in range(query + 1, one)) if one <= 512 else one * (one - 1) // 2
    pairs = hidden * (seq * (seq - 1)) / (one * (one - 1))
    # two matmuls of 2 x head_dim FLOPs a pair and head, forward once and backward twice
    flops = 3 * 2 * 2 * shape.head_dim * shape.heads * shape.layers * pairs
    assert shape.masked_flops(1, seq) == pytest.approx(flops, rel=1e-9)
    full = 3 * 2 * 2 * shape.head_dim * shape.heads * shape.layers * seq * seq
    assert shape.masked_flops(1, seq) / full == pytest.approx(0.5, rel=1e-3)


def test_mfu_causal_stands_beside_mfu(tmp_path, capsys):
    options = "--model llama3-8b --target v5p:4x4x4 --batch 64 --seq 32768 --compile 0 --axes fsdp,tensor,context"
    command = ["tune", *options.split(), "--store", str(tmp_path)]
    assert run([*command, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    workload = reference_workload("llama3-8b", batch=64, seq=32768, dtype="bfloat16")
    hidden = workload.transformer.masked_flops(64, 32768)
    rate = parse_target("v5p:4x4x4").hardware.peak("bfloat16") * 64 * best["step_seconds"]["priced"]
    assert best["mfu"] - best["mfu_causal"] == pytest.approx(hidden / rate)
    assert best["mfu_causal"] < best["mfu"]
    assert run(command) == 0
    screen = capsys.readouterr().out
    assert f"MFU {100 * best['mfu']:.1f} % ({100 * best['mfu_causal']:.1f} % causal)" in screen
    assert "causal MFU leaves them out" in screen


def test_an_encoder_has_one_mfu_only():
    workload = reference_workload("bert-large", batch=64, seq=512, dtype="bfloat16")
    assert workload.transformer.masked_flops(64, 512) == 0
    report = search(
        workload, parse_target("h100:1x8"), axes=("data",), layouts=None, fix=(), compile_count=0, measure_count=0,
        jobs=1,
    )  # fmt: skip
    assert math.isclose(report.best().mfu, report.best().mfu_causal)


def test_sweep_says_it_too(capsys):
    command = "sweep --model llama3-8b --target v5p --chips 64 --batch-tokens 4Mi --seq 131072"
    assert run([*command.split(), "--json"]) == 0
    (point,) = json.loads(capsys.readouterr().out)["targets"][0]["points"]
    assert point["mfu"] > 1 > point["mfu_causal"], "counted in full, attention alone is more than the chip can do"
    assert run(command.split()) == 0
    assert f"without what a causal mask hides: {100 * point['mfu_causal']:.1f} % at 64 chips" in capsys.readouterr().out
