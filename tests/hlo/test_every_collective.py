"""Every collective of a program is in its ledger with the bytes that a hand counts, whatever carries it out.

The programs are those of `scripts/make_collective_fixtures.py`: one step that says its collectives itself, for every
chip family, with the compiler's defaults, with the options of the chip's file, and with the SparseCores on and off.
"""

from __future__ import annotations

import lzma
import os
import re
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hlo_fixtures import NAMES, NO_MEMORY, fixture

from autotune.analysis.analyse import predict
from autotune.hlo.read import read_program
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.program import Compute, CopyStart, Done, Loop, Start, WorkStart, walk

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_collective_fixtures  # noqa: E402
from make_collective_fixtures import DEVICES, FIXTURES, FOLDER, LAYERS, ROWS, WIDTH  # noqa: E402

ON_SPARSE_CORES = {
    "v5p-sparsecore": {"all_reduce"},
    "v6e-sparsecore": {"all_gather", "reduce_scatter", "all_reduce"},
    "tpu7x": {"all_gather", "reduce_scatter", "all_reduce"},
}
"""Program -> kinds that its compiler hands to the SparseCores; of the others none."""

BYTES = {"bfloat16": 2, "float32": 4}


def text_of(name):
    return lzma.decompress((FOLDER / f"{name}.txt.xz").read_bytes()).decode()


def read(text, target_name):
    target = parse_target(target_name)
    return read_program(
        text,
        platform=target.platform,
        mesh_shape={"fsdp": DEVICES},
        devices_per_group=target.devices_per_group,
        memory=NO_MEMORY,
    )


def program_of(name):
    return read(text_of(name), FIXTURES[name][0])


def elements(program):
    """Elements of the whole arrays that one step moves, by kind (the CPU compiler widens bfloat16)."""
    moved = Counter()
    for op, trips in walk(program.instructions):
        if isinstance(op, Start):
            moved[op.collective.kind] += trips * op.collective.payload_bytes / BYTES[op.collective.dtype]
    return moved


@pytest.mark.parametrize("name", FIXTURES)
def test_bytes_of_each_collective_equal_a_hand_count(name):
    """A gather and a scatter of one weight a trip; of y, [ROWS, WIDTH] on each device, a sum, an exchange, a shift."""
    weights, activation = LAYERS * WIDTH * WIDTH, ROWS * WIDTH
    moved = elements(program_of(name))
    assert moved["all_gather"] == weights
    # A compiler may take an all-reduce and a slice where a reduce-scatter was asked for: the same array is summed.
    assert moved["reduce_scatter"] + moved["all_reduce"] == weights + activation
    assert moved["all_reduce"] in (activation, weights + activation)
    assert moved["all_to_all"] == moved["permute"] == activation


def test_the_script_makes_these_programs(monkeypatch, tmp_path):
    monkeypatch.setattr(make_collective_fixtures, "FOLDER", tmp_path)
    with mock.patch.dict(os.environ):
        make_collective_fixtures.main(["cpu"])
    text = lzma.decompress((tmp_path / "cpu.txt.xz").read_bytes()).decode()
    assert elements(read(text, "cpu:8")) == elements(program_of("cpu"))


@pytest.mark.parametrize("name", FIXTURES)
def test_all_of_a_small_program_is_understood(name):
    program = program_of(name)
    assert program.warnings == () and program.not_understood == {}
    assert program.flops() == LAYERS * 4 * ROWS * WIDTH * WIDTH


@pytest.mark.parametrize("name", FIXTURES)
def test_collectives_of_sparse_cores_hold_lanes_of_their_own(name):
    found = {
        op.collective.kind: op.cores
        for op, _ in walk(program_of(name).instructions)
        if isinstance(op, Start) and op.cores
    }
    assert set(found) == ON_SPARSE_CORES.get(name, set())
    assert all(core.startswith("sparsecore ") for cores in found.values() for core in cores)
    target = parse_target(FIXTURES[name][0])
    busy = predict(program_of(name), parse_layout(f"fsdp={DEVICES}"), target, target.hardware).busy
    assert {lane for lane in busy if lane.startswith("sparsecore")} == {
        core for cores in found.values() for core in cores
    }


