"""The CI gate: a plan that holds passes, one figure that grew is named with the lines that brought it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import user_models as user
from test_plan import plan_for

from autotune.analysis.analyse import predict
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.plan.check import CheckFailed, check_plan, compare
from autotune.plan.figures import axis_bytes_of, collectives_of
from autotune.program import Collective, Compute, Done, Loop, Memory, Program, Start
from autotune.search import explain
from autotune.testing import assert_plan_holds
from autotune.workload.workload import Workload

ROOT = Path(__file__).parents[2]
CPU = parse_target("cpu:8")
LAYOUT = parse_layout("data=8")


def gather(name: str, source: str, payload: float, axes=("data",)) -> tuple[Start, Done]:
    size = 8
    collective = Collective(
        name=name, kind="all_gather", axes=axes, group_size=size, crosses_groups=1, payload_bytes=payload,
        wire_bytes=payload * (size - 1) / size, dtype="float32", source=source, scope=None,
    )  # fmt: skip
    return Start(token=name, collective=collective), Done(token=name)


def program(flops: float, peak: int, *instructions) -> Program:
    dot = Compute(
        name="dot", kernel="fusion", flops=flops, dtype="float32", matmul=None, hbm_bytes=1e6, cycles=None,
        source="model.py:3", scope=None,
    )  # fmt: skip
    memory = Memory(
        peak_bytes=peak, argument_bytes=0, output_bytes=0, temporary_bytes=peak, alias_bytes=0, host_bytes=0,
        by_category={}, largest=(),
    )  # fmt: skip
    return Program(
        platform="cpu", mesh_shape=LAYOUT.mesh_shape, instructions=(dot, *instructions), memory=memory, warnings=()
    )


BEFORE = program(1e9, 1000, *gather("one", "model.py:5", 800.0))


def planned(before: Program):
    ledger = predict(before, LAYOUT, CPU, CPU.hardware).ledger
    plan = plan_for("data=8", "cpu:8")
    figures = dataclasses.replace(
        plan.figures, flops=before.flops(), peak_bytes=before.memory.peak_bytes, axis_bytes=axis_bytes_of(ledger),
        collectives=collectives_of(ledger),
    )  # fmt: skip
    return dataclasses.replace(plan, figures=figures)


PLAN = planned(BEFORE)


def test_the_same_program_holds_and_a_smaller_one_too():
    assert compare(PLAN, BEFORE, CPU, 0.0) == ()
    assert compare(PLAN, program(9e8, 900), CPU, 0.0) == ()


def test_growth_within_the_tolerance_passes_and_beyond_it_is_named():
    grown = program(1.015e9, 1030, *gather("one", "model.py:5", 800.0))
    (only,) = compare(PLAN, grown, CPU, 0.02)
    assert str(only) == "peak_bytes: 1000 in the plan, 1030 now (+3.0 %)"
    assert [one.figure for one in compare(PLAN, grown, CPU, 0.01)] == ["flops", "peak_bytes"]


def test_new_collectives_are_named_with_their_lines_most_executed_first():
    loop = Loop(name="while", trips=5, body=gather("two", "model.py:9", 80.0))
    found = compare(PLAN, program(1e9, 1000, *gather("one", "model.py:5", 800.0), loop), CPU, 0.02)
    assert [str(one) for one in found] == [
        "bytes data@memory: 700 in the plan, 1050 now (+50.0 %)",
        "collectives all_gather data@memory: 1 in the plan, 6 now (+500.0 %), from model.py:9, model.py:5",
    ]
    other = compare(planned(program(1e9, 1000)), BEFORE, CPU, 0.02)
    assert str(other[-1]) == "collectives all_gather data@memory: 0 in the plan, 1 now (new), from model.py:5"


def test_a_plan_that_was_never_compiled_cannot_be_checked():
    bare = dataclasses.replace(PLAN, figures=dataclasses.replace(PLAN.figures, flops=None))
    with pytest.raises(ValueError, match="was never compiled"):
        check_plan(bare, None)


def regressed(weights, batch):
    """As `user.mlp_step`, with one matmul more."""
    new, value = user.mlp_step(weights, batch)
    return new, value + (batch["x"] @ new["w1"]).sum()


def test_compiled_for_real_a_regression_of_the_users_step_is_found():
    workload = Workload(user.mlp_step, user.MLP_STATE, user.MLP_BATCH)
    plan = explain(workload, "cpu:2", "tensor=2", measure=0).plan
    assert_plan_holds(plan, workload)
    worse = Workload(regressed, user.MLP_STATE, user.MLP_BATCH)
    with pytest.raises(AssertionError, match=r"the plan no longer holds:\n  flops: .*\(\+"):
        assert_plan_holds(plan, worse)
    broken = Workload.from_builder(
        lambda layout: (user.mlp_step, user.MLP_STATE, user.MLP_BATCH) if layout.tensor == 1 else 1
    )
    with pytest.raises(CheckFailed, match="does not compile any more: .*must|returned int"):
        check_plan(plan, broken)
    with pytest.raises(ValueError, match="a plan is data, pass the step that it is for"):
        assert_plan_holds(plan)


@pytest.mark.slow
def test_the_command_line_exits_1_and_says_what_grew(tmp_path):
    (tmp_path / "steps.py").write_text(
        "import jax, jax.numpy as jnp\nEXTRA = 0\n"
        "def step(w, x):\n"
        "    v, g = jax.value_and_grad(lambda w: ((x @ w) ** 2).mean())(w)\n"
        "    for _ in range(EXTRA):\n        v = v + (x @ w @ w.T).sum()\n"
        "    return w - g, v\n"
        "def workload():\n    s = jax.ShapeDtypeStruct((16, 16), jnp.float32)\n    return step, {'w': s}['w'], s\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}

    def autotune(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "autotune", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    words = ("--workload", "steps:workload", "--target", "cpu:2", "--layouts", "data=2", "--measure", "0")
    made = autotune("tune", *words, "--out", "plan.json")
    assert made.returncode == 0, made.stderr
    source = tmp_path / "steps.py"
    source.write_text(source.read_text().replace("EXTRA = 0", "EXTRA = 1"))
    unsaid = autotune("check", "plan.json")
    assert unsaid.returncode == 2 and unsaid.stderr.count("\n") == 1
    assert "a plan is data, and running that code is for you to say: --workload steps:workload" in unsaid.stderr
    checked = autotune("check", "plan.json", "--workload", "steps:workload", "--json")
    assert checked.returncode == 1, checked.stderr
    document = json.loads(checked.stdout)
    assert document["holds"] is False and "flops" in [one["figure"] for one in document["grown"]]
    emitted = autotune("emit", "plan.json", "--for", "flax")
    assert emitted.returncode == 0 and "LOGICAL_AXIS_RULES" in emitted.stdout
    values = json.loads((tmp_path / "plan.json").read_text()) | {"recipe": {}}
    (tmp_path / "nameless.json").write_text(json.dumps(values))
    nameless = autotune("check", "nameless.json")
    assert nameless.returncode == 2 and nameless.stderr.count("\n") == 1
    assert "plan nameless.json: was made from Python and names no function; say --workload" in nameless.stderr
    told = autotune("check", "nameless.json", "--workload", "steps:workload", "--tolerance", "100")
    assert told.returncode == 0 and "data=2 on cpu:2 holds" in told.stdout, told.stderr
    wrong = autotune("emit", "plan.json", "--for", "megatron")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
