"""The closed form's error against the compiler, as the report of a user's step states it."""

from types import SimpleNamespace

import pytest

from autotune.report.price_error import price_errors, said


def row(seconds, flops, peak, sent, compiled):
    """A compiled row: (priced, compiled) pairs, bytes by axis."""
    ledger = tuple(SimpleNamespace(axis=axis, wire_bytes=amount) for axis, amount in compiled.items())
    return SimpleNamespace(
        price=SimpleNamespace(step_seconds=seconds[0], flops=flops[0], peak_bytes=peak[0], sent=sent),
        analysis=SimpleNamespace(
            prediction=SimpleNamespace(step_seconds=seconds[1], ledger=ledger),
            flops=flops[1],
            memory=SimpleNamespace(peak_bytes=peak[1]),
        ),
    )


def test_each_ratio_is_priced_over_compiled_and_joint_axes_are_one():
    one = row((2.0, 1.0), (3.0, 3.0), (5.0, 10.0), {"data": 6.0, "fsdp": 2.0, "tensor": 1.0}, {"data+fsdp": 4.0})
    assert price_errors([one]) == {
        "seconds": [2.0],
        "FLOPs": [1.0],
        "peak memory": [0.5],
        "bytes along data+fsdp": [2.0],
        "bytes along all axes": [9.0 / 4.0],
    }


def test_medians_in_one_line_and_nothing_where_nothing_was_compiled():
    rows = [row((s, 1.0), (1.0, 1.0), (1.0, 1.0), {"fsdp": 3.0}, {"fsdp": 2.0}) for s in (1.0, 2.0, 9.0)]
    assert said(price_errors(rows), "the trace") == (
        "priced from the trace, over compiled, median of 3 layouts: FLOPs 1.00, bytes along all axes 1.50, "
        "bytes along fsdp 1.50, peak memory 1.00, seconds 2.00"
    )
    assert said(price_errors([SimpleNamespace(analysis=None, price=None)]), "the trace") is None


@pytest.mark.parametrize("compiled", [{}, {"tensor": 0.0}])
def test_an_axis_that_moves_nothing_in_one_of_the_two_is_left_out(compiled):
    found = price_errors([row((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), {"fsdp": 3.0}, compiled)])
    assert not any(what.startswith("bytes") for what in found)
