"""Memory of a compiled step: live ranges counted by hand, totals against the three backends' own readings."""

import dataclasses
import importlib.util

import pytest
import toy_steps

from autotune.compile.compile import Candidate, Compilation, compile_all
from autotune.hlo.liveness import liveness, padded
from autotune.hlo.memory_by_category import MEMORY_CATEGORIES, peak_bytes, read_memory
from autotune.hlo.text import read_module
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target

HEADER = """HloModule test, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

"""
LOOP = """
%body (p: (s32[], f32[1000], f32[10,1000])) -> (s32[], f32[1000], f32[10,1000]) {
  %p = (s32[], f32[1000]{0}, f32[10,1000]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[1000]{0} get-tuple-element(%p), index=1
  %saved = f32[10,1000]{1,0} get-tuple-element(%p), index=2
  %wide = f32[4000]{0} custom-call(%x), custom_call_target="widen"
  %next = f32[1000]{0} custom-call(%wide), custom_call_target="narrow"
  %row = f32[1,1000]{1,0} bitcast(%x)
  %more = f32[10,1000]{1,0} dynamic-update-slice(%saved, %row, %i, %i)
  ROOT %out = (s32[], f32[1000]{0}, f32[10,1000]{1,0}) tuple(%i, %next, %more)
}

%condition (q: (s32[], f32[1000], f32[10,1000])) -> pred[] {
  %q = (s32[], f32[1000]{0}, f32[10,1000]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %go = pred[] custom-call(%j), custom_call_target="less"
}

ENTRY %main (state: f32[1000]) -> (f32[1000]) {
  %state = f32[1000]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = f32[1000]{0} copy(%state)
  %empty = f32[10,1000]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %carry = (s32[], f32[1000]{0}, f32[10,1000]{1,0}) tuple(%zero, %start, %empty)
  %loop = (s32[], f32[1000]{0}, f32[10,1000]{1,0}) while(%carry), condition=%condition, body=%body
  %all = f32[10,1000]{1,0} get-tuple-element(%loop), index=2
  %new = f32[1000]{0} custom-call(%all), custom_call_target="reduce"
  ROOT %result = (f32[1000]{0}) tuple(%new)
}
"""


def peak_of(text: str, platform: str = "cpu") -> int:
    """Bytes of the program's own buffers at their peak."""
    lives = liveness(read_module(HEADER + text.lstrip("\n")), platform)
    moment = lives.peak_moment()
    return sum(
        buffer.bytes for buffer in lives.buffers if buffer.argument is None and buffer.begin <= moment <= buffer.end
    )


def test_a_loop_by_hand():
    """Inside the loop: x and the ten saved rows are carried, one wide buffer beside them; the next x is x's own place
    (the body writes it where the loop carries it), the update is in place, the new state is the old one's memory."""
    assert peak_of(LOOP) == 4 * (1000 + 10 * 1000 + 4000)


def test_nothing_is_counted_after_its_last_use():
    chain = """
ENTRY %main (a: f32[1000]) -> (f32[1000]) {
  %a = f32[1000]{0} parameter(0)
  %b = f32[3000]{0} custom-call(%a), custom_call_target="one"
  %c = f32[2000]{0} custom-call(%b), custom_call_target="two"
  %d = f32[500]{0} custom-call(%c), custom_call_target="three"
  %e = f32[1000]{0} custom-call(%d), custom_call_target="four"
  ROOT %result = (f32[1000]{0}) tuple(%e)
}
"""
    assert peak_of(chain) == 4 * (3000 + 2000)


def test_a_result_over_its_dying_operand():
    """Element-wise work writes over an operand that nobody reads again; over one that is read again it cannot."""
    reused = """
ENTRY %main (a: f32[1000]) -> (f32[1000]) {
  %a = f32[1000]{0} parameter(0)
  %b = f32[1000]{0} custom-call(%a), custom_call_target="one"
  %c = f32[1000]{0} multiply(%b, %b)
  %e = f32[1000]{0} custom-call(%c), custom_call_target="four"
  ROOT %result = (f32[1000]{0}) tuple(%e)
}
"""
    assert peak_of(reused) == 4 * 1000
    assert peak_of(reused.replace("custom-call(%c)", "custom-call(%c, %b)")) == 4 * 2000


def test_an_async_copy_and_the_memory_it_goes_to():
    """A copy into a TPU core's own memory takes none of the device's, elsewhere it does; host memory never."""
    copies = """
ENTRY %main (a: f32[1024]) -> (f32[1024]) {
  %a = f32[1024]{0} parameter(0)
  %b = f32[1024]{0} custom-call(%a), custom_call_target="one"
  %start = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%b)
  %near = f32[1024]{0:S(1)} copy-done(%start)
  %away = (f32[1024]{0:S(5)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%b)
  %far = f32[1024]{0:S(5)} copy-done(%away)
  %e = f32[1024]{0} custom-call(%near, %far, %b), custom_call_target="two"
  ROOT %result = (f32[1024]{0}) tuple(%e)
}
"""
    assert peak_of(copies, "tpu") == 4 * 1024
    assert peak_of(copies, "cuda") == 4 * 1024 * 2 + 4  # and the second copy's u32 of state


