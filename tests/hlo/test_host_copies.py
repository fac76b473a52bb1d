"""Arrays kept in the host's memory: what crosses the link, which way, at what rate, and what runs beside it."""

from __future__ import annotations

import dataclasses

import pytest
from hlo_fixtures import NO_MEMORY, fixture

from autotune.analysis.analyse import predict, repeated_host_copies
from autotune.hlo.read import read_program
from autotune.meshes.hardware import hardware_names, load_hardware, scale
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.program import Compute, CopyStart, Done, Loop, walk

MIB = 2**20
STACK, SLICE = "bf16[80,1024,1024]{2,1,0:S(5)}", "bf16[1,1024,1024]{2,1,0}"


def read(body, platform="tpu"):
    text = f"HloModule m, is_scheduled=true, num_partitions=1\n\nENTRY %main () -> f32[] {{\n{body}\n}}\n"
    return read_program(text, platform=platform, mesh_shape={"data": 1}, devices_per_group=1, memory=NO_MEMORY)


def crossing(program):
    """(bytes, from, to) of each copy to or from the host, with its trips."""
    return [
        (trips * op.copy.bytes, op.copy.from_memory, op.copy.to_memory)
        for op, trips in walk(program.instructions)
        if isinstance(op, CopyStart) and "host" in (op.copy.from_memory, op.copy.to_memory)
    ]


OPERANDS = f"""  %stack = {STACK} parameter(0)
  %slice = {SLICE} parameter(1)
  %i = s32[] parameter(2)
  %host = bf16[1,1024,1024]{{2,1,0:S(5)}} parameter(3)"""


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"(({STACK}, s32[], s32[], s32[]), {SLICE}, u32[]) dynamic-slice-start(%stack, %i, %i, %i)", "in"),
        (f"(({STACK}, s32[], s32[], s32[]), {SLICE}, u32[], u32[]) dynamic-slice-start(%stack, %i, %i, %i)", "in"),
        (f"(({STACK}, {SLICE}, s32[], s32[], s32[]), {STACK}, u32[]) "
         "dynamic-update-slice-start(%stack, %slice, %i, %i, %i)", "out"),
        (f"({SLICE}, bf16[1,1024,1024]{{2,1,0:S(5)}}, u32[]) copy-start(%host)", "in"),
        ("(bf16[1,1024,1024]{2,1,0:S(5)}, bf16[1,1024,1024]{2,1,0}, u32[]) copy-start(%slice)", "out"),
    ],
)  # fmt: skip
def test_an_asynchronous_copy_moves_its_slice_and_not_the_stack(line, expected, platform):
    opcode = line.partition("-start(")[0].rpartition(" ")[2]
    program = read(f"{OPERANDS}\n  %s = {line}\n  ROOT %d = {SLICE} {opcode}-done(%s)", platform)
    start, done = program.instructions
    assert done == Done(token=start.token)
    ends = ("host", "hbm") if expected == "in" else ("hbm", "host")
    assert crossing(program) == [(2 * MIB, *ends)]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{SLICE} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={{1,1024,1024}}", ("host", "hbm")),
        (f"{STACK} dynamic-update-slice(%stack, %slice, %i, %i, %i)", ("hbm", "host")),
        (f"{SLICE} copy(%host)", ("host", "hbm")),
        ("bf16[1,1024,1024]{2,1,0:S(5)} copy(%slice)", ("hbm", "host")),
        (f"{SLICE} add(%slice, %host)", ("host", "hbm")),
    ],
)
def test_the_core_waits_for_a_synchronous_one(line, expected, platform):
    program = read(f"{OPERANDS}\n  ROOT %o = {line}", platform)
    assert crossing(program) == [(2 * MIB, *expected)]
    start, done, *work = program.instructions
    assert done == Done(token=start.token)
    assert bool(work) == ("add" in line)


