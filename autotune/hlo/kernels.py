"""Custom calls: which cost nothing, and the FLOPs of the matmul and attention kernels among them.

Attention forward is 2 matmuls, 4 B N Tq Tkv H FLOPs; backward 5 matmuls, 10 B N Tq Tkv H (one of them recomputes the
scores). Half where the mask is causal; splash attention skips whole blocks, so there the blocks it visits are counted.
What says so: cuDNN its `mask_type`; splash attention its block sizes, and the mask it prefetches (a full mask has
none); flash attention on TPU that its code counts positions; Triton and Mosaic attention say nothing and are taken as
causal. Other kernels with a `cost_estimate` are believed: a grouped matmul (megablox `gmm`, `tgmm`) counts all rows of
its buffer, once and not for each group. Where the buffer has room for more than the groups hold, a scope says which
share of it they fill when tokens are balanced (`autotune.models.grouped_matmul`).
"""

from __future__ import annotations

import base64
import json
import re

from autotune.hlo.op_flops import OpWork, dot_shape
from autotune.hlo.shape import Shape
from autotune.hlo.text import Computation, Op
from autotune.hlo.unreadable import UnreadableProgram

FREE_CALLS = frozenset(
    {
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveDone",
        "AsyncCollectiveStart",
        "ConcatBitcast",
        "GatherScatterIndicesBitpacked",
        "PrepareAsyncCallDone",
        "PrepareAsyncCallStart",
        "Sharding",
        "SliceId",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "ZeroCrop",
        "annotate_device_placement",
    }
)
"""Marks and views: no kernel runs for them."""

NO_FLOPS = frozenset(
    {"TopK", "PadToStatic", "SliceToDynamic", "xla_ffi_python_cpu_callback", "MoveToHost", "MoveToDevice"}
)
"""Real work, but no matmul in it."""

MOST_BLOCKS = 1_000_000
"""An attention kernel of more blocks is that of a damaged text; walking through them would take for ever."""

_ATTENTION = re.compile(r"attention|splash|\bmha|\bmqa|fmha|flash", re.IGNORECASE)
_BACKWARD = re.compile(r"bwd|backward|dkv|\bdq|_dq", re.IGNORECASE)
_COST = re.compile(r'"cost_estimate": ?\{[^}]*?"flops": ?"?(\d+)')
_BLOCKS = re.compile(r'\\+"(block_\w+|use_fused_bwd_kernel|[qkv]_layout)\\+": (\w+)')
_FLASH = re.compile(r"flash_attention|flash_mha")
_BODY = re.compile(r'"body": ?"([A-Za-z0-9+/=]*)"')
_CUBLAS = re.compile(r'"dot_dimension_numbers": ?(\{[^}]*\})')
_SEQUENCE_MINOR = "2"
_GROUPED = re.compile(r"\bt?gmm\b|ragged-dot-none")
_BALANCED_ROWS = re.compile(r"balanced_rows_(\d+)_of_(\d+)")


FLOATS = ("bf16", "f16", "f32")


def rows_filled(op: Op) -> float:
    """The share of the rows of its buffers that a grouped matmul works on; 1 of any other kernel."""
    found = _BALANCED_ROWS.search(op.word("op_name") or "")
    return int(found[1]) / int(found[2]) if found and op.opcode == "custom-call" else 1.0


def tile_visits(computation: Computation, op: Op) -> float:
    """How often a grouped matmul on TPUs computes a tile of rows, in the mean; 1 of any other kernel.

    Its tables of whole numbers say: the first has one entry more than there are groups, the second one for each tile
    and one for each border between groups, whose tile belongs to two.
    """
    if op.opcode != "custom-call" or not _GROUPED.search(f"{op.name} {op.word('op_name') or ''}"):
        return 1.0
    arrays = [shape for name in op.operands for shape in computation.by_name[name].shapes]
    tables = [shape.dims[0] for shape in arrays if shape.dtype == "s32" and len(shape.dims) == 1]
    if len(tables) < 2 or tables[1] <= tables[0] - 2:
        return 1.0
    borders = tables[0] - 2
    return 1.0 + borders / ((tables[1] - borders) * rows_filled(op))


def target_of(op: Op) -> str:
    """The name a custom call is registered under."""
    return op.word("custom_call_target") or "?"


def kernel_work(computation: Computation, op: Op) -> OpWork:
    """The work of one custom call."""
    target = target_of(op)
    if target in FREE_CALLS or target in NO_FLOPS:
        return OpWork()
    if target.startswith(("__cublas$", "__onednn$matmul")):
        return _cublas(computation, op)
    if target.startswith("__cudnn$fmha"):
        return _cudnn_attention(computation, op, backward="Backward" in target)
    cost = _COST.search(op.attributes)
    arrays = [shape for name in op.operands for shape in computation.by_name[name].shapes]
    wide = [shape for shape in arrays if shape.dtype in FLOATS and len(shape.dims) >= 3]
    name = f"{op.name} {op.word('kernel_name') or ''} {(op.word('op_name') or '').rsplit('/', 3)[-1]}"
    attention = bool(_ATTENTION.search(name) or _ATTENTION.search(op.word("op_name") or ""))
    if target == "tpu_custom_call" and len(wide) >= 3 and _FLASH.match(op.name):
        return _flash(op, wide)
    if cost:
        multiplied = wide or [shape for shape in arrays if shape.dtype in FLOATS and len(shape.dims) == 2]
        dtype = multiplied[0].dtype if multiplied else None
        return OpWork(flops=float(cost[1]) * rows_filled(op), dtype=dtype, attention=attention)
    if len(wide) >= 3 and attention:
        splash = dict(_BLOCKS.findall(op.attributes))
        if "splash" in op.name or splash:
            return _splash(op, wide, arrays, splash)
        return _attention(wide[0], wide[1], backward=bool(_BACKWARD.search(name)))
    return OpWork(unknown=(target,))


