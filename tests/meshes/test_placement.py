"""Placement: every layout has one, and the links a route claims are what a message-by-message count finds.

The oracle below knows nothing of factors: it takes the devices of each group from `device_order`, walks every message
link by link over the torus, and counts what the busiest link carries.
"""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.meshes.hardware import load_hardware
from autotune.meshes.layout import OUTERMOST_FIRST, Layout, default_outer_factors, parse_layout
from autotune.meshes.placement import assign, default_dcn, pieces, place, splits, torus
from autotune.meshes.route import ring_hops, ring_links
from autotune.meshes.target import Target, parse_target


def groups_of(placement, axis):
    """Coordinates of the devices of every group along `axis`, in the order of the axis."""
    shape = placement.target.shape
    order = np.moveaxis(placement.device_order(), list(placement.sizes).index(axis), -1)
    return [[np.unravel_index(device, shape) for device in row] for row in order.reshape(-1, order.shape[-1])]


def walk(start, end, dimensions):
    """The links of a shortest way, dimension after dimension, as (link, part); half each way where both are as long."""
    here = list(start)
    for dimension, (extent, wraps) in enumerate(dimensions):
        ahead = (end[dimension] - here[dimension]) % extent
        if not wraps:
            ways = [(end[dimension] - here[dimension], 1.0)]
        elif 2 * ahead == extent:
            ways = [(ahead, 0.5), (ahead - extent, 0.5)]
        else:
            ways = [(ahead if 2 * ahead < extent else ahead - extent, 1.0)]
        for steps, part in ways:
            sign = 1 if steps > 0 else -1
            at = list(here)
            for _ in range(abs(steps)):
                yield (tuple(at), dimension, sign), part
                at[dimension] = (at[dimension] + sign) % extent
        here[dimension] = end[dimension]


def busiest(messages, dimensions):
    """What the busiest link carries of (start, end, bytes) messages."""
    load = Counter()
    for start, end, amount in messages:
        for link, part in walk(start, end, dimensions):
            load[link] += amount * part
    return max(load.values())


def circle(group):
    """The positions of a group in the order of a ring of neighbours: a line as it is, a grid as there and back."""
    used = [d for d in range(len(group[0])) if len({position[d] for position in group}) > 1]
    if len(used) < 2:
        return group
    rows, columns = (sorted({position[d] for position in group}) for d in used)
    if len(rows) % 2:
        used, rows, columns = used[::-1], columns, rows
    grid = {(position[used[0]], position[used[1]]): position for position in group}
    path = [grid[rows[0], columns[0]]]
    for index, row in enumerate(rows):
        path += [grid[row, column] for column in (columns[1:] if index % 2 == 0 else columns[:0:-1])]
    return path + [grid[row, columns[0]] for row in reversed(rows[1:])]


ONE_RING = [
    ("v5e:16x16", "fsdp=16,tensor=16"),
    ("v5e:16x16", "data=4,fsdp=16,tensor=4"),
    ("v5e:16x16", "data=2,fsdp=8,tensor=16"),
    ("v5e:16x16", "fsdp=64,tensor=4"),
    ("v5e:16x16", "fsdp=32,tensor=8"),
    ("v5e:8x8", "fsdp=8,tensor=8"),
    ("v5e:8x8", "data=2,fsdp=4,tensor=8"),
    ("v5e:4x8", "fsdp=4,tensor=8"),
    ("v5p:4x4x4", "data=4,fsdp=4,tensor=4"),
    ("v5p:4x4x8", "data=2,fsdp=8,tensor=8"),
]


@pytest.mark.parametrize(("text", "words"), ONE_RING)
def test_links_of_one_ring_are_what_the_busiest_link_leaves(text, words):
    """A ring both ways, half of the bytes each: with load m on the busiest link, a device drives 2 / m links."""
    target = parse_target(text)
    placement = place(parse_layout(words), target)
    for axis, routes in placement.routes.items():
        whole = all(factor.size == factor.extent for factor in placement.factors[axis])
        if not routes or (whole and len(placement.factors[axis]) > 1):
            continue
        messages = []
        for group in groups_of(placement, axis):
            ring = circle(group)
            for here, there in zip(ring, ring[1:] + ring[:1], strict=True):
                messages += [(here, there, 1.0), (there, here, 1.0)]
        assert routes[0].links == pytest.approx(2 / busiest(messages, torus(target))), axis


