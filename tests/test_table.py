"""The table of layouts: rows come back as the layouts they were."""

from __future__ import annotations

import dataclasses

import numpy as np

from autotune.meshes.layout import Layout, parse_layout
from autotune.table import LayoutTable

LAYOUTS = (
    Layout(),
    parse_layout("data=2,fsdp=16,tensor=4,dcn.data=2,zero=1,remat=full,accumulate=2"),
    parse_layout("stage=4,data=2,microbatches=8,schedule=circular,virtual_stages=2,sequence_parallel=0"),
    parse_layout(
        "context=4,expert=2,context_attention=ring,offload=optimizer,order=tensor>expert>context>fsdp>data>stage"
    ),
)


def test_a_row_is_the_layout_it_was_made_of():
    table = LayoutTable.from_layouts(LAYOUTS)
    assert tuple(table.layout(row) for row in range(len(table))) == LAYOUTS


def test_taking_and_chunking_keep_rows():
    table = LayoutTable.from_layouts(LAYOUTS)
    taken = table.take(np.array([3, 1]))
    assert (taken.layout(0), taken.layout(1)) == (LAYOUTS[3], LAYOUTS[1])
    pieces = [piece.layout(row) for piece in table.chunks(3) for row in range(len(piece))]
    assert tuple(pieces) == LAYOUTS


def test_every_field_of_a_layout_has_a_column_or_is_said_to_be_left_behind():
    held = {name.removeprefix("dcn_") for name in LayoutTable.columns()} | {"dcn", "compiler_options", "rules"}
    assert {field.name for field in dataclasses.fields(Layout)} <= held
