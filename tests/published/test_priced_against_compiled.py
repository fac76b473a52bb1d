"""The closed form against what the TPU compiler made of the same layouts: memory, bytes along `tensor`, seconds."""

from __future__ import annotations

import statistics

import compiled_cases
import pytest

from autotune.price.price import Estimate, estimate
from autotune.program import Start, walk

RUNS = {case.saved: case.at(min(case.slices, 2)) for case in compiled_cases.read_cases() if case.saved.exists()}


@pytest.fixture(scope="module")
def pairs():
    found = []
    for case in RUNS.values():
        program = compiled_cases.program_of_case(case)
        assert program is not None
        shape = (case.transformer, case.sequences, case.seq, "bfloat16", case.layout, case.target)
        found.append((case, program, estimate(*shape)))
    assert len(found) >= 5
    return found


def test_peak_memory(pairs):
    """The programs are MaxText's own step, whose float32 logits and one-hot rows the closed form's decoder has not."""
    errors = [abs(priced.peak_bytes / program.memory.peak_bytes - 1) for _, program, priced in pairs]
    assert statistics.median(errors) <= 0.10 and max(errors) <= 0.16


def test_weights_and_optimizer_to_the_byte(pairs):
    for _, program, priced in pairs:
        for category in ("parameters", "optimizer_state"):
            assert priced.memory[category] == pytest.approx(program.memory.by_category[category], rel=0.02)


def test_bytes_along_tensor(pairs):
    """Gathers and reductions of activations; XLA writes some as chains of permutes, which send the same bytes."""
    checked = 0
    for case, program, priced in pairs:
        if case.layout.tensor == 1:
            continue
        compiled = sum(
            op.collective.wire_bytes * trips
            for op, trips in walk(program.instructions)
            if isinstance(op, Start) and op.collective.axes == ("tensor",)
        )
        assert _tensor_bytes(case, priced) == pytest.approx(compiled, rel=0.10)
        checked += 1
    assert checked >= 3


def _tensor_bytes(case, priced: Estimate) -> float:
    """Bytes a device sends along `tensor`, from the priced seconds and the rate of the links it rides."""
    from autotune.meshes.placement import place

    route = place(case.layout, case.target).route(("tensor",))[0]
    rate = route.links * case.target.hardware.tier(route.tier).bytes_per_second
    return rate * sum(term.seconds for name, term in priced.terms.items() if name.endswith("[tensor]@ici"))


def test_steps_rank_as_compiled(pairs):
    """Within a factor of 1.2 each, 1.1 at the median: what the shortlist needs."""
    ratios = []
    for case, _, priced in pairs:
        prediction = compiled_cases.predict_case(case)
        assert prediction is not None
        ratios.append(max(priced.step_seconds / prediction.step_seconds, prediction.step_seconds / priced.step_seconds))
    assert statistics.median(ratios) <= 1.1 and max(ratios) <= 1.2
