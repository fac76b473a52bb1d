"""Attention of queries to a part of their keys, and the parts put together: what attention over a cut sequence is of.

The softmax over some keys is known by its output and the logarithm of its sum of exponentials; two such parts have one
output between them (`join`). The gradients of a part follow from the output and the logarithm of the whole softmax.
`PLAIN` computes a part as matmuls on blocks of scores, on every device; `CUDNN` is cuDNN's fused flash attention, which
stores no score. Called inside shard_map. Letters as in models/kernels.py; logarithms are BxLxN, float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 1024
"""Queries whose scores against one piece of keys are held at a time."""

Part = list[jax.Array]
"""[output BxLxNxH, logarithm of the softmax's sum BxLxN] over some keys, float32."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Queries and what the whole softmax made of them: all that the gradients of a part need beside its keys."""

    query: jax.Array
    out: jax.Array
    logarithm: jax.Array
    gradient: jax.Array
    """Of `out`."""
    along: jax.Array
    """`gradient` times `out`, summed over a head: BxLxN."""
    segments: jax.Array | None
    """The documents of the queries, by number, BxL; None where a sequence is one document."""


def rows(
    pieces: Callable[[jax.Array], Sequence[jax.Array]], q, out, logarithms: Sequence, gradient, segments=None
) -> list[Row]:
    """The rows of each piece of the queries. `logarithms` are cut into pieces already."""
    along = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    documents = [None] * len(logarithms) if segments is None else pieces(segments)
    parts = zip(*(pieces(value) for value in (q, out, gradient, along)), logarithms, documents, strict=True)
    return [
        Row(query=query, out=out, gradient=gradient, along=along, logarithm=logarithm, segments=own)
        for query, out, gradient, along, logarithm, own in parts
    ]


def join(first: Part, second: Part) -> Part:
    """Two parts of one softmax as one: outputs weighted by their shares of the sum of exponentials."""
    (a, a_lse), (b, b_lse) = first, second
    lse = jnp.logaddexp(a_lse, b_lse)
    return [a * jnp.exp(a_lse - lse)[..., None] + b * jnp.exp(b_lse - lse)[..., None], lse]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """How a part is computed. `causal`: queries and keys are the same positions, and no query sees a later key.

    The plain kernel also keeps packed documents apart, by the documents of queries and of keys. A query that sees no
    key of a part has a logarithm there so low that the part has no share of any softmax.
    """

    forward: Callable[..., Part]
    """(queries, keys, values, causal[, documents of the queries, of the keys]) -> the part."""
    backward: Callable[[Row, Sequence[jax.Array], bool], tuple[jax.Array, list[jax.Array]]]
    """(row, [keys, values[, documents]], causal) -> (gradient of queries, [of keys, of values]), float32."""


def _plain_forward(q_BLNH, k_BMKH, v_BMKH, causal: bool, q_segments=None, k_segments=None) -> Part:
    """A block of queries at a time."""

    def one(block):
        q, start, *own = block
        scores = _scores(q, k_BMKH, start, causal, own[0] if own else None, k_segments)
        lse = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - lse[..., None]).astype(v_BMKH.dtype)
        out = jnp.einsum("bkglm,bmkh->blkgh", weights, v_BMKH, preferred_element_type=jnp.float32)
        return out.reshape(q.shape), jnp.moveaxis(lse, 3, 1).reshape(q.shape[:3])

    beside = () if q_segments is None else (_blocks(q_segments)[0],)
    out, lse = jax.lax.map(one, (*_blocks(q_BLNH), *beside))
    return [_whole(out), _whole(lse)]


