"""Pipeline schedules: how long a step takes beyond its busiest stage, and how many microbatches a stage holds.

Every one of p stages runs m microbatches. One takes `forward`, `backward_input` and `backward_weight` seconds of
compute (F, B and W of Qi et al. 2024, arXiv 2401.10241) and `transfer` to the next stage. The bubble is what the
busiest stage waits for the others while the pipeline fills and drains:

    gpipe, 1f1b      the time of one microbatch on every other stage (Narayanan et al. 2021, arXiv 2104.04473)
    circular         that over `virtual_stages`: each stage holds so many thin slices (the same paper, section 2.2)
    zero-bubble-1p   (p - 1) (F + B - W): W fills what memory of 1F1B allows (ZB-H1)
    zero-bubble-2p   max(0, (p - 1) (F + B) - m W): the last B must travel back through all stages while their own
                     weight gradients, saved up, keep the later stages busy; with few microbatches there are not enough
                     of them. (Derived here; the paper's handcrafted ZB-H2, (p - 1) (F + B - 2 W), is its bound for
                     microbatches that cannot be reordered freely.)
    zero-bubble-v    as 2p, with each stage folded to hold two slices (arXiv 2405.15362), memory of 1F1B
"""

from __future__ import annotations

import numpy as np

from autotune.meshes.layout import SCHEDULES
from autotune.meshes.layout_words import LAYOUT_WORDS

REFERENCE: tuple[str, ...] = LAYOUT_WORDS["schedule"].searched or ()
"""Schedules that the reference pipeline (`autotune.models.pipeline`) runs. Their memory is its programs': it goes
forward through all microbatches first and saves every tick. The others are priced as their papers define them."""

NAMES = ("none", "gpipe", "1f1b", "circular", "zero-bubble-1p", "zero-bubble-2p", "zero-bubble-v")

ZERO_BUBBLE = "zero-bubble-1p"
"""The schedule that a Layout's "zero-bubble" stands for: the one that needs no more memory than 1F1B."""


def as_published(schedule: np.ndarray) -> np.ndarray:
    """Rows of a column of schedules (codes as in a `LayoutTable`) that the reference pipeline cannot run."""
    found = np.zeros(np.shape(schedule), dtype=bool)  # not np.isin, which takes ten times as long
    for code, name in enumerate(SCHEDULES):
        if name not in REFERENCE:
            found |= schedule == code
    return found


def most_microbatches_held(schedule: np.ndarray, *, stages, microbatches, virtual_stages) -> np.ndarray:
    """For each row, the microbatches whose activations its fullest stage, the first, holds at once.

    `schedule`: codes as in a `LayoutTable`; "zero-bubble" is `ZERO_BUBBLE`.
    """
    found = np.ones(np.shape(schedule))
    for code, name in enumerate(SCHEDULES):
        rows = schedule == code
        if rows.any():
            word = ZERO_BUBBLE if name == "zero-bubble" else name
            first, _, _ = microbatches_held(
                word, stages=stages, microbatches=microbatches, virtual_stages=virtual_stages
            )
            found = np.where(rows, first, found)
    return found


def bubble_seconds(
    name: str, *, stages, microbatches, virtual_stages, others, forward, backward_input, backward_weight, transfer
):
    """Seconds the busiest stage idles in one step. Arrays broadcast.

    `others`: seconds of one microbatch (forward and backward) summed over the other stages; `forward` and the rest are
    of one microbatch on an average stage.
    """
    trips = 2.0 * (stages - 1) * transfer
    if name in ("gpipe", "1f1b"):
        return others + trips
    if name == "circular":
        # while it fills, a stage sends each of its slices with no backward one to send beside it
        return others / virtual_stages + trips + (virtual_stages - 1.0) * stages * transfer
    if name == "zero-bubble-1p":
        return np.maximum((stages - 1) * (forward + backward_input - backward_weight), 0.0) + trips
    if name in ("zero-bubble-2p", "zero-bubble-v"):
        slices = 2.0 if name == "zero-bubble-v" else 1.0
        fill = (stages - 1) * (forward + backward_input) / slices + trips
        return np.maximum(fill - microbatches * backward_weight, 0.0)
    return 0.0 * others


def microbatches_held(name: str, *, stages, microbatches, virtual_stages):
    """Microbatches whose activations the (first, second, last) stage holds at the worst moment, in microbatches of a
    whole stage; those after the second hold no more than it.

    gpipe: all; 1f1b: as many as stages are to come, itself included; interleaved: p (1 + (p - 1) / (p v)) on the first
    (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.3), two slices fewer on each that follows, on the last
    p (v - 1) slices and the one at work (Megatron-LM schedules.py, num_warmup_microbatches); zero-bubble: p or 2 p
    (arXiv 2401.10241, table 1) on every stage, since later ones keep what their postponed weight gradients need.
    """
    one = np.ones_like(microbatches * 1.0)
    if name == "gpipe":
        return (microbatches * one,) * 3
    if name == "1f1b":
        return np.minimum(microbatches, stages) * one, np.minimum(microbatches, stages - 1.0) * one, one
    if name in ("zero-bubble-1p", "zero-bubble-v"):
        return (np.minimum(microbatches, stages) * one,) * 3
    if name == "zero-bubble-2p":
        return (np.minimum(microbatches, 2.0 * stages) * one,) * 3
    if name == "circular":
        whole, more = stages * virtual_stages, stages - 1.0
        slices = (whole + more, whole + more - 2.0, whole - more)
        return tuple(np.minimum(microbatches, each / virtual_stages) * one for each in slices)
    return one, one, one
