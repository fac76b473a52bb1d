"""Bubbles and waiting microbatches: against a plain simulation of who waits for whom, and the papers' closed forms."""

from __future__ import annotations

import itertools

import pytest

from autotune.price.transformer.pipeline_schedules import NAMES, bubble_seconds, microbatches_held


def simulate_1f1b(forward: list[float], backward: list[float], microbatches: int) -> float:
    """Seconds until every stage is done: each does its operations in 1F1B order, as soon as its inputs are there."""
    stages = len(forward)
    orders = []
    for stage in range(stages):
        warm = min(stages - stage - 1, microbatches)
        order = [("F", i) for i in range(warm)]
        for i in range(microbatches - warm):
            order += [("F", warm + i), ("B", i)]
        orders.append(order + [("B", i) for i in range(microbatches - warm, microbatches)])
    done: dict[tuple[str, int, int], float] = {}
    free, at = [0.0] * stages, [0] * stages
    while any(at[s] < len(orders[s]) for s in range(stages)):
        for s in range(stages):
            while at[s] < len(orders[s]):
                kind, i = orders[s][at[s]]
                needs = ("F", s - 1, i) if kind == "F" else ("B", s + 1, i)
                outside = (kind == "F" and s == 0) or (kind == "B" and s == stages - 1)
                if not outside and needs not in done:
                    break
                begin = max(free[s], 0.0 if outside else done[needs])
                free[s] = done[kind, s, i] = begin + (forward if kind == "F" else backward)[s]
                at[s] += 1
    return max(free)


@pytest.mark.parametrize("stages, microbatches", list(itertools.product((2, 4, 7), (8, 16))))
def test_1f1b_takes_what_the_simulation_takes(stages, microbatches):
    forward, backward = [1.0] * stages, [2.0] * stages
    bubble = bubble_seconds(
        "1f1b", stages=stages, microbatches=microbatches, virtual_stages=1, others=(stages - 1) * 3.0, forward=1.0,
        backward_input=1.0, backward_weight=1.0, transfer=0.0,
    )  # fmt: skip
    assert microbatches * 3.0 + bubble == pytest.approx(simulate_1f1b(forward, backward, microbatches))


def test_a_slow_last_stage_sets_the_pace_and_the_others_fill():
    forward, backward = [1.0, 1.0, 1.0, 1.5], [2.0, 2.0, 2.0, 3.0]
    bubble = bubble_seconds(
        "1f1b", stages=4, microbatches=12, virtual_stages=1, others=9.0, forward=1.0, backward_input=1.0,
        backward_weight=1.0, transfer=0.0,
    )  # fmt: skip
    assert 12 * 4.5 + bubble == pytest.approx(simulate_1f1b(forward, backward, 12))


def test_zero_bubble_as_the_paper_has_it():
    """Qi et al. 2024, table 1, with F = B = W: 1F1B 3 (p - 1), ZB-H1 (p - 1), ZB-H2 nothing."""
    each = dict(
        stages=8, microbatches=32, virtual_stages=1, others=21.0, forward=1.0, backward_input=1.0, backward_weight=1.0
    )
    assert bubble_seconds("1f1b", transfer=0.0, **each) == 21.0
    assert bubble_seconds("zero-bubble-1p", transfer=0.0, **each) == 7.0
    assert bubble_seconds("zero-bubble-2p", transfer=0.0, **each) == 0.0