@pytest.mark.parametrize(
    ("text", "words", "links"),
    [
        ("v5e:16x16", "fsdp=256", 4.0),  # two rings, both ways
        ("v5e:8x8", "fsdp=64", 2.0),  # two lines
        ("v5e:8x16", "fsdp=128", 3.0),  # a line and a ring
        ("v5p:4x4x4", "fsdp=64", 6.0),  # three rings
        ("v5p:4x4x8", "fsdp=16,tensor=8", 4.0),
    ],
)
def test_whole_dimensions_add_up(text, words, links):
    """Per device the links that leave it and stay inside the group: what StrategyND keeps busy."""
    assert place(parse_layout(words), parse_target(text)).routes["fsdp"][0].links == pytest.approx(links)


def test_unequal_dimensions_take_as_long_as_their_slowest_schedule():
    """A 2-line and a 16-ring: two pieces in opposite order, x of the bytes gathers along the ring first.

    Line: x/2 + (1-x)/32 of the array over 1 link; ring: (1-x) 15/16 + x 15/32 over 2 links. Equal at x = 28/45, where
    each takes 31/96 of the array: 31/32 in 31/96 is 3 links.
    """
    route = place(parse_layout("fsdp=32"), parse_target("v5e:2x16")).routes["fsdp"][0]
    x = 28 / 45
    assert x / 2 + (1 - x) / 32 == pytest.approx(((1 - x) * 15 / 16 + x * 15 / 32) / 2) == pytest.approx(31 / 96)
    assert route.links == pytest.approx(3.0)


@pytest.mark.parametrize(("text", "words"), [*ONE_RING, ("v5e:16x16", "fsdp=256"), ("v5p:4x4x4", "fsdp=64")])
def test_all_to_all_spread_and_shift_share_are_the_busiest_link(text, words):
    target = parse_target(text)
    placement = place(parse_layout(words), target)
    for axis, routes in placement.routes.items():
        if not routes:
            continue
        groups, size = groups_of(placement, axis), routes[0].size
        pairs = [(a, b, 1 / size) for group in groups for a, b in itertools.permutations(group, 2)]
        assert routes[0].spread == pytest.approx(busiest(pairs, torus(target))), axis
        shifts = [(a, b, 1.0) for group in groups for a, b in zip(group, group[1:] + group[:1], strict=True)]
        assert busiest(shifts, torus(target)) <= routes[0].share, axis


TARGETS = ["v5e:16x16", "v5e:4x8", "v5p:4x4x4*2", "v5p:4x4x12", "tpu7x:2x2x2", "h100:8x8", "gb200:2x72", "cpu:8"]


@st.composite
def layouts_on(draw):
    target = parse_target(draw(st.sampled_from(TARGETS)))
    sizes = dict.fromkeys(OUTERMOST_FIRST, 1)
    left = target.devices
    for prime in (2, 3):
        while left % prime == 0:
            sizes[draw(st.sampled_from(OUTERMOST_FIRST))] *= prime
            left //= prime
    schedule = "gpipe" if sizes["stage"] > 1 else None
    return Layout(**sizes, schedule=schedule, order=tuple(draw(st.permutations(OUTERMOST_FIRST)))), target


@settings(deadline=None, max_examples=150)
@given(layouts_on())
def test_every_layout_that_multiplies_has_a_place(case):
    layout, target = case
    placement = place(layout, target)
    order = placement.device_order()
    assert order.shape == tuple(layout.mesh_shape.values())
    assert sorted(order.flat) == list(range(target.devices))
    for axis, routes in placement.routes.items():
        assert math.prod(route.size for route in routes) == layout.axes[axis]
        assert all(route.links > 0 and route.size > 1 and route.lanes for route in routes)
    assert math.prod(placement.outer.values()) == target.groups


@settings(deadline=None, max_examples=50)
@given(layouts_on())
def test_the_outer_factor_of_an_axis_is_what_changes_the_group(case):
    layout, target = case
    placement = place(layout, target)
    groups = placement.device_order() // target.devices_per_group
    for position, axis in enumerate(layout.order):
        rows = np.moveaxis(groups, position, -1).reshape(-1, layout.axes[axis])
        assert all(len(set(row)) == placement.outer[axis] for row in rows)
        # Within a row the group changes slowest: the inner part of an axis is contiguous.
        assert all((np.diff(row) != 0).sum() == placement.outer[axis] - 1 for row in rows)