def _plain_backward(row: Row, pair: Sequence[jax.Array], causal: bool):
    k, v, *documents = pair
    kv_heads = k.shape[2]

    def grouped(x):
        return x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:])

    def one(dkv, block):
        (q, start), gradient, delta, lse, *own = block
        statistics = [jnp.moveaxis(grouped(value), 1, 3)[..., None] for value in (lse, delta)]
        weights = jnp.exp(_scores(q, k, start, causal, *own, *documents) - statistics[0])
        d_weights = jnp.einsum("blkgh,bmkh->bkglm", grouped(gradient), v, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - statistics[1]) / math.sqrt(q.shape[-1])).astype(q.dtype)
        weights = weights.astype(v.dtype)
        dk = jnp.einsum("bkglm,blkgh->bmkh", d_scores, grouped(q), preferred_element_type=jnp.float32)
        dv = jnp.einsum("bkglm,blkgh->bmkh", weights, grouped(gradient), preferred_element_type=jnp.float32)
        dq = jnp.einsum("bkglm,bmkh->blkgh", d_scores, k, preferred_element_type=jnp.float32).reshape(q.shape)
        return [dkv[0] + dk, dkv[1] + dv], dq

    zeros = [jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)]
    beside = (row.gradient, row.along, row.logarithm, *([] if row.segments is None else [row.segments]))
    rest = tuple(_blocks(value)[0] for value in beside)
    dkv, dq = jax.lax.scan(one, zeros, (_blocks(row.query), *rest))
    return _whole(dq), dkv


def _scores(q_BLNH, k_BMKH, start, causal: bool, q_segments=None, k_segments=None):
    """Scaled scores BxKxGxLxM in float32; `start`: the position of the first query relative to the first key."""
    batch, length, heads, head_dim = q_BLNH.shape
    kv_heads = k_BMKH.shape[2]
    q = q_BLNH.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("blkgh,bmkh->bkglm", q, k_BMKH, preferred_element_type=jnp.float32) / math.sqrt(head_dim)
    if q_segments is not None:
        same = q_segments[:, :, None] == k_segments[:, None, :]
        scores = jnp.where(same[:, None, None], scores, jnp.finfo(jnp.float32).min)
    if not causal:
        return scores
    seen = (start + jnp.arange(length))[:, None] >= jnp.arange(k_BMKH.shape[1])[None, :]
    return jnp.where(seen[None, None, None], scores, jnp.finfo(jnp.float32).min)


