"""Prices of a step known by its trace only: bytes as the partition cuts them, FLOPs as the trace counts them."""

from __future__ import annotations

import pytest
from test_workload import PLAIN

from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.price.price import price
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

TARGET = parse_target("cpu:8")


def one(text: str):
    return price(PLAIN, LayoutTable.from_layouts([parse_layout(text)]), TARGET).estimate(0)


@pytest.mark.parametrize("text", ("data=8", "data=8,zero=1", "fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2"))
def test_parts_add_up(text):
    found = one(text)
    assert sum(term.seconds for term in found.terms.values()) == pytest.approx(found.step_seconds, rel=1e-9)
    assert sum(found.resources.values()) == pytest.approx(found.step_seconds, rel=1e-9)
    assert sum(found.memory.values()) == pytest.approx(found.peak_bytes)


def test_replicated_weights_are_whole_and_zero_cuts_only_the_optimizer():
    whole, cut = one("data=8"), one("data=8,zero=1")
    assert whole.memory["parameters"] == cut.memory["parameters"] == PLAIN.traced.parameter_bytes
    assert cut.memory["optimizer_state"] < 0.2 * whole.memory["optimizer_state"]


def test_fsdp_cuts_weights_and_pays_gathers():
    whole, cut = one("data=8"), one("fsdp=8")
    assert cut.memory["parameters"] < 0.5 * whole.memory["parameters"]
    assert any(name.startswith("all_gather[fsdp]") for name in cut.terms)
    assert not any("[fsdp]" in name for name in whole.terms)


def test_without_a_trace_there_is_no_price():
    nothing = Workload.of(
        name="opaque", build=lambda layout, mesh: None, sequences=8, seq=1, dtype="float32", fingerprint="x"
    )
    with pytest.raises(ValueError, match="opaque has neither"):
        price(nothing, LayoutTable.from_layouts([parse_layout("data=8")]), TARGET)
