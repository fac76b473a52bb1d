"""The work of one microbatch on one device, of a layer and of the head: seconds of compute, bytes moved and bytes kept.

It depends on a few columns of a layout, so many rows of a table share one piece of work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.efficiency import DTYPE_BYTES, matmul_seconds
from autotune.meshes.architecture import GROUPED_ROWS, AttentionKind, LayerKind
from autotune.meshes.hardware import Hardware
from autotune.meshes.matrices import matrices_of_layer
from autotune.meshes.transformer import TransformerShape
from autotune.price.transformer.adapters import ADAPTER_KERNELS, ADDED_TRAFFIC, adapter_matmuls, added_elements
from autotune.price.transformer.attention_work import AttentionWork, Pair, attention_work
from autotune.price.transformer.training_stack import TrainingStack

ROUTED_TRAFFIC = (24.0, 28.0)
"""Bytes of memory traffic, (forward, backward), per slot and element of d_model, of dispatch to experts and back
(`autotune.models.experts`). Forward 24: tokens are gathered, masked and laid out for the all-to-all, each read and
written in the compute dtype (12), in both directions; a compiled Mixtral has 25. Backward the same, and the sum over
the copies of a token (4)."""

DROPLESS_TRAFFIC = (12.0, 17.0)
"""The same, per row of the buffer, of experts that drop no token (`autotune.models.dropless`). Forward 12: rows are
gathered, masked, and gathered back, each read and written. Backward 17: the same gathers, the sum of two gradients of
the rows, and the sum over the choices of a token; a compiled small mixture moves 41 in all where the forward pass runs
twice (v5e:2x2, expert=4, remat=full, jax 0.10.2)."""

NORM_TRAFFIC = (4.0, 8.0)
"""Bytes of memory traffic, (forward, backward), per element of a norm beyond the two of a layer (as in
`training_stack.Traffic.stream`)."""

NORM_SAVED = 8.0
"""Bytes that such a norm keeps per element where nothing is recomputed: its input and its result in float32."""

PLAIN_BYTES = 10.0
"""Bytes per score of a block of plain attention: scores and their gradient in float32, softmax weights in the compute
dtype (h100, context 2 to 16, jax 0.10.2)."""

SLOT_BYTES = 11.0
"""Bytes per slot and element of d_model (not cut along `tensor`) that the backward pass of routed experts holds at
once: five to six arrays in the compute dtype (deepseek-like on h100, tensor 1 to 4, jax 0.10.2)."""

ROW_BYTES = 4.0
"""The same per row of experts that drop no token: the rows and the gradient of their results."""


TILE_TRAFFIC = 8.0
"""Bytes of memory traffic of the backward pass per tile of the vocabulary, token and element of d_model: the sum of the
stream's gradient in float32 is read and written (`autotune.models.loss`)."""

QUANTISED_READS = 2.0
"""How often an operand that is quantised is read: for its largest magnitude, and to be scaled
(`autotune.models.quantised`)."""