@pytest.mark.parametrize("name", FIXTURES)
def test_every_start_of_a_small_program_has_its_done(name):
    started, ended = Counter(), Counter()
    for op, trips in walk(program_of(name).instructions):
        if isinstance(op, (Start, CopyStart, WorkStart)):
            started[op.token] += trips
        elif isinstance(op, Done):
            ended[op.token] += trips
    assert started == ended


@pytest.mark.parametrize("name", ["tpu7x", "v6e-sparsecore"])
def test_a_call_in_a_spelling_not_known_is_said_by_name_and_count(name):
    """The attribute that names the called computation is renamed: what it holds can no longer be found by walking."""
    text = text_of(name)
    calls = re.findall(r"call-start\([^\n]*?to_apply=%([\w.\-]+)", text)
    assert calls
    hidden = re.sub(r"( call-start\([^\n]*?)to_apply=", r"\1runs=", text).replace(" call-start(", " launch(")
    program = read(hidden.replace(" call-done(", " landed("), FIXTURES[name][0])
    found = program.not_understood
    assert found["opcode launch"] == len(calls)
    assert {kind.replace("-", "_") for kind in found if "opcode" not in kind} == ON_SPARSE_CORES[name]
    assert sum(count for kind, count in found.items() if "opcode" not in kind) == len(calls)
    for kind, count in found.items():
        assert any(line.startswith(kind) and str(count) in line for line in program.warnings)


def test_a_collective_in_a_loops_condition_runs_with_every_trip():
    text = """HloModule m, is_scheduled=true, num_partitions=2

%cond (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[8]{0} get-tuple-element(%c), index=1
  %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%j, %one)
  %y = f32[8]{0} get-tuple-element(%b), index=1
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %y)
}

ENTRY %main (a: f32[8]) -> (s32[], f32[8]) {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[8]{0}) tuple(%zero, %a)
  ROOT %w = (s32[], f32[8]{0}) while(%first), condition=%cond, body=%body
}
"""
    program = read_program(text, platform="cuda", mesh_shape={"fsdp": 2}, devices_per_group=2, memory=NO_MEMORY)
    (loop,) = program.instructions
    assert isinstance(loop, Loop) and loop.trips == 5
    assert [op.collective.payload_bytes for op in loop.body if isinstance(op, Start)] == [32]
    assert program.not_understood == {}


CALLED = """%group (p: f32[8], q: f32[4]) -> (f32[16], f32[4]) {{
  %p = f32[8]{{0}} parameter(0)
  %q = f32[4]{{0}} parameter(1)
  %g = f32[16]{{0}} all-gather(%p), replica_groups={{{{0,1}}}}, dimensions={{0}}
  %r = f32[4]{{0}} all-reduce(%q), replica_groups={{{{0,1}}}}, to_apply=%add
  ROOT %t = (f32[16]{{0}}, f32[4]{{0}}) tuple(%g, %r)
}}

%outer (o: f32[8], u: f32[4]) -> (f32[16], f32[4]) {{
  %o = f32[8]{{0}} parameter(0)
  %u = f32[4]{{0}} parameter(1)
  %n = ((f32[8]{{0}}, f32[4]{{0}}), (f32[16]{{0}}, f32[4]{{0}}), u32[]) {inner}-start(%o, %u), {attribute}=%group
  ROOT %nd = (f32[16]{{0}}, f32[4]{{0}}) {inner}-done(%n)
}}
"""


