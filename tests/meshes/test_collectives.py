"""Collective times against counts by hand, and the laws they keep."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.meshes.collectives import Leg, legs, seconds, tier_payloads, tier_seconds, wire_bytes
from autotune.meshes.hardware import Tier, load_hardware, scale
from autotune.meshes.layout import parse_layout
from autotune.meshes.placement import place
from autotune.meshes.target import parse_target

KINDS = ["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "permute"]


def with_tiers(target, **tiers):
    """The target's hardware with round figures: name=(bytes per second, seconds a hop, launch)."""
    made = tuple(
        dataclasses.replace(
            tier,
            bytes_per_second=tiers[tier.name][0],
            latency_seconds=tiers[tier.name][1],
            launch_seconds=tiers[tier.name][2],
            bytes_factor={},
            launch_factor={},
            ramp_bytes=0.0,
        )
        for tier in target.hardware.tiers
    )
    return dataclasses.replace(target.hardware, tiers=made)


def case(text, words, **tiers):
    target = parse_target(text)
    return place(parse_layout(words), target), with_tiers(target, **tiers)


ICI = {"ici": (1e9, 1e-3, 5.0), "dcn": (1e8, 1e-2, 7.0)}


@pytest.mark.parametrize(
    ("kind", "bytes_seconds", "hops"),
    [
        # Ring of 16, 16e9 bytes, 1e9 a link. Gather: 15 shards of 1e9 arrive over two links. Farthest: 8 links.
        ("all_gather", 7.5, 8),
        ("reduce_scatter", 7.5, 8),
        ("all_reduce", 15.0, 16),
        # Each sends 1e9 to 15 others, 1+1+2+2+...+7+7+8 = 64 links of 32: 2e9 a link.
        ("all_to_all", 32.0, 8),
        ("permute", 16.0, 1),
    ],
)
def test_ring_of_sixteen_by_hand(kind, bytes_seconds, hops):
    placement, hardware = case("v5e:16x16", "fsdp=16,tensor=16", **ICI)
    (leg,) = legs(kind, 16e9, ("fsdp",), placement, hardware)
    assert leg.bytes_seconds == pytest.approx(bytes_seconds)
    assert leg.latency_seconds == pytest.approx(5.0 + hops * 1e-3)
    assert leg.tier == "ici" and len(leg.lanes) == 1


@pytest.mark.parametrize(
    ("kind", "bytes_seconds", "hops"),
    [
        # Line of 4, 4e9 bytes: the middle sees 2 shards each way, the ends 3 come in over their only link.
        ("all_gather", 3.0, 3),
        ("all_reduce", 6.0, 6),
        # Each sends 1e9 to each other; across the middle 2 x 2 pairs each way.
        ("all_to_all", 4.0, 3),
        # One step along, and the way back from the end over 3 links.
        ("permute", 4.0, 3),
    ],
)
def test_line_of_four_by_hand(kind, bytes_seconds, hops):
    placement, hardware = case("v5e:4x4", "fsdp=4,tensor=4", **ICI)
    (leg,) = legs(kind, 4e9, ("tensor",), placement, hardware)
    assert leg.bytes_seconds == pytest.approx(bytes_seconds)
    assert leg.latency_seconds == pytest.approx(5.0 + hops * 1e-3)


GPU = {"nvlink": (1e9, 1e-3, 1.0), "network": (1e8, 1e-2, 2.0)}


def test_switch_of_eight_by_hand():
    placement, hardware = case("h100:1x8", "fsdp=8", **GPU)
    (leg,) = legs("all_gather", 8e9, ("fsdp",), placement, hardware)
    assert (leg.wire_bytes, leg.bytes_seconds) == (pytest.approx(7e9), pytest.approx(7.0))
    assert leg.latency_seconds == pytest.approx(1.0 + 7e-3)


def test_all_reduce_on_a_switch_is_a_tree_when_small_and_a_ring_when_large():
    placement, hardware = case("h100:8x1", "data=8", **GPU)
    (small,) = legs("all_reduce", 8.0, ("data",), placement, hardware)
    assert small.latency_seconds == pytest.approx(2.0 + 6 * 1e-2)  # up and down three levels
    assert small.bytes_seconds == pytest.approx(16 / 1e8)
    (large,) = legs("all_reduce", 8e9, ("data",), placement, hardware)
    assert large.latency_seconds == pytest.approx(2.0 + 14 * 1e-2)
    assert large.bytes_seconds == pytest.approx(14e9 / 1e8)


