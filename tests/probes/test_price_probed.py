"""Laws of collectives from probes: a program that follows known laws is priced by exactly these, at any size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_workload import PLAIN

from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import parse_target
from autotune.price.price import price
from autotune.probes.fit import Moved, Probe, probed_of
from autotune.table import LayoutTable

TARGET = parse_target("h100:8x8")
SINGLES = ("data=2", "fsdp=2", "tensor=2")
PAIRS = ("data=2,fsdp=2", "data=2,tensor=2", "fsdp=2,tensor=2")
ZERO = ("data=2,zero=1", "data=2,fsdp=2,zero=1", "data=2,tensor=2,zero=1")

ARRAYS = {
    # gradients: of weights cut along fsdp and tensor, and a fifth that tensor leaves whole
    (("data",), "all_reduce"): lambda s: 1e9 / s["fsdp"] * (0.8 / s["tensor"] + 0.2),
    (("fsdp",), "all_gather"): lambda s: 2e9 / s["tensor"],
    (("fsdp",), "reduce_scatter"): lambda s: 4e9 / s["tensor"],
    # activations
    (("tensor",), "all_reduce"): lambda s: 8e9 / s["data"] / s["fsdp"],
    # dealt out again: what a device holds, cut by all
    (("fsdp",), "all_to_all"): lambda s: 3e9 / s["data"] / s["fsdp"] / s["tensor"],
    # there only where both are cut
    (("data", "fsdp"), "all_reduce"): lambda s: 5e8 / s["tensor"],
    (("tensor",), "all_gather"): lambda s: 6e8 / s["data"] / s["fsdp"] if s["fsdp"] > 1 else 0.0,
}
"""Class of collectives -> bytes of its arrays in a step, at the sizes of the axes."""


def sent_in(layout: Layout) -> dict:
    """What the program with these laws sends under a layout."""
    size = layout.axes
    found = {key: law(size) for key, law in ARRAYS.items() if all(size[axis] > 1 for axis in key[0])}
    if layout.zero:  # the gathered weights of ZeRO instead of half of the sum
        found[("data",), "all_gather"] = 7e8 / size["fsdp"] / size["tensor"]
    return {key: amount for key, amount in found.items() if amount}


def probe(text: str) -> Probe:
    layout = parse_layout(text)
    size = layout.axes
    every = size["data"] * size["fsdp"] * size["tensor"]
    return Probe(
        layout=layout,
        flops=1e15 / every,
        core_seconds={"matmul": 4.0 / every, "hbm": 1.0 / every + 0.5 / size["fsdp"], "launch": 0.001},
        held_bytes=8e10 / every + 1e9 / size["tensor"],
        sent={key: Moved(count=3, array_bytes=amount, exposed=1.0) for key, amount in sent_in(layout).items()},
    )


PROBED = probed_of([probe(text) for text in (*SINGLES, *PAIRS, *ZERO)], "h100")
FAR = ("data=64", "fsdp=64", "tensor=64", "data=16,fsdp=4", "data=4,tensor=16", "fsdp=8,tensor=8",
       "data=4,fsdp=4,tensor=4", "data=8,fsdp=2,tensor=4,zero=1", "data=64,zero=1")  # fmt: skip


def one(text: str, probed=PROBED, target=TARGET):
    return price(PLAIN, LayoutTable.from_layouts([parse_layout(text)]), target, probed).estimate(0)


@pytest.mark.parametrize("text", FAR)
def test_bytes_of_every_axis_follow_the_laws_of_the_program(text):
    layout = parse_layout(text)
    size, expected = layout.axes, {}
    for (axes, kind), amount in sent_in(layout).items():
        for axis in reversed(axes):  # of a sum over two axes, the outer one carries what the inner one left
            expected[axis] = expected.get(axis, 0.0) + float(wire_bytes(kind, amount, size[axis]))
            amount /= size[axis]
    assert one(text).sent == pytest.approx(expected)


@pytest.mark.parametrize("text", FAR)
def test_flops_seconds_and_memory_follow_them_too(text):
    found, expected = one(text), probe(text)
    assert found.flops == pytest.approx(expected.flops)
    seconds = {"matmul": "matmul", "elementwise": "hbm", "launches": "launch"}
    for term, resource in seconds.items():
        assert found.terms[term].seconds == pytest.approx(expected.core_seconds[resource])
    held = found.peak_bytes - found.memory["parameters"] - found.memory["optimizer_state"]
    assert held == pytest.approx(expected.held_bytes)


def test_every_term_says_what_it_is_known_from():
    probed = one("data=4,fsdp=4,tensor=4")
    assert {term.source for term in probed.terms.values() if term.resource} == {"probed"}
    traced = one("data=4,fsdp=4,tensor=4", None)
    assert traced.terms["matmul"].source == "traced"
    assert traced.terms["all_reduce[tensor]@nvlink"].source == "assumed"


def test_an_axis_without_a_probe_keeps_its_assumption():
    probed = probed_of([probe(text) for text in ("data=2", "fsdp=2", "data=2,fsdp=2")], "h100")
    found = one("data=4,tensor=16", probed)
    assumed = one("data=4,tensor=16", None)
    assert found.terms["latency[tensor]"].source == "assumed" and found.terms["latency[data]"].source == "probed"
    assert found.sent["tensor"] == assumed.sent["tensor"] and found.sent["data"] != assumed.sent["data"]


def test_a_failed_probe_leaves_what_the_others_say():
    """Without the probe of tensor alone, its pairs still say what it sends beside data and beside fsdp."""
    probed = probed_of([probe(text) for text in (*SINGLES[:2], *PAIRS)], "h100")
    found = one("data=16,tensor=4", probed)
    expected = wire_bytes("all_reduce", ARRAYS[("tensor",), "all_reduce"]({"data": 16, "fsdp": 1}), 4)
    assert found.sent["tensor"] == pytest.approx(float(expected))


def test_probes_of_another_machine_are_not_used():
    elsewhere = parse_target("a100-80:8x8")
    assert one("fsdp=64", PROBED, elsewhere) == one("fsdp=64", None, elsewhere)
    assert probed_of([], "h100") is None


def test_hidden_time_is_hidden_only_while_the_core_works():
    """Half hidden in the probes; where the links take far longer than the core, what exceeds the core's time shows."""
    hidden = [
        replace(probe, sent={key: replace(moved, exposed=0.25) for key, moved in probe.sent.items()})
        for probe in map(probe, (*SINGLES, *PAIRS))
    ]
    mostly_hidden = probed_of(hidden, "h100")
    name = "reduce_scatter[fsdp]@nvlink"
    near, far = parse_target("h100:1x8"), parse_target("h100:512x1")
    before, after = (one("fsdp=8", some, near).terms[name].seconds for some in (PROBED, mostly_hidden))
    assert after == pytest.approx(0.25 * before)
    name = "reduce_scatter[fsdp]@network"
    before, after = (one("fsdp=512,dcn.fsdp=512", some, far).terms[name].seconds for some in (PROBED, mostly_hidden))
    core = sum(
        one("fsdp=512,dcn.fsdp=512", mostly_hidden, far).terms[term].seconds
        for term in ("matmul", "elementwise", "launches")
    )
    assert 0.25 * before < before - core and after == pytest.approx(before - core)


