"""Which small compiles are made of a user's step before its space is priced, and that they are."""

from __future__ import annotations

import itertools

import jax
import pytest
import user_models as user
from test_workload import PLAIN

import autotune
from autotune.compile.compilation import CompileFailure
from autotune.meshes.target import parse_target, part_of, slice_shapes
from autotune.price.priced_space import price_space
from autotune.probes.choose import learned, probing
from autotune.space import enumerate_layouts, parse_fix
from autotune.store import Store
from autotune.workload.workload import Workload


def space_of(target: str, fix: str = "", axes=("data", "fsdp", "tensor"), workload=PLAIN):
    machine = parse_target(target)
    table = enumerate_layouts(machine, axes, workload.sequences, None, {**parse_fix((fix,)), **workload.fixed})
    return price_space(workload, machine, table)


def asked(plan) -> list[tuple[str, str]]:
    return [(job.target.name, str(job.layout)) for job in plan.jobs]


def test_each_axis_alone_then_pairs_and_with_zero_what_has_data():
    assert asked(probing(space_of("h100:2x8"), 1)) == [
        ("h100:1x2", "data=2"),
        ("h100:1x2", "data=2,zero=1"),
        ("h100:1x2", "fsdp=2"),
        ("h100:1x2", "tensor=2"),
        ("h100:1x4", "data=2,fsdp=2"),
        ("h100:1x4", "data=2,fsdp=2,zero=1"),
        ("h100:1x4", "data=2,tensor=2"),
        ("h100:1x4", "data=2,tensor=2,zero=1"),
        ("h100:1x4", "fsdp=2,tensor=2"),
    ]


def test_axes_that_are_never_cut_or_never_together_are_not_probed():
    table = space_of("h100:2x8", "zero=0,tensor=1")
    assert asked(probing(table, 1)) == [
        ("h100:1x2", "data=2"), ("h100:1x2", "fsdp=2"), ("h100:1x4", "data=2,fsdp=2"),
    ]  # fmt: skip


def test_a_space_not_twice_as_large_as_what_would_be_compiled_is_not_probed_and_says_so():
    space = space_of("h100:2x8", "zero=0,tensor=1")
    assert space.legal.sum() == 8
    assert len(probing(space, 1).jobs) == 3 and not probing(space, 2).jobs
    assert probing(space, 2).notes == (
        "no probe compiles, since 3 of them and 2 layouts would be more than half of all 8 legal ones: "
        "layouts are priced from the trace alone",
    )
    assert "nothing is to be compiled" in probing(space, 0).notes[0]


def test_what_the_step_reads_from_the_layout_is_probed_once():
    def builder(layout):
        def step(state, batch):
            state, metrics = user.mlp_step(state, batch)
            if layout.remat != "none":
                state = jax.tree.map(jax.numpy.negative, state)
            for _ in range(layout.accumulate):
                state = jax.tree.map(lambda leaf: leaf * 2, state)
            return state, metrics

        return step, user.MLP_STATE, user.MLP_BATCH

    workload = Workload.from_builder(builder, axes=("data", "fsdp"))
    jobs = [layout for _, layout in asked(probing(space_of("h100:1x4", "zero=0", ("data", "fsdp"), workload), 1))]
    assert jobs[:3] == ["data=2,remat=full", "fsdp=2,remat=full", "data=2,fsdp=2,remat=full"]
    others = ["data=2,fsdp=2", *(f"data=2,fsdp=2,remat={name}" for name in ("dots", "minimal", "attention"))]
    assert jobs[3:] == [*others, "data=2,fsdp=2,remat=full,accumulate=2"]


