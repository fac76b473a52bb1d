"""Laws of the replay, on made-up programs and on saved compiled ones."""

import dataclasses

import pytest
from compiled_cases import predict_case, program_of_case, read_cases
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.analysis.analyse import predict
from autotune.meshes.collectives import legs
from autotune.meshes.hardware import scale
from autotune.meshes.layout import parse_layout
from autotune.meshes.placement import place
from autotune.meshes.target import parse_target
from autotune.program import Collective, Compute, Done, Loop, Memory, Program, Start

LAYOUT, TARGET = parse_layout("fsdp=16,tensor=16"), parse_target("v5e:16x16")
MEMORY = Memory(
    peak_bytes=0, argument_bytes=0, output_bytes=0, temporary_bytes=0, alias_bytes=0, host_bytes=0, by_category={},
    largest=(),
)  # fmt: skip


def work(kernel, flops, hbm_bytes, cycles):
    return Compute(
        name="op", kernel=kernel, flops=flops if kernel == "matmul" else 0.0, dtype="bfloat16", matmul=None,
        hbm_bytes=hbm_bytes, cycles=cycles, source=None, scope=None,
    )  # fmt: skip


def gather(token, payload, axis="fsdp", kind="all_gather", shift=None):
    collective = Collective(
        name=token, kind=kind, axes=(axis,), group_size=16, crosses_groups=1, payload_bytes=payload,
        wire_bytes=payload, dtype="bfloat16", source=None, scope=None, shift=shift,
    )  # fmt: skip
    return Start(token=token, collective=collective)


COMPUTE = st.builds(
    work,
    st.sampled_from(["matmul", "fusion", "copy"]),
    st.floats(1e6, 1e12),
    st.floats(1e3, 1e9),
    st.none() | st.floats(1e2, 1e8),
)


@st.composite
def bodies(draw):
    body = []
    for index in range(draw(st.integers(1, 4))):
        body.append(draw(COMPUTE))
        token = f"t{index}"
        axis, kind = draw(st.sampled_from(["fsdp", "tensor"])), draw(st.sampled_from(["all_gather", "all_reduce"]))
        body += [gather(token, draw(st.floats(1e4, 1e9)), axis, kind), draw(COMPUTE), Done(token=token)]
    return tuple(body)


@st.composite
def programs(draw):
    inside, after = draw(bodies()), draw(bodies())
    loop = Loop(name="layers", trips=draw(st.integers(1, 20)), body=inside)
    return program((loop, *after))


def program(instructions):
    return Program(
        platform="tpu", mesh_shape=LAYOUT.mesh_shape, instructions=tuple(instructions), memory=MEMORY, warnings=()
    )


def seconds(made, hardware=TARGET.hardware):
    return predict(made, LAYOUT, TARGET, hardware).step_seconds


@settings(max_examples=20, deadline=None)
@given(programs())
def test_twice_as_good_is_twice_as_fast(made):
    assert seconds(made, scale(TARGET.hardware, "everything", 2.0)) == pytest.approx(seconds(made) / 2)


@settings(max_examples=20, deadline=None)
@given(programs())
def test_terms_add_up_and_lie_within_the_interval(made):
    found = predict(made, LAYOUT, TARGET, TARGET.hardware)
    assert sum(found.critical.values()) == pytest.approx(found.step_seconds)
    assert found.low_seconds <= found.step_seconds <= found.high_seconds


@settings(max_examples=20, deadline=None)
@given(programs(), st.sampled_from(["matmul", "hbm", "core", "latency", "network:ici"]), st.floats(1.0, 3.0))
def test_a_better_part_never_makes_the_step_slower(made, resource, factor):
    assert seconds(made, scale(TARGET.hardware, resource, factor)) <= seconds(made) * (1 + 1e-9)


def test_opposite_shifts_overlap_and_equal_ones_queue():
    # 9e9 bytes to the neighbour on a ring of v5e links (4.5e10 a second): 0.2 s each
    placement = place(LAYOUT, TARGET)
    (one,) = legs("permute", 9e9, ("fsdp",), placement, TARGET.hardware)
    assert one.bytes_seconds == pytest.approx(0.2)

    def both(first, second):
        starts = [gather("a", 9e9, kind="permute", shift=first), gather("b", 9e9, kind="permute", shift=second)]
        return seconds(program([*starts, Done(token="a"), Done(token="b")]))

    assert both(1, -1) == pytest.approx(0.2, rel=1e-3)
    assert both(1, 1) == pytest.approx(0.4, rel=1e-3)


