"""Bytes a device needs at the worst moment of a step, by category.

The worst moment is the start of the backward pass of the last layer (all activations alive, logits and their
gradient), or the end of it (gradients whole, one layer's working set), whichever is more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autotune.meshes.layout import SCHEDULES
from autotune.price.schedules import waiting_microbatches

if TYPE_CHECKING:
    from autotune.price.once import Once
    from autotune.price.terms import Chunk

CATEGORIES = ("parameters", "gradients", "optimizer_state", "activations", "logits", "workspace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage's memory whatever is recomputed: bytes by category, without what its layers save for the backward pass;
    the microbatches `waiting` for theirs, and its `layers`. One entry a row."""

    fixed: dict[str, np.ndarray]
    waiting: np.ndarray
    layers: np.ndarray


def stages_of(once: Once) -> list[Stage]:
    """The stages one of which needs the most: the first, last and second, or one that stands for all.

    The first holds the most microbatches and the embedding, the last few microbatches and the logits: what no stage
    holds together is not added.
    """
    if not once.used["stage"] or once.stack.head_everywhere:
        return [_stage(once, once.middle, _held(once, 1)[0], 1.0, 1.0)]
    first, second, last = _held(once, 3)
    alone = np.where(once.size["stage"] > 1, 0.0, 1.0)
    return [
        _stage(once, once.ends, first, 1.0, alone),
        _stage(once, once.ends, last, 1.0, 1.0),
        _stage(once, once.middle, second, 0.0, 0.0),
    ]


def saved_of(chunk: Chunk, stage: Stage) -> dict[str, np.ndarray]:
    """Category -> bytes, for each row of a chunk, of what the layers of a stage save beside its `fixed`."""
    made, of_pass, stack = chunk.passes, chunk.of_pass, chunk.pricer.assumptions
    waiting, layers = stage.waiting[chunk.of_once], stage.layers[chunk.of_once]
    saved = (made.kept[of_pass] * waiting + made.kept_weights[of_pass]) * layers
    if not stack.eager and stack.allocator == 1.0:
        return {"activations": saved}
    again = made.kept_again[of_pass]
    return {"activations": saved, "workspace": stack.allocator * again + (stack.allocator - 1.0) * saved}


def fullest_of(chunk: Chunk, stages: list[Stage]) -> dict[str, np.ndarray]:
    """Category -> bytes a device, for each row of a chunk, of the stage that needs the most."""
    each = []
    for stage in stages:
        found = {name: amount[chunk.of_once] for name, amount in stage.fixed.items()}
        for name, amount in saved_of(chunk, stage).items():
            found[name] = found[name] + amount
        each.append(found)
    totals = [sum(found.values()) for found in each]
    totals[2] = np.where(chunk.table.stage > 2, totals[2], 0.0)
    fullest = np.argmax(totals, axis=0)
    return {name: np.choose(fullest, [found[name] for found in each]) for name in each[0]}


def _held(once: Once, places: int) -> list[np.ndarray]:
    """Microbatches in hand on the first, second and last stage, as many of the three as are asked for."""
    size, table = once.size, once.table
    found = [np.ones(len(table)) for _ in range(places)]
    if not once.used["stage"]:
        return found
    for code, schedule in enumerate(SCHEDULES):
        rows = (size["stage"] > 1) & (table.schedule == code)
        if rows.any():
            held = waiting_microbatches(
                once.stack.zero_bubble if schedule == "zero-bubble" else schedule,
                stages=size["stage"],
                passes=table.microbatches.astype(np.float64),
                virtual_stages=table.virtual_stages.astype(np.float64),
            )
            found = [np.where(rows, new, old) for new, old in zip(held, found, strict=False)]
    return found


