"""The work of attention's core (scores, softmax, weighted values) of one layer and microbatch on one device.

It runs as one fused kernel where the training stack has a kernel that takes it, otherwise as plain matmuls: on blocks
of queries where the sequence is cut, else on whole score matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.efficiency import DTYPE_BYTES, fused_share, matmul_seconds
from autotune.meshes.architecture import AttentionKind, cudnn_lacks
from autotune.meshes.hardware import Hardware
from autotune.meshes.transformer import TransformerShape
from autotune.price.transformer.training_stack import TrainingStack

SINKS_BACKWARD = 12.0 / 5.0
"""What attention's sinks make of the backward pass of cuDNN's kernel, whose public call has none: to its five matmuls
come the two and the five of another attention (`autotune.models.kernels.with_sinks`)."""

PLAIN_QUERIES = 1024
"""Queries whose scores plain attention over a cut sequence holds at a time (autotune.models.kernels, QUERY_BLOCK)."""

RING_BYTES = (((9.0, 7.25), (2.75, 2.75)), ((10.0, 12.5), (5.0, 10.5)))
"""What a ring of fused kernels moves beside them, (forward, backward) passes: bytes per byte of a device's queries, and
per byte of its keys and values, each with two devices and more for each further one. Counted as `_part_bytes` says."""

Pair = tuple[np.ndarray, np.ndarray]
"""(forward pass, backward pass)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """One layer, one microbatch, one device; arrays over distinct pieces of work."""

    flops: Pair
    """FLOPs as the kernel or the plain matmuls run them."""
    matmul_seconds: Pair
    """Seconds of the matmul units."""
    hbm_seconds: Pair
    """Seconds of memory traffic of stored scores; 0 in a fused kernel."""
    parts_seconds: Pair
    """Seconds of memory traffic of a fused kernel's parts over a cut sequence: copied out, joined, passed on."""
    named: np.ndarray
    """Whether a policy that keeps attention's result keeps all that its backward pass needs."""
    recomputed: np.ndarray
    """Share of the forward pass that runs again where the policy recomputes attention."""
    blocked: np.ndarray
    """Whether plain matmuls run on blocks of queries."""
    block_scores: np.ndarray
    """Scores of one block and head that are held at once; 0 without blocks."""
    batched_heads: np.ndarray
    """Sequences x heads of the device."""
    scores: np.ndarray
    """All scores of the device: sequences x heads x queries x keys."""
    mask_bytes: np.ndarray
    """Bytes of the mask that keeps packed documents apart; 0 where a kernel compares the documents' numbers."""
    kernels: tuple[float, float]
    """Kernel launches, (forward, backward)."""


