"""Splitting module text: what an instruction is, where a computation ends, whose source line it has."""

import pytest

from autotune.hlo.shape import read_shapes
from autotune.hlo.text import read_module

MODULE = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}, num_partitions=4

FileNames
1 "models/network.py"
2 "/usr/lib/python3.11/site-packages/flax/linear.py"

FunctionNames
1 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=40 end_line=40 column=1 end_column=9}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%inner (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %kernel.1 = (f32[8]{0:T(8,128)S(1)}, u32[]) custom-call(%p), custom_call_target="kernel", attributes={metadata={
"nested":{
"text":"a } brace, \\"quoted\\""
}
}}, metadata={op_name="jit(step)/kernel" stack_frame_id=2}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %pair = ((f32[8]{0}), /*index=1*/f32[8]{0:T(8,128)}) all-gather-start(%a), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %sum = f32[8]{0} add(%a, /*index=1*/%a), metadata={op_name="jit(step)/add" stack_frame_id=1}
}
"""


def test_an_instruction_ends_where_its_braces_close():
    module = read_module(MODULE)
    assert set(module.computations) == {"inner", "main"} and module.entry == "main"
    assert [op.name for op in module.computations["inner"].ops] == ["p", "kernel.1"]
    kernel = module.computations["inner"].root
    assert kernel.word("custom_call_target") == "kernel"
    assert module.scope(kernel) == "jit(step)/kernel"


def test_tuples_operands_and_attributes_are_kept_apart():
    start, root = read_module(MODULE).computations["main"].ops[1:]
    assert start.opcode == "all-gather-start" and start.operands == ("a",)
    assert [shape.bytes for shape in start.shapes] == [32, 32]
    assert root.operands == ("a", "a") and root.root


def test_source_is_the_users_innermost_line():
    module = read_module(MODULE)
    # The frame itself is in site-packages, its parent (written one too high) is the user's.
    assert module.source(module.computations["inner"].root) == "models/network.py:40"
    assert module.source(module.computations["main"].root) == "models/network.py:40"


def test_partitions_come_from_the_header():
    assert read_module(MODULE).partitions == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("module @jit_step {}", "HloModule"),
        ("HloModule a, entry_computation_layout={()->f32[]}\n", "is_scheduled"),
        ("HloModule a, is_scheduled=true\n\n%f (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}\n", "ENTRY"),
    ],
)
def test_other_text_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        read_module(text)


@pytest.mark.parametrize(
    ("text", "size", "space"),
    [
        ("bf16[4,1024]{1,0:T(8,128)(2,1)S(1)}", 8192, 1),
        ("pred[3,3]{1,0}", 9, 0),
        ("s4[5]{0}", 3, 0),
        ("f8e4m3fn[16]{0:S(5)}", 16, 5),
        ("f32[]", 4, 0),
        ("token[]", 0, 0),
    ],
)
def test_shapes(text, size, space):
    (shape,) = read_shapes(text)
    assert (shape.bytes, shape.space) == (size, space)
