"""The sweep against the whole space, its laws, and its command line."""

import csv
import json
import math
import re

import numpy as np
import pytest

from autotune.analysis.limits import ARC
from autotune.cli import run
from autotune.meshes.hardware import scale
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.target import parse_target
from autotune.price.axis_orders import with_best_orders
from autotune.price.priced_space import price_space
from autotune.reference_workload import reference_workload, transformer_of
from autotune.search import search
from autotune.space import enumerate_layouts, parse_fix
from autotune.sweep.batch import BatchRule
from autotune.sweep.budget import Budget
from autotune.sweep.fastest import Fastest, NothingFits, fastest, fastest_and_roomier
from autotune.sweep.point import Gap, Point, Question, point_at
from autotune.sweep.shapes import reshaped, shapes
from autotune.sweep.sizes import parse_family, parse_sizes, parse_tokens
from autotune.sweep.sweep import sweep, to_confirm
from autotune.sweep.what_helps import what_helps


def workload(model="llama3-8b", batch=64, seq=4096):
    return reference_workload(model, batch=batch, seq=seq, dtype="bfloat16")


def question(**sizes):
    step = workload(**sizes)
    return Question(workload=step, axes=step.axes, fixed={})


def whole_space(step, target, fixed=None):
    """(seconds, text) of the best layout that fits, from pricing every one; None when none fits."""
    table = enumerate_layouts(target, step.axes, step.sequences, step.transformer.layers, fixed or {})
    space = price_space(step, target, table)
    if "order" not in (fixed or {}):
        space = with_best_orders(space, 64, target.hardware.capacity_bytes)
    fits = np.flatnonzero(space.legal & (space.peak_bytes <= target.hardware.capacity_bytes))
    if not fits.size:
        return None
    least = space.seconds[fits].min()
    return least, min(str(space.layout(row)) for row in fits[space.seconds[fits] == least])


@pytest.mark.parametrize(
    ("model", "target", "batch", "fix"),
    [
        ("llama3-8b", "v5e:4x4", 64, ""),
        ("llama3-8b", "v5p:2x2x2*2", 96, ""),
        ("llama3-8b", "h100:2x8", 64, ""),
        ("llama3-8b", "h100:4x4", 16, ""),
        ("llama3-8b", "v6e:4x8", 32, "stage=4,schedule=circular"),
        ("llama3-8b", "v6e:4x8", 32, "zero=1,remat=full,tensor=2"),
        ("llama3-8b", "v6e:4x8", 8, "accumulate=1"),
        ("llama3-8b", "h100:4x4", 16, "dcn.data=2,microbatches=8"),
        ("llama3-1b", "cpu:8", 24, ""),
        ("llama3-70b", "h100:16x8", 64, ""),
        ("llama3-70b", "v5p:4x4x4*2", 64, ""),
        ("mixtral-8x7b", "v5e:4x8", 32, ""),
        ("mixtral-8x7b", "h100:4x8", 32, ""),
        ("deepseek-moe-16b", "v5p:2x2x4", 64, ""),
    ],
)
def test_bounds_lose_nothing(model, target, batch, fix):
    step, machine, fixed = workload(model, batch), parse_target(target), parse_fix((fix,))
    found = fastest(step, machine, step.axes, fixed)
    expected = whole_space(step, machine, fixed)
    if expected is None:
        assert isinstance(found, NothingFits)
    else:
        assert (found.estimate.step_seconds, str(found.layout)) == (pytest.approx(expected[0], rel=1e-12), expected[1])


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("llama3-8b", "v5p:4x4x4"),
        ("llama3-8b", "h100:8x8"),
        pytest.param("mixtral-8x7b", "h100:8x8", marks=pytest.mark.slow),
        pytest.param("llama3-8b", "h100:32x8", marks=pytest.mark.slow),
        pytest.param("mixtral-8x7b", "v5e:16x16", marks=pytest.mark.slow),
        ("llama3-70b", "v5p:4x8x8"),
    ],
)
def test_layouts_are_those_that_tune_chooses_from_prices(model, target):
    """Of the layouts that both search: `tune` tries sets of arrays and `reduce=step` beside them."""
    step, machine = workload(model, 256), parse_target(target)
    point = point_at(Question(workload=step, axes=step.axes, fixed={}), machine, arcs=False)
    report = search(step, machine, axes=None, layouts=None, fix=(), compile_count=0, measure_count=0, jobs=1)
    policies = LAYOUT_WORDS["remat"].values
    best = next(row for row in report.ranked if row.layout.remat in policies and row.layout.reduce == "pass")
    assert str(point.layout) == str(best.layout)
    assert point.step_seconds == pytest.approx(best.step_seconds, rel=1e-12)
    assert point.mfu == pytest.approx(best.mfu, rel=1e-12)