PUBLISHED = (
    # stages, microbatches, slices a stage where interleaved; share of a step that is bubble: 1F1B, interleaved, 1p, 2p
    (8, 24, 3, 0.2431, 0.1055, 0.1585, 0.0433),  # GPT-1.5B
    (8, 32, 3, 0.1985, 0.0818, 0.1242, 0.0039),  # GPT-1.5B
    (8, 64, 3, 0.1240, 0.0443, 0.0674, 0.0026),  # GPT-1.5B
    (8, 24, 4, 0.2347, 0.0808, 0.1323, 0.0029),  # GPT-6.2B
    (8, 32, 4, 0.1898, 0.0628, 0.1045, 0.0022),  # GPT-6.2B
    (8, 64, 4, 0.1091, 0.0320, 0.0554, 0.0010),  # GPT-6.2B
    (16, 48, 3, 0.2552, 0.1104, 0.1397, 0.0066),  # GPT-14.6B
    (16, 64, 3, 0.2082, 0.0852, 0.1088, 0.0054),  # GPT-14.6B
    (16, 128, 3, 0.1251, 0.0445, 0.0576, 0.0028),  # GPT-14.6B
    (32, 96, 2, 0.2646, 0.1493, 0.1421, 0.0038),  # GPT-28.3B
    (32, 128, 2, 0.2168, 0.1164, 0.1106, 0.0029),  # GPT-28.3B
    (32, 256, 2, 0.1352, 0.0624, 0.0594, 0.0018),  # GPT-28.3B
)
"""Qi et al., "Zero Bubble Pipeline Parallelism" (ICLR 2024, arXiv 2401.10241), tables 3 to 5: bubble rates that the
authors compute from the profiled times of forward, backward and communication of each run."""

BELOW = {"1f1b": 0.028, "circular": 0.018, "zero-bubble-1p": 0.071, "zero-bubble-2p": 0.044}
"""The most by which the closed form is below a published share. It is below each of them: here all stages are equal and
take as long forward as for either half of the backward pass, and nothing is sent. In the runs the first and last stage
have other layers than the rest, the three parts differ, and stages wait for what is sent; the schedules with least
bubble have least room to absorb that."""


def share_of(name: str, stages: int, microbatches: int, slices: int) -> float:
    """Share of a step that is bubble, with F = B = W = 1."""
    bubble = float(
        bubble_seconds(
            name, stages=stages, microbatches=microbatches, virtual_stages=slices, others=3.0 * (stages - 1),
            forward=1.0, backward_input=1.0, backward_weight=1.0, transfer=0.0,
        )
    )  # fmt: skip
    return bubble / (bubble + 3.0 * microbatches)


@pytest.mark.parametrize("stages, microbatches, slices, plain, interleaved, one, two", PUBLISHED)
def test_shares_of_the_bubble_are_near_those_published(stages, microbatches, slices, plain, interleaved, one, two):
    for name, published in zip(BELOW, (plain, interleaved, one, two), strict=True):
        ours = share_of(name, stages, microbatches, slices if name == "circular" else 1)
        assert published - BELOW[name] <= ours < published, name


@pytest.mark.parametrize("stages, microbatches, slices, plain, interleaved, one, two", PUBLISHED)
def test_no_two_schedules_are_ordered_the_other_way_than_published(
    stages, microbatches, slices, plain, interleaved, one, two
):
    published = dict(zip(BELOW, (plain, interleaved, one, two), strict=True))
    ours = [
        share_of(name, stages, microbatches, slices if name == "circular" else 1)
        for name in sorted(BELOW, key=published.get)
    ]
    # With three slices a stage interleaving and ZB-1p come to the same by the closed form.
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(ours)), ours
    assert ours[0] < ours[-1]


def test_interleaving_divides_the_bubble_and_costs_memory():
    each = dict(
        stages=4, microbatches=16, others=9.0, forward=1.0, backward_input=1.0, backward_weight=1.0, transfer=0.0
    )
    whole = bubble_seconds("1f1b", virtual_stages=1, **each)
    assert bubble_seconds("circular", virtual_stages=3, **each) == pytest.approx(whole / 3)
    held = microbatches_held("circular", stages=4, microbatches=16, virtual_stages=3)
    first = 4 * (1 + 3 / (4 * 3))  # Korthikanti et al. 2022, section 4.2.3
    assert held == pytest.approx((first, first - 2 / 3, (2 * 4 + 1) / 3))


def test_memory_by_schedule():
    everywhere = {name: microbatches_held(name, stages=8, microbatches=64, virtual_stages=1) for name in NAMES}
    held = {name: float(stages[0]) for name, stages in everywhere.items()}
    assert everywhere["1f1b"] == (8, 7, 1)
    assert all(len(set(map(float, stages))) == 1 for name, stages in everywhere.items() if "zero" in name)
    assert held["gpipe"] == 64 and held["1f1b"] == held["zero-bubble-1p"] == 8 and held["zero-bubble-2p"] == 16
    assert held["none"] == 1
