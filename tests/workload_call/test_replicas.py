"""A step with the mesh axes `replica` and `data` cuts its weights along `data`: that is our fsdp, and it is said."""

import jax
import pytest
import small_steps as small
from jax.sharding import PartitionSpec as P

import autotune
from autotune.meshes.layout import parse_layout

RULES = [("up$", ("data", "model")), ("down$", ("model", "data"))]
SAID = (
    "beside the mesh axis 'replica', which was taken for data, 'data' was taken for fsdp; pin it with "
    "mesh_axes={'data': 'fsdp', 'replica': 'data'}"
)


def held(batch):
    return jax.lax.with_sharding_constraint(batch, P(("replica", "data"), None))


def by_constraint(state, batch):
    return small.Trainer().train_step(held(batch), state)


def by_rules(state, batch):
    return small.Trainer().train_step(batch, state)


LOGICAL = {"rows": ("replica", "data"), "columns": "model"}

CASES = [
    (by_constraint, {"rules": RULES}),
    (by_rules, {"rules": [("mu/up$", (("replica", "data"), "model")), *RULES]}),
    (by_rules, {"rules": [("up$", ("rows", "columns"))], "logical_rules": LOGICAL}),
]


@pytest.mark.parametrize(("step", "options"), CASES)
def test_data_beside_replicas_is_fsdp(step, options):
    workload = autotune.Workload.of_call(step, (small.state(), small.X), batch=1, **options)
    assert SAID in workload.guesses
    assert workload.partition.mesh_names == {"data": "replica", "fsdp": "data", "tensor": "model"}
    plan = autotune.tune(
        workload, "cpu:8", layouts=(parse_layout("data=2,fsdp=2,tensor=2"),), compile=0, probe=False
    ).plan
    assert dict(plan.mesh().shape)["replica"] == dict(plan.mesh().shape)["data"] == 2


def test_what_the_user_says_of_either_holds():
    named = {"data": "data", "replica": "expert"}
    workload = autotune.Workload.of_call(by_constraint, (small.state(), small.X), batch=1, rules=RULES, mesh_axes=named)
    assert not any("beside the mesh axis" in guess for guess in workload.guesses)
    assert workload.partition.mesh_names["expert"] == "replica"


def test_two_other_names_of_one_axis_are_asked_for():
    rules = [("up$", ("mp", "tp"))]
    with pytest.raises(ValueError, match=r"with mesh_axes=\{'mp': \.\.\., 'tp': \.\.\.\} \(each one of data, .*; both"):
        autotune.Workload.of_call(by_rules, (small.state(), small.X), batch=1, rules=rules)