def test_a_probe_that_is_illegal_is_named():
    """A width of 6 can be cut in two, as some layouts do, but not in the four of the smallest slice of v5e."""

    def step(weights, batch):
        return weights - 0.1 * (batch.T @ (batch @ weights)), batch.sum()

    workload = Workload(step, user.array(6, 32), user.array(64, 6), rules=[("", ("fsdp", "tensor"))])
    plan = probing(space_of("v5e:8x8", "zero=0", workload=workload), 1)
    assert ("v5e:2x2", "tensor=4") in asked(plan) and ("v5e:2x2", "fsdp=2,tensor=2") in asked(plan)
    assert plan.notes == ("not probed: fsdp=4 does not divide dimension 0 of state , (6, 32)",)


@pytest.mark.parametrize(
    ("name", "devices"), list(itertools.product(("v4:4x4x4", "v5e:16x16", "v5p:4x4x4*2", "tpu7x:4x4x4"), (2, 4, 16)))
)
def test_a_part_of_a_slice_is_the_smallest_that_is_offered(name, devices):
    target = parse_target(name)
    part = part_of(target, devices)
    assert part.hardware == target.hardware and part.groups == 1 and part.devices >= devices
    for text in slice_shapes(target.hardware):
        other = parse_target(f"{name.partition(':')[0]}:{text}")
        assert other.devices < devices or other.devices >= part.devices


def test_a_part_of_small_domains_has_several():
    assert part_of(parse_target("h100:8x1"), 4).name == "h100:4x1"
    assert part_of(parse_target("cpu:2x2"), 4).name == "cpu:2x2"


def test_failed_probes_are_counted_with_a_reason():
    failure = CompileFailure(
        layout="tensor=4", target="v5e:2x2", kind="oom", stage="compile", reason="17.12G exceeds 15.75G",
        last_line=None, traceback=None, source=None, log_path="", seconds=1.0, needed_bytes=None,
        available_bytes=None, arguments=(),
    )  # fmt: skip
    probed, line = learned([], [failure], parse_target("v5e:4x4"))
    assert probed is None
    assert line == (
        "priced with 0 probe compiles on parts of v5e:4x4, axes probed: none; 1 probes failed, "
        "e.g. tensor=4 on v5e:2x2: oom, 17.12G exceeds 15.75G"
    )


def mlp(weights, batch):
    """Gradient descent on two matrices of 64 x 64 and a batch of 64."""

    def loss(weights):
        hidden = jax.nn.relu(batch @ weights["up"])
        return ((hidden @ weights["down"]) ** 2).mean()

    value, gradients = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value


def test_a_search_prices_with_probes_compiled_here_and_a_repeat_takes_them_from_the_store(tmp_path):
    """Six probes of two and four simulated devices say what sixteen send: closer than the trace alone does."""
    square = user.array(64, 64)
    rules = [("up", ("fsdp", "tensor")), ("down", ("tensor", "fsdp"))]
    workload = Workload(mlp, {"up": square, "down": square}, square, rules=rules)
    compiled, store = [], Store(tmp_path)

    def tell(event):
        if event.kind == "finished":
            compiled.append(str(event.job.layout))

    def run(**options):
        return autotune.tune(workload, "cpu:16", fix=("zero=0",), compile=1, measure=0, store=store, on_event=tell,
                             **options)  # fmt: skip

    report = run()
    alone, pairs = ["data=2", "fsdp=2", "tensor=2"], ["data=2,fsdp=2", "data=2,tensor=2", "fsdp=2,tensor=2"]
    assert set(compiled[:6]) == {*alone, *pairs}
    assert "priced with 6 probe compiles on parts of cpu:16, axes probed: data, fsdp, tensor" in report.notes
    assert {term.source for term in report.rows[0].price.terms.values() if term.resource} == {"probed"}
    best = report.best()
    assert best.price.flops == pytest.approx(best.analysis.flops, rel=0.02)
    assert any(note.startswith("priced from the trace and probes, over compiled") for note in report.notes)
    assert any(note.startswith("terms of the chosen price, probed: ") for note in report.notes)
    before = len(compiled)
    assert run().best().price == best.price and len(compiled) == before
    alone = run(probe=False)
    assert alone.best().price != best.price and not any("probe" in note for note in alone.notes)