@pytest.mark.parametrize(
    ("layout", "target", "kind"),
    [
        ("fsdp=64", "h100:8x8", "all_gather"),
        ("fsdp=16", "a100-80:2x8", "reduce_scatter"),
        ("data=64", "h200:8x8", "all_reduce"),
        ("expert=16", "gb200:2x8", "all_to_all"),
        ("fsdp=256", "v5e:8x16*2", "all_gather"),
        ("stage=32,microbatches=32,schedule=gpipe", "tpu7x:2x2x2*2", "permute"),
    ],
)
def test_every_tier_shows_the_time_that_its_own_bytes_take(layout, target, kind):
    """No line of the ledger is faster than its links, and what hides under a slower tier is not counted twice."""
    laid, machine = parse_layout(layout), parse_target(target)
    (axis,) = (name for name, size in laid.axes.items() if size > 1)
    start = gather("t", 895 * 2**20, axis, kind)
    whole = dataclasses.replace(start.collective, group_size=machine.devices, crosses_groups=machine.groups)
    made = Program(
        platform=machine.platform, mesh_shape=laid.mesh_shape, memory=MEMORY, warnings=(),
        instructions=(Start(token="t", collective=whole), Done(token="t")),
    )  # fmt: skip
    found = predict(made, laid, machine, machine.hardware)
    assert len(found.ledger) == (3 if machine.hardware.devices_per_chip > 1 else 2)
    for line in found.ledger:
        tier = machine.hardware.tier(line.tier)
        links = 1.0 if tier.kind == "switch" else 2.0 * machine.hardware.torus_dimensions
        assert line.seconds >= line.wire_bytes / (tier.rate(kind) * links) * (1 - 1e-9), line
        assert 0 <= line.hidden_seconds <= line.seconds
        assert line.exposed_seconds <= line.seconds * (1 + machine.hardware.straggler_share(machine.groups)) * (
            1 + 1e-9
        )
    waiting = found.losses.get("waiting", 0.0)
    once = sum(line.seconds - line.hidden_seconds for line in found.ledger)
    assert once == pytest.approx(found.step_seconds - waiting)


SAVED = [case for case in read_cases() if case.saved.exists() and case.slices <= 2]


@pytest.mark.parametrize("case", SAVED[:2], ids=lambda case: case.id)
def test_shares_of_a_compiled_program_are_its_elasticities(case):
    made = program_of_case(case)
    hardware = case.target.hardware
    found = predict(made, case.layout, case.target, hardware)
    assert sum(found.critical.values()) == pytest.approx(found.step_seconds)
    twice = predict(made, case.layout, case.target, scale(hardware, "everything", 2.0))
    assert twice.step_seconds == pytest.approx(found.step_seconds / 2)
    shares = {"network:ici": 0.0, "latency": 0.0}
    for resource, value in found.by_resource().items():
        shares["network:ici" if resource.endswith("@ici") else resource] = (
            shares.get("network:ici" if resource.endswith("@ici") else resource, 0.0) + value
        )
    for resource in ("network:ici", "latency"):
        nudged = predict(made, case.layout, case.target, scale(hardware, resource, 1 + 1e-5)).step_seconds
        assert (found.step_seconds - nudged) / 1e-5 == pytest.approx(shares[resource], rel=0.02, abs=1e-4)


@pytest.mark.slow
def test_more_slices_of_one_program_never_run_faster():
    series = {}
    for case in read_cases():
        if case.slices >= 2 and case.saved.exists():
            series.setdefault(case.saved, []).append((case.slices, predict_case(case).step_seconds))
    assert max(len(times) for times in series.values()) == 5
    for times in series.values():
        seconds_by_slices = [time for _, time in sorted(times)]
        assert seconds_by_slices == sorted(seconds_by_slices)