@pytest.mark.parametrize("outer", ["async", "call"])
@pytest.mark.parametrize("inner", ["async", "call"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_calls_within_calls_are_followed_and_every_collective_inside_counts(outer, inner, platform):
    attribute = {"async": "calls", "call": "to_apply"}
    text = f"""HloModule m, is_scheduled=true, num_partitions=2

{CALLED.format(inner=inner, attribute=attribute[inner])}
ENTRY %main (a: f32[8], b: f32[4]) -> f32[16] {{
  %a = f32[8]{{0}} parameter(0)
  %b = f32[4]{{0}} parameter(1)
  %s = ((f32[8]{{0}}, f32[4]{{0}}), (f32[16]{{0}}, f32[4]{{0}}), u32[]) {outer}-start(%a, %b), {attribute[outer]}=%outer
  %w = f32[8]{{0}} negate(%a)
  %d = (f32[16]{{0}}, f32[4]{{0}}) {outer}-done(%s)
  ROOT %e = f32[16]{{0}} get-tuple-element(%d), index=0
}}
"""
    program = read_program(text, platform=platform, mesh_shape={"fsdp": 2}, devices_per_group=2, memory=NO_MEMORY)
    first, second, work, *ends = program.instructions
    assert {(op.collective.kind, op.collective.payload_bytes) for op in (first, second)} == {
        ("all_gather", 64),
        ("all_reduce", 16),
    }
    assert isinstance(work, Compute) and {end.token for end in ends} == {first.token, second.token}
    assert program.not_understood == {}


def test_work_of_sparse_cores_runs_beside_the_core():
    """An embedding's gather, as the TPU7x compiler writes it: no FLOPs and no cycles, only memory traffic."""
    text = """HloModule m, is_scheduled=true, num_partitions=8

%rows (p: bf16[8192,2048], i: s32[4096]) -> bf16[4096,2048] {
  %p = bf16[8192,2048]{1,0} parameter(0)
  %i = s32[4096]{0} parameter(1)
  ROOT %gather_fusion = bf16[4096,2048]{1,0} gather(%p, %i), offset_dims={1}, slice_sizes={1,2048}
}

ENTRY %main (table: bf16[8192,2048], ids: s32[4096], x: bf16[4096,2048]) -> bf16[4096,2048] {
  %table = bf16[8192,2048]{1,0} parameter(0)
  %ids = s32[4096]{0} parameter(1)
  %x = bf16[4096,2048]{1,0} parameter(2)
  %s = ((bf16[8192,2048]{1,0}, s32[4096]{0}), bf16[4096,2048]{1,0}, u32[]) call-start(%table, %ids), async_execution_thread="sparsecore", to_apply=%rows, backend_config={"sparse_core_config":{"core_ids":["0","1"]}}
  %n = bf16[4096,2048]{1,0} negate(%x)
  %d = bf16[4096,2048]{1,0} call-done(%s)
  ROOT %sum = bf16[4096,2048]{1,0} add(%n, %d)
}
"""  # noqa: E501
    program = read(text, "tpu7x:2x2x1")
    start, between, done, _ = program.instructions
    assert isinstance(start, WorkStart) and start.cores == ("sparsecore 0", "sparsecore 1")
    assert isinstance(between, Compute) and done.token == start.token
    rows = 4096 * 2048 * 2
    assert start.work.hbm_bytes == rows + rows + 4096 * 4
    assert program.hbm_bytes() == start.work.hbm_bytes + 2 * rows + 3 * rows
    target = parse_target("tpu7x:2x2x1")
    found = predict(program, parse_layout("fsdp=8"), target, target.hardware)
    rate = target.hardware.hbm_bytes_per_second * target.hardware.hbm_efficiency
    assert found.busy["sparsecore 0"] == found.busy["sparsecore 1"] == pytest.approx(start.work.hbm_bytes / rate)
    # Beside each other: the longer of the gather and the negation, then the addition.
    assert found.step_seconds == pytest.approx((start.work.hbm_bytes + 3 * rows) / rate)


def test_work_on_the_hosts_processor_is_said_to_be_not_understood():
    text = """HloModule m, is_scheduled=true, num_partitions=8

%host (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[8]{0}, u32[]) async-start(%a), async_execution_thread="host", calls=%host
  ROOT %d = f32[8]{0} async-done(%s)
}
"""
    assert read(text, "v5e:2x4").not_understood == {"work on the host's processor": 1}


def test_a_started_custom_call_is_read_by_its_own_result():
    text = """HloModule m, is_scheduled=true, num_partitions=8

ENTRY %main (a: f32[8]) -> f32[4] {
  %a = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[4]{0}, u32[]) custom-call-start(%a), custom_call_target="mine"
  ROOT %d = f32[4]{0} custom-call-done(%s)
}
"""
    program = read(text, "h100:1x8")
    (work,) = program.instructions
    assert work.hbm_bytes == 32 + 16
    assert program.not_understood == {"custom call mine": 1}


@pytest.mark.parametrize("name", NAMES)
def test_all_of_a_saved_program_is_understood(name):
    assert fixture(name).program.not_understood == {}
