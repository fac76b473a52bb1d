"""Classes of CPU work: what the reader makes of each kind of instruction, what the fit makes of timed programs."""

from __future__ import annotations

import dataclasses

import pytest

from autotune.calibrate.cpu_ops import OpSample, fit_ops, op_residual, op_sources
from autotune.hlo.cpu_work import CLASSES
from autotune.hlo.read import read_program
from autotune.meshes.hardware import load_hardware, scale
from autotune.program import Compute, Memory, Program, walk
from autotune.replay.op_seconds import core_seconds

MODULE = """HloModule jit_step, is_scheduled=true, num_partitions=1

%fused_silu (p0: f32[64,32], p1: f32[64,32]) -> f32[64,32] {
  %p0 = f32[64,32]{1,0} parameter(0)
  %p1 = f32[64,32]{1,0} parameter(1)
  %exponential.1 = f32[64,32]{1,0} exponential(%p0)
  ROOT %multiply.1 = f32[64,32]{1,0} multiply(%exponential.1, %p1)
}

%fused_transpose (p2: f32[64,32], p3: f32[64,32]) -> f32[32,64] {
  %p2 = f32[64,32]{1,0} parameter(0)
  %p3 = f32[64,32]{1,0} parameter(1)
  %add.1 = f32[64,32]{1,0} add(%p2, %p3)
  %transpose.1 = f32[32,64]{0,1} transpose(%add.1), dimensions={1,0}
  ROOT %copy.1 = f32[32,64]{1,0} copy(%transpose.1)
}

%fused_slice (p4: f32[3,8,64,32], p5: s32[]) -> f32[32,512] {
  %p4 = f32[3,8,64,32]{3,2,1,0} parameter(0)
  %p5 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = f32[1,8,64,32]{3,2,1,0} dynamic-slice(%p4, %p5, %zero, %zero, %zero)
  %bitcast.1 = f32[8,64,32]{2,1,0} bitcast(%dynamic-slice.1)
  %transpose.2 = f32[32,8,64]{0,2,1} transpose(%bitcast.1), dimensions={2,0,1}
  %copy.2 = f32[32,8,64]{2,1,0} copy(%transpose.2)
  ROOT %bitcast.2 = f32[32,512]{1,0} bitcast(%copy.2)
}

%fused_matmul (p6: f32[64,32], p7: f32[32,64]) -> f32[64,64] {
  %p6 = f32[64,32]{1,0} parameter(0)
  %p7 = f32[32,64]{1,0} parameter(1)
  %dot.1 = f32[64,64]{1,0} dot(%p6, %p7), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %multiply.2 = f32[64,64]{1,0} multiply(%dot.1, %dot.1)
}

ENTRY %main (a: f32[64,32], b: f32[64,32], stack: f32[3,8,64,32], index: s32[]) -> f32[64,64] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[64,32]{1,0} parameter(1)
  %stack = f32[3,8,64,32]{3,2,1,0} parameter(2)
  %index = s32[] parameter(3)
  %silu = f32[64,32]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused_silu
  %turned = f32[32,64]{1,0} fusion(%silu, %b), kind=kLoop, calls=%fused_transpose
  %layer = f32[32,512]{1,0} fusion(%stack, %index), kind=kLoop, calls=%fused_slice
  %heads = f32[64,32]{0,1} copy(%a)
  %same = f32[64,32]{1,0} copy(%a)
  %plain = f32[32,32]{1,0} dot(%a, %b), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  ROOT %product = f32[64,64]{1,0} fusion(%silu, %turned), kind=kCustom, calls=%fused_matmul, \
backend_config={"fusion_config":{"kind":"__ynn_fusion"}}
}
"""


def program() -> Program:
    memory = Memory(
        peak_bytes=0, argument_bytes=0, output_bytes=0, temporary_bytes=0, alias_bytes=0, host_bytes=0,
        by_category={}, largest=(),
    )  # fmt: skip
    return read_program(MODULE, platform="cpu", mesh_shape={"data": 1}, devices_per_group=1, memory=memory)


OPS = {op.name: op for op, _ in walk(program().instructions) if isinstance(op, Compute)}
ELEMENTS = 64 * 32


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("silu", {"bytes": 3 * 4 * ELEMENTS, "arithmetic": ELEMENTS, "transcendental": ELEMENTS}),
        ("turned", {"moved_bytes": 3 * 4 * ELEMENTS, "arithmetic": ELEMENTS, "strided": 2 * ELEMENTS}),
        ("layer", {"moved_bytes": 2 * 4 * 8 * ELEMENTS + 4, "strided_slice_long": 8 * ELEMENTS}),
        ("heads", {"moved_bytes": 2 * 4 * ELEMENTS, "strided": ELEMENTS}),
        ("same", {"moved_bytes": 2 * 4 * ELEMENTS}),
        ("plain", {"eigen_flops": 2 * 32 * ELEMENTS, "eigen_bytes": 4 * (2 * ELEMENTS + 1024)}),
        (
            "product",
            {
                "library_flops": 2 * 64 * ELEMENTS,
                "library_bytes": 4 * (2 * ELEMENTS + 4096),
                "library_arithmetic": 4096,
            },
        ),
    ],
)
def test_what_each_instruction_asks_for(name, amounts):
    assert dict(OPS[name].cpu_work) == {"launch": 1.0, **amounts}


RATES = {name: 1e-9 * (1 + index) for index, name in enumerate(CLASSES)}


def test_the_fit_finds_what_made_the_samples_and_says_what_it_leaves():
    samples = []
    for index, name in enumerate(CLASSES):
        for other in (list(CLASSES)[index - 1], list(CLASSES)[index - 2]):
            amounts = {name: 1000.0, other: 300.0}
            seconds = sum(RATES[one] * amount for one, amount in amounts.items())
            samples.append(OpSample(name=f"{name} and {other}", amounts=amounts, seconds=seconds))
    found = fit_ops(samples)
    assert found == pytest.approx(RATES)
    assert max(abs(op_residual(found, sample)) for sample in samples) < 1e-9
    sources = op_sources(found, samples, "today")
    assert set(sources) == {f"op_seconds.{name}" for name in CLASSES}
    assert (
        "today: fitted to" in sources["op_seconds.eigen_flops"]
        and "eigen_flops and" in sources["op_seconds.eigen_flops"]
    )


HARDWARE = dataclasses.replace(load_hardware("cpu"), op_seconds=RATES)


def total(op: Compute, hardware=HARDWARE) -> float:
    return sum(seconds for _, seconds in core_seconds(op, hardware))


@pytest.mark.parametrize("name", OPS)
def test_seconds_are_amounts_times_rates_and_follow_each_resource(name):
    op = OPS[name]
    parts = core_seconds(op, HARDWARE)
    assert total(op) == pytest.approx(sum(RATES[one] * amount for one, amount in op.cpu_work))
    assert total(op, scale(HARDWARE, "everything", 2.0)) == pytest.approx(total(op) / 2)
    for resource in ("matmul", "hbm", "core", "latency"):
        share = sum(seconds for (at, _), seconds in parts if at == resource)
        assert total(op, scale(HARDWARE, resource, 2.0)) == pytest.approx(total(op) - share / 2), resource
