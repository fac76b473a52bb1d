"""Work of one pass (one microbatch) on one device, per layer and for the head: seconds of compute and bytes moved.

Depends on a few columns of a layout only, so it is worked out once for each distinct piece of work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.efficiency import DTYPE_BYTES, matmul_seconds
from autotune.meshes.hardware import Hardware
from autotune.meshes.transformer import TransformerShape
from autotune.price.transformer.training_stack import TrainingStack

ROUTED_TRAFFIC = (24.0, 28.0)
"""Bytes, (forward, backward), per slot and element of d_model, of taking tokens to experts and back as
`autotune.models.experts` does: gathered, masked and laid out for the all-to-all, each read and written (12), both ways;
backward the same, and the sum over the copies of a token (4). Counted after a compiled Mixtral was seen to spend 25 on
its way forward, where nothing was counted before."""

PLAIN_QUERIES = 1024
"""Queries whose scores plain attention over a cut sequence holds at a time (autotune.models.kernels, QUERY_BLOCK)."""

PLAIN_BYTES = 10.0
"""Bytes per score of such a block: scores and their gradient in float32, weights in the compute dtype (h100, context 2
to 16, jax 0.10.2)."""

SLOT_BYTES = 11.0
"""Bytes per slot and element of d_model, whole along `tensor`, that routed experts have in hand in their backward pass:
five to six arrays in the compute dtype (deepseek-like on h100, tensor 1 to 4, jax 0.10.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """Seconds of a group of matmuls: forward, gradient of the input, gradient of the weight; and FLOPs of each."""

    flops: np.ndarray
    forward: np.ndarray
    backward_input: np.ndarray
    backward_weight: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One pass on one device; arrays over distinct pieces of work. Seconds and bytes of one layer unless named `head`.

    `heads`, `out`, `hidden_in`, `hidden_out`: matmuls to heads, back from attention, into and out of the MLP.
    `core_*`: attention's core: `_flops`, `_matmul` at the matmul rate, `_hbm` at the memory rate, `_again` the share of
    its forward pass that is left to run where that runs again; `blocked`: whether it is plain matmuls on blocks of
    queries. `elementwise`: (forward, backward) memory traffic. `launches`: (forward,
    backward) seconds of kernel launches.
    `stream_bytes`: tokens x d_model in the compute dtype, not cut along `tensor`; `kv_bytes`: keys and values;
    `slot_bytes`: slots of routed experts x d_model, not cut along `tensor` either.
    """

    sequences: np.ndarray
    tokens: np.ndarray
    heads: Matmul
    out: Matmul
    hidden_in: Matmul
    hidden_out: Matmul
    core_flops: tuple[np.ndarray, np.ndarray]
    core_matmul: tuple[np.ndarray, np.ndarray]
    core_hbm: tuple[np.ndarray, np.ndarray]
    core_again: np.ndarray
    blocked: np.ndarray
    elementwise: tuple[np.ndarray, np.ndarray]
    launches: tuple[float, float]
    head: Matmul
    loss: tuple[np.ndarray, np.ndarray]
    stream_bytes: np.ndarray
    slot_bytes: np.ndarray
    kv_bytes: np.ndarray
    kept: dict[str, np.ndarray]
    layer_work_bytes: np.ndarray
    logit_bytes: np.ndarray
    held_logit_bytes: np.ndarray


def work_of(
    transformer: TransformerShape,
    seq: int,
    dtype: str,
    hardware: Hardware,
    stack: TrainingStack,
    *,
    sequences: np.ndarray,
    tensor: np.ndarray,
    context: np.ndarray,
    expert: np.ndarray,
    sequence_parallel: np.ndarray,
    ring: np.ndarray,
) -> Work:
    """The work of `sequences` sequences a device and pass, cut along `tensor`, `context` and `expert`; `ring`: whether
    attention over `context` is one."""
    shape, traffic, saved = transformer, stack.traffic, stack.saved
    width = DTYPE_BYTES[dtype]
    scale = width / 2.0
    hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
    tokens = sequences * seq / context
    heads = shape.heads / tensor
    kv_heads = np.maximum(shape.kv_heads / tensor, 1.0)
    d, h = float(shape.d_model), float(shape.head_dim)

    def matmul(m, n, k, count=1.0) -> Matmul:
        return Matmul(
            flops=2.0 * m * n * k * count,
            forward=matmul_seconds(hardware, dtype, width, m, n, k, count),
            backward_input=matmul_seconds(hardware, dtype, width, m, k, n, count),
            backward_weight=matmul_seconds(hardware, dtype, width, k, n, m, count),
        )

    to_heads = _sum(matmul(tokens, heads * h, d), matmul(tokens, kv_heads * h, d, 2.0))
    first = shape.mlp_matrices - 1
    hidden = shape.d_ff / tensor
    if shape.experts:
        local = shape.experts / expert
        each = tokens * shape.slots_per_token / local
        hidden_in, hidden_out = matmul(each, hidden, d, first * local), matmul(each, d, hidden, local)
        if shape.shared_experts:
            shared = float(shape.shared_experts)
            hidden_in = _sum(hidden_in, matmul(tokens, hidden, d, first * shared))
            hidden_out = _sum(hidden_out, matmul(tokens, d, hidden, shared))
        hidden_in = _sum(hidden_in, matmul(tokens, float(shape.experts), d))
        copies = shape.slots_per_token + shape.shared_experts
    else:
        hidden_in, hidden_out = matmul(tokens, hidden, d, float(first)), matmul(tokens, d, hidden)
        copies = 1

    scores = sequences * heads * (seq / context) * seq
    # Shards of a causal sequence are dealt out so that all see the same half of it (autotune.models.ring).
    causal = shape.kind == "decoder"
    seen = 0.5 if causal else 1.0
    length, batches = seq / context, sequences * heads
    one_way = matmul_seconds(hardware, dtype, width, length, float(seq), h, batches)
    other_way = matmul_seconds(hardware, dtype, width, length, h, float(seq), batches)
    stored_bytes = tuple(scores * scale * each / hbm for each in traffic.scores)
    peak = hardware.peak(dtype)
    if stack.flash:
        tile = min(stack.flash_tile, seq)
        # Tiles on the diagonal are computed whole: n + 1 of every 2 n.
        counted = scores * h * (seen + 0.5 * tile / seq if seen < 1.0 else 1.0)
        core_flops = tuple(2.0 * matmuls * counted for matmuls in stack.flash_matmuls)
        core = tuple(flops / (peak * share) for flops, share in zip(core_flops, stack.flash_efficiency, strict=True))
        # What the kernel cannot do runs as plain matmuls on blocks of scores, which the backward pass makes again.
        gathers = "gather" in stack.fused_context or not causal
        largest = stack.flash_head_dim
        fits = largest is None or (shape.head_dim <= largest and shape.head_dim % 8 == 0)
        plain = (context > 1) & np.where(ring, "ring" not in stack.fused_context, not gathers) | (not fits)
        # A causal ring works on pairs of half shards: 2 c + 1 of every 4 c (autotune.models.ring).
        share = np.where(ring & causal, 0.5 + 0.25 / context, 1.0)
        # Plain attention's gradient of the scores is float32, and so are the two matmuls that take it on to queries and
        # keys (h100, jax 0.10.2); a ring casts it.
        wide_way = matmul_seconds(hardware, "float32", DTYPE_BYTES["float32"], length, h, float(seq), batches)
        forward = one_way + other_way
        backward = 3.0 * one_way + 2.0 * other_way + np.where(ring, 0.0, 2.0 * (wide_way - other_way))
        core = tuple(
            np.where(plain, matmuls * share, fast) for matmuls, fast in zip((forward, backward), core, strict=True)
        )
        core_flops = tuple(
            np.where(plain, 2.0 * matmuls * scores * h * share, fast)
            for matmuls, fast in zip((2.0, 5.0), core_flops, strict=True)
        )
        again = (stored_bytes[0], stored_bytes[0] + stored_bytes[1])
        core_hbm = tuple(np.where(plain, each * share, 0.0) for each in again)
        block = np.where(plain, np.minimum(length, PLAIN_QUERIES) * np.where(ring, length / 2.0, seq), 0.0)
        kernels = (1.0, 2.0)
        blocked = plain & ~ring
        # Products of a ring that are one block of queries, and no loop, find their scores made again already (gb200,
        # a100-40 and h100; jax 0.10.2): those with its own keys, and with two devices all.
        pieces = 2.0 if causal else 1.0
        alone = np.where(context == 2, 1.0, (3.0 if causal else 1.0) / np.where(causal, 2.0 * context + 1.0, context))
        core_again = np.where(ring & (context > 1) & (length / pieces <= PLAIN_QUERIES), 1.0 - 0.5 * alone, 1.0)
    else:
        # scores = q k^T and probabilities x v; backward two matmuls for each
        core = (one_way + other_way, 2.0 * (one_way + other_way))
        core_flops = (4.0 * scores * h, 8.0 * scores * h)
        core_hbm = stored_bytes
        block = np.zeros_like(tokens)
        kernels = (4.0, 8.0)
        blocked = np.zeros_like(tokens, dtype=bool)
        core_again = np.ones_like(tokens)
    cut = np.where(sequence_parallel > 0, tensor, 1)
    gate = first - 1
    elements = (tokens * d / cut, tokens * (heads + 2 * kv_heads) * h, tokens * copies * hidden)
    slots = tokens * (shape.slots_per_token if shape.experts else 0.0) * d / tensor
    elementwise = tuple(
        scale
        * (
            elements[0] * traffic.stream[way]
            + elements[1] * traffic.heads[way]
            + elements[2] * (traffic.hidden[way] + gate * traffic.gate[way])
            + slots * ROUTED_TRAFFIC[way]
        )
        / hbm
        for way in (0, 1)
    )
    matmuls = 4.0 + shape.mlp_matrices  # to queries, keys and values, back from attention, and the MLP's
    launches = tuple(
        (traffic.kernels[way] + kernels[way] + (1.0 + way) * matmuls) * hardware.launch_seconds for way in (0, 1)
    )
    logits = tokens * (shape.vocab / tensor)
    kept = {
        "input": 2.0 * tokens * d / cut,
        "stream": saved.stream * tokens * d / cut,
        "whole": saved.whole * tokens * d,
        "heads": saved.heads * elements[1],
        "context": saved.context * tokens * heads * h + saved.statistics * tokens * heads,
        "outputs": 2.0 * tokens * d / cut,
        "mlp_outputs": 2.0 * tokens * d / cut * (shape.shared_experts > 0 or not shape.experts),
        "slots": 2.0 * slots,
        # A flash kernel never stores them: kept without remat, they made every such layout look too large.
        "scores": saved.scores * scores * (not stack.flash),
        "hidden_in": 2.0 * first * elements[2],
        "hidden_rest": (saved.hidden + gate * saved.gate) * elements[2],
    }
    # Experts run back before attention does: of slots and blocks of scores no more than the larger is there.
    in_hand = saved.working * tokens * d + np.maximum(SLOT_BYTES * slots * tensor, PLAIN_BYTES * batches * block)
    scores_in_hand = saved.scores_working * scores * (not stack.flash)
    in_hand = in_hand + scores_in_hand + 2.0 * elements[1] + 4.0 * first * elements[2]
    return Work(
        sequences=sequences,
        tokens=tokens,
        heads=to_heads,
        out=matmul(tokens, d, heads * h),
        hidden_in=hidden_in,
        hidden_out=hidden_out,
        core_flops=core_flops,  # type: ignore[arg-type]
        core_matmul=core,  # type: ignore[arg-type]
        core_hbm=core_hbm,  # type: ignore[arg-type]
        core_again=core_again,
        blocked=blocked,
        elementwise=elementwise,  # type: ignore[arg-type]
        launches=launches,  # type: ignore[arg-type]
        head=matmul(tokens, shape.vocab / tensor, d),
        loss=tuple(scale * bytes_each * logits / hbm for bytes_each in traffic.logits),  # type: ignore[arg-type]
        stream_bytes=width * tokens * d,
        slot_bytes=width * slots * tensor,
        kv_bytes=width * 2 * tokens * kv_heads * h,
        kept={name: scale * value for name, value in kept.items()},
        layer_work_bytes=scale * in_hand,
        logit_bytes=scale * saved.logits * logits,
        held_logit_bytes=scale * saved.held_logits * logits,
    )


def _sum(a: Matmul, b: Matmul) -> Matmul:
    return Matmul(
        flops=a.flops + b.flops,
        forward=a.forward + b.forward,
        backward_input=a.backward_input + b.backward_input,
        backward_weight=a.backward_weight + b.backward_weight,
    )
