"""Layouts in words: printing and parsing are inverse, and what cannot be is refused with the rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.meshes.layout import AXES, OUTERMOST_FIRST, REMAT, SCHEDULES, Layout, layout_from_words, parse_layout

NAME = st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=8)
OPTION = st.text("abcdefghijklmnopqrstuvwxyz_0", max_size=8).map("xla_a{}".format)


@st.composite
def layouts(draw):
    inner = {axis: draw(st.sampled_from([1, 2, 3, 5])) for axis in AXES}
    outer = {axis: draw(st.sampled_from([1, 1, 2])) for axis in AXES}
    sizes = {axis: inner[axis] * outer[axis] for axis in AXES}
    pipeline = {}
    if sizes["stage"] > 1:
        pipeline["schedule"] = draw(st.sampled_from(SCHEDULES))
        pipeline["microbatches"] = draw(st.integers(1, 64))
        pipeline["virtual_stages"] = draw(st.integers(1, 4))
    options = draw(st.dictionaries(OPTION, st.text("abc0=+/_", min_size=1, max_size=6), max_size=2))
    rules = draw(st.dictionaries(NAME, st.lists(st.sampled_from(AXES), max_size=2, unique=True), max_size=2))
    return Layout(
        **sizes,
        **pipeline,
        dcn=tuple(outer.items()),
        zero=draw(st.sampled_from([0, 1, 2])),
        remat=draw(st.sampled_from(REMAT)),
        accumulate=draw(st.integers(1, 9)),
        sequence_parallel=draw(st.booleans()),
        context_attention=draw(st.sampled_from(["gather", "ring"])),
        offload=draw(st.sampled_from(["none", "optimizer"])),
        order=tuple(draw(st.permutations(OUTERMOST_FIRST))),
        compiler_options=tuple(options.items()),
        rules=tuple((name, tuple(axes)) for name, axes in rules.items()),
    )


@given(layouts())
def test_parse_undoes_print(layout):
    assert parse_layout(str(layout)) == layout
    assert layout_from_words(layout.words()) == layout
    assert hash(parse_layout(str(layout))) == hash(layout)


@given(layouts())
def test_sizes_multiply(layout):
    total = 1
    for size in layout.mesh_shape.values():
        total *= size
    assert total == layout.devices
    assert tuple(layout.mesh_shape) == layout.order
    assert all(layout.axes[axis] % factor == 0 for axis, factor in layout.dcn_axes.items())


def test_the_words_are_the_documented_ones():
    text = (
        "data=2,fsdp=16,tensor=4,stage=2,dcn.data=2,zero=1,remat=full,accumulate=2,microbatches=8,"
        "schedule=circular,virtual_stages=2"
    )
    layout = parse_layout(text)
    assert str(layout) == text
    assert layout.devices == 256 and layout.batch_shards == 32
    assert str(Layout()) == "data=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("fsdp", "'fsdp' must be written name=value"),
        ("fsdp=", "must be written name=value"),
        ("fsdp=two", "fsdp='two' must be a whole number"),
        ("fsdp=0", "fsdp=0 must be a whole number, 1 or more"),
        ("fsdp=2,fsdp=4", "fsdp is given twice"),
        ("tensr=2", "'tensr' is not known; known: data, fsdp, tensor"),
        ("dcn.data=2", "dcn.data=2 must divide data=1"),
        ("data=4,dcn.rows=2", "dcn.rows is not a mesh axis"),
        ("remat=some", "remat='some' must be one of none, dots"),
        ("zero=3", "zero=3 must be one of 0, 1, 2"),
        ("stage=2", "needs a schedule, one of gpipe"),
        ("microbatches=4", "need stage above 1"),
        ("order=data>fsdp", "must name each of"),
        ("sequence_parallel=yes", "must be 0 or 1"),
        ("rule.embed=rows", "is not a mesh axis"),
    ],
)
def test_bad_words_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_layout(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"compiler_options": (("xla_flag", "1,2"),)},
        {"compiler_options": (("xla_flag", ""),)},
        {"compiler_options": (("a", "1"), ("a", "2"))},
        {"rules": (("embed", ("fsdp",)), ("embed", ()))},
        {"rules": (("em bed", ()),)},
    ],
)
def test_what_no_text_can_say_is_refused(wrong):
    with pytest.raises(ValueError, match="layout: "):
        Layout(**wrong)
