"""Tables at every width: nothing is cut, nothing vanishes without a word."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from autotune.tables import Column, FittedTable

WIDTHS = (60, 80, 100, 120, 200)
COLUMNS = [
    Column(name="#", align="right", heads=True),
    Column(name="layout", heads=True),
    Column(name="time", align="right"),
    Column(name="memory", align="right", priority=2),
    Column(name="binds", priority=3),
    Column(name="reason", priority=4, least=20),
]


def screen(table, width):
    console = Console(width=width, file=io.StringIO(), no_color=True, force_terminal=False)
    console.print(table)
    return console.file.getvalue()


def row(number, layout):
    return [str(number), layout, "1.21 s", "11.2 GiB, 71 %", "network:fsdp@ici 83 %", "+200 ms a step: matmul +100 ms"]


@pytest.mark.parametrize("width", WIDTHS)
def test_layouts_stand_whole_and_columns_are_shown_or_named(width):
    layouts = [
        "fsdp=64,tensor=4,remat=full",
        "data=2,fsdp=32,stage=4,microbatches=16,schedule=circular,virtual_stages=2",
    ]
    table = FittedTable(COLUMNS, [row(number, layout) for number, layout in enumerate(layouts, 1)])
    text = screen(table, width)
    assert max(map(len, text.splitlines())) <= width
    joined = re.sub(r"\s+", "", text)
    assert all(layout in joined for layout in layouts)
    dropped = re.search(r"not shown in \d+ columns: (.*)", text)
    named = dropped[1].split("; ") if dropped else []
    for column, cell in zip(COLUMNS, row(1, layouts[0]), strict=True):
        assert (re.sub(r"\s+", "", cell) in joined) != (column.name in named), column.name


def test_a_wide_terminal_has_a_table_and_a_narrow_one_records():
    table = FittedTable(COLUMNS, [row(1, "data=2,fsdp=32,tensor=4,remat=full,zero=1,accumulate=4")])
    assert screen(table, 200).splitlines()[0].split()[:3] == ["#", "layout", "time"]
    first, second, *_ = screen(table, 60).splitlines()
    assert first == "1 data=2,fsdp=32,tensor=4,remat=full,zero=1,accumulate=4"
    assert second.startswith("    time 1.21 s | memory 11.2 GiB, 71 %")


def test_columns_without_a_cell_are_left_out():
    table = FittedTable([Column(name="a"), Column(name="b")], [["x", ""]])
    assert "b" not in screen(table, 80)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text("abc=1,", min_size=1, max_size=30), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from(WIDTHS),
)
def test_every_cell_that_must_be_shown_is(rows, width):
    columns = [Column(name="name", heads=True), Column(name="one"), Column(name="two", priority=2)]
    text = screen(FittedTable(columns, rows), width)
    joined = re.sub(r"\s+", "", text)
    for cells in rows:
        assert cells[0] in joined and cells[1] in joined
        assert cells[2] in joined or "not shown" in text