def test_what_more_memory_brings_is_a_search_with_more_memory():
    step, machine = workload("llama3-70b", 256), parse_target("v5e:16x16")
    found, roomier = fastest_and_roomier(step, machine, step.axes, {}, ARC)
    larger = parse_target("v5e:16x16", scale(machine.hardware, "capacity", ARC))
    again = fastest(step, larger, step.axes, {})
    assert isinstance(found, Fastest) and isinstance(roomier, Fastest) and isinstance(again, Fastest)
    assert roomier.layout == again.layout and roomier.estimate.step_seconds < found.estimate.step_seconds


def test_nothing_fits_names_the_layout_of_least_memory():
    step, machine = workload("llama3-70b", 8), parse_target("v5e:2x2")
    found = fastest(step, machine, step.axes, {})
    assert isinstance(found, NothingFits) and found.limit == "memory"
    space = price_space(step, machine, enumerate_layouts(machine, step.axes, 8, 80, {}))
    assert found.least_bytes == pytest.approx(space.peak_bytes[space.legal].min(), rel=1e-9)


def test_too_few_sequences_is_the_batch_limit():
    step, machine = workload("llama3-8b", 1, 128), parse_target("h100:1024x8")
    found = fastest(step, machine, ("data", "fsdp"), {})
    assert isinstance(found, NothingFits) and found.limit == "batch"


def test_shares_add_up_and_the_limit_is_the_largest():
    point = point_at(question(model="llama3-70b", batch=64), parse_target("h100:32x8"))
    assert sum(point.shares.values()) == pytest.approx(1.0)
    everything = {**point.shares, **point.arcs}
    assert point.limit.elasticity == max(everything.values())
    assert everything[point.limit.resource] == point.limit.elasticity
    assert set(point.arcs) == {"memory", "batch"}


def test_the_batch_arc_is_what_a_larger_batch_brings():
    asked = question(model="llama3-8b", batch=16)
    machine = parse_target("h100:16x8")
    point, larger = point_at(asked, machine), point_at(question(model="llama3-8b", batch=32), machine, arcs=False)
    gain = larger.tokens_per_second_per_device / point.tokens_per_second_per_device
    assert gain > 1 and point.arcs["batch"] == pytest.approx(math.log2(gain))


# Sizes


