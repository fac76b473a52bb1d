# ruff: noqa: E501 - instructions stand on one line, as the compilers write them
"""FLOPs and bytes of single instructions, against counts done here by hand or by brute force."""

import base64
import itertools

import pytest
from hlo_fixtures import NO_MEMORY

from autotune.hlo.flops import _valid_pairs
from autotune.hlo.kernels import causal_blocks
from autotune.hlo.read import read_program
from autotune.program import Compute, CopyStart


def ops(body, *, platform="cuda", extra=""):
    """The instructions of a module whose entry is these lines, and its warnings."""
    text = f"HloModule m, is_scheduled=true, num_partitions=1\n\n{extra}\nENTRY %main () -> f32[] {{\n{body}\n}}\n"
    found = read_program(text, platform=platform, mesh_shape={"data": 1}, devices_per_group=1, memory=NO_MEMORY)
    return found.instructions, found.warnings


def only(body, **more):
    (op,), warnings = ops(body, **more)
    assert not warnings
    return op


def test_a_dot():
    op = only("""  %a = bf16[8,4,16]{2,1,0} parameter(0)
  %b = bf16[8,16,32]{2,1,0} parameter(1)
  ROOT %d = f32[8,4,32]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}""")
    assert (op.flops, op.matmul, op.dtype, op.kernel) == (2 * 8 * 4 * 16 * 32, (8, 4, 32, 16), "bfloat16", "matmul")
    assert op.hbm_bytes == 2 * 8 * 4 * 16 + 2 * 8 * 16 * 32 + 4 * 8 * 4 * 32


@pytest.mark.parametrize(
    ("line", "flops", "matmul"),
    [
        # A plain matmul: features contracted, length as one spatial dimension.
        (
            "bf16[4,1024,2048]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=0bf_io0->0bf",
            2 * 4 * 1024 * 512 * 2048,
            (1, 4 * 1024, 2048, 512),
        ),
        # Heads as a spatial dimension of the kernel, which padding slides over an input of size 1.
        (
            "bf16[4,1024,4,128]{3,2,1,0} convolution(%x1, %w4), window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            2 * 4 * 1024 * 512 * 4 * 128,
            (1, 4 * 1024, 4 * 128, 512),
        ),
        # Batch and heads as spatial dimensions of both: dilation leaves one product for each.
        (
            "bf16[4,4,64,64]{3,2,1,0} convolution(%q, %k), window={size=4x4 stride=3x3 lhs_dilate=4x4}, dim_labels=0b1f_0o1i->01bf",
            2 * 4 * 4 * 64 * 64 * 128,
            (16, 64, 64, 128),
        ),
        # Length contracted: the window covers the input once.
        (
            "bf16[2048,512,1]{2,1,0} convolution(%g, %h), window={size=4}, dim_labels=0fb_0io->bf0",
            2 * 2048 * 512 * 4 * 256,
            (1, 2048, 512, 4 * 256),
        ),
    ],
)
def test_tpu_matmuls_written_as_convolutions(line, flops, matmul):
    op = only(f"""  %x = bf16[4,1024,512]{{2,1,0}} parameter(0)
  %w = bf16[512,2048,1]{{2,1,0}} parameter(1)
  %x1 = bf16[4,1024,512,1]{{3,2,1,0}} parameter(2)
  %w4 = bf16[512,4,128,1]{{3,2,1,0}} parameter(3)
  %q = bf16[4,64,4,128]{{3,2,1,0}} parameter(4)
  %k = bf16[4,64,4,128]{{3,2,1,0}} parameter(5)
  %g = bf16[4,256,2048]{{2,1,0}} parameter(6)
  %h = bf16[4,256,512]{{2,1,0}} parameter(7)
  ROOT %c = {line}""")
    assert (op.flops, op.matmul) == (flops, matmul)


