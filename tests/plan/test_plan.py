"""Plans: what is saved is what is loaded, what is no plan is refused in one line, and one applies where it belongs."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
import user_models as user
from jax.sharding import PartitionSpec as P

from autotune.meshes.layout import parse_layout
from autotune.meshes.placement import place
from autotune.meshes.target import parse_target
from autotune.plan.fields import PACKAGES
from autotune.plan.figures import Figures
from autotune.plan.plan import Plan
from autotune.plan.read import PlanWarning, load_plan, plan_from_json
from autotune.system.versions import installed_versions
from autotune.workload.workload import Workload

FIGURES = Figures(
    priced_seconds=0.5,
    compiled_seconds=0.4,
    compiled_low_seconds=0.3,
    compiled_high_seconds=0.6,
    measured_seconds=None,
    measured_spread_seconds=None,
    mfu=0.31,
    tokens_per_second_per_device=12.5,
    model_flops=1e9,
    peak_bytes=1e6,
    flops=1.1e8,
    axis_bytes={"fsdp@memory": 4096.0},
    collectives={"all_gather fsdp@memory": 12},
)


def plan_for(text: str, target: str, workload: Workload | None = None) -> Plan:
    machine, layout = parse_target(target), parse_layout(text)
    return Plan(
        layout=layout,
        target=target,
        hardware=machine.hardware.name,
        shape=machine.shape,
        groups=machine.groups,
        devices=machine.devices,
        device_order=tuple(int(index) for index in place(layout, machine).device_order().flat),
        versions=installed_versions(PACKAGES),
        workload=workload.name if workload else "llama",
        fingerprint=workload.fingerprint if workload else "0" * 32,
        recipe={"model": "tiny", "batch": 16, "seq": 8, "dtype": "float32"},
        sequences=16,
        seq=8,
        partition=workload.partition if workload else None,
        figures=FIGURES,
        binding={"resource": "hbm", "elasticity": 0.6, "runner_up": "latency", "margin": 0.2},
        kept_out_by=None,
        runners_up=({"layout": "data=8", "status": "priced", "step_seconds": 0.7, "reason": "+200 ms a step"},),
        guesses=(),
    )


PLAIN = Workload(user.plain_step, user.plain_state, user.PLAIN_BATCH)
PLAN = plan_for("fsdp=2,tensor=4", "cpu:8", PLAIN)


@pytest.mark.parametrize(
    "plan", [PLAN, plan_for("data=2,fsdp=64,tensor=4,dcn.data=2,zero=1,remat=full,accumulate=2", "v5e:16x16*2")]
)
def test_save_then_load_is_identity(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_save_that_fails_leaves_the_old_plan(tmp_path, monkeypatch):
    PLAN.save(tmp_path / "plan.json")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(PLAN, seq=9).save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == PLAN
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema=2 is not known; this version reads 1"),
        ({"schema": None}, "schema=None must be a whole number"),
        ({"devices": 16}, "devices=16 must be the layout's 8"),
        ({"devices": True}, "devices=True must be a whole number"),
        ({"text": "fsdp=2,tensr=4"}, "text: layout: 'tensr' is not known"),
        ({"text": "fsdp=4,tensor=2"}, "layout.axes=.*, text says .*; they must agree"),
        ({"hardware": "v99"}, "hardware: 'v99' is not known"),
        ({"device_order": [0] * 8}, "device_order must name each of the 8 devices once"),
        ({"shape": [4]}, r"shape=\[4\] and groups=1, target cpu:8 says \[8\] and 1; they must agree"),
        ({"target": "v5e:3by9"}, "target.*v5e:3by9"),
        ({"target": "local", "shape": [4]}, "devices=8 must be the target's 4"),
        ({"recipe": {"model": ["x"]}}, "recipe.model=.* must be a text or a whole number"),
        ({"figures": {}}, "figures: priced_seconds is missing"),
        ({"partition": {"rules": 3}}, "partition is not one"),
        ({"runners_up": "none"}, "runners_up='none' must be a list"),
        ({"guesses": [1]}, "guesses holds 1; each must be a text"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_field_and_the_rule(change, message, tmp_path):
    values = json.loads(PLAN.to_json()) | change
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"plan {path}: ") and "\n" not in str(caught.value)


LATER = {"taken", "ignored", "not_modelled"}
"""Fields that plans of earlier versions do not have."""


@pytest.mark.parametrize("field", sorted(json.loads(PLAN.to_json()).keys() - {"layout"} - LATER))
def test_every_field_is_needed(field):
    values = json.loads(PLAN.to_json())
    del values[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        plan_from_json(json.dumps(values))


def test_a_plan_of_an_earlier_version_is_read():
    values = json.loads(PLAN.to_json())
    for field in LATER:
        del values[field]
    assert plan_from_json(json.dumps(values)) == PLAN


def test_files_that_are_no_plan_at_all(tmp_path):
    (tmp_path / "text").write_text("{not json")
    (tmp_path / "list").write_text("[]")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("text", "not JSON"),
        ("list", "must be one JSON object"),
        ("bytes", "not a text file"),
        ("nowhere", "No such file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_plan(tmp_path / name)


def test_other_versions_are_warned_of_with_both():
    old = dataclasses.replace(PLAN, versions={**PLAN.versions, "jax": "0.9.0"})
    with pytest.warns(PlanWarning, match=rf"jax 0.9.0 \(plan\), {jax.__version__} \(here\)"):
        load_from_text(old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_from_text(PLAN)


def load_from_text(plan):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder) / "plan.json")
        return load_plan(Path(folder) / "plan.json")


def test_the_mesh_has_the_planned_shape_and_order():
    order = (1, 0, 3, 2, 5, 4, 7, 6)
    mesh = dataclasses.replace(PLAN, device_order=order).mesh()
    assert dict(mesh.shape) == PLAN.layout.mesh_shape
    assert tuple(device.id for device in mesh.devices.flat) == order


def test_a_plan_for_another_machine_is_refused_with_both_values():
    with pytest.raises(ValueError, match=r"made for 8 devices of cpu \(cpu:8\); here are 4 of cpu"):
        PLAN.mesh(jax.devices()[:4])
    with pytest.raises(ValueError, match=r"made for 256 devices of v5e \(v5e:16x16\); here are 8 of cpu"):
        plan_for("fsdp=256", "v5e:16x16").mesh()


def test_shardings_of_the_state_of_a_part_of_it_and_of_a_stranger():
    state = jax.eval_shape(user.plain_state)
    whole = PLAN.shardings(state)
    assert whole[0]["layers"]["wq"].spec == P(None, "fsdp", "tensor")
    assert whole[1][0].mu["layers"]["wo"].spec == P(None, "tensor", "fsdp")
    assert PLAN.shardings(state[0]) == whole[0]
    assert PLAN.batch_shardings(user.PLAIN_BATCH)["x"].spec == P("fsdp", None)
    with pytest.raises(ValueError, match=r"plan: strange \[3\] is no array of plain_step"):
        PLAN.shardings({"strange": user.array(3)})


def test_shardings_of_a_reference_model_are_its_steps():
    from autotune.reference_workload import reference_workload

    plan = plan_for("data=2,fsdp=2,tensor=2,zero=1", "cpu:8")
    step = reference_workload("tiny", batch=plan.sequences, seq=plan.seq, dtype="float32").build(
        plan.layout, plan.mesh()
    )
    expected = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    assert plan.shardings(step.state) == expected
    assert plan.shardings(step.state["parameters"]) == expected["parameters"]
    assert plan.batch_shardings(step.batch) == jax.tree.map(lambda leaf: leaf.sharding, step.batch)
    with pytest.raises(ValueError, match=r"plan: strange \[3\] is no array of llama"):
        plan.shardings({"strange": user.array(3)})
    opaque = dataclasses.replace(plan, recipe={})
    with pytest.raises(ValueError, match="plan: it keeps no record of the arrays of llama"):
        opaque.shardings(step.state)


def test_jit_trains_and_gives_the_state_back_where_it_was():
    zero = dataclasses.replace(PLAN, layout=parse_layout("data=4,tensor=2,zero=1"))
    params, opt_state = user.plain_state()
    alone = [params, opt_state]
    batch = {name: jax.random.randint(jax.random.key(1), (16, 8), 0, user.VOCAB) for name in ("x", "y")}
    state = jax.device_put((params, opt_state), zero.shardings((params, opt_state)))
    step = zero.jit(user.plain_step)
    placed = jax.device_put(batch, zero.batch_shardings(batch))
    for _ in range(2):
        *state, loss = step(*state, placed)
        *alone, expected = user.plain_step(*alone, batch)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    found = jax.tree.map(lambda leaf: leaf.sharding, tuple(state))
    assert jax.tree.leaves(found) == jax.tree.leaves(zero.shardings(tuple(state)))
    assert state[1][0].mu["head"].sharding.spec == P("data", "tensor")
    assert state[0]["head"].sharding.spec == P(None, "tensor")


def test_jit_of_a_reference_models_plan_builds_its_step_once(monkeypatch):
    from autotune.plan import apply
    from autotune.reference_workload import reference_workload

    plan = plan_for("data=2,fsdp=2,tensor=2,zero=1", "cpu:8")
    reference = reference_workload("tiny", batch=plan.sequences, seq=plan.seq, dtype="float32")
    here = reference.build(plan.layout, plan.mesh())
    built = []
    build = apply.reference_step
    monkeypatch.setattr(apply, "reference_step", lambda *given: built.append(given) or build(*given))

    def step(state, batch):
        parameters = jax.tree.map(lambda leaf: 0.5 * leaf, state["parameters"])
        return {**state, "parameters": parameters}, batch["tokens"].sum()

    planned = plan.jit(step)
    state, batch = here.initialise(0), here.make_batch(0)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    state = jax.device_get(state)  # the plan brings it back
    halved = jax.tree.map(lambda leaf: 0.25 * leaf, state["parameters"])
    for _ in range(2):
        state, total = planned(state, batch)
    assert len(built) == 1
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
    assert int(total) == int(batch["tokens"].sum())
    jax.tree.map(lambda found, expected: np.testing.assert_array_equal(found, expected), state["parameters"], halved)