LOGITS_AGAIN = 2.0
"""Bytes per logit that the backward pass of a tiled loss writes beside those of a loss without tiles: it computes the
logits again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matmul:
    """A group of matmuls of one microbatch on one device."""

    flops: np.ndarray
    """FLOPs of one of the passes below; they have equally many."""
    forward: np.ndarray
    """Seconds of the forward pass."""
    backward_input: np.ndarray
    """Seconds of the gradient of the input."""
    backward_weight: np.ndarray
    """Seconds of the gradient of the weight; 0 of a frozen one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWork:
    """One layer, one microbatch, one device, unless the field says otherwise. Arrays have shape (pieces of work,)."""

    sequences: np.ndarray
    """Sequences of the microbatch on the device."""
    qkv: Matmul
    """To queries, keys and values."""
    attention_out: Matmul
    """From attention back to the residual stream."""
    mlp_in: Matmul
    """Into the MLP's hidden width; of experts also the router."""
    mlp_out: Matmul
    """From the MLP's hidden width back to the residual stream."""
    grouped: tuple[Matmul, Matmul]
    """Of these two, what kernels of their own do (grouped matmuls on TPUs): no collective runs inside them."""
    attention: AttentionWork
    """Attention's core."""
    elementwise: Pair
    """Seconds of memory traffic of everything that is neither a matmul nor attention."""
    quantised: Pair
    """Elements that are quantised: operands of the forward pass without the weights, gradients of the backward pass."""
    launches: tuple[float, float]
    """Seconds of kernel launches, (forward, backward)."""
    logits: Matmul
    """Logits: of the whole microbatch, once."""
    loss: Pair
    """Seconds of memory traffic of the loss, once a microbatch."""
    stream_bytes: np.ndarray
    """Bytes of tokens x d_model in the compute dtype; not divided by `tensor`."""
    slot_bytes: np.ndarray
    """Bytes of slots of routed experts x d_model in the compute dtype; not divided by `tensor`."""
    kv_bytes: np.ndarray
    """Bytes of keys and values of the device's tokens in the compute dtype."""
    kept_bytes: dict[str, np.ndarray]
    """Part of a layer (`remat.KEPT_PARTS`) -> bytes kept for the backward pass where the policy keeps all of the
    part."""
    layer_work_bytes: np.ndarray
    """Bytes that the backward pass of one layer holds at once."""
    logit_bytes: np.ndarray
    """Bytes of logits and their gradient that are held at once around the loss."""
    held_logit_bytes: np.ndarray
    """Bytes of them that stay until the backward pass of the layers has ended."""
    adapters: dict[str, tuple[Matmul, Matmul]]
    """Group of the matmuls above -> (x A, (x A) B) of its adapters; empty where there are none."""

    def spent(self, layers: float, kept_shares: Mapping[str, Any], saving: float) -> dict[str, np.ndarray]:
        """Seconds of a microbatch through so many layers and the head, by what draws power
        (`autotune.efficiency.sustained_share`), where what is elementwise runs again. `kept_shares`: part of a layer ->
        share of it that is kept for the backward pass. `saving`: seconds of a byte that is kept."""
        matmuls = [self.qkv, self.attention_out, self.mlp_in, self.mlp_out]
        matmuls += [one for both in self.adapters.values() for one in both]
        seconds = sum(one.forward + one.backward_input + one.backward_weight for one in matmuls)
        logits = self.logits.forward + self.logits.backward_input + self.logits.backward_weight
        attention = sum(self.attention.matmul_seconds)
        fused = np.where(self.attention.blocked, 0.0, attention)
        saved = sum(share * self.kept_bytes[part] for part, share in kept_shares.items())
        stored = sum(self.attention.hbm_seconds) + sum(self.attention.parts_seconds)
        passes = 2.0 * self.elementwise[0] + self.elementwise[1] + stored + saving * saved
        return {
            "matmul": layers * (seconds + (attention - fused)) + logits,
            "attention": layers * fused,
            "passes": layers * passes + sum(self.loss),
            "waits": np.zeros_like(seconds),
        }


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
    tiles: np.ndarray,
) -> DeviceWork:
    """The work of a microbatch of `sequences` sequences a device, cut along `tensor`, `context` and `expert`. `ring`:
    whether attention along `context` passes keys and values around a ring. `tiles`: of the vocabulary. All are arrays
    over pieces of work.

    Where layers differ, each field is the mean over the layers, and a maximum over the kinds of layers for what a
    device holds at once (`LARGEST`).
    """
    works = [
        _work_of_kind(
            shape, kind, seq, dtype, hardware, stack, sequences=sequences, tensor=tensor, context=context,
            expert=expert, sequence_parallel=sequence_parallel, ring=ring, tiles=tiles,
        )
        for shape, kind, _ in transformer.stacks
    ]  # fmt: skip
    return works[0] if len(works) == 1 else _mean(works, [share for _, _, share in transformer.stacks])