@pytest.mark.parametrize(
    ("target", "operands", "made"),
    [
        ("convForward", ("x", "w"), "bf16[4,7,7,32]"),
        ("convBackwardInput", ("y", "w"), "bf16[4,15,15,8]"),
        ("convBackwardFilter", ("x", "y"), "bf16[32,3,3,8]"),
    ],
)
def test_the_three_convolutions_of_cudnn_do_the_same_work(target, operands, made):
    """Labels and window are of the forward one; as h100 programs have them (jax 0.10.2)."""
    first, second = operands
    op = only(f"""  %x = bf16[4,15,15,8]{{3,2,1,0}} parameter(0)
  %w = bf16[32,3,3,8]{{3,2,1,0}} parameter(1)
  %y = bf16[4,7,7,32]{{3,2,1,0}} parameter(2)
  ROOT %c = ({made}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%{first}, %{second}), window={{size=3x3 stride=2x2}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn${target}", metadata={{}}""")
    assert op.flops == 2 * 4 * 7 * 7 * 32 * 3 * 3 * 8
    assert (op.kernel, op.dtype) == ("matmul", "bfloat16")


def test_a_convolution_counts_only_what_lies_on_the_input():
    """A 3-wide window over 8 positions with a border of 1: 8 x 3 less the two that hang over."""
    assert _valid_pairs(8, 8, 3, 1, 1, 1, 1) == 22
    for have, size, stride, low, dilation, window in itertools.product(
        (1, 4, 5), (1, 3), (1, 2), (0, 2), (1, 3), (1, 2)
    ):
        give = max(((have - 1) * dilation + 1 + 2 * low - (size - 1) * window - 1) // stride + 1, 0)
        holes = {low + index * dilation for index in range(have)}
        pairs = sum(at * stride + tap * window in holes for at in range(give) for tap in range(size))
        assert _valid_pairs(have, give, size, stride, low, dilation, window) == pairs


def test_matmuls_inside_fusions_and_called_computations_are_found():
    extra = """%inner (a: f16[64,32], b: f16[32,16]) -> f16[64,16] {
  %a = f16[64,32]{1,0} parameter(0)
  %b = f16[32,16]{1,0} parameter(1)
  ROOT %d = f16[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%outer (p: f16[64,32], q: f16[32,16]) -> f16[64,16] {
  %p = f16[64,32]{1,0} parameter(0)
  %q = f16[32,16]{1,0} parameter(1)
  %n = f16[64,16]{1,0} fusion(%p, %q), kind=kCustom, calls=%inner
  ROOT %r = f16[64,16]{1,0} add(%n, %n)
}
"""
    op = only(
        """  %x = f16[64,32]{1,0} parameter(0)
  %y = f16[32,16]{1,0} parameter(1)
  ROOT %f = f16[64,16]{1,0} fusion(%x, %y), kind=kCustom, calls=%outer, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}""",
        extra=extra,
    )
    assert (op.flops, op.kernel, op.dtype) == (2 * 64 * 32 * 16, "matmul", "float16")
    assert op.hbm_bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)


def test_cublas():
    op = only("""  %a = f16[128,64]{1,0} parameter(0)
  %b = f16[64,256]{1,0} parameter(1)
  ROOT %g = (f16[128,256]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"epilogue":"DEFAULT"}}""")
    assert (op.flops, op.matmul, op.kernel) == (2 * 128 * 64 * 256, (1, 128, 256, 64), "matmul")


@pytest.mark.parametrize(("mask", "share"), [("CAUSAL", 0.5), ("NO_MASK", 1.0)])
@pytest.mark.parametrize(("target", "matmuls"), [("__cudnn$fmhaSoftmax", 2), ("__cudnn$fmhaSoftmaxBackward", 5)])
def test_cudnn_attention(mask, share, target, matmuls):
    op = only(f"""  %q = bf16[4,2048,8,128]{{3,2,1,0}} parameter(0)
  ROOT %c = bf16[4,8,2048,128]{{3,1,2,0}} custom-call(%q, %q, %q), custom_call_target="{target}", backend_config={{"cudnn_fmha_backend_config": {{"intermediate_tensor_shape": {{"element_type": "BF16", "dimensions": ["4", "8", "2048", "2048"], "tuple_shapes": []}}, "mask_type": "{mask}"}}}}""")
    assert op.flops == share * matmuls * 2 * 4 * 8 * 2048 * 2048 * 128
    assert op.kernel == "attention"


