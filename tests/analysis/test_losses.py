"""Losses of a compiled step are named: planted bugs by their line of source, replicated arrays by name, the bubble."""

from __future__ import annotations

import importlib.metadata
import inspect
import json

import jax
import jax.numpy as jnp
import pytest
from effort import slow
from jax.sharding import PartitionSpec

from autotune.analysis.analysis import analysis_from_json, analysis_to_json
from autotune.analysis.overheads import bubble, replicated
from autotune.compile.compilation import Argument
from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import parse_layout
from autotune.program import Collective, Compute, Done, Loop, Memory, Program, Start
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.report.text import render
from autotune.search import explain, tune
from autotune.tables import lines
from autotune.workload.workload import Workload

BATCH, WIDTH, SLICES = 64, 256, 2


def right(x, w):
    hidden = jax.nn.relu(x @ w["up"])
    return hidden @ w["down"]


def wrong_constraint(x, w):
    hidden = jax.nn.relu(x @ w["up"])
    hidden = jax.lax.with_sharding_constraint(hidden, PartitionSpec())
    return hidden @ w["down"]  # every device multiplies the whole batch


def missing_constraint(x, w):
    slices = x.reshape(SLICES, BATCH // SLICES, WIDTH)  # now the slices are cut over devices, their rows are not

    def one(total, rows):
        y = jax.nn.relu(rows @ w["up"])  # every device multiplies rows that another has too
        return total + jnp.mean(y**2), None

    return jax.lax.scan(one, jnp.zeros(()), slices)[0]


TARGETS = {"cpu:8": "jax", "h100:1x8": "jax-cuda12-plugin", "v5e:2x4": "libtpu"}
"""Target -> the package that holds its compiler; no device is needed."""


def report_of(network, target="cpu:8"):
    installed = {one.metadata["Name"] for one in importlib.metadata.distributions()}
    if TARGETS[target] not in installed:
        pytest.skip(f"{TARGETS[target]} is not installed")

    def step(state, batch):
        loss, gradients = jax.value_and_grad(lambda w: jnp.mean(network(batch, w) ** 2))(state)
        return jax.tree.map(lambda w, g: w - 0.1 * g, state, gradients), {"loss": loss}

    matrix = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    workload = Workload(
        step, {"up": matrix, "down": matrix}, jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32), name=network.__name__
    )
    return explain(workload, target, "data=8", measure=0, jobs=1)


def line_of(network, text: str) -> str:
    """file.py:line of the one line of `network` that holds `text`."""
    source, first = inspect.getsourcelines(network)
    [offset] = [index for index, line in enumerate(source) if text in line]
    return f"{inspect.getsourcefile(network)}:{first + offset}"


@pytest.mark.parametrize(
    ("network", "times", "target"),
    # of the eight ways of the batch, two go to the slices and are lost in the scan
    [
        *((wrong_constraint, 8, target) for target in TARGETS),
        (missing_constraint, SLICES, "cpu:8"),
        *slow([(missing_constraint, SLICES, target) for target in TARGETS if target != "cpu:8"]),
    ],
)
def test_a_planted_bug_is_named_by_its_line(network, times, target):
    """An activation left whole, and a constraint that is missing: by each of the three compilers."""
    report = report_of(network, target)
    place = line_of(network, "# every device multiplies")
    [loss] = [loss for loss in report.best().analysis.losses if loss.source == place]
    assert loss.kind == "redundant" and loss.seconds > 0 and f"done {times} times over the 8 devices" in loss.what
    assert any("redundant" in line and place.rpartition("/")[2] in line for line in lines(render(report), 300))
    told = report_to_json(report)["best"]["losses"]
    assert [one["source"] for one in told if one["kind"] == "redundant"][0] == place
    analysis = report.best().analysis
    assert analysis_from_json(json.loads(json.dumps(analysis_to_json(analysis)))) == analysis