def attention_work(
    shape: TransformerShape,
    seq: int,
    dtype: str,
    hardware: Hardware,
    stack: TrainingStack,
    *,
    sequences: np.ndarray,
    heads: np.ndarray,
    kv_heads: np.ndarray,
    context: np.ndarray,
    ring: np.ndarray,
    kind: AttentionKind | None = None,
) -> AttentionWork:
    """The work of attention over `sequences` sequences of `seq` tokens with `heads` heads (`kv_heads` of keys) a
    device, the queries cut along `context`. `ring`: whether keys and values travel around a ring instead of being
    gathered. `kind`: the layer's attention where it is not plain: its window, the width of its values, its sinks, and
    soft caps, which no fused kernel for GPUs takes.
    """
    width = DTYPE_BYTES[dtype]
    hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
    h = float(shape.head_dim)
    values = float(kind.value_width) if kind is not None else h
    scores = sequences * heads * (seq / context) * seq
    # A causal sequence is dealt out so that every shard sees the same half of the keys (autotune.models.ring).
    causal = shape.kind == "decoder"
    seen = 0.5 if causal else 1.0
    length, batches = seq / context, sequences * heads
    one_way = matmul_seconds(hardware, dtype, width, length, float(seq), h, batches)
    other_way = matmul_seconds(hardware, dtype, width, length, values, float(seq), batches)
    stored_bytes = tuple(scores * (width / 2.0) * each / hbm for each in stack.traffic.scores)
    if not stack.flash:
        # Forward: scores = q k^T, and weights x v. Backward: two matmuls for each.
        return AttentionWork(
            flops=(2.0 * scores * (h + values), 4.0 * scores * (h + values)),
            matmul_seconds=(one_way + other_way, 2.0 * (one_way + other_way)),
            hbm_seconds=stored_bytes,  # type: ignore[arg-type]
            parts_seconds=(np.zeros_like(length * sequences),) * 2,  # type: ignore[arg-type]
            named=ring & (context > 1),
            recomputed=np.ones_like(length * sequences),
            blocked=np.zeros_like(length * sequences, dtype=bool),
            block_scores=np.zeros_like(length * sequences),
            batched_heads=batches,
            scores=scores,
            mask_bytes=np.zeros_like(length * sequences),
            kernels=(4.0, 8.0),
        )
    tile = min(stack.flash_tile, seq) if kind is None else min(stack.flash_tile, kind.splash_tile, seq)
    # The kernel computes tiles on the diagonal whole: n + 1 of every 2 n tiles.
    computed = seen + 0.5 * tile / seq if seen < 1.0 else 1.0
    if kind is not None and kind.window is not None and causal:
        computed = window_share(kind, seq, tile)
    counted = scores * h * computed
    fused_flops = tuple(
        2.0 * matmuls * counted * share
        for matmuls, share in zip(stack.flash_matmuls, _value_shares(h, values), strict=True)
    )
    # cuDNN's queries begin at the first key; by parts they may begin anywhere, but have no window and no sinks.
    whole = kind is None or (kind.window is None and not kind.sinks)
    gathers = "gather" in stack.fused_context and (whole or not stack.flash_is_cudnn) or not causal
    fits = not fused_kernel_lacks(stack, shape.head_dim, kind)
    plain = (context > 1) & np.where(ring, "ring" not in stack.fused_context, not gathers) | (not fits)
    # cuDNN is told of packed documents by a mask of queries times keys. Over a cut sequence that mask says what is
    # causal, too: the kernel computes all scores, and there are no parts.
    masked = np.zeros_like(plain) if not (stack.packed and stack.flash_is_cudnn) else ~plain
    by_part = (context > 1) & ~plain & ~masked & stack.flash_is_cudnn & (ring | causal)
    if masked.any():
        whole_scores = np.where(masked & (context > 1), scores * h, counted)
        fused_flops = tuple(flops / counted * whole_scores for flops in fused_flops)
        computed = whole_scores / (scores * h)
    peak = hardware.peak(dtype)
    reached: tuple[float | np.ndarray, ...] = stack.flash_efficiency
    if hardware.attention_shares_by_keys:
        # Products with fewer keys are slower. The mean of 1 / keys over the FLOPs of a device's products: with the
        # keys gathered two squares, causal, and two products with whole keys; in a ring half shards with half shards.
        turns = 2.0 * context + 1.0 if causal else context
        visible = np.where(by_part, np.where(ring, seq / turns, seq / 4.0), computed * seq)
        reached = tuple(_shares_reached(hardware, way, h, visible) for way in ("forward", "backward"))
    fused = tuple(flops / (peak * share) for flops, share in zip(fused_flops, reached, strict=True))
    if kind is not None and kind.sinks and hardware.platform != "tpu":
        fused_flops = (fused_flops[0], SINKS_BACKWARD * fused_flops[1])
        fused = (fused[0], SINKS_BACKWARD * fused[1])
    # A causal ring works on pairs of half shards: 2 c + 1 of every 4 c (autotune.models.ring).
    share = np.where(ring & causal, 0.5 + 0.25 / context, 1.0)
    # Plain attention's gradient of the scores is float32, and so are the two matmuls that take it on to queries and
    # keys (h100, jax 0.10.2); a ring casts it first.
    wide_way = matmul_seconds(hardware, "float32", DTYPE_BYTES["float32"], length, h, float(seq), batches)
    forward = one_way + other_way
    backward = 3.0 * one_way + 2.0 * other_way + np.where(ring, 0.0, 2.0 * (wide_way - other_way))
    parts = _part_bytes(
        width * batches * length * h, width * kv_heads * sequences * length * (h + values), context, ring
    )
    # Plain attention computes its scores again in the backward pass.
    spilled = (stored_bytes[0], stored_bytes[0] + stored_bytes[1])
    # A ring step of one block of queries has no inner loop, and the compiler reuses its recomputed scores (gb200,
    # a100-40 and h100; jax 0.10.2): the steps with the device's own keys, and with two devices all steps.
    pieces = 2.0 if causal else 1.0
    alone = np.where(context == 2, 1.0, (3.0 if causal else 1.0) / np.where(causal, 2.0 * context + 1.0, context))
    return AttentionWork(
        flops=tuple(
            np.where(plain, 2.0 * matmuls * scores * h * share, fast)
            for matmuls, fast in zip((2.0, 5.0), fused_flops, strict=True)
        ),  # type: ignore[arg-type]
        matmul_seconds=tuple(
            np.where(plain, matmuls * share, fast) for matmuls, fast in zip((forward, backward), fused, strict=True)
        ),  # type: ignore[arg-type]
        hbm_seconds=tuple(np.where(plain, each * share, 0.0) for each in spilled),  # type: ignore[arg-type]
        parts_seconds=tuple(np.where(by_part, moved / hbm, 0.0) for moved in parts),  # type: ignore[arg-type]
        named=(ring & (context > 1)) | by_part,
        recomputed=np.where(ring & plain & (context > 1) & (length / pieces <= PLAIN_QUERIES), 1.0 - 0.5 * alone, 1.0),
        blocked=plain & ~ring,
        block_scores=np.where(plain, np.minimum(length, PLAIN_QUERIES) * np.where(ring, length / 2.0, seq), 0.0),
        batched_heads=batches,
        scores=scores,
        mask_bytes=np.where(masked, width * sequences * length * seq, 0.0),
        kernels=(1.0, 2.0),
    )