@pytest.mark.parametrize(
    ("name", "mask", "matmuls", "share"),
    [
        ("splash_mha_fwd_residuals.3", True, 2, 0.625),
        ("splash_mha_fwd_residuals.3", False, 2, 1.0),
        ("splash_mha_dkv_no_residuals", True, 4, 0.5625),
        ("splash_mha_dq", True, 3, 0.75),
    ],
)
@pytest.mark.parametrize("devices", [1, 4])
def test_splash_attention_by_the_blocks_it_visits(name, mask, matmuls, share, devices):
    """Where queries are cut over devices, each sees its even share of what all of them see."""
    metadata = r"""{\"block_q\": 512, \"block_kv\": 512, \"block_q_dkv\": 256, \"block_kv_dkv\": 256, \"block_q_dq\": 1024, \"block_kv_dq\": 1024, \"use_fused_bwd_kernel\": false, \"q_layout\": 1}"""
    first = "%m, " if mask else ""
    op = only(
        f"""  %m = s8[1,4,4]{{2,1,0}} parameter(0)
  %q = bf16[2,8,{2048 // devices},128]{{3,2,1,0}} parameter(1)
  %k = bf16[2,8,2048,128]{{3,2,1,0}} parameter(2)
  ROOT %{name} = bf16[2,8,{2048 // devices},128]{{3,2,1,0}} custom-call({first}%q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{metadata}"
}}}}, metadata={{op_name="jit(step)/splash"}}""",
        platform="tpu",
    )
    assert op.flops == pytest.approx(share * matmuls * 2 * 2 * 8 * 2048 * 2048 * 128 / devices)


@pytest.mark.parametrize(
    ("name", "matmuls"),
    [
        ("flash_attention.3", 2),
        ("flash_mha_bwd_dq_block_q_major_512_block_k_major_512_block_k_512.1", 3),
        ("flash_mha_bwd_dkv_block_q_major_512_block_q_512_block_k_major_512_block_k_512.1", 4),
    ],
)
@pytest.mark.parametrize(("code", "share"), [(b"tpu.matmul math.exp tpu.iota", 0.5), (b"tpu.matmul math.exp", 1.0)])
def test_flash_attention_is_causal_when_its_code_counts_positions(name, matmuls, code, share):
    """Heads stand before the length, and the forward kernel's own estimate knows no mask."""
    body = base64.b64encode(code).decode()
    op = only(
        f"""  %q = bf16[2,8,2048,128]{{3,2,1,0}} parameter(0)
  ROOT %{name} = bf16[2,8,2048,128]{{3,2,1,0}} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", backend_config={{"custom_call_config":{{"body":"{body}","cost_estimate":{{"flops":"7"}}}}}}""",
        platform="tpu",
    )
    assert op.flops == share * matmuls * 2 * 2 * 8 * 2048 * 2048 * 128
    assert op.kernel == "attention"


def test_a_comparison_times_a_table_multiplies_in_the_tables_dtype():
    """One-hot embedding: the TPU compiler feeds the comparison itself to the matmul."""
    op = only("""  %hot = pred[64,512]{1,0} parameter(0)
  %table = bf16[512,32]{1,0} parameter(1)
  ROOT %d = bf16[64,32]{1,0} dot(%hot, %table), lhs_contracting_dims={1}, rhs_contracting_dims={0}""")
    assert (op.flops, op.dtype) == (2 * 64 * 512 * 32, "bfloat16")