def test_ranges_are_the_powers_of_two_in_them():
    assert parse_sizes("64..8192") == (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert parse_sizes("100..300,96") == (96, 128, 256)


@pytest.mark.parametrize(
    ("family", "chips", "name"),
    [
        ("v5p", 64, "v5p:4x4x4"),
        ("v5p", 8192, "v5p:16x16x16*2"),
        ("v5p", 6144, "v5p:16x16x24"),
        ("v5p", 96, "v5p:2x4x4*3"),
        ("v5p:4x4x4", 256, "v5p:4x4x4*4"),
        ("v5p:4x4x4", 32, "v5p:2x4x4"),
        ("v5e", 1024, "v5e:16x16*4"),
        ("tpu7x", 4, "tpu7x:2x2x1"),
        ("h100", 64, "h100:8x8"),
        ("h100", 4, "h100:1x4"),
        ("h100:4", 64, "h100:16x4"),
        ("h100:1x4", 64, "h100:16x4"),
        ("a100-40:1x4", 8, "a100-40:2x4"),
        (" A100-40:1x4 ", 2, "a100-40:1x2"),
        ("cpu:1x4", 8, "cpu:2x4"),
        ("gb200", 128, "gb200:2x64"),
        ("gb200:72", 144, "gb200:2x72"),
        ("cpu", 8, "cpu:8"),
    ],
)
def test_target_of_a_size(family, chips, name):
    target = parse_family(family).target(chips)
    assert target.name == name
    assert target.devices == chips * target.hardware.devices_per_chip


@pytest.mark.parametrize(
    ("family", "chips"), [("v5p", 2), ("v5p", 97), ("v5p:4x4x4", 96), ("h100", 12), ("gb200:72", 100)]
)
def test_sizes_no_machine_comes_in(family, chips):
    assert parse_family(family).target(chips) is None


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("h100:2x8", "--chips says how many NVLink domains; write h100:8"),
        ("cpu:2x4", "--chips says how many hosts; write cpu:4"),
        ("v5p:4x4x4*2", "--chips says how many slices; write v5p:4x4x4"),
        ("h100:1x0", "write h100, or h100:N with the N GPUs of one NVLink domain"),
        ("h100:1x2x4", "write h100, or h100:N with the N GPUs of one NVLink domain"),
        ("cpu:x", "write cpu, or cpu:N with the N devices of one host"),
        ("cpu:9999999", "write cpu, or cpu:N with the N devices of one host"),
        ("local", "'local' has one size, and a sweep asks about many; name a chip"),
    ],
)
def test_targets_that_say_how_many_are_told_how_to_write_them(family, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_family(family)


def test_tokens():
    assert parse_tokens("4M", "x") == 4e6 and parse_tokens("4Mi", "x") == 2**22 and parse_tokens("1.5T", "x") == 1.5e12


# Batch rules


def test_batches_are_exact_where_they_are_whole_and_else_divide_well():
    shape = transformer_of("llama3-8b")
    assert BatchRule(batch_tokens=4096 * 1000).sequences(shape, 4096, None) == 1000
    assert BatchRule(batch_tokens=4e6).sequences(shape, 4096, None) == 1024  # 976.6, between 896 and 1024


def test_rules_by_hand():
    shape = transformer_of("llama3-8b")
    active = shape.layers * (shape.attention_parameters + shape.mlp_parameters)
    flop = 6 * active * 15e12
    deepseek = BatchRule(rule="deepseek").wanted_tokens(shape, 15e12)
    assert deepseek == pytest.approx(0.2920 * flop**0.3271)
    paper = BatchRule(rule="paper").wanted_tokens(shape, 15e12)
    assert paper == pytest.approx((flop / 3e23) ** (1 / 6) * 2**22)
    assert BatchRule(rule="critical", critical_tokens=1e6, scale=2).wanted_tokens(shape, None) == 2e6


# Money and time


def test_time_and_cost_by_hand():
    point = point_at(question(), parse_target("v5p:2x2x4"), arcs=False)
    budget = Budget(tokens=1e12, device_hour_price=4.2)
    seconds = 1e12 / (64 * 4096) * point.step_seconds
    assert budget.days(point) == pytest.approx(seconds / 86400)
    assert budget.chip_hours(point) == pytest.approx(seconds / 3600 * 16)
    assert budget.cost(point) == pytest.approx(seconds / 3600 * 16 * 4.2)
    assert budget.cost_per_million_tokens(point) == pytest.approx(budget.cost(point) / 1e6)
    assert Budget(critical_tokens=2.0**18).effort(2.0**18).steps == 2.0


# Sweeps


def test_sweep_marks_changes_gaps_and_reach():
    found = sweep(question(model="llama3-70b", batch=256), parse_family("v5p"), (2, 8, 64, 512))
    kinds = {point.chips: type(point) for point in found.points}
    assert found.skipped == (2,) and kinds[8] is Gap and kinds[512] is Point
    first = [change for change in found.limit_changes if change.of == "binding"]
    assert first and first[0].before == "memory"
    best = found.largest_above(0.01)
    assert best is not None and best.chips == 512 and found.largest_above(0.99) is None


def test_confirmed_points_are_spread():
    found = sweep(question(), parse_family("h100"), (8, 16, 32, 64, 128), arcs=False)
    assert [point.chips for point in to_confirm(found.points, 3)] == [8, 32, 128]
    assert [point.chips for point in to_confirm(found.points, 1)] == [128]
    assert len(to_confirm(found.points, 9)) == 5 and to_confirm(found.points, 0) == ()


@pytest.mark.parametrize("sizes", [(16,), pytest.param((16, 128), marks=pytest.mark.slow)])
def test_better_machines_never_do_worse(sizes):
    found = sweep(question(model="llama3-8b", batch=64), parse_family("h100"), sizes, arcs=False)
    for row in what_helps(found, sizes, Budget(critical_tokens=2e6), 0.2):
        if row.change.resource == "depth":
            continue
        for chips, gain in row.speedup.items():
            assert gain is not None and gain > 1 - 1e-3, (row.change.name, chips)
        if row.change.resource == "matmul":
            assert row.speedup[16] > 1.2
        if row.change.resource == "batch":
            assert all(0 < row.same_loss[chips] < row.speedup[chips] for chips in row.speedup)


def test_shapes_keep_what_they_say():
    base = transformer_of("llama3-70b")
    for factor in (0.25, 0.5, 2.0, 4.0):
        shape = reshaped(base, factor, lambda model: float(model.parameters))
        assert shape.parameters == pytest.approx(base.parameters, rel=0.03)
        assert shape.layers / base.layers == pytest.approx(factor, rel=0.15)
        shape = reshaped(base, factor, lambda model: model.train_flops(1, 4096))
        assert shape.train_flops(1, 4096) == pytest.approx(base.train_flops(1, 4096), rel=0.03)
    assert reshaped(base, 1.0, lambda model: float(model.parameters)) is base


def test_deep_and_thin_pays_more_for_tensor_traffic_or_latency():
    rows = [
        row
        for row in shapes(question(model="llama3-8b", batch=16), parse_target("h100:16x8"))
        if row.equal == "parameters"
    ]
    waits = [row.tensor_seconds + row.latency_seconds + row.bubble_seconds for row in rows]
    assert waits[-1] > waits[0]


# Command line

BASE = [
    "sweep",
    "--model",
    "llama3-8b",
    "--target",
    "v5p",
    "--chips",
    "16..64",
    "--batch-tokens",
    "1Mi",
    "--seq",
    "4096",
]


def with_option(*words):
    """BASE with options replaced or added."""
    arguments = list(BASE)
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name in arguments:
            arguments[arguments.index(name) + 1] = value
        else:
            arguments += [name, value]
    return arguments


def test_json_is_one_document(capsys):
    words = with_option("--target", "v5p,h100", "--price", "v5p=4.2", "--tokens", "15T", "--min-mfu", "0.3")
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["batch_tokens"] == 2**20
    assert [target["target"] for target in document["targets"]] == ["v5p", "h100"]
    for target in document["targets"]:
        assert [point["chips"] for point in target["points"]] == [16, 32, 64]
        for point in target["points"]:
            assert point["source"] == "priced" and point["fits"]
            assert sum(point["elasticities"].values()) == pytest.approx(1.0)
            assert point["days"] == pytest.approx(15e12 / point["tokens_per_second"] / 86400)
    v5p, h100 = document["targets"]
    assert v5p["points"][0]["cost"] == pytest.approx(v5p["points"][0]["chip_hours"] * 4.2)
    assert h100["points"][0]["cost"] is None and h100["largest_chips_above_min_mfu"] == 64


@pytest.mark.slow
def test_screen_tells_everything(capsys):
    words = with_option("--chips", "16..32", "--target", "v5p,v6e", "--critical-batch-tokens", "2Mi")
    words += ["--min-mfu", "0.9"]
    assert run([*words, "--what-helps", "--shapes"]) == 0
    screen = capsys.readouterr().out
    for part in ("best layout by size (chips = JAX devices)", "no size reaches 90 %", "1.50 x", "latencies /2",
                 "to one loss", "32 x 4096", "tok/s/device", "closed-form prices"):  # fmt: skip
        assert part in screen, part


@pytest.mark.slow
def test_a_confirmed_point_is_marked_compiled(tmp_path, capsys):
    words = ["sweep", "--model", "tiny", "--target", "cpu", "--chips", "1,2", "--batch-tokens", "512", "--seq", "64"]
    assert run([*words, "--confirm", "1", "--store", str(tmp_path / "store"), "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)["targets"][0]["points"]
    assert (one["source"], two["source"]) == ("priced", "compiled")
    assert one["step_seconds"] == one["step_seconds_priced"] and two["step_seconds"] != two["step_seconds_priced"]


def test_picture_with_its_numbers(tmp_path, capsys):
    for name in ("a.png", "b.svg"):
        assert run(with_option("--plot", str(tmp_path / name))) == 0
        assert (tmp_path / name).stat().st_size > 5000
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["chips"] for row in rows] == ["16", "32", "64"]
    assert all(float(row["share_matmul"]) > 0.3 for row in rows)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--chips", "64..16"), "is empty"),
        (("--chips", "65..100"), "holds no power of two"),
        (("--chips", "9..9"), "holds no power of two; name single sizes as 9"),
        (("--chips", "2"), "none of the sizes"),
        (("--chips", "many"), "must be a number or a range"),
        (("--chips", "0..4"), "must lie from 1"),
        (("--batch-rule", "mine"), "--batch-rule='mine' must be one of"),
        (("--batch-rule", "paper"), "does not go with"),
        (("--batch-tokens", "0"), "must be above 0"),
        (("--batch-tokens", "-4M"), "must be above 0"),
        (("--batch-tokens", "100"), "batch of 100 tokens: must be at least half a sequence"),
        (("--batch-tokens", "1e25"), "fewer than 2^53"),
        (("--tokens", "0"), "must be above 0"),
        (("--tokens", "-1T"), "must be above 0"),
        (("--critical-batch-tokens", "0"), "must be above 0"),
        (("--target", "v9"), "'v9' is not known"),
        (("--target", "v5p,v5p"), "twice"),
        (("--model", "llama9"), "is no preset"),
        (("--price", "h100=3"), "not among the targets"),
        (("--price", "v5p=-3"), "above 0"),
        (("--min-mfu", "40"), "between 0 and 1"),
        (("--scale", "warp=2"), "is not a resource"),
        (("--scale", "latency=x"), "RESOURCE=FACTOR"),
        (("--fix", "tensor=3"), "tensor=3"),
        (("--axes", "data,expert"), "makes no use of"),
        (("--axes", "data,experts"), "'experts' is not a mesh axis; did you mean 'expert'"),
        (("--axes", "data,data"), "'data' is named twice"),
        (("--axes", "data,,fsdp"), "an empty name is not a mesh axis"),
        (("--fix", "tensor=2,tensor=2"), "tensor is given twice"),
        (("--price", "v5p=3,,"), "nothing between two commas"),
        (("--target", "v5p,"), "none between two commas"),
        (("--depth-scale", "0"), "depth-scale"),
        (("--plot", "here.txt"), "must end in"),
        (("--plot", "/nowhere/at/all.png"), "/nowhere/at does not exist"),
        (("--plot", "/proc/all.png"), "cannot be written"),
        (("--dtype", "int4"), "dtype: 'int4' must be one of bfloat16 or bf16"),
        (("--workload", "mine.train:step"), "give one of"),
        (("--critical-batch-norms", "1M=2,2M=3"), "average over more steps"),
        (("--chips", "17"), "none of the sizes"),
        (("--seq", "0"), "--seq=0 must be 1 or more"),
        (("--batch-tokens", "4Q"), "must be a number, with K"),
        (("--scale", "matmul=0"), "must be above 0"),
        (("--batch-scale", "nan"), "--batch-scale=nan must be a finite number"),
        (("--target", "v5p:4x4x4*2"), "--chips says how many slices"),
    ],
)
def test_bad_input_is_one_line(words, complaint, capsys):
    assert run(with_option(*words)) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and complaint in said.err


USERS_STEP = """
import jax, jax.numpy as jnp

def step(weights, batch):
    loss, gradients = jax.value_and_grad(lambda w: jnp.mean((batch @ w) ** 2))(weights)
    return weights - gradients, loss

def workload():
    return step, jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((64, 512), jnp.float32)
"""


def test_a_step_of_ones_own_is_swept_from_its_trace(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_sweep_step.py").write_text(USERS_STEP)
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "--workload", "own_sweep_step:workload", "--target", "h100,v5e", "--chips", "1..16"]
    assert run([*words, "--price", "h100=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for target in found["targets"]:
        points = target["points"]
        assert [point["chips"] for point in points] == [1, 2, 4, 8, 16]
        assert all(point["fits"] and point["mfu"] is None and point["step_seconds"] > 0 for point in points)
    assert found["targets"][0]["points"][0]["cost_per_million_tokens"] > 0
    assert run(words) == 0 and "closed-form prices" in capsys.readouterr().out
    for option, value in (("--batch-tokens", "4M"), ("--seq", "64"), ("--min-mfu", "0.4")):
        assert run([*words, option, value]) == 2
        assert f"{option} does not go with --workload" in capsys.readouterr().err
