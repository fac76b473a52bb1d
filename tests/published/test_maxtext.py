"""Published MaxText step times against the saved compiled programs, and what is known to miss.

Goal: median |error| 5 %, worst 15 %, the loss from one slice to the most within a third of the published one.
"""

import statistics
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from compiled_cases import PROGRAMS, predict_case, read_cases  # noqa: E402

CASES = [case for case in read_cases() if case.saved.exists()]
LARGEST_PROGRAMS_BYTES = 6_000_000


@pytest.fixture(scope="module")
def errors():
    return {case.id: predict_case(case).step_seconds / case.step_seconds - 1 for case in CASES}


def test_programs_are_small_and_there():
    assert len(CASES) >= 15
    assert sum(path.stat().st_size for path in PROGRAMS.iterdir()) < LARGEST_PROGRAMS_BYTES


def test_errors_reached(errors):
    sizes = [abs(error) for error in errors.values()]
    assert max(sizes) <= 0.18 and statistics.median(sizes) <= 0.09, errors


@pytest.mark.xfail(
    strict=True,
    reason="v5p-64B: every collective is exposed (probably for lack of memory: 90.7 of 95.7 GiB); v5e-32B: "
    "the cycles of its matmuls, likely of those with element-wise work fused; v5e-16B on many slices: the loss below",
)
def test_goal(errors):
    sizes = [abs(error) for error in errors.values()]
    assert max(sizes) <= 0.15 and statistics.median(sizes) <= 0.05, errors


@pytest.mark.xfail(
    strict=True,
    reason="the compiled schedule hides nearly every transfer between slices behind the next layer's backward pass, so "
    "our loss is near 0; the published one has a cause that is not found (slices waiting for the slowest, perhaps)",
)
@pytest.mark.parametrize("model", ["maxtext-v5e-16B", "maxtext-v5e-32B"])
def test_loss_from_one_slice_to_the_most(model):
    series = [case for case in CASES if case.id.startswith(f"{model}-")]
    first, last = series[0], series[-1]
    published = 1 - last.mfu / first.mfu
    ours = 1 - predict_case(first).step_seconds / predict_case(last).step_seconds
    assert ours == pytest.approx(published, rel=1 / 3)