def _blocks(x_BL: jax.Array):
    """(blocks of up to BLOCK positions on a leading axis, the first position of each)."""
    length = x_BL.shape[1]
    size = math.gcd(length, BLOCK)
    blocks = jnp.moveaxis(x_BL.reshape(x_BL.shape[0], length // size, size, *x_BL.shape[2:]), 1, 0)
    return blocks, jnp.arange(0, length, size)


def _whole(blocks: jax.Array) -> jax.Array:
    """The inverse of `_blocks`."""
    moved = jnp.moveaxis(blocks, 0, 1)
    return moved.reshape(moved.shape[0], -1, *moved.shape[3:])


def _cudnn_forward(q_BLNH, k_BMKH, v_BMKH, causal: bool) -> Part:
    batch, length, heads, head_dim = q_BLNH.shape
    results = [
        (jax.ShapeDtypeStruct((batch, heads, length, head_dim), q_BLNH.dtype), _HEADS_INSIDE),
        (jax.ShapeDtypeStruct((batch, heads, length), jnp.float32), (0, 1, 2)),
    ]
    out, lse = _cudnn_call("__cudnn$fmhaSoftmax", _FORWARD_DOTS, results, (q_BLNH, k_BMKH, v_BMKH), causal)
    return [out.swapaxes(1, 2).astype(jnp.float32), lse.swapaxes(1, 2)]


def _cudnn_backward(row: Row, pair: Sequence[jax.Array], causal: bool):
    arrays = (row.query, *pair)
    results = [
        (jax.ShapeDtypeStruct((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), x.dtype), _HEADS_INSIDE) for x in arrays
    ]
    operands = (*arrays, row.logarithm.swapaxes(1, 2), row.gradient, row.out)
    found = _cudnn_call("__cudnn$fmhaSoftmaxBackward", _BACKWARD_DOTS, results, operands, causal)
    dq, dk, dv = (gradient.swapaxes(1, 2).astype(jnp.float32) for gradient in found)
    return dq, [dk, dv]


_HEADS_INSIDE = (0, 2, 1, 3)
"""Major-to-minor order of BxNxLxH in memory: that of BxLxNxH."""

_FORWARD_DOTS = {
    "bmm1_dot_dimension_numbers": ((3, 3), ((0, 2), (0, 2))),
    "bmm2_dot_dimension_numbers": ((3, 1), ((0, 1), (0, 2))),
}
_BACKWARD_DOTS = {
    "bmm1_grad_gemm1_dot_dimension_numbers": ((2, 1), ((0, 1), (0, 2))),
    "bmm1_grad_gemm2_dot_dimension_numbers": ((3, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm1_dot_dimension_numbers": ((2, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm2_dot_dimension_numbers": ((3, 3), ((0, 2), (0, 2))),
}
"""Matmuls of the two calls: (contracted dimensions, batch dimensions), each (left, right)."""


def _cudnn_call(target: str, dots: dict, results: list, operands: Sequence[jax.Array], causal: bool) -> list[jax.Array]:
    """XLA's own custom call for cuDNN's flash attention, with the words that `jax.nn.dot_product_attention` writes into
    it (a test compares both).

    Why not that function: its `return_residual=True` rounds the logarithm to the 16 bits of the output, which would
    make the weights of two parts wrong by per cents; and its gradient knows no softmax but that over its own keys.
    """
    query, key = operands[:2]
    batch, length, heads, head_dim = query.shape
    sizes = [str(size) for size in (batch, heads, length, key.shape[1])]
    config: dict[str, Any] = {
        "algorithm": {
            "algo_id": "0", "math_type": "TENSOR_OP_MATH", "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True, "workspace_size": "0",
        },
        "fmha_scale": 1.0 / math.sqrt(head_dim),
        "intermediate_tensor_shape": {
            "element_type": {"bfloat16": "BF16", "float16": "F16"}[query.dtype.name],
            "dimensions": sizes,
            "tuple_shapes": [],
            "layout": {
                "dim_level_types": [], "dim_unique": [], "dim_ordered": [], "minor_to_major": ["3", "2", "1", "0"],
                "tiles": [], "element_size_in_bits": "0", "memory_space": "0",
                "index_primitive_type": "PRIMITIVE_TYPE_INVALID", "pointer_primitive_type": "PRIMITIVE_TYPE_INVALID",
                "dynamic_shape_metadata_prefix_bytes": "0",
            },
            "is_dynamic_dimension": [False, False, False, False],
        },
        "is_flash_attention": True,
        "mask_type": "CAUSAL" if causal else "NO_MASK",
        **{name: _dot_numbers(*numbers) for name, numbers in dots.items()},
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": 0,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }  # fmt: skip
    workspace = (jax.ShapeDtypeStruct((0,), jnp.uint8), (0,))
    shapes, layouts = zip(*results, workspace, strict=True)
    call = jax.ffi.ffi_call(
        target,
        shapes,
        output_layouts=layouts,
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": config}),
    )
    return list(call(*operands))[:-1]


def _dot_numbers(contracted: tuple[int, int], batch: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, list[str]]:
    return {
        "lhs_contracting_dimensions": [str(contracted[0])],
        "rhs_contracting_dimensions": [str(contracted[1])],
        "lhs_batch_dimensions": [str(dimension) for dimension in batch[0]],
        "rhs_batch_dimensions": [str(dimension) for dimension in batch[1]],
    }


PLAIN = Kernel(forward=_plain_forward, backward=_plain_backward)
CUDNN = Kernel(forward=_cudnn_forward, backward=_cudnn_backward)