def test_remat_and_accumulation_multiply_what_they_multiplied_in_their_probe():
    """Full recomputation: a third more FLOPs, half as much again along tensor, a tenth held. Twice the passes: weights
    gathered twice, half as much held; eight times the passes are three doublings."""

    def other(words: str, flops: float, held: float, factors: dict) -> Probe:
        base = probe("fsdp=2,tensor=2")
        sent = {key: replace(moved, array_bytes=moved.array_bytes * factors.get(key, 1.0))
                for key, moved in base.sent.items()}  # fmt: skip
        layout = parse_layout(f"fsdp=2,tensor=2,{words}")
        return replace(base, layout=layout, flops=base.flops * flops, held_bytes=base.held_bytes * held, sent=sent)

    gather, reduction = (("fsdp",), "all_gather"), (("tensor",), "all_reduce")
    others = [other("remat=full", 4 / 3, 0.1, {reduction: 1.5}), other("accumulate=2", 1.0, 0.5, {gather: 2.0})]
    probed = probed_of([*map(probe, (*SINGLES, *PAIRS)), *others], "h100")
    plain = one("fsdp=8,tensor=8", probed)
    found = one("fsdp=8,tensor=8,remat=full,accumulate=8", probed)
    assert found.flops == pytest.approx(plain.flops * 4 / 3)
    size = parse_layout("fsdp=8,tensor=8").axes
    gathered, reduced = (
        float(wire_bytes(kind, ARRAYS[axes, kind](size), 8)) for axes, kind in (gather, reduction)
    )  # fmt: skip
    assert found.sent["fsdp"] == pytest.approx(plain.sent["fsdp"] + 7 * gathered)
    assert found.sent["tensor"] == pytest.approx(plain.sent["tensor"] + 0.5 * reduced)
    assert found.high_seconds > found.low_seconds and found.peak_bytes < plain.peak_bytes
