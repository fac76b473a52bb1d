"""Bytes a device needs at the worst moment of a step, by category.

The worst moment is the start of the backward pass of the last layer (all activations alive, logits and their
gradient), the end of it (gradients whole, one layer's working set), or, with Muon, the optimizer's update.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.price.transformer.adapters import Adapters
from autotune.price.transformer.pipeline_schedules import as_published, most_microbatches_held
from autotune.price.transformer.rows import Rows

FROZEN_LAYERS = 2.0 / 3.0
"""Of `TrainingStack.whole_layers`, what is weights: the rest is the gradient of one matrix of three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The memory of a pipeline stage that does not depend on what is recomputed. One entry a row."""

    fixed: dict[str, np.ndarray]
    """Category -> bytes of one device, without what the layers save for the backward pass."""
    microbatches_held: np.ndarray
    """Microbatches whose saved activations are held at once."""
    at_update: np.ndarray | None = None
    """Bytes of one device while the optimizer works, where that may be the worst moment; None: it is not."""


def optimizer_bytes(rows: Rows, parameters: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Bytes of optimizer state of one device's `parameters`, divided by `cut`, wherever the state is kept."""
    state = rows.stack.state
    held = state.optimizer * parameters / cut
    if rows.orthogonalised is None:
        return held
    beside = parameters - rows.orthogonalised.parameters / rows.size["fsdp"]
    return held + (state.optimizer_beside - state.optimizer) * beside / cut


def _microbatches_held(rows: Rows, published: np.ndarray) -> np.ndarray:
    """Microbatches whose saved activations a stage holds at once.

    The reference pipeline saves activations at every tick, also in ticks that do no useful work. A schedule that starts
    backward passes early (`published`) holds no more than it lets wait."""
    table, size, virtual = rows.table, rows.size, rows.table.virtual_stages
    ticks = (table.microbatches * virtual + size["stage"] - 1.0) / virtual
    held = np.where(rows.staged, ticks, 1.0)
    if not published.any():
        return held
    most = most_microbatches_held(
        table.schedule, stages=size["stage"], microbatches=table.microbatches * 1.0, virtual_stages=virtual * 1.0
    )
    return np.where(published, most, held)


def _frozen_stage(rows: Rows, adapters: Adapters) -> Stage:
    """The same where all but adapters is frozen: gradients and optimizer state are of adapters alone."""
    stack, size, table, work = rows.stack, rows.size, rows.table, rows.prepared.work
    state, base, staged, layers = stack.state, stack.state.base, rows.staged, rows.layers
    assert base is not None
    parameters, fsdp = rows.parameters, size["fsdp"]
    cut = np.where(table.zero > 0, size["data"], 1.0)
    own, whole_own = layers * adapters.local(fsdp, cut), layers * adapters.local(fsdp)
    weights = (base.kept * parameters.layer * layers + base.kept_beside * parameters.vocabulary) / fsdp
    weights = weights + state.weights * own + np.where(table.zero > 0, state.compute * whole_own, 0.0)
    optimizer = state.optimizer * own * np.where(table.offload > 0, 0.0, 1.0)
    gradients = state.gradients * np.where(table.zero == 2, own, whole_own) * np.where(table.accumulate > 1, 2.0, 1.0)
    in_layer, held_at_once = rows.per_row(work.layer_work_bytes), np.ones(len(table))
    # A quantised matrix stands there whole twice, as it was gathered and in the compute dtype.
    each = np.where(fsdp > 1, base.sent, 0.0) + base.made
    gathered = each * (FROZEN_LAYERS * stack.whole_layers * parameters.largest_dense + 2.0 * parameters.largest_routed)
    beside = np.zeros(len(table))
    pieces = np.where(staged, table.microbatches / size["stage"], 1.0)
    if staged.any():
        published = staged & as_published(table.schedule)
        held_at_once = _microbatches_held(rows, published)
        # The weights whole along fsdp, and the inputs and results of the microbatches that wait, with their gradients.
        sent = 2.0 * rows.stream_bytes / np.where(rows.parallel, size["tensor"], 1.0)
        around = sent * np.where(published, 1.0, table.microbatches)
        beside = np.where(staged, base.sent * parameters.layer * layers + around, 0.0)
        pieces = np.where(published, np.minimum(pieces, 1.0), pieces)
    # No matmul of a table's gradient waits for the logits: they are gone before the layers run back. Beside them stand
    # the last residual stream and the output projection, whole along fsdp (llama3-8b on h100:1x8, jax 0.10.2).
    logits, working = rows.per_row(work.logit_bytes) * pieces, in_layer + gathered
    around_logits = rows.stream_bytes * pieces
    around_logits = around_logits + np.where(fsdp > 1, base.sent_beside * parameters.embedding, 0.0)
    ends = gradients + working > logits + around_logits
    nothing = np.zeros(len(table))
    categories = {
        "parameters": weights,
        "gradients": np.where(ends, gradients, 0.0),
        "optimizer_state": optimizer,
        "activations": beside,
        "logits": np.where(ends, 0.0, logits),
        "workspace": np.where(ends, working, around_logits),
    }
    return Stage(fixed={name: amount + nothing for name, amount in categories.items()}, microbatches_held=held_at_once)