def test_the_link_carries_both_ways_at_once_and_runs_beside_compute():
    target = parse_target("v5e:1x1")
    layout = parse_layout("data=1")
    rate = target.hardware.host_bytes_per_second
    there = "(bf16[1,1024,1024]{2,1,0:S(5)}, bf16[1,1024,1024]{2,1,0}, u32[]) copy-start(%slice)"
    back = f"({SLICE}, bf16[1,1024,1024]{{2,1,0:S(5)}}, u32[]) copy-start(%host)"
    long = '{"window_config":{"estimated_cycles":"150000"}}'  # 0.1 ms at 1.5 GHz

    def seconds(*lines):
        ends = "\n".join(f"  %d{number} = {SLICE} copy-done(%s{number})" for number in range(len(lines)))
        starts = "\n".join(f"  %s{number} = {line}" for number, line in enumerate(lines))
        work = f"  %w = {SLICE} negate(%slice), backend_config={long}"
        program = read(f"{OPERANDS}\n{starts}\n{work}\n{ends}\n  ROOT %r = {SLICE} bitcast(%d0)")
        return predict(program, layout, target, target.hardware).step_seconds

    one = 2 * MIB / rate
    assert one > 1e-4
    assert seconds(there) == seconds(back) == pytest.approx(one)
    assert seconds(there, back) == pytest.approx(one)
    assert seconds(there, there) == pytest.approx(2 * one)


@pytest.mark.parametrize("name", ["v5e", "tpu7x", "h100"])
def test_a_faster_link_makes_the_copies_faster(name):
    target = parse_target({"v5e": "v5e:1x1", "tpu7x": "tpu7x:1x1x1", "h100": "h100:1x1"}[name])
    layout = parse_layout(f"data={target.devices}")
    program = dataclasses.replace(
        read(f"{OPERANDS}\n  ROOT %o = {SLICE} copy(%host)", target.platform), mesh_shape=layout.mesh_shape
    )
    before = predict(program, layout, target, target.hardware)
    assert before.critical[("host", "async_copy")] == pytest.approx(2 * MIB / target.hardware.host_bytes_per_second)
    for resource in ("host", "everything"):
        after = predict(program, layout, target, scale(target.hardware, resource, 2.0))
        assert after.step_seconds == pytest.approx(before.step_seconds / 2)


@pytest.mark.parametrize("name", hardware_names())
def test_every_chip_says_its_own_rate_with_a_source(name):
    hardware = load_hardware(name)
    assert hardware.sources["host_bytes_per_second"]
    assert 1e9 < hardware.host_bytes_per_second < hardware.hbm_bytes_per_second or name == "cpu"


def test_an_array_that_is_copied_whole_in_every_trip_is_said():
    whole = f"  %a = {STACK.replace(':S(5)', '')} copy(%stack)"
    once = read(f"{OPERANDS}\n{whole}\n  ROOT %o = {SLICE} copy(%host)")
    kept = dataclasses.replace(NO_MEMORY, host_bytes=160 * MIB)
    once = dataclasses.replace(once, memory=kept)
    assert repeated_host_copies(once) == ()
    loop = Loop(name="layers", trips=80, body=once.instructions)
    (line,) = repeated_host_copies(dataclasses.replace(once, instructions=(loop,)))
    assert line.startswith("copies from the host's memory move 12.7 GiB a step, 81 times")
    saved = fixture("tpu7x-offload")
    kept = dataclasses.replace(NO_MEMORY, host_bytes=saved.compilation.memory["host_temp_size_in_bytes"])
    assert repeated_host_copies(dataclasses.replace(saved.program, memory=kept)) == ()


def test_each_layers_input_goes_to_the_host_and_comes_back_once():
    """bfloat16 [batch, seq, d_model] of a device for every layer, out in the forward pass and in in the backward."""
    read_fixture = fixture("tpu7x-offload")
    model = read_fixture.model
    expected = model.layers * read_fixture.batch * read_fixture.seq * model.d_model * 2 / read_fixture.devices
    program = read_fixture.program
    out = sum(size for size, _, target in crossing(program) if target == "host")
    back = sum(size for size, source, _ in crossing(program) if source == "host")
    assert out == back == expected == read_fixture.compilation.memory["host_temp_size_in_bytes"]
    busy = predict(program, read_fixture.layout, read_fixture.target, read_fixture.target.hardware).busy
    each = expected / read_fixture.target.hardware.host_bytes_per_second
    assert busy["host in"] == busy["host out"] == pytest.approx(each)
    assert any(isinstance(op, Compute) for op, _ in walk(program.instructions))