def test_a_fusion_that_updates_in_place():
    update = """
%fused (f.0: f32[10,1000], f.1: f32[1,1000], f.2: s32[]) -> f32[10,1000] {
  %f.0 = f32[10,1000]{1,0} parameter(0)
  %f.1 = f32[1,1000]{1,0} parameter(1)
  %f.2 = s32[] parameter(2)
  ROOT %dus = f32[10,1000]{1,0} dynamic-update-slice(%f.0, %f.1, %f.2, %f.2)
}

ENTRY %main (a: f32[1,1000], i: s32[]) -> (f32[1,1000]) {
  %a = f32[1,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[10,1000]{1,0} custom-call(%a), custom_call_target="one"
  %c = f32[10,1000]{1,0} fusion(%b, %a, %i), kind=kCustom, calls=%fused
  %e = f32[1,1000]{1,0} custom-call(%c), custom_call_target="two"
  ROOT %result = (f32[1,1000]{1,0}) tuple(%e)
}
"""
    assert peak_of(update) == 4 * 10 * 1000
    assert peak_of(update.replace("custom-call(%c)", "custom-call(%c, %b)")) == 2 * 4 * 10 * 1000


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("f32[4,128,128]{2,1,0:T(8,128)}", 4 * 128 * 128 * 4),
        ("f32[3,100]{1,0:T(8,128)}", 8 * 128 * 4),
        ("f32[3,100]{0,1:T(8,128)}", 104 * 128 * 4),  # the first dimension is the minor one
        ("bf16[20,100]{1,0:T(8,128)(2,1)}", 24 * 128 * 2),
        ("s32[5]{0:T(128)}", 128 * 4),
        ("f32[3,100]{1,0}", 300 * 4),
        ("pred[]", 1),
    ],
)
def test_tile_padding_by_hand(array, size):
    assert padded(array)[0] == size


TARGETS = {"cpu": "cpu:4", "tpu": "v5e:2x2", "cuda": "h100:1x4"}
PACKAGES = {"cpu": "jax", "tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}
SIZES = {"width": 2048, "batch": 24576}


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


CASES = [
    ("cpu", "fsdp=4"), ("cuda", "fsdp=4"), ("tpu", "fsdp=4"),
    pytest.param("tpu", "fsdp=2,tensor=2", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(request):
    """The toy by each compiler that is installed; the second layout only where a test that is to run asks for it."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = [item.callspec.params.get("layout") for item in items]
    layouts = [("cpu", "fsdp=4"), ("cuda", "fsdp=4"), ("tpu", "fsdp=4")]
    layouts += [("tpu", "fsdp=2,tensor=2")] if "fsdp=2,tensor=2" in asked else []
    jobs = [
        Candidate(workload=toy_steps.toy(**SIZES), layout=parse_layout(layout), target=parse_target(TARGETS[platform]))
        for platform, layout in layouts
        if _installed(PACKAGES[platform])
    ]
    found = {}
    for _, outcome in compile_all(jobs, workers=1):
        assert isinstance(outcome, Compilation), outcome
        found[outcome.platform, outcome.layout] = outcome
    return found


def _case(compiled, platform: str, layout: str) -> Compilation:
    if (platform, layout) not in compiled:
        pytest.skip(f"{PACKAGES[platform]} is not installed")
    return compiled[platform, layout]


@pytest.mark.parametrize(("platform", "layout"), CASES)
def test_live_ranges_agree_with_the_backend(compiled, platform, layout):
    """An independent count: what the text shows live is within 10 % of what the compiler allotted."""
    compilation = _case(compiled, platform, layout)
    lives = liveness(read_module(compilation.text), platform)
    moment = lives.peak_moment()
    own = sum(b.bytes for b in lives.buffers if b.argument is None and b.begin <= moment <= b.end)
    assert own == pytest.approx(peak_bytes(compilation) - compilation.memory["argument_size_in_bytes"], rel=0.10)


@pytest.mark.parametrize(("platform", "layout"), CASES)
def test_categories_add_up_to_the_peak_and_arguments_are_exact(compiled, platform, layout):
    compilation = _case(compiled, platform, layout)
    memory = read_memory(compilation)
    assert tuple(memory.by_category) == MEMORY_CATEGORIES
    assert sum(memory.by_category.values()) == memory.peak_bytes == peak_bytes(compilation)
    assert min(memory.by_category.values()) >= 0
    parameters = 4 * toy_steps.DEPTH * SIZES["width"] ** 2 // 4
    assert memory.by_category["parameters"] == parameters
    assert parameters <= memory.by_category["optimizer_state"] <= parameters + 1024
    if platform != "tpu":  # there the toy's gradients lie in the core's own memory
        assert memory.by_category["gradients"] >= parameters


@pytest.mark.parametrize("platform", TARGETS)
def test_saved_activations_are_found_and_named(compiled, platform):
    """The backward pass needs each layer's input (at least in bfloat16) and where its relu let through."""
    memory = read_memory(_case(compiled, platform, "fsdp=4"))
    saved = toy_steps.DEPTH * SIZES["width"] * SIZES["batch"] // 4 * 2
    assert memory.by_category["activations"] >= saved
    stacked = [buffer for buffer in memory.largest if buffer.category == "activations" and buffer.bytes >= saved]
    assert stacked and "toy_steps.py" in (stacked[0].source or "")
    assert [buffer.bytes for buffer in memory.largest] == sorted((b.bytes for b in memory.largest), reverse=True)


def test_the_peak_is_the_reading_that_is_right_for_the_backend(compiled):
    compilation = compiled["cpu", "fsdp=4"]
    memory = {"argument": 100, "output": 50, "temp": 30, "alias": 40}
    figures = {f"{name}_size_in_bytes": value for name, value in memory.items()} | {"peak_memory_in_bytes": 110}
    assert peak_bytes(dataclasses.replace(compilation, memory=figures)) == 140
    assert peak_bytes(dataclasses.replace(compilation, memory=figures, platform="tpu")) == 110