def test_routes_together_cover_both_axes():
    placement = place(parse_layout("data=4,fsdp=16,tensor=4"), parse_target("v5e:16x16"))
    together = placement.route(("data", "fsdp", "tensor"))
    assert [(route.size, route.links) for route in together] == [(256, 4.0)]
    assert placement.route(("tensor", "data"))[0].size == 16


def test_tiers_of_an_axis_that_spans_domains():
    placement = place(parse_layout("fsdp=64"), parse_target("h100:8x8"))
    assert [(route.tier, route.size) for route in placement.routes["fsdp"]] == [("nvlink", 8), ("network", 8)]
    placement = place(parse_layout("data=2,fsdp=32,tensor=2"), parse_target("tpu7x:4x4x2*2"))
    assert [route.tier for route in placement.routes["tensor"]] == ["d2d"]
    assert [route.tier for route in placement.routes["data"]] == ["dcn"]
    assert [(route.tier, route.size) for route in placement.routes["fsdp"]] == [("ici", 32)]


def test_default_dcn_fills_default_outer_factors_and_keeps_what_is_given():
    target = parse_target("h100:8x8")
    assert str(default_dcn(parse_layout("data=4,fsdp=16"), target)) == "data=4,fsdp=16,dcn.data=4,dcn.fsdp=2"
    given = parse_layout("data=4,fsdp=16,dcn.fsdp=8")
    assert default_dcn(given, target) is given
    assert default_dcn(parse_layout("fsdp=8"), parse_target("h100:1x8")) == parse_layout("fsdp=8")
    three = Target(name="three", hardware=load_hardware("cpu"), shape=(2,), groups=3, attached=False)
    assert default_dcn(parse_layout("data=6"), three).dcn == (("data", 3),)
    assert math.prod(default_outer_factors({"data": 6, "fsdp": 6, "tensor": 2}, 12).values()) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fsdp=8,tensor=4", "fsdp=8 x tensor=4 = 32 devices, h100:8x8 has 64"),
        ("fsdp=64,dcn.fsdp=4", "dcn.fsdp=4 = 4, h100:8x8 has 8 slices or domains"),
    ],
)
def test_what_does_not_multiply_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        place(parse_layout(words), parse_target("h100:8x8"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5e:16x16", ((16, True), (16, True))),
        ("v5e:8x16", ((8, False), (16, True))),
        ("v5p:4x4x8", ((4, True), (4, True), (8, True))),
        ("v5p:2x4x4", ((2, False), (4, False), (4, False))),
        ("h100:2x8", ((8, False),)),
    ],
)
def test_what_wraps(text, expected):
    assert torus(parse_target(text)) == expected


def test_whole_dimensions_go_before_faster_blocks():
    """On a 4x4 without wraps a 2x2 block would be a ring and a row is a line; but rows and columns overlap."""
    assert assign(((4, False), (4, False)), (4, 4)) == ((1, 4), (4, 1))
    assert assign(((4, True), (4, True), (4, True)), (4, 16)) == ((1, 1, 4), (4, 4, 1))


def test_an_axis_smaller_than_a_dimension_is_a_block_with_a_ring():
    assert assign(((16, True), (16, True)), (4, 64)) == ((2, 2), (8, 8))


@pytest.mark.parametrize(
    "dimensions",
    [
        ((4, True), (4, True), (4, True)),
        ((2, False), (4, False), (4, False)),
        ((8, False), (16, True)),
        ((6, False), (6, False)),
        ((4, True), (4, False)),
        ((4, True), (12, True)),
    ],
)
def test_the_search_finds_what_the_rule_says_of_every_table(dimensions):
    """`assign` against its docstring, read off all the tables there are."""

    def rank(table):
        factors = pieces(dimensions, table)
        parted = any(factor.size != factor.extent for row in factors for factor in row)
        halved = [(math.prod(row), factor, 0.5**i) for i, (row, factor) in enumerate(zip(table, factors, strict=True))]
        seconds = sum((size - 1) / size / ring_links(factor) * weight for size, factor, weight in halved)
        return parted, round(seconds, 9), sum(ring_hops(factor) * weight for _, factor, weight in halved), table

    extents = tuple(extent for extent, _ in dimensions)
    devices = math.prod(extents)
    for cut in itertools.chain.from_iterable(splits(devices, (devices,) * count) for count in range(1, 5)):
        if min(cut) > 1:
            rows = itertools.product(*(tuple(splits(size, extents)) for size in cut))
            tables = [table for table in rows if tuple(map(math.prod, zip(*table, strict=True))) == extents]
            assert assign(dimensions, cut) == min(tables, key=rank), cut
