"""Targets: what a text names, and what it refuses."""

import pytest

from autotune.meshes.hardware import hardware_names, load_hardware
from autotune.meshes.target import parse_target, slice_shapes

TPUS = [name for name in hardware_names() if load_hardware(name).platform == "tpu"]


@pytest.mark.parametrize(
    ("text", "devices", "per_group", "groups", "measurable"),
    [
        ("v5e:16x16", 256, 256, 1, False),
        ("v5p:4x4x4*2", 128, 64, 2, False),
        ("tpu7x:2x2x1", 8, 8, 1, False),
        ("v4:2x2x1", 4, 4, 1, False),
        ("h100:8x8", 64, 8, 8, False),
        ("gb200:4x72", 288, 72, 4, False),
        ("cpu:8", 8, 8, 1, True),
        ("cpu:2x4", 8, 4, 2, True),
    ],
)
def test_counts(text, devices, per_group, groups, measurable):
    target = parse_target(text)
    assert (target.devices, target.devices_per_group, target.groups) == (devices, per_group, groups)
    assert target.measurable is measurable
    assert target.name == text


@pytest.mark.parametrize("chip", TPUS)
def test_every_offered_shape_is_taken(chip):
    for shape in slice_shapes(load_hardware(chip)):
        assert parse_target(f"{chip}:{shape}").devices >= 1
    assert load_hardware(chip).slices.most_chips >= 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "'v9' is not known; known: a100-40.*local"),
        ("v5e", "has no shape; write e.g. v5e:4x4"),
        ("v5e:4x", "has no shape"),
        ("v5e:0x4", "size of 0"),
        ("v5e:4x4x4", "2 dimensions, got 3; write e.g. v5e:4x4"),
        ("v5p:4x4", "3 dimensions, got 2; write e.g. v5p:4x4x4"),
        ("v5e:3x5", "even first two sizes.*offered: 1x1, 2x2, 2x4, 4x4"),
        ("v6e:16x32", "sizes up to 16"),
        ("v5p:64x64x64", "at most 8960 chips"),
        ("h100:8", "write h100:DOMAINSxGPUS"),
        ("h100:2x8*2", r"\*N counts TPU slices"),
        ("cpu:2x2x2", "write cpu:8 or cpu:HOSTSxDEVICES"),
    ],
)
def test_a_bad_target_is_one_line_with_the_rule(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_target(text)
    assert "\n" not in str(error.value) and text in str(error.value)


def test_hardware_of_ones_own_replaces_the_file():
    mine = load_hardware("h100")
    assert parse_target("whatever:2x8", mine).hardware is mine
