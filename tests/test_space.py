"""The space against a brute-force enumeration written to be read."""

import itertools
import math

import pytest

from autotune.meshes.layout import AXES, Layout
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.meshes.target import Target, parse_target
from autotune.space import axis_sizes, divisors, enumerate_layouts, outer_factors, parse_fix


def test_divisors_by_trial():
    for number in range(1, 200):
        assert divisors(number) == tuple(d for d in range(1, number + 1) if number % d == 0)


@pytest.mark.parametrize("devices", [1, 6, 8, 12, 64])
def test_axis_sizes_by_trial(devices):
    axes = ("data", "fsdp", "tensor")
    found = [tuple(sizes[name] for name in axes) for sizes in axis_sizes(devices, axes, {})]
    expected = [sizes for sizes in itertools.product(range(1, devices + 1), repeat=3) if math.prod(sizes) == devices]
    assert found == expected


def test_outer_factors_divide_the_axes_and_multiply_to_the_groups():
    found = list(outer_factors({"data": 4, "fsdp": 6, "tensor": 1}, 4, {}))
    assert found == [{"data": 2, "fsdp": 2}, {"data": 4, "fsdp": 1}]


def brute_force(target: Target, batch: int) -> set[str]:
    """Every layout over data, fsdp, tensor, by loops over all values of every choice."""
    found = set()
    remats = [
        name
        for name in ("none", "dots", "attention", "minimal", "full", "offload")
        if name != "offload" or target.platform == "tpu"
    ]
    for data, fsdp, tensor in itertools.product(range(1, target.devices + 1), repeat=3):
        if data * fsdp * tensor != target.devices:
            continue
        for zero, remat, power in itertools.product((0, 1, 2), remats, range(10)):
            if (zero and data == 1) or (power and 2**power * data * fsdp > batch):
                continue
            layout = Layout(data=data, fsdp=fsdp, tensor=tensor, zero=zero, remat=remat, accumulate=2**power)
            found.add(str(layout))
    return found


@pytest.mark.parametrize("name", ["cpu:8", "v5e:2x2"])
def test_space_is_the_brute_force_one(name):
    target = parse_target(name)
    table = enumerate_layouts(target, ("data", "fsdp", "tensor"), 16, 2, {})
    found = [str(table.layout(row)) for row in range(len(table))]
    assert len(set(found)) == len(found)
    assert set(found) == brute_force(target, 16)


def test_every_layout_of_two_slices_crosses_them():
    target = parse_target("v5e:2x2*2")
    table = enumerate_layouts(target, AXES, 16, 4, {})
    layouts = [table.layout(row) for row in range(len(table))]
    assert {math.prod(layout.dcn_axes.values()) for layout in layouts} == {2}
    assert {layout.devices for layout in layouts} == {8}
    assert any(layout.stage == 2 and layout.schedule == "circular" for layout in layouts)


def test_fixed_words_are_kept_by_every_layout():
    target = parse_target("cpu:8")
    fixed = parse_fix(("tensor=2,remat=full", "zero=1"))
    table = enumerate_layouts(target, ("data", "fsdp", "tensor"), 16, 2, fixed)
    layouts = [table.layout(row) for row in range(len(table))]
    assert layouts and all((one.tensor, one.remat, one.zero) == (2, "full", 1) for one in layouts)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (("tensor",), "name=value"),
        (("tenser=2",), "'tenser' is not known"),
        (("remat=most",), "remat='most' must be one of"),
        (("dcn.speed=2",), "dcn.speed"),
        (("schedule=fast",), "schedule='fast' must be one of"),
    ],
)
def test_bad_fix_names_the_word(texts, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_fix(texts)


def test_a_pin_that_no_mesh_can_keep_is_refused():
    with pytest.raises(ValueError, match="8 devices with these pinned: tensor=3"):
        enumerate_layouts(parse_target("cpu:8"), ("data", "tensor"), 16, 2, {"tensor": "3"})


def test_pinned_words_that_no_column_holds_reach_every_layout():
    fixed = parse_fix(("xla.xla_some_option=true", "rule.mlp=none"))
    table = enumerate_layouts(parse_target("cpu:4"), ("data", "fsdp"), 8, 2, fixed)
    taken = table.take(slice(1, 3))
    for layout in (table.layout(0), taken.layout(0)):
        assert layout.compiler_options == (("xla_some_option", "true"),)
        assert layout.rules == (("mlp", ()),)


def every(table) -> set[Layout]:
    return {table.layout(row) for row in range(len(table))}


@pytest.mark.parametrize(
    "axes", [("fsdp", "tensor", "stage"), ("data", "stage"), ("data", "expert", "stage", "context")]
)
def test_a_pin_of_what_is_searched_keeps_a_part_of_the_space(axes):
    """Both words of a pair that is not searched together, pinned, leave the space: accumulation beside a pipeline."""
    target = parse_target("v5e:2x4")
    whole = every(enumerate_layouts(target, axes, 64, 32, {}))
    pins = {f"{name}={size}": None for name in ("accumulate", *axes) for size in (1, 2, 4)}
    for word in LAYOUT_WORDS.values():
        if word.kind in ("choice", "flag") and word.searched:
            pins |= {f"{word.name}={word.text(value)}": word.needs_axis for value in word.searched_on("tpu")}
    for pin, axis in pins.items():
        try:
            part = every(enumerate_layouts(target, axes, 64, 32, parse_fix((pin,))))
        except ValueError:  # no mesh has it
            continue
        # Without its axis a word says nothing: such a layout is another spelling of one that is searched.
        part = {layout for layout in part if axis is None or layout.axes[axis] > 1}
        assert part <= whole, (pin, next(iter(part - whole)))
    both = enumerate_layouts(target, axes, 64, 32, parse_fix(("accumulate=2,stage=2",)))
    assert {(layout.accumulate, layout.stage) for layout in every(both)} == {(2, 2)}