def test_a_gpu_ring_over_two_tiers_runs_at_the_pace_of_the_slower():
    """64e9 bytes over 8 domains of 8: 56e9 come in over NVLink, a shard of 8e9 crosses: 7e9 over the network."""
    placement, hardware = case("h100:8x8", "fsdp=64", **GPU)
    inner, outer = legs("all_gather", 64e9, ("fsdp",), placement, hardware)
    assert (inner.tier, inner.wire_bytes, inner.bytes_seconds) == ("nvlink", pytest.approx(56e9), 0.0)
    assert (outer.tier, outer.wire_bytes, outer.bytes_seconds) == ("network", pytest.approx(7e9), pytest.approx(70.0))
    assert set(outer.lanes) == {"nvlink:0", "network:0"}
    assert inner.latency_seconds + outer.latency_seconds == pytest.approx(2.0 + 7e-3 + 7e-2)
    quick = scale(hardware, "network:network", 2.0)
    inner, outer = legs("all_gather", 64e9, ("fsdp",), placement, quick)
    assert (inner.bytes_seconds, outer.bytes_seconds) == (pytest.approx(56.0), 0.0)
    assert (inner.hidden_seconds, outer.hidden_seconds) == (0.0, pytest.approx(35.0))


def test_a_tpu_collective_over_slices_is_one_after_the_other():
    """2 slices of 16: a gather of 32e9 inside is 15/16 over 4 lines' links, between slices half of a 2e9 shard."""
    placement, hardware = case("v5e:4x4*2", "fsdp=32", **ICI)
    inner, outer = legs("all_reduce", 32e9, ("fsdp",), placement, hardware)
    assert (inner.tier, inner.bytes_seconds) == ("ici", pytest.approx(2 * 30.0 / 2))
    assert (outer.tier, outer.wire_bytes) == ("dcn", pytest.approx(2e9))
    assert outer.bytes_seconds == pytest.approx(20.0)
    assert outer.lanes == ("dcn:0",) and set(inner.lanes) == {"ici:0", "ici:1"}


def test_only_the_part_between_slices_rides_only_dcn():
    placement, hardware = case("v5e:4x4*2", "fsdp=32", **ICI)
    (leg,) = legs("all_reduce", 2e9, ("fsdp",), placement, hardware, group_size=2, crosses_groups=2)
    assert (leg.tier, leg.bytes_seconds) == ("dcn", pytest.approx(20.0))
    (leg,) = legs("all_gather", 16e9, ("fsdp",), placement, hardware, group_size=16, crosses_groups=1)
    assert leg.tier == "ici" and leg.bytes_seconds == pytest.approx(7.5)


def test_groups_that_follow_no_axis_are_a_line():
    placement, hardware = case("v5e:16x16", "fsdp=256", **ICI)
    (leg,) = legs("all_gather", 4e9, (), placement, hardware, group_size=4, crosses_groups=1)
    assert leg.bytes_seconds == pytest.approx(3.0)
    assert legs("all_gather", 4e9, (), placement, hardware, group_size=1, crosses_groups=1) == ()


def test_two_devices_of_one_chip_exchange_before_the_links():
    placement, hardware = case("tpu7x:2x2x1", "fsdp=8", d2d=(1e10, 0.0, 0.0), ici=(1e9, 0.0, 0.0), dcn=(1e8, 0.0, 0.0))
    chip, torus = legs("all_gather", 8e9, ("fsdp",), placement, hardware)
    assert (chip.tier, chip.bytes_seconds) == ("d2d", pytest.approx(0.4))
    assert (torus.tier, torus.bytes_seconds) == ("ici", pytest.approx(3e9 / 2e9))


def test_all_to_all_over_domains_sends_each_byte_over_one_tier():
    """8 domains of 8, 64 bytes each: 7 stay inside the domain, 56 leave it."""
    placement, hardware = case("h100:8x8", "expert=64", **GPU)
    inner, outer = legs("all_to_all", 64.0, ("expert",), placement, hardware)
    assert (inner.wire_bytes, outer.wire_bytes) == (pytest.approx(7.0), pytest.approx(56.0))


def test_an_axis_of_one_costs_nothing():
    placement, hardware = case("v5e:4x4", "fsdp=16", **ICI)
    assert legs("all_reduce", 1e9, ("tensor",), placement, hardware) == ()
    assert seconds("all_reduce", 1e9, ("tensor",), placement, hardware) == 0


CASES = [("v5e:16x16", "data=4,fsdp=16,tensor=4"), ("v5p:4x4x4*2", "data=4,fsdp=8,tensor=4")]
CASES += [("h100:8x8", "data=4,fsdp=4,tensor=4"), ("tpu7x:2x2x2", "data=2,fsdp=4,tensor=2"), ("cpu:8", "fsdp=8")]


