"""Targets: what a text names, and what it refuses."""

import pytest

from autotune.meshes.hardware import hardware_names, load_hardware
from autotune.meshes.target import LARGEST_TARGET, parse_target, slice_shapes

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


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("v5e-256", "v5e:16x16"),
        ("v5litepod-16", "v5e:4x4"),
        ("V5LitePod-8", "v5e:2x4"),
        ("v5p-128", "v5p:4x4x4"),
        ("v5p-8*2", "v5p:2x2x1*2"),
        ("v4-64", "v4:2x4x4"),
        ("v6e-64", "v6e:8x8"),
        ("H100:1x8", "h100:1x8"),
        ("V5P:4X4X4*2", "v5p:4x4x4*2"),
        (" A100-80:2x8 ", "a100-80:2x8"),
        ("CPU:8", "cpu:8"),
    ],
)
def test_other_spellings_are_understood(text, same):
    assert parse_target(text) == parse_target(same)


@pytest.mark.parametrize("text", ["cpu:1048576", "h100:131072x8", "v5e:16x16*4096"])
def test_the_largest_target_and_one_device_more(text):
    assert parse_target(text).devices == LARGEST_TARGET
    larger = text.replace("1048576", "1048577").replace("131072", "131073").replace("4096", "4097")
    with pytest.raises(ValueError, match=r"devices; at most 1,048,576 are looked at"):
        parse_target(larger)


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
        ("h100:8", "write h100:DOMAINSxGPUS, e.g. h100:1x8"),
        ("h100:64", "write h100:DOMAINSxGPUS, e.g. h100:8x8"),
        ("h100:12", "write h100:DOMAINSxGPUS, e.g. h100:2x8"),
        ("a100:1x8", "write a100-40:1x8 or a100-80:1x8"),
        ("v100", "write v100-16 or v100-32"),
        ("v5e-100", "the number counts chips; offered: v5e-1, v5e-4"),
        ("v5p-100", "the number counts TensorCores, 2 a chip; offered: v5p-8"),
        ("tpu7x-64", "'tpu7x-64' is not known; did you mean 'tpu7x'"),
        ("h10:1x8", "did you mean 'h100'"),
        ("cpu:100000000", "has 100,000,000 devices; at most 1,048,576"),
        ("h100:999999999x999999999", "at most 1,048,576"),
        ("cpu:" + "9" * 30, "has no shape"),
        ("a100:1x8\x1b[2J", "holds a control character"),
        ("h100:2x8*2", r"\*N counts TPU slices"),
        ("cpu:2x2x2", "write cpu:8 or cpu:HOSTSxDEVICES"),
    ],
)
def test_a_bad_target_is_one_line_with_the_rule(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_target(text)
    assert str(error.value).isprintable() and text.strip("\x1b[2J") in str(error.value)


def test_hardware_of_ones_own_replaces_the_file():
    mine = load_hardware("h100")
    assert parse_target("whatever:2x8", mine).hardware is mine