@pytest.mark.parametrize(("q", "kv"), [(256, 256), (512, 256), (256, 1024), (1024, 512)])
def test_causal_blocks_by_brute_force(q, kv):
    length = 2048
    visited = [
        (i, j) for i in range(length // q) for j in range(length // kv) if j * kv <= (i + 1) * q - 1
    ]  # fmt: skip
    assert causal_blocks(length, length, q, kv) == len(visited) * q * kv / length**2


def test_unknown_kernels_and_opcodes_are_said():
    found, warnings = ops("""  %a = bf16[8,8]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} custom-call(%a), custom_call_target="mystery"
  ROOT %c = bf16[8,8]{1,0} hocus-pocus(%b)""")
    assert [op.hbm_bytes for op in found] == [256, 256]
    assert any("mystery" in line for line in warnings) and any("hocus-pocus" in line for line in warnings)


FUSED = """%slice_of (stack: f32[32,1024], i: s32[]) -> f32[1024] {
  %stack = f32[32,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %wide = f32[32,1024]{1,0} convert(%stack)
  %row = f32[1,1024]{1,0} dynamic-slice(%wide, %i, %zero), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0} bitcast(%row)
}

%update_of (stack: f32[32,1024], row: f32[1,1024], i: s32[]) -> f32[32,1024] {
  %stack = f32[32,1024]{1,0} parameter(0)
  %row = f32[1,1024]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[1,1024]{1,0} add(%row, %row)
  ROOT %new = f32[32,1024]{1,0} dynamic-update-slice(%stack, %twice, %i, %zero)
}

%two_of (stack: f32[32,1024]) -> (f32[32,1024], f32[1024]) {
  %stack = f32[32,1024]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %double = f32[32,1024]{1,0} add(%stack, %stack)
  %sum = f32[1024]{0} reduce(%double, %zero), dimensions={0}, to_apply=%add
  ROOT %both = (f32[32,1024]{1,0}, f32[1024]{0}) tuple(%double, %sum)
}
"""


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        # A layer's row out of the stack: the row read and written, and the index.
        ("f32[1024]{0} fusion(%s, %i), kind=kLoop, calls=%slice_of", 4096 + 4096 + 4),
        # A row put into the stack in place: the row read, the row written.
        ("f32[32,1024]{1,0} fusion(%s, %r, %i), kind=kLoop, calls=%update_of", 4096 + 4096 + 4),
        # Read once though used twice inside; both results written.
        ("(f32[32,1024]{1,0}, f32[1024]{0}) fusion(%s), kind=kInput, calls=%two_of", 2 * 131072 + 4096),
        ("f32[1,1024]{1,0} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,1024}", 2 * 4096 + 8),
        ("f32[32,1024]{1,0} dynamic-update-slice(%s, %r, %i, %i)", 2 * 4096 + 8),
        ("f32[16,1024]{1,0} slice(%s), slice={[0:16],[0:1024]}", 2 * 65536),
        ("f32[32,1024]{1,0} copy(%s)", 2 * 131072),
        ("f32[64,1024]{1,0} concatenate(%s, %s), dimensions={0}", 2 * 131072 + 262144),
        ("f32[64,32,1024]{2,1,0} broadcast(%s), dimensions={1,2}", 131072 + 64 * 131072),
        # Rows looked up: as many read as written, and the indices.
        ("f32[5,1024]{1,0} gather(%s, %j), offset_dims={1}", 2 * 5 * 4096 + 20),
        # Rows added in place: read, added to and written where they go.
        ("f32[32,1024]{1,0} scatter(%s, %j, %u), to_apply=%add", 3 * 5 * 4096 + 20),
        # On TPU: values in vector memory are not HBM traffic.
        ("f32[32,1024]{1,0:T(8,128)S(1)} copy(%s)", 131072),
        ("f32[32,1024]{1,0:T(8,128)} copy(%v)", 131072),
    ],
)  # fmt: skip
def test_bytes(line, moved):
    op = only(
        f"""  %s = f32[32,1024]{{1,0}} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,1024]{{1,0}} parameter(2)
  %j = s32[5,1]{{1,0}} parameter(3)
  %u = f32[5,1024]{{1,0}} parameter(4)
  %v = f32[32,1024]{{1,0:T(8,128)S(1)}} parameter(5)
  ROOT %o = {line}""",
        extra=FUSED,
    )
    assert op.hbm_bytes == moved


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("(f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%a)", ("hbm", "vmem")),
        ("(f32[8]{0}, f32[8]{0:S(5)}, u32[]{:S(2)}) copy-start(%h)", ("host", "hbm")),
        ("((f32[8]{0}), f32[8]{0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:8]}", ("hbm", "vmem")),
    ],
)
def test_asynchronous_copies(line, ends):
    found, _ = ops(
        f"""  %a = f32[8]{{0}} parameter(0)
  %h = f32[8]{{0:S(5)}} parameter(1)
  %c = {line}
  ROOT %d = f32[8]{{0}} {"slice" if "slice" in line else "copy"}-done(%c)""",
        platform="tpu",
    )
    start, done = found
    assert isinstance(start, CopyStart) and start.token == done.token
    assert (start.copy.bytes, start.copy.from_memory, start.copy.to_memory) == (32, *ends)