@given(st.sampled_from(CASES), st.sampled_from(KINDS), st.floats(0, 1e10), st.floats(1, 3))
def test_more_bytes_or_slower_parts_never_take_less(case, kind, payload, factor):
    target = parse_target(case[0])
    placement = place(parse_layout(case[1]), target)
    for axes in (("fsdp",), ("tensor",), ("data", "fsdp")):
        now = seconds(kind, payload, axes, placement, target.hardware)
        assert seconds(kind, payload * factor, axes, placement, target.hardware) >= now
        for resource in ("latency", *(f"network:{tier.name}" for tier in target.hardware.tiers)):
            assert seconds(kind, payload, axes, placement, scale(target.hardware, resource, factor)) <= now * (
                1 + 1e-12
            )


@given(st.sampled_from(CASES), st.floats(1, 1e10))
def test_on_a_torus_all_reduce_is_reduce_scatter_and_all_gather(case, payload):
    target = parse_target(case[0])
    placement = place(parse_layout(case[1]), target)
    for route in placement.routes["fsdp"]:
        tier = dataclasses.replace(target.hardware.tier(route.tier), bytes_factor={})
        if tier.kind != "torus":
            continue
        arguments = {name: getattr(route, name) for name in FIELDS}
        both = tier_seconds("all_reduce", payload, tier, **arguments)
        each = [tier_seconds(kind, payload, tier, **arguments) for kind in ("reduce_scatter", "all_gather")]
        np.testing.assert_allclose(both, np.sum(each, axis=0))


FIELDS = ("size", "links", "hops", "spread", "far_hops", "share", "near_hops")


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_give_what_numbers_give(kind):
    tier = Tier(name="t", kind="switch", bytes_per_second=1e9, latency_seconds=1e-5, launch_seconds=0.0)
    rows = [
        (2, 1.0, 1, 0.5, 1, 1, 1),
        (8, 1.0, 7, 0.875, 1, 1, 1),
        (1, 1.0, 0, 0.0, 0, 1, 0),
        (6, 2.0, 5, 0.8, 2, 3, 2),
    ]
    payloads = np.array([1e3, 1e6, 1e9])[:, None]
    columns = {name: np.array(column) for name, column in zip(FIELDS, zip(*rows, strict=True), strict=True)}
    together = np.array(np.broadcast_arrays(*tier_seconds(kind, payloads, tier, **columns)))
    for i, payload in enumerate(payloads[:, 0]):
        for j, row in enumerate(rows):
            alone = tier_seconds(kind, payload, tier, **dict(zip(FIELDS, row, strict=True)))
            np.testing.assert_allclose(together[..., :, i, j] if together.ndim > 3 else together[:, i, j], alone)
    assert (together[:, :, 2] == 0).all(), "a group of one moves nothing"


def test_wire_bytes_by_hand():
    assert float(wire_bytes("all_gather", 80.0, 8)) == 70.0
    assert float(wire_bytes("all_reduce", 80.0, 8)) == 140.0
    assert float(wire_bytes("all_to_all", 80.0, 8)) == 70.0
    assert float(wire_bytes("permute", 80.0, 8)) == 80.0
    assert float(wire_bytes("permute", 80.0, 1)) == 0.0


def test_tiers_share_the_payload():
    assert [float(part) for part in tier_payloads("all_reduce", 64.0, [4, 2, 8])] == [64.0, 16.0, 8.0]
    assert [float(part) for part in tier_payloads("all_to_all", 64.0, [4, 2, 8])] == [4.0, 8.0, 64.0]
    assert [float(part) for part in tier_payloads("permute", 64.0, [4, 8])] == [64.0, 64.0]


def test_published_all_reduce_on_256_v6e():
    """AI-Hypercomputer/tpu-recipes, trillium collectives: 606 MB, 235.8 GB/s sent per chip: 5.12 ms.

    The chip's all-reduce factor is this very row, so this holds the wiring (16x16: four links), not the figure.
    """
    target = parse_target("v6e:16x16")
    placement = place(parse_layout("data=256"), target)
    measured = 2 * 255 / 256 * 0.606076928 / 235.7595
    assert seconds("all_reduce", 606076928, ("data",), placement, target.hardware) == pytest.approx(measured, rel=0.02)


def test_a_leg_is_a_value():
    leg = Leg(tier="ici", lanes=("ici:0",), wire_bytes=1.0, bytes_seconds=2.0, latency_seconds=3.0)
    assert leg == dataclasses.replace(leg) and load_hardware("v5e").tier("ici").name == leg.tier


MIB = 2**20


