"""Trip counts: what the text states, what must be derived, and what cannot be known."""

import pytest

from autotune.hlo.read import read_program
from autotune.program import Done, Loop, Memory, Start, walk

NO_MEMORY = Memory(
    peak_bytes=0, argument_bytes=0, output_bytes=0, temporary_bytes=0, alias_bytes=0, host_bytes=0, by_category={},
    largest=(),
)  # fmt: skip


def program(text, devices=1):
    return read_program(text, platform="tpu", mesh_shape={"data": devices}, devices_per_group=devices, memory=NO_MEMORY)


def module(*, first="0", step="1", compare="LT", bound="8", config=""):
    return f"""HloModule m, is_scheduled=true, num_partitions=1

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %y = f32[8]{{0}} multiply(%x, %x)
  ROOT %t = (s32[], f32[8]{{0}}) tuple(%next, %y)
}}

%condition (q: (s32[], f32[8])) -> pred[] {{
  %q = (s32[], f32[8]{{0}}) parameter(0)
  %bound = s32[] constant({bound})
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %bound), direction={compare}
}}

ENTRY %main (a: f32[8], n: s32[]) -> (s32[], f32[8]) {{
  %a = f32[8]{{0}} parameter(0)
  %n = s32[] parameter(1)
  %first = s32[] {"constant(" + first + ")" if first.lstrip("-").isdigit() else "copy(%n)"}
  %moved = s32[] copy(%first)
  %start = (s32[], f32[8]{{0}}) tuple(%moved, %a)
  ROOT %loop = (s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body{config}
}}
"""


@pytest.mark.parametrize(
    ("says", "trips"),
    [
        ({}, 8),
        ({"first": "1"}, 7),  # the first iteration peeled off
        ({"first": "1", "bound": "7", "compare": "LE"}, 7),
        ({"step": "3"}, 3),
        ({"first": "8", "step": "-2", "compare": "GT", "bound": "0"}, 4),
        ({"bound": "5", "compare": "NE"}, 5),
        ({"first": "9"}, 0),
        ({"config": ', backend_config={"known_trip_count":{"n":"4"}}', "first": "unknown"}, 4),
    ],
)
def test_trips(says, trips):
    found = program(module(**says))
    (loop,) = (op for op in found.instructions if isinstance(op, Loop))
    assert loop.trips == trips
    # 8 floats read twice and written by the multiply, each time.
    executed = [(op.hbm_bytes, times) for op, times in walk(found.instructions) if op.name == "y"]
    assert executed == [(96.0, trips)]


@pytest.mark.parametrize("says", [{"first": "unknown"}, {"step": "0"}])
def test_trips_that_cannot_be_read_are_warned_of(says):
    found = program(module(**says))
    assert found.instructions[-1].trips == 1
    assert found.warnings == ("loop: its trip count cannot be read; counted once",)


def test_the_bound_may_come_from_outside_the_loop():
    text = module().replace("(s32[], f32[8])", "(s32[], f32[8], s32[])").replace("f32[8]{0})", "f32[8]{0}, s32[])")
    text = text.replace("%bound = s32[] constant(8)", "%bound = s32[] get-tuple-element(%q), index=2")
    text = text.replace("tuple(%next, %y)", "tuple(%next, %y, %kept)").replace(
        "%y = f32", "%kept = s32[] get-tuple-element(%p), index=2\n  %y = f32"
    )
    text = text.replace("tuple(%moved, %a)", "tuple(%moved, %a, %five)").replace(
        "%moved = ", "%five = s32[] constant(5)\n  %moved = "
    )
    assert program(text).instructions[-1].trips == 5


PIPELINED = """HloModule m, is_scheduled=true, num_partitions=2

%body (p: (s32[], (f32[8], f32[16]))) -> (s32[], (f32[8], f32[16])) {
  %p = (s32[], (f32[8]{0}, f32[16]{0})) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %flying = (f32[8]{0}, f32[16]{0}) get-tuple-element(%p), index=1
  %gathered = f32[16]{0} all-gather-done(%flying)
  %half = f32[8]{0} slice(%gathered), slice={[0:8]}
  %again = (f32[8]{0}, f32[16]{0}) all-gather-start(%half), channel_id=2, replica_groups={{0,1}}, dimensions={0}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], (f32[8]{0}, f32[16]{0})) tuple(%next, %again)
}

%condition (q: (s32[], (f32[8], f32[16]))) -> pred[] {
  %q = (s32[], (f32[8]{0}, f32[16]{0})) parameter(0)
  %bound = s32[] constant(3)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[16] {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %first = (f32[8]{0}, f32[16]{0}) all-gather-start(%a), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %start = (s32[], (f32[8]{0}, f32[16]{0})) tuple(%zero, %first)
  %loop = (s32[], (f32[8]{0}, f32[16]{0})) while(%start), condition=%condition, body=%body
  %last = (f32[8]{0}, f32[16]{0}) get-tuple-element(%loop), index=1
  ROOT %end = f32[16]{0} all-gather-done(%last)
}
"""


def test_a_pipelined_collective_keeps_one_token_through_prologue_loop_and_epilogue():
    found = program(PIPELINED, devices=2)
    steps = [(type(op), op.token, trips) for op, trips in walk(found.instructions) if isinstance(op, (Start, Done))]
    (token,) = {name for _, name, _ in steps}
    assert steps == [(Start, token, 1), (Done, token, 3), (Start, token, 3), (Done, token, 1)]


def test_a_plain_all_reduce_starts_and_ends_at_once():
    text = """HloModule m, is_scheduled=true, num_partitions=4

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %same = f32[8]{0} all-reduce(%a), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %r = f32[8]{0} all-reduce(%same), replica_groups=[2,2]<=[4], to_apply=%add
}
"""
    start, done = program(text, devices=4).instructions  # groups of one device move nothing
    assert isinstance(start, Start) and done == Done(token=start.token)
    collective = start.collective
    assert (collective.kind, collective.group_size, collective.axes) == ("all_reduce", 2, ("data",))
    assert (collective.payload_bytes, collective.wire_bytes, collective.dtype) == (32, 32, "float32")