def _shares_reached(hardware: Hardware, way: str, head_dim: float, seen: np.ndarray) -> np.ndarray:
    """`fused_share` of each number of keys."""
    each, place = np.unique(seen, return_inverse=True)
    return np.array([fused_share(hardware, way, head_dim, keys) for keys in each])[place]


def _part_bytes(queries: np.ndarray, keys: np.ndarray, context: np.ndarray, ring: np.ndarray) -> Pair:
    """Bytes that the parts of a softmax move beside their kernels, (forward, backward). `queries`: bytes of a device's
    queries; `keys`: of its keys and values.

    Gathered keys: queries, and backward their results and gradients, are copied out by piece, and two parts are read
    and written as one; all keys are put in order and copied out up to each piece. A ring reads and writes sums in
    float32 at every step (`RING_BYTES`). Counted in programs for h100:1x8, 8 x 32768 with
    context 2 and 4 (llama3-8b; rings of gpt2-124m too, which has as many heads of keys as of queries; jax 0.10.2).
    """
    steps = np.maximum(context - 2.0, 0.0)
    gathered = (5.0 * queries + 4.0 * context * keys, 9.0 * queries + 6.0 * context * keys)
    passed = tuple(
        (of_queries[0] + of_queries[1] * steps) * queries + (of_keys[0] + of_keys[1] * steps) * keys
        for of_queries, of_keys in RING_BYTES
    )
    return (np.where(ring, passed[0], gathered[0]), np.where(ring, passed[1], gathered[1]))


def fused_kernel_lacks(stack: TrainingStack, head_dim: int, kind: AttentionKind | None = None) -> list[str]:
    """What a layer's attention has that the stack's fused kernel does not take, in words: it runs as plain matmuls."""
    if not stack.flash_is_cudnn:
        return []
    if kind is None:
        return cudnn_lacks(head_dim, head_dim, False)
    return cudnn_lacks(head_dim, kind.value_width, kind.soft_cap)


def window_share(kind: AttentionKind, seq: int, tile: int) -> float:
    """Share of all scores of a causal sequence that a fused kernel computes for a window or chunks.

    With tiles the kernel computes every tile that holds a visible pair whole; without, exactly the visible pairs.
    """
    assert kind.window is not None
    window = min(kind.window, seq)
    if not tile:
        return window / (2.0 * seq) if kind.chunked else window / seq - window * window / (2.0 * seq * seq)
    rows = -(-seq // tile)
    starts = (row * tile // window * window if kind.chunked else row * tile - window + 1 for row in range(rows))
    tiles = sum(row - max(start, 0) // tile + 1 for row, start in enumerate(starts))
    return min(tiles * tile * tile / float(seq * seq), 1.0)


def _value_shares(h: float, values: float) -> Pair:
    """FLOPs of the kernel's matmuls with values of another width than keys, as shares of those with equal widths.

    Forward: scores over h, mixing over the values. Backward: scores again and the gradients of queries and keys over h;
    the gradients of the weights and of the values over the values.
    """
    return ((h + values) / (2.0 * h), (3.0 * h + 2.0 * values) / (5.0 * h))  # type: ignore[return-value]
