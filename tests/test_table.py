"""The table of layouts: rows come back as the layouts they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autotune.meshes.layout import AXES, Layout, parse_layout
from autotune.table import COLUMNS, LayoutTable

LAYOUTS = (
    Layout(),
    parse_layout("data=2,fsdp=16,tensor=4,dcn.data=2,zero=1,remat=full,accumulate=2"),
    parse_layout("stage=4,data=2,microbatches=8,schedule=circular,virtual_stages=2,sequence_parallel=0"),
    parse_layout(
        "context=4,expert=2,context_attention=ring,offload=optimizer,order=tensor>expert>context>fsdp>data>stage"
    ),
    parse_layout("fsdp=8,xla.some_flag=true,rule.mlp=tensor+fsdp"),
)


def test_a_row_is_the_layout_it_was_made_of():
    table = LayoutTable.from_layouts(LAYOUTS)
    assert tuple(table.layout(row) for row in range(len(table))) == LAYOUTS
    assert table.devices.tolist() == [layout.devices for layout in LAYOUTS]
    assert table.batch_shards.tolist() == [layout.batch_shards for layout in LAYOUTS]


def test_taking_and_joining_keep_rows():
    table = LayoutTable.from_layouts(LAYOUTS)
    assert tuple(table.take(np.array([3, 1])).layout(row) for row in range(2)) == (LAYOUTS[3], LAYOUTS[1])
    joined = LayoutTable.concat([LayoutTable.from_layouts([layout]) for layout in LAYOUTS])
    assert tuple(joined.layout(row) for row in range(len(joined))) == LAYOUTS


def test_every_field_of_a_layout_is_held():
    held = {name.removeprefix("dcn_") for name in COLUMNS} | {"dcn", "compiler_options", "rules"}
    assert {field.name for field in dataclasses.fields(Layout)} <= held


def test_columns_of_different_length_are_refused():
    table = LayoutTable.from_layouts(LAYOUTS)
    with pytest.raises(ValueError, match="zero"):
        dataclasses.replace(table, zero=np.zeros(3, dtype=np.int64))
    assert table.orders[0] == AXES