def _work_of_kind(
    shape: TransformerShape,
    kind: LayerKind | None,
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
    tiles: np.ndarray,
) -> DeviceWork:
    """The work of one kind of layer; `kind` is None where the shape says all of it."""
    traffic, saved = stack.traffic, stack.saved
    attends = None if kind is None else kind.attention
    width = DTYPE_BYTES[dtype]
    scale = width / 2.0
    hbm = hardware.hbm_bytes_per_second * hardware.hbm_efficiency
    tokens = sequences * seq / context
    heads = shape.heads / tensor
    kv_heads = np.maximum(shape.kv_heads / tensor, 1.0)
    d, h = float(shape.d_model), float(shape.head_dim)

    base = stack.state.base

    def trained_matmul(m, n, k, count=1.0, narrow=stack.matmul_dtype) -> Matmul:
        """`narrow`: to which its operands are quantised."""

        def seconds(m, n, k):
            operands = DTYPE_BYTES[narrow] if narrow else width
            return matmul_seconds(hardware, narrow or dtype, operands, m, n, k, count, result_bytes=width)

        return Matmul(
            flops=2.0 * m * n * k * count,
            forward=seconds(m, n, k),
            backward_input=seconds(m, k, n),
            backward_weight=seconds(k, n, m),
        )

    def matmul(m, n, k, count=1.0, narrow=stack.matmul_dtype) -> Matmul:
        found = trained_matmul(m, n, k, count, narrow)
        return found if base is None else dataclasses.replace(found, backward_weight=np.zeros_like(found.forward))

    to_heads = _sum(matmul(tokens, heads * h, d), matmul(tokens, kv_heads * h, d, 2.0))
    values, latents = h, 0.0
    if attends is not None and attends.latent:
        values, latents = float(attends.value_width), float(attends.query_rank + attends.kv_rank + attends.rope_dim)
        to_heads = _latent_projections(matmul, attends, tokens, heads, d)
    first = shape.mlp_matrices - 1
    hidden = shape.d_ff / tensor
    grouped = (_no_matmul(tokens), _no_matmul(tokens))
    if shape.experts:
        local = shape.experts / expert
        # Without a capacity: room for every choice that the tokens of all devices along `expert` can have here.
        room = expert * np.minimum(shape.experts_per_token, local)
        held = room if shape.dropless else shape.slots_per_token
        # On CPU every row of that room meets every expert.
        each = (
            tokens * held if shape.dropless and hardware.platform == "cpu" else tokens * shape.slots_per_token / local
        )
        mlp_in, mlp_out = matmul(each, hidden, d, first * local), matmul(each, d, hidden, local)
        if shape.dropless and hardware.platform == "tpu":
            # The tile at each border between two experts' rows is computed for both.
            more = each + GROUPED_ROWS * (local - 1.0) / local
            mlp_in = dataclasses.replace(matmul(more, hidden, d, first * local), flops=mlp_in.flops)
            mlp_out = dataclasses.replace(matmul(more, d, hidden, local), flops=mlp_out.flops)
            grouped = (mlp_in, mlp_out)
        if shape.shared_experts:
            shared = float(shape.shared_experts)
            mlp_in = _sum(mlp_in, matmul(tokens, hidden, d, first * shared))
            mlp_out = _sum(mlp_out, matmul(tokens, d, hidden, shared))
        elif kind is not None and kind.mlp.shared_width:
            beside = kind.mlp.shared_width / tensor
            mlp_in = _sum(mlp_in, matmul(tokens, beside, d, float(first)))
            mlp_out = _sum(mlp_out, matmul(tokens, d, beside))
        # The router of experts that drop no token reads the sequence as the norms leave it.
        scored = tokens / np.where(sequence_parallel > 0, tensor, 1) if shape.dropless else tokens
        mlp_in = _sum(mlp_in, matmul(scored, float(shape.experts), d, narrow=None))
        copies = held + shape.shared_experts
        if kind is not None:
            copies = held + kind.mlp.shared_width / kind.mlp.width
    else:
        mlp_in, mlp_out = matmul(tokens, hidden, d, float(first)), matmul(tokens, d, hidden)
        copies, held = 1, 0.0

    attention = attention_work(
        shape, seq, dtype, hardware, stack, sequences=sequences, heads=heads, kv_heads=kv_heads, context=context,
        ring=ring, kind=attends,
    )  # fmt: skip
    cut = np.where(sequence_parallel > 0, tensor, 1)
    gate = first - 1
    elements = (tokens * d / cut, tokens * (heads + 2 * kv_heads) * h, tokens * copies * hidden)
    if attends is not None and attends.latent:
        elements = (elements[0], tokens * (heads * (2.0 * h + values) + latents), elements[2])
    # Slots travel cut along `tensor`; rows of experts that drop no token are whole along it.
    parts, routed_traffic, in_work = tensor, ROUTED_TRAFFIC, SLOT_BYTES
    if shape.dropless:
        parts, routed_traffic, in_work = np.ones_like(tensor), DROPLESS_TRAFFIC, ROW_BYTES
    slots = tokens * held * d / parts
    elementwise = tuple(
        scale
        * (
            elements[0] * traffic.stream[way]
            + elements[1] * traffic.qkv[way]
            + elements[2] * (traffic.mlp_hidden[way] + gate * traffic.mlp_gate[way])
            + slots * routed_traffic[way]
        )
        / hbm
        for way in (0, 1)
    )
    # Into attention and out of it, into the MLP (each slot of routed experts) and its hidden units; backward the
    # gradients of what the same matmuls make.
    into_mlp = tokens * d if not shape.experts else tokens * d * copies
    quantised = (
        (tokens * d + tokens * heads * values + into_mlp + elements[2]) if stack.matmul_dtype else 0.0 * tokens,
        (elements[1] + tokens * d + first * elements[2] + into_mlp) if stack.matmul_dtype else 0.0 * tokens,
    )
    normed = np.zeros_like(tokens)
    if kind is not None:
        # A norm more reads and writes its input, and twice that backward (`Traffic.stream`).
        normed = (kind.norms - 2.0) * tokens * d / cut
        if kind.attention.qk_norm != "none":
            normed = normed + tokens * (heads + kv_heads) * h
        elementwise = tuple(
            seconds + scale * each * normed / hbm for seconds, each in zip(elementwise, NORM_TRAFFIC, strict=True)
        )
    matmuls = 4.0 + shape.mlp_matrices  # to queries, keys and values, back from attention, and the MLP's
    launches = tuple(
        (traffic.kernels[way] + attention.kernels[way] + (1.0 + way * (base is None)) * matmuls)
        * hardware.launch_seconds
        for way in (0, 1)
    )
    adapters: dict[str, tuple[Matmul, Matmul]] = {}
    if base is not None:
        layer = kind or shape.described.layers[0]
        adapted = sum(one.name in base.lora.matrices for one in matrices_of_layer(layer, shape.d_model))
        launches = tuple(
            seconds + adapted * kernels * hardware.launch_seconds
            for seconds, kernels in zip(launches, ADAPTER_KERNELS, strict=True)
        )
        slotted = tokens * shape.slots_per_token if shape.experts else tokens
        experts = shape.experts / expert if shape.experts else np.ones_like(tokens)
        adapters = adapter_matmuls(
            layer,
            shape.d_model,
            base.lora,
            trained_matmul,
            _sum,
            tokens=tokens,
            rows=tokens / cut,
            slots=slotted / experts,
            experts=experts,
            tensor=tensor,
        )
        added = added_elements(
            layer, shape.d_model, base.lora, tokens=tokens, rows=tokens / cut, slots=slotted, tensor=tensor
        )
        elementwise = tuple(
            seconds + scale * each * more / hbm
            for seconds, each, more in zip(elementwise, ADDED_TRAFFIC, added, strict=True)
        )
    logits = tokens * (shape.vocab / tensor)
    tiled = np.where(tiles > 1, scale * LOGITS_AGAIN * logits + TILE_TRAFFIC * (tiles * tokens * d), 0.0)
    dense = shape.dense_share if kind is None else bool(kind.mlp.shared_width or not kind.mlp.experts)
    whole, rest = saved.whole * tokens * d, (saved.mlp_hidden + gate * saved.mlp_gate) * elements[2]
    if stack.matmul_dtype:
        # The backward pass reads the quantised operands: in place of the norms' results and of the MLP's hidden units,
        # and beside attention's result, which its kernel reads too.
        in_8_bits = DTYPE_BYTES[stack.matmul_dtype] / scale
        whole = whole * in_8_bits / 2.0 + in_8_bits * tokens * heads * values
        rest = rest - (2.0 - in_8_bits) * elements[2]
    kept = {
        "input": 2.0 * tokens * d / cut,
        "stream": saved.stream * tokens * d / cut + NORM_SAVED * normed,
        "whole": whole,
        "qkv": saved.qkv * elements[1],
        "attention": saved.attention * tokens * heads * values + saved.statistics * tokens * heads,
        "attention_out": 2.0 * tokens * d / cut,
        "mlp_out": 2.0 * tokens * d / cut * dense,
        "slots": 2.0 * slots,
        # A fused kernel never stores its scores.
        "scores": saved.scores * attention.scores * (not stack.flash),
        "mlp_in": 2.0 * first * elements[2],
        "mlp_rest": rest,
    }
    # The backward pass of the experts ends before that of attention begins, so only the larger of the two counts.
    blocks = PLAIN_BYTES * attention.batched_heads * attention.block_scores
    in_hand = saved.working * tokens * d + np.maximum(in_work * slots * parts, blocks)
    scores_in_hand = saved.scores_working * attention.scores * (not stack.flash)
    in_hand = in_hand + scores_in_hand + 2.0 * elements[1] + 4.0 * first * elements[2]
    return DeviceWork(
        sequences=sequences,
        qkv=to_heads,
        attention_out=matmul(tokens, d, heads * values),
        mlp_in=mlp_in,
        mlp_out=mlp_out,
        grouped=grouped,
        attention=attention,
        elementwise=elementwise,  # type: ignore[arg-type]
        quantised=quantised,
        launches=launches,  # type: ignore[arg-type]
        logits=matmul(tokens, shape.vocab / tensor / tiles, d, tiles, narrow=None),
        loss=(scale * traffic.logits[0] * logits / hbm, (scale * traffic.logits[1] * logits + tiled) / hbm),
        stream_bytes=width * tokens * d,
        slot_bytes=width * slots * parts,
        kv_bytes=width * tokens * kv_heads * (h + values),
        kept_bytes={name: scale * value for name, value in kept.items()},
        # Beside the mask of packed documents stands its gradient, which JAX asks of the kernel.
        layer_work_bytes=scale * in_hand + 2.0 * attention.mask_bytes,
        # No gradient of a frozen table waits for them, so their gradient takes their place (v5e and h100).
        logit_bytes=scale * (saved.logits if base is None else 2.0) * logits / tiles
        + np.where(tiles > 1, 4.0 * tokens * d, 0.0),
        held_logit_bytes=np.where(tiles > 1, 0.0, scale * saved.held_logits * logits),
        adapters=adapters,
    )