def test_the_pipeline_of_nccl_fills_in_the_replay_as_in_the_price():
    """An all-gather of 32 MiB on 8 H200: 79.9 us of bytes, 31.8 us of ramp, 7 hops of 1.9 us, 14 us of launch."""
    placement = place(parse_layout("fsdp=8"), parse_target("h200:1x8"))
    hardware = load_hardware("h200")
    (leg,) = legs("all_gather", 32 * MIB, ("fsdp",), placement, hardware)
    sent = 32 * MIB * 7 / 8 / 3.676e11
    ramp = hardware.tier("nvlink").ramp_bytes / 3.676e11
    assert leg.bytes_seconds == pytest.approx(sent + ramp) == pytest.approx(111.7e-6, rel=1e-3)
    assert leg.latency_seconds == pytest.approx(14e-6 + 7 * 1.9e-6)
    (small,) = legs("all_gather", MIB, ("fsdp",), placement, hardware)
    assert small.bytes_seconds == pytest.approx(1.5 * sent / 32), "at most half of the bytes' own time"
    (both,) = legs("all_reduce", 32 * MIB, ("fsdp",), placement, hardware)
    assert both.bytes_seconds == pytest.approx(2 * leg.bytes_seconds), "it is a reduce-scatter and an all-gather"
    for kind in ("all_to_all", "permute"):
        assert legs(kind, 32 * MIB, ("fsdp",), placement, hardware)[0].bytes_seconds < leg.bytes_seconds


@pytest.mark.parametrize(
    ("kind", "microseconds"),
    [
        (
            "all_gather",
            (29.96, 44.92, 49.04, 76.98, 139.13, 207.5, 393.96, 762.42, 1486.06, 2911.01, 5723.35, 11322.8, 22357.0),
        ),
        (
            "reduce_scatter",
            (34.26, 58.36, 52.3, 80.28, 138.64, 206.09, 388.79, 753.29, 1451.69, 2808.62, 5552.57, 10912.1, 21629.9),
        ),
    ],
)
def test_published_rings_of_eight_b200(kind, microseconds):
    """nccl-tests on one HGX B200 (acceptance report of a Vultr cluster, 2026-05-18), 4 MiB to 16 GiB, each size twice
    the one before. Neither the rate nor the ramp was taken from it. NCCL changes its protocol between 8 and 16 MiB,
    which no formula here knows."""
    placement, hardware = place(parse_layout("fsdp=8"), parse_target("b200:1x8")), load_hardware("b200")
    errors = [
        seconds(kind, 4 * MIB * 2**step, ("fsdp",), placement, hardware) / (measured * 1e-6) - 1
        for step, measured in enumerate(microseconds)
    ]
    assert np.median(np.abs(errors)) < 0.04
    assert max(np.abs(errors)) < 0.26 and max(np.abs(errors[4:])) < 0.08


def test_published_rings_of_eight_a100():
    """stas00/ml-engineering, network/README.md: nccl-tests all-reduce on one A100 node, which has no SHARP, 4 MiB to
    16 GiB. The rate is the largest row's; the ramp was not taken from it."""
    microseconds = (101.5, 133.5, 276.6, 424.0, 684.6, 1327.6, 2420.6, 4218.4, 8203.9, 16240, 32136, 64074, 127997)
    placement, hardware = place(parse_layout("fsdp=8"), parse_target("a100-80:1x8")), load_hardware("a100-80")
    errors = [
        seconds("all_reduce", 4 * MIB * 2**step, ("fsdp",), placement, hardware) / (measured * 1e-6) - 1
        for step, measured in enumerate(microseconds)
    ]
    assert np.median(np.abs(errors)) < 0.03
    assert max(np.abs(errors)) < 0.23 and max(np.abs(errors[3:])) < 0.15


def test_published_sweep_of_eight_h200_gives_the_ramp():
    """stas00/ml-engineering, network/README.md: payload over seconds of an all-reduce with SHARP. The ramp is from
    these rows, so this holds how it was worked out."""
    tier = dataclasses.replace(load_hardware("h200").tier("nvlink"), bytes_per_second=474.7e9)
    for payload, rate in ((32, 157.62e9), (64, 198.01e9), (128, 229.67e9), (256, 249.23e9)):
        sent = 2 * 7 / 8 * payload * MIB
        ring = tier.launch_seconds + 14 * tier.latency_seconds + (sent + 2 * tier.ramp_bytes) / tier.bytes_per_second
        assert ring == pytest.approx(payload * MIB / rate, rel=0.006)


def test_published_sweep_of_eight_v100_gives_rate_and_ramp():
    """nccl-tests, NCCL 2.4, 8 V100 SXM2 16 GB of one machine: all-reduces of 16 to 128 MiB, of which rate and ramp are,
    and of 4 and 8 MiB, of which they are not."""
    placement, hardware = place(parse_layout("fsdp=8"), parse_target("v100-16:1x8")), load_hardware("v100-16")
    for payload, microseconds, near in (
        (4, 147.4, 0.35), (8, 203.8, 0.15), (16, 324.1, 0.02), (32, 550.8, 0.02), (64, 992.7, 0.02), (128, 1818.8, 0.02)
    ):  # fmt: skip
        modelled = seconds("all_reduce", payload * MIB, ("fsdp",), placement, hardware)
        assert modelled == pytest.approx(microseconds * 1e-6, rel=near), payload