def _stage(once: Once, layers: np.ndarray, waiting: np.ndarray, tables: float, head: float | np.ndarray) -> Stage:
    """A stage with so many layers and microbatches in hand; `tables` and `head`: whether it keeps
    the vocabulary's table(s) and makes the logits (1 or 0)."""
    stack, size, table, work = once.stack, once.size, once.table, once.prepared.work
    state = stack.state
    staged = size["stage"] > 1
    zero = table.zero
    every = once.parameters.dense(layers) + once.parameters.routed(layers)
    if tables != 1.0:
        every = every - (1.0 - tables) * once.parameters.vocabulary
    kept = every / size["fsdp"]
    cut = np.where(zero > 0, size["data"], 1.0)
    weights = state.weights * kept / (cut if stack.shards_zero_weights else 1.0)
    if stack.shards_zero_weights:
        # ZeRO gathers a copy in the compute dtype once a step; that of the tables is gone before the layers run back
        tabled = tables * once.parameters.vocabulary / size["fsdp"]
        weights = weights + np.where(zero > 0, state.compute * (kept - tabled), 0.0)
    optimizer = state.optimizer * kept / cut * np.where(table.offload > 0, 0.0, 1.0)
    gradients = state.gradients * kept / np.where(zero == 2, size["data"], 1.0)
    if stack.sums_beside:
        gradients = gradients * np.where(table.accumulate > 1, 2.0, 1.0)
    if stack.shards_zero_weights:
        # ZeRO-1: whole only in the dtype they are reduced in, their sums over passes are shards (mixture on h100); the
        # embedding's comes last, and is added to that of a tied table's other use
        whole = kept - tables * (0.0 if once.shape.tied_embeddings else once.parameters.embedding / size["fsdp"])
        summed = np.where(table.accumulate > 1, state.gradients * kept / cut, 0.0)
        gradients = np.where(zero == 1, state.reduced * whole + summed, gradients)
    by_hand, virtual = once.by_hand, table.virtual_stages
    if by_hand.any():
        # What the policy saves of every tick, idle ones too (its copy of the weights where nothing is recomputed).
        ticks = (table.microbatches * virtual + size["stage"] - 1.0) / virtual
        waiting = np.where(by_hand, ticks, waiting)
        whole = state.compute * once.parameters.layer * layers
        # Beside it the weights whole along fsdp, their gradients' sums in float32, and the gradients of all
        # microbatches' inputs and results; at work once more the sums of a chunk of several layers.
        around = 2.0 * once.stream_bytes * table.microbatches / np.where(once.parallel, size["tensor"], 1.0)
        beside = np.where(by_hand, 3.0 * whole + around, 0.0)
        at_work = np.where(once.sliced, 2.0 * whole / virtual, 0.0)
        gradients = np.where(by_hand, 0.0, gradients)
    else:
        beside = at_work = np.zeros(len(table))
    if stack.keeps_sent:
        beside = beside + np.where(staged, (waiting * (1.0 - head) + 1.0) * once.stream_bytes, 0.0)
    # Routed experts' weights stand there in the layout of their batched matmuls, too (mixtures on h100 and a100-80).
    whole = stack.whole_layers * once.parameters.layer_dense + 2.0 * once.parameters.layer_routed
    gathered = np.where(size["fsdp"] > 1, state.compute * whole, 0.0)
    pieces = head * np.where(staged & stack.head_everywhere, table.microbatches, 1.0)
    pieces = np.where(by_hand, table.microbatches / size["stage"], pieces)
    logits, held = once.of(work.logit_bytes) * pieces, once.of(work.held_logit_bytes) * pieces
    in_layer = once.of(work.layer_work_bytes)
    taken = stack.fixed_bytes + _groups(once, 1 if tables else 2)
    working = in_layer + gathered + at_work + taken
    late = np.zeros(len(table)) if stack.gradients_from_start else gradients
    at_start = logits + (gradients - late)
    at_end = gradients + held + (0.0 if stack.eager else in_layer)
    one_pass = (zero == 1) & (table.accumulate == 1) & stack.shards_zero_weights
    # The pipeline's sums of gradients stand beside the logits, which are gone before its layers run back (h100:2x8,
    # 2 to 8 stages of dense-4096, jax 0.10.2; 5 to 8 % too low where thin slices are dealt).
    early = by_hand | (one_pass & (size["tensor"] == 1) & (stack.saved.held_logits > 0))
    if early.any():
        # Under ZeRO-1 of one pass most programs that do not cut the vocabulary make the unembedding's gradient first:
        # the layers' backward pass begins when the logits are gone, which stood beside its stacked gradients (on h100,
        # h200 and a100-80, jax 0.10.2; where they stay all the same, this is up to 7 % too low).
        held, late = np.where(early, 0.0, held), np.where(early, 0.0, late)
        at_start = np.where(early, logits + gradients, at_start)
        at_end = np.where(early, gradients + working - taken, at_end)
    ends = at_end > at_start
    categories = {
        "parameters": weights,
        "gradients": np.where(ends, gradients, gradients - late),
        "optimizer_state": optimizer,
        "activations": beside,
        "logits": np.where(ends, held, logits),
        "workspace": np.where(early & ~ends, taken, working),
    }
    if stack.allocator != 1.0:
        asked = sum(categories.values()) - taken
        categories["workspace"] = working + (stack.allocator - 1.0) * asked
    rows = np.zeros(len(table))
    return Stage(fixed={name: amount + rows for name, amount in categories.items()}, waiting=waiting, layers=layers)


def _groups(once: Once, neighbours: int) -> np.ndarray | float:
    """Bytes of the communicators: one of all devices, one along each axis, and one with each neighbouring stage."""
    pair, larger = once.stack.group_bytes
    if not larger:
        return 0.0
    everyone = np.prod(list(once.size.values()), axis=0)
    sizes = [everyone, *once.size.values(), *[np.minimum(once.size["stage"], 2.0)] * neighbours]
    return sum(np.where(size > 2, larger, np.where(size > 1, pair, 0.0)) for size in sizes)