@pytest.mark.parametrize("target", ["cpu:8", *slow([(target,) for target in TARGETS if target != "cpu:8"])])
def test_a_step_without_a_bug_repeats_nothing(target):
    report = report_of(right, target)
    analysis = report.best().analysis
    assert report.best().losses_seconds["redundant"] == 0.0
    assert not [loss for loss in analysis.losses if loss.kind == "redundant"]
    # data parallel: both matrices are whole on each of 8 devices, 7/8 of each could go
    held = [loss for loss in analysis.losses if loss.kind == "replicated"]
    assert [loss.bytes for loss in held] == [WIDTH * WIDTH * 4 * 7 // 8] * 2


@pytest.mark.slow
def test_a_bad_layout_gets_its_verdict():
    workload = reference_workload("tiny", batch=16, seq=128, dtype="float32")
    bad = "data=4,stage=2,remat=full,microbatches=4,schedule=gpipe"
    layouts = [parse_layout("data=8"), parse_layout(bad)]
    best, worse = tune(workload, "cpu:8", layouts=layouts, compile=2, measure=0, jobs=1).ranked
    assert (str(best.layout), str(worse.layout)) == ("data=8", bad)
    assert worse.reason.startswith("+") and "a step (compiled)" in worse.reason
    [idle] = [loss for loss in worse.analysis.losses if loss.kind == "bubble"]
    assert "1 of 5 ticks" in idle.what
    assert 0 < worse.losses_seconds["bubble"] == idle.seconds < worse.step_seconds / 5
    assert not [loss for row in (best, worse) for loss in row.analysis.losses if loss.kind == "redundant"]


def test_only_large_unsharded_arrays_in_device_memory_are_replicated():
    def argument(name, shape, global_shape, size, *, category="parameters", kind=None):
        return Argument(name=name, category=category, dtype="float32", shape=shape, global_shape=global_shape, spec="",
                        bytes=size, memory_kind=kind)  # fmt: skip

    arguments = (
        argument("table", (100, 10), (100, 10), 4000),
        argument("sharded", (50, 10), (100, 10), 2000),
        argument("scale", (2,), (2,), 8),
        argument("moment", (100, 10), (100, 10), 4000, category="optimizer_state", kind="pinned_host"),
        argument("tokens", (100, 10), (100, 10), 4000, category="batch"),
    )
    [loss] = replicated(arguments, devices=4)
    assert loss.what.startswith("table ") and loss.bytes == 3000
    assert replicated(arguments, devices=1) == []


def test_the_bubble_is_the_idle_ticks_of_the_loops_that_send_along_stage():
    hardware = load_hardware("v5p")
    op = Compute(name="dot", kernel="matmul", flops=hardware.peak("bfloat16") * hardware.matmul_efficiency,
                 dtype="bfloat16", matmul=None, hbm_bytes=0.0, cycles=None, source=None, scope=None)  # fmt: skip
    sent = Collective(name="send", kind="permute", axes=("stage",), group_size=4, crosses_groups=1, payload_bytes=1.0,
                      wire_bytes=1.0, dtype="bfloat16", source=None, scope=None)  # fmt: skip
    tick = (op, Start(token="t", collective=sent), Done(token="t"))
    memory = Memory(peak_bytes=1, argument_bytes=0, output_bytes=0, temporary_bytes=0, alias_bytes=0, host_bytes=0,
                    by_category={}, largest=())  # fmt: skip
    layout = parse_layout("stage=4,microbatches=8,virtual_stages=2,schedule=circular")
    ticks = 8 * 2 + 4 - 1
    loops = (Loop(name="forward", trips=ticks, body=tick), Loop(name="layers", trips=ticks, body=(op,)))
    program = Program(platform="tpu", mesh_shape={"stage": 4}, instructions=loops, memory=memory, warnings=())
    [loss] = bubble(program, layout, hardware)
    one_second = hardware.launch_seconds or 0.0
    assert loss.seconds == pytest.approx(3 * (1.0 + one_second)), "three idle ticks of one second"
    assert "3 of 19 ticks" in loss.what
    assert bubble(program, parse_layout("data=4"), hardware) == []