@pytest.mark.parametrize(("said", "cycles"), [("2190000", 2190000.0), ("9223372036854775807", None), ("-1", None)])
def test_cycles_are_unknown_where_the_compiler_says_so(said, cycles):
    op = only(
        f"""  %a = f32[8,8]{{1,0}} parameter(0)
  ROOT %b = f32[8,8]{{1,0}} negate(%a), backend_config={{"window_config":{{"estimated_cycles":"{said}"}}}}""",
        platform="tpu",
    )
    assert isinstance(op, Compute) and op.cycles == cycles


def test_of_two_branches_the_costlier_counts_and_it_is_said():
    extra = """%cheap (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %n = f32[8,8]{1,0} negate(%p)
}

%dear (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%q, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    for branches in ("branch_computations={%cheap, %dear}", "true_computation=%dear, false_computation=%cheap"):
        found, warnings = ops(
            f"""  %i = s32[] parameter(0)
  %a = f32[8,8]{{1,0}} parameter(1)
  ROOT %c = f32[8,8]{{1,0}} conditional(%i, %a, %a), {branches}""",
            extra=extra,
        )
        assert [op.flops for op in found] == [1024] and len(warnings) == 1


def test_an_asynchronous_wrapper_is_its_collective():
    extra = """%wrapped (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1}}, dimensions={0}, to_apply=%add
}
"""
    text = f"""HloModule m, is_scheduled=true, num_partitions=2

{extra}
ENTRY %main (a: f32[8]) -> f32[4] {{
  %a = f32[8]{{0}} parameter(0)
  %s = ((f32[8]{{0}}), f32[4]{{0}}) async-start(%a), calls=%wrapped
  %b = f32[8]{{0}} negate(%a)
  ROOT %e = f32[4]{{0}} async-done(%s)
}}
"""
    found = read_program(text, platform="cuda", mesh_shape={"data": 2}, devices_per_group=2, memory=NO_MEMORY)
    start, between, done = found.instructions
    assert start.collective.kind == "reduce_scatter" and start.collective.payload_bytes == 32
    assert isinstance(between, Compute) and done.token == start.token


def test_a_kernels_own_estimate_is_believed():
    op = only(
        """  %q = bf16[2,512,128]{2,1,0} parameter(0)
  ROOT %c = bf16[2,512,128]{2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzvUg","cost_estimate":{"flops":"12345","transcendentals":"1","bytes_accessed":"2"}}}""",
        platform="tpu",
    )
    assert (op.flops, op.kernel) == (12345, "matmul")