def stage_of(rows: Rows) -> Stage:
    """Memory of one pipeline stage, of one device, without what its layers save. All stages are priced alike: the head
    and the embedding are divided evenly over them."""
    stack, size, table, work = rows.stack, rows.size, rows.table, rows.prepared.work
    state, staged, layers = stack.state, rows.staged, rows.layers
    zero = table.zero
    held_at_once = np.ones(len(table))
    kept = (rows.parameters.dense(layers) + rows.parameters.routed(layers)) / size["fsdp"]
    cut = np.where(zero > 0, size["data"], 1.0)
    # ZeRO gathers a copy in the compute dtype once a step; that of the tables is gone before the layers run back
    tabled = rows.parameters.vocabulary / size["fsdp"]
    if rows.adapters is not None:
        return _frozen_stage(rows, rows.adapters)
    weights = state.weights * kept / cut + np.where(zero > 0, state.compute * (kept - tabled), 0.0)
    moments = optimizer_bytes(rows, kept, cut)
    optimizer = moments * np.where(table.offload > 0, 0.0, 1.0)
    gradients = state.gradients * kept / np.where(zero == 2, size["data"], 1.0)
    # Under accumulation the gradients of a pass stand beside their sums.
    gradients = gradients * np.where(table.accumulate > 1, 2.0, 1.0)
    # ZeRO-1: whole only in the dtype they are reduced in, their sums over passes are shards (mixture on h100); the
    # embedding's comes last, and is added to that of a tied table's other use
    whole = kept - (0.0 if rows.shape.tied_embeddings else rows.parameters.embedding / size["fsdp"])
    # Sums that are reduced once a step are whole on every replica.
    summed = state.gradients * kept / np.where(rows.deferred, 1.0, cut)
    summed = np.where(table.accumulate > 1, summed, 0.0)
    gradients = np.where(zero == 1, state.reduced * whole + summed, gradients)
    if staged.any():
        virtual = table.virtual_stages
        published = staged & as_published(table.schedule)
        held_at_once = _microbatches_held(rows, published)
        whole = state.compute * rows.parameters.layer * layers
        # Beside it the weights whole along fsdp, their gradients' sums in float32, and the gradients of all
        # microbatches' inputs and results; at work once more the sums of a chunk of several layers.
        around = 2.0 * rows.stream_bytes * table.microbatches / np.where(rows.parallel, size["tensor"], 1.0)
        beside = np.where(staged, 3.0 * whole + around, 0.0)
        at_work = np.where(rows.sliced, 2.0 * whole / virtual, 0.0)
        gradients = np.where(staged, 0.0, gradients)
        if published.any():
            # A schedule that starts backward passes early, as its paper has it: one activation on its way in and one
            # gradient; the sums of gradients in float32, and the weights whole
            # along fsdp, which are gathered and reduced once a step like those of the reference pipeline.
            sent = 2.0 * rows.stream_bytes / np.where(rows.parallel, size["tensor"], 1.0)
            beside = np.where(published, sent, beside)
            at_work = np.where(published, whole, at_work)
            gradients = np.where(published, 4.0 * rows.parameters.layer * layers, gradients)
    else:
        published = staged
        beside = at_work = np.zeros(len(table))
    # Routed experts' weights stand there in the layout of their batched matmuls, too (mixtures on h100 and a100-80);
    # grouped matmuls read them as they are.
    copies = 1.0 if rows.shape.dropless else 2.0
    whole = stack.whole_layers * rows.parameters.largest_dense + copies * rows.parameters.largest_routed
    gathered = np.where(size["fsdp"] > 1, state.compute * whole, 0.0)
    pieces = np.where(staged, table.microbatches / size["stage"], 1.0)
    # An early backward pass begins with the loss: no stage has the logits of more than one microbatch at a time.
    pieces = np.where(published, np.minimum(pieces, 1.0), pieces)
    logits, held = rows.per_row(work.logit_bytes) * pieces, rows.per_row(work.held_logit_bytes) * pieces
    in_layer = rows.per_row(work.layer_work_bytes)
    working = in_layer + gathered + at_work
    at_start, at_end = logits, gradients + held + in_layer
    late = gradients
    one_pass = (zero == 1) & (table.accumulate == 1)
    # The pipeline's sums of gradients stand beside the logits, which are gone before its layers run back (h100:2x8,
    # 2 to 8 stages of dense-4096, jax 0.10.2; 5 to 8 % too low where thin slices are dealt).
    early = staged | (one_pass & (size["tensor"] == 1) & (stack.saved.held_logits > 0))
    if early.any():
        # Under ZeRO-1 of one pass most programs that do not cut the vocabulary make the unembedding's gradient first:
        # the layers' backward pass begins when the logits are gone, which stood beside its stacked gradients (on h100,
        # h200 and a100-80, jax 0.10.2; where a program keeps the logits longer, this is up to 7 % too low).
        held, late = np.where(early, 0.0, held), np.where(early, 0.0, late)
        at_start = np.where(early, logits + gradients, at_start)
        at_end = np.where(early, gradients + working, at_end)
    ends = at_end > at_start
    categories = {
        "parameters": weights,
        "gradients": np.where(ends, gradients, gradients - late),
        "optimizer_state": optimizer,
        "activations": beside,
        "logits": np.where(ends, held, logits),
        "workspace": np.where(ends, working, np.where(early, 0.0, gathered + at_work)),
    }
    nothing = np.zeros(len(table))
    at_update = None
    if rows.orthogonalised is not None:
        at_update = weights + moments + state.gradients * kept / cut + rows.orthogonalised.held_bytes
    return Stage(
        fixed={name: amount + nothing for name, amount in categories.items()},
        microbatches_held=held_at_once,
        at_update=at_update,
    )