def _cublas(computation: Computation, op: Op) -> OpWork:
    found = _CUBLAS.search(op.attributes)
    if not found:
        return OpWork(unknown=(target_of(op),))
    numbers = {
        key: tuple(int(dim) for dim in dims) for key, dims in json.loads(found[1]).items() if isinstance(dims, list)
    }
    left, right = (computation.operand(op, index).shapes[0] for index in (0, 1))
    b, m, n, k = matmul = dot_shape(
        left.dims,
        right.dims,
        (numbers.get("lhs_batch_dimensions", ()), numbers.get("rhs_batch_dimensions", ())),
        (numbers["lhs_contracting_dimensions"], numbers["rhs_contracting_dimensions"]),
    )
    return OpWork(flops=2.0 * b * m * n * k, matmul=matmul, dtype=left.dtype)


def _cudnn_attention(computation: Computation, op: Op, *, backward: bool) -> OpWork:
    found = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', op.attributes)
    query = computation.operand(op, 0).shapes[0]
    if not found:
        return OpWork(unknown=(target_of(op),))
    batch, heads, queries, keys = (int(size.strip(' "')) for size in found[1].split(","))
    share = 0.5 if "CAUSAL" in (op.word("mask_type") or "") else 1.0
    matmuls = 5 if backward else 2
    head_dim = query.dims[-1]
    return OpWork(
        flops=matmuls * 2.0 * batch * heads * queries * keys * head_dim * share,
        matmul=(batch * heads, queries, keys, head_dim),
        dtype=query.dtype,
        attention=True,
    )


def _splash(op: Op, wide: list[Shape], arrays: list[Shape], said: dict[str, str]) -> OpWork:
    """Splash attention on TPU: q, k, v are [..., heads, length, head_dim] unless their layout is said to be other.

    The backward pass is two kernels (dq: scores, dp, dq; dkv: scores, dv, dp, dk) or one fused kernel of 5 matmuls.
    """
    query, key = wide[0].dims, wide[1].dims
    queries, head_dim = query[-2:] if said.get("q_layout") != _SEQUENCE_MINOR else query[-1:-3:-1]
    keys = key[-2] if said.get("k_layout") != _SEQUENCE_MINOR else key[-1]
    heads = wide[0].elements // (queries * head_dim)
    if "dkv" in op.name:
        matmuls, suffix = (5 if said.get("use_fused_bwd_kernel") == "true" else 4), "_dkv"
    elif "dq" in op.name:
        matmuls, suffix = 3, "_dq"
    else:
        matmuls, suffix = 2, ""
    masked = any(shape.dtype in ("s8", "s16", "s32") and len(shape.dims) == 3 for shape in arrays)
    share = 1.0
    if masked:
        block_q = _whole(said.get(f"block_q{suffix}"), queries)
        block_kv = _whole(said.get(f"block_kv{suffix}"), keys)
        # Fewer queries than keys are one device's part of a sequence: they see what a mean part of it sees, not what
        # the first queries do (half as much, on two devices).
        share = causal_blocks(max(queries, keys), keys, block_q, block_kv)
    return OpWork(
        flops=matmuls * 2.0 * heads * queries * keys * head_dim * share,
        matmul=(heads, queries, keys, head_dim),
        dtype=wide[0].dtype,
        attention=True,
    )


def _flash(op: Op, wide: list[Shape]) -> OpWork:
    """jax.experimental.pallas.ops.tpu.flash_attention: q, k, v are [batch, heads, length, head_dim].

    The forward kernel's `cost_estimate` counts whole rows of scores whether it is causal or not, the backward kernels
    have none. A causal kernel compares positions, which its code makes by `tpu.iota`; one that is not has none.
    """
    batch, heads, queries, head_dim = wide[0].dims
    keys = wide[1].dims[-2]
    matmuls = 4 if "dkv" in op.name else 3 if "dq" in op.name else 2
    body = _BODY.search(op.attributes)
    causal = body is None or b"tpu.iota" in base64.b64decode(body[1])
    return OpWork(
        flops=matmuls * 2.0 * batch * heads * queries * keys * head_dim * (0.5 if causal else 1.0),
        matmul=(batch * heads, queries, keys, head_dim),
        dtype=wide[0].dtype,
        attention=True,
    )


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() else default


def causal_blocks(queries: int, keys: int, block_q: int, block_kv: int) -> float:
    """Share of a score matrix that a causal kernel computes when it skips only whole blocks.

    >>> causal_blocks(1024, 1024, 512, 512)
    0.75
    """
    if queries > MOST_BLOCKS * block_q:
        raise UnreadableProgram(f"hlo: an attention kernel over {queries} queries in blocks of {block_q}")
    visited = 0
    for start in range(0, queries, block_q):
        last = min(start + block_q, queries)
        visited += -(-min(last, keys) // block_kv) * block_kv * (last - start)
    return visited / (queries * keys)


def _attention(query: Shape, key: Shape, *, backward: bool) -> OpWork:
    """A Triton or Mosaic kernel over [batch, length, heads, head_dim], taken as causal."""
    batch, queries, heads, head_dim = (1, *query.dims)[-4:]
    keys = (1, *key.dims)[-3]
    return OpWork(
        flops=(5 if backward else 2) * 2.0 * batch * heads * queries * keys * head_dim * 0.5,
        matmul=(batch * heads, queries, keys, head_dim),
        dtype=query.dtype,
        attention=True,
    )
