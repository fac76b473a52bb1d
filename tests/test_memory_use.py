"""What a layout that does not fit holds, and the smallest changes after which it would."""

import dataclasses

import pytest
from hlo_fixtures import fixture

from autotune.compile.compilation import CompileFailure
from autotune.hlo.memory_by_category import MEMORY_CATEGORIES, peak_bytes, read_memory
from autotune.memory_use import BY_BATCH, Smaller, failed_use, priced_use
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.price.changes_that_fit import price_one, scaled_peak, smallest_changes
from autotune.reference_workload import reference_workload, transformer_workload

GIB = 2**30


def failure(needed: int | None, arguments) -> CompileFailure:
    return CompileFailure(
        layout="", target="", kind="oom", stage="compile", reason="r", last_line=None, traceback=None, source=None,
        log_path="", seconds=1.0, needed_bytes=needed, available_bytes=None, arguments=arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """A compiled program standing for a smaller piece of the batch, and the price of its layout."""
    found = fixture("v5e-mixed")
    workload = transformer_workload(found.model, batch=found.batch, seq=found.seq, dtype=found.dtype)
    return found, price_one(workload, found.target, found.layout)


def test_what_did_not_fit_is_shared_out_like_a_smaller_compile(small):
    """Arguments stay exact, gradients stay, all else grows until the compiler's total is reached; lines are named."""
    found, price = small
    needed = 10 * peak_bytes(found.compilation)
    smaller = Smaller(layout=found.layout, compilation=found.compilation, less=BY_BATCH)
    use = failed_use(failure(needed, found.compilation.arguments), price, smaller)
    own = read_memory(found.compilation)
    assert tuple(use.by_category) == MEMORY_CATEGORIES
    assert sum(use.by_category.values()) == use.bytes == pytest.approx(needed)
    for name in ("parameters", "optimizer_state", "gradients"):
        assert use.by_category[name] == pytest.approx(own.by_category[name], rel=0.01), name
    assert use.by_category["activations"] > 9 * own.by_category["activations"]
    assert str(found.layout) in use.source
    named = [buffer for buffer in use.largest if buffer.category == "activations"]
    assert named and named[0].source is not None and ".py:" in named[0].source
    assert set(named) <= set(own.largest)  # as large as their shapes say, not as the whole category grew
    assert [buffer.bytes for buffer in use.largest] == sorted((one.bytes for one in use.largest), reverse=True)


def test_where_only_activations_are_fewer_only_they_grow(small):
    found, price = small
    smaller = Smaller(layout=found.layout, compilation=found.compilation, less=("activations",))
    use = failed_use(failure(10 * peak_bytes(found.compilation), found.compilation.arguments), price, smaller)
    own = read_memory(found.compilation).by_category
    assert {name for name in MEMORY_CATEGORIES if use.by_category[name] > 1.01 * own[name]} == {"activations"}
    assert sum(use.by_category.values()) == pytest.approx(10 * peak_bytes(found.compilation))


def test_without_a_smaller_compile_the_closed_form_shares_out_the_rest(small):
    found, price = small
    needed = 3 * peak_bytes(found.compilation)
    use = failed_use(failure(needed, found.compilation.arguments), price, None)
    assert sum(use.by_category.values()) == pytest.approx(needed)
    assert use.by_category["activations"] > 0 and "closed form" in use.source
    assert use.largest and all(buffer.source is None for buffer in use.largest)  # arguments, by name


def test_without_the_compilers_total_it_is_the_price(small):
    found, price = small
    for needed in (None, 1):
        assert failed_use(failure(needed, found.compilation.arguments), price, None) == priced_use(price)


TARGET = parse_target("v5e:4x4")
TOO_LARGE = parse_layout("fsdp=16,remat=none")


@pytest.fixture(scope="module")
def workload():
    return reference_workload("llama3-8b", batch=128, seq=4096, dtype="bfloat16")


def test_changes_fit_and_the_fastest_of_the_same_job_come_first(workload):
    """Each says what it priced."""
    changes = smallest_changes(workload, TARGET, TOO_LARGE, None)
    assert all(any(word in change.what for change in changes) for word in ("accumulate=", "batch ", "sequence "))
    assert all("remat=full and" in change.what for change in changes)  # the activations alone are too many for one
    times = [change.time_change for change in changes if change.same_job]
    assert times == sorted(times)
    for change in changes:
        assert change.peak_bytes <= TARGET.hardware.capacity_bytes
        if change.same_job:
            assert change.layout != TOO_LARGE and price_one(
                workload, TARGET, change.layout
            ).peak_bytes == pytest.approx(change.peak_bytes)


def test_what_was_found_held_counts_more_than_the_price(workload):
    """Twice the activations that were priced: twice the activations after a change, parameters as they were."""
    base = price_one(workload, TARGET, TOO_LARGE)
    new = price_one(workload, TARGET, dataclasses.replace(TOO_LARGE, accumulate=2))
    held = {**base.memory, "activations": 2 * base.memory["activations"]}
    extra = scaled_peak(held, base, new) - scaled_peak(base.memory, base, new)
    assert extra == pytest.approx(new.memory["activations"])
    assert scaled_peak(base.memory, base, new) == pytest.approx(new.peak_bytes)