def collectives(body, *, platform="cuda", extra="", devices=4):
    """Instructions of a module over four devices, two to a domain, named data (2) and tensor (2)."""
    text = (
        f"HloModule m, is_scheduled=true, num_partitions={devices}\n\n{extra}\nENTRY %main () -> f32[] {{\n{body}\n}}\n"
    )
    mesh_shape = {"data": devices // 2, "tensor": 2}
    return read_program(text, platform=platform, mesh_shape=mesh_shape, devices_per_group=2, memory=NO_MEMORY)


@pytest.mark.parametrize(
    ("line", "kind", "payload", "wire"),
    [
        ("f32[8]{0} all-gather(%a), replica_groups={{0,1},{2,3}}, dimensions={0}", "all_gather", 32, 16),
        ("f32[2]{0} reduce-scatter(%a), replica_groups={{0,1},{2,3}}, to_apply=%add", "reduce_scatter", 16, 8),
        ("f32[4]{0} all-reduce(%a), replica_groups={{0,1},{2,3}}, to_apply=%add", "all_reduce", 16, 16),
        ("f32[4]{0} all-to-all(%a), replica_groups={{0,1},{2,3}}, dimensions={0}", "all_to_all", 16, 8),
        ("f32[4]{0} ragged-all-to-all(%a, %b, %i, %i, %i, %i), replica_groups={{0,1},{2,3}}", "all_to_all", 16, 8),
        ("f32[4]{0} collective-permute(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", "permute", 16, 16),
        ("f32[4]{0} collective-broadcast(%a), replica_groups={{0,1},{2,3}}", "all_gather", 16, 8),
        ("(f32[4]{0}, f32[8]{0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}", "all_reduce", 48, 48),
    ],
)
def test_bytes_of_every_kind(line, kind, payload, wire):
    start, _ = collectives(f"""  %a = f32[4]{{0}} parameter(0)
  %b = f32[8]{{0}} parameter(1)
  %i = s32[2]{{0}} parameter(2)
  ROOT %c = {line}""").instructions
    found = start.collective
    assert (found.kind, found.axes, found.group_size, found.crosses_groups) == (kind, ("tensor",), 2, 1)
    assert (found.payload_bytes, found.wire_bytes) == (payload, wire)


def test_an_all_reduce_fused_with_its_slice_is_a_reduce_scatter():
    extra = """%scatter (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %s = f32[4]{0} dynamic-slice(%r, %z), dynamic_slice_sizes={4}
}
"""
    found = collectives(
        """  %a = f32[8]{0} parameter(0)
  ROOT %f = f32[4]{0} fusion(%a), kind=kCustom, calls=%scatter""",
        extra=extra,
        platform="tpu",
    ).instructions
    collective = found[0].collective
    assert (collective.kind, collective.axes, collective.crosses_groups) == ("reduce_scatter", ("data",), 2)
    assert (collective.payload_bytes, collective.wire_bytes) == (32, 16)
    assert len(found) == 2 and found[-1].token == found[0].token


@pytest.mark.parametrize(("sync", "last"), [("true", "negate"), ("false", "done")])
def test_a_synchronous_start_ends_before_what_follows(sync, last):
    found = collectives(f"""  %a = f32[4]{{0}} parameter(0)
  %s = f32[4]{{0}} all-reduce-start(%a), replica_groups={{{{0,1}},{{2,3}}}}, to_apply=%add, backend_config={{"collective_backend_config":{{"is_sync":{sync}}}}}
  %n = f32[4]{{0}} negate(%a)
  ROOT %d = f32[4]{{0}} all-reduce-done(%s)""").instructions
    assert len(found) == 3
    assert isinstance(found[-1], Compute) == (last == "negate")


def test_groups_along_no_axes_are_said():
    program = collectives("""  %a = f32[4]{0} parameter(0)
  ROOT %c = f32[4]{0} all-reduce(%a), replica_groups={{0,3},{1,2}}, to_apply=%add""")
    assert program.instructions[0].collective.axes == () and len(program.warnings) == 1