def _no_matmul(like: np.ndarray) -> Matmul:
    nothing = np.zeros_like(like)
    return Matmul(flops=nothing, forward=nothing, backward_input=nothing, backward_weight=nothing)


def _sum(a: Matmul, b: Matmul) -> Matmul:
    return Matmul(
        flops=a.flops + b.flops,
        forward=a.forward + b.forward,
        backward_input=a.backward_input + b.backward_input,
        backward_weight=a.backward_weight + b.backward_weight,
    )


def _latent_projections(matmul: Callable[..., Matmul], attends: AttentionKind, tokens, heads, d: float) -> Matmul:
    """The matmuls that make queries, keys and values of latent attention; those into the latents are not cut."""
    into = float(attends.query_rank) or d
    keys = float(attends.head_dim - attends.rope_dim + attends.value_width)
    total = _sum(matmul(tokens, heads * attends.head_dim, into), matmul(tokens, heads * keys, float(attends.kv_rank)))
    total = _sum(total, matmul(tokens, float(attends.kv_rank + attends.rope_dim), d))
    return _sum(total, matmul(tokens, into, d)) if attends.query_rank else total


LARGEST = ("batched_heads", "block_scores", "layer_work_bytes")
"""Fields that hold what a device needs at once. A model has the maximum over its kinds of layers, not the mean."""


def _mean(works: list, shares: list[float]):
    """The mean of the same dataclass over kinds of layers, weighed by their shares of the layers."""

    def mean(values: list, largest: bool):
        first = values[0]
        if dataclasses.is_dataclass(first):
            return _mean(values, shares)
        if isinstance(first, tuple):
            return tuple(mean(list(each), largest) for each in zip(*values, strict=True))
        if isinstance(first, dict):
            return {name: mean([one[name] for one in values], largest) for name in first}
        if isinstance(first, np.ndarray) and first.dtype.kind == "b":
            return np.logical_or.reduce(values)
        if largest:
            return np.maximum.reduce(values)
        return sum(share * value for share, value in zip(shares, values, strict=True))

    return type(works[0])(
        **{
            field.name: mean([getattr(work, field.name) for work in works], field.name in LARGEST)
            for field in dataclasses.fields(works[0])
        }
    )
