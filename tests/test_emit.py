"""Emitted plans, read back by each codebase's own rules: the same mesh and the same meaning of every axis.

The rules, as each codebase's source has them:
MaxText    configs/base.yml: flags `ici_*_parallelism` and `dcn_*_parallelism` by mesh axis; the products are the
           devices of a slice and the slices (max_utils.create_device_mesh). The global batch is per_device_batch_size x
           devices x gradient_accumulation_steps (pyconfig.calculate_global_batch_sizes).
Levanter   utils/mesh.py MeshConfig.axis_shapes: `axes` inside a slice default to data=-1, replica=1, model=1,
           `dcn_axes` to replica_dcn=-1; no name in both; products must be exact. Mappings: logical -> mesh axes.
EasyLM     jax_utils.get_jax_mesh: "name:size,..." naming each of dp, fsdp, mp once.
AXLearn    experiments/text/gpt/common.py mesh_shape_from_axes: keyword sizes, 1 by default, in the order pipeline,
           data, expert, fsdp, seq, model; common/utils.py HybridMeshShape: one such shape in a slice, one between.
Flax       is installed, so the emitted code is run.
"""

import math
import re
import types

import jax
import pytest
import yaml
from test_plan import PLAN, plan_for

from autotune.meshes.layout import WORDS
from autotune.plan.emit import emit

LAYOUTS = {
    "fsdp=64,tensor=4": "v5e:16x16",
    "data=2,fsdp=32,tensor=4,remat=full,accumulate=2": "v5e:16x16",
    "data=4,fsdp=64,tensor=2,dcn.data=2,remat=minimal": "v5e:16x16*2",
    "fsdp=128,context=2,expert=2,dcn.fsdp=2,remat=dots": "v5e:16x16*2",
    "stage=4,data=2,fsdp=16,tensor=2,dcn.stage=2,microbatches=8,schedule=gpipe": "v5e:8x16*2",
}
CASES = [plan_for(text, target) for text, target in LAYOUTS.items()]
IDS = list(LAYOUTS)


def sizes(found: dict[str, int]) -> dict[str, int]:
    return {axis: found.get(axis, 1) for axis in WORDS}


def split(plan):
    """(inside a slice, between slices) sizes of our axes."""
    outer = plan.layout.dcn_axes
    return {axis: size // outer[axis] for axis, size in plan.layout.axes.items()}, outer


@pytest.mark.parametrize("plan", CASES, ids=IDS)
def test_maxtext(plan):
    text = emit(plan, "maxtext")
    flags = dict(re.findall(r"^  (\w+)=(\S+?)(?: \\)?$", text, re.M))
    own = {name: name for name in ("data", "fsdp", "context", "tensor", "expert")} | {"pipeline": "stage"}
    for tier, expected in zip(("ici", "dcn"), split(plan), strict=True):
        found = {own[name]: int(flags[f"{tier}_{name}_parallelism"]) for name in own}
        assert found == sizes(expected)
    batch = float(flags["per_device_batch_size"]) * plan.devices * int(flags["gradient_accumulation_steps"])
    assert batch == plan.sequences and int(flags["max_target_length"]) == plan.seq
    policy = {"full": "full", "none": "none", "minimal": "minimal", "dots": "custom"}[plan.layout.remat]
    assert flags["remat_policy"] == policy
    if plan.layout.stage > 1:
        assert int(flags["num_pipeline_microbatches"]) % plan.layout.stage == 0


@pytest.mark.parametrize("plan", CASES[:-1], ids=IDS[:-1])
def test_levanter(plan):
    mesh = yaml.safe_load(emit(plan, "levanter"))["trainer"]["mesh"]
    axes = {"data": -1, "replica": 1, "model": 1} | mesh["axes"]
    between = {"replica_dcn": -1} | mesh["dcn_axes"]
    assert not axes.keys() & between.keys() and -1 not in (*axes.values(), *between.values())
    assert math.prod(axes.values()) == plan.devices // plan.groups
    assert math.prod(between.values()) == plan.groups
    batch = set(mesh["compute_mapping"]["batch"])
    everywhere = axes | between

    def total(names) -> int:
        return math.prod(everywhere[name] for name in names)

    assert total(batch) == plan.layout.batch_shards
    assert total(mesh["param_mapping"]["embed"]) == plan.layout.fsdp
    assert total(mesh["shared_mapping"]["mlp"]) == plan.layout.tensor == total(mesh["shared_mapping"]["heads"])
    assert total(mesh["compute_mapping"].get("position", ())) == plan.layout.context
    assert total(mesh["shared_mapping"].get("experts", ())) == plan.layout.expert


@pytest.mark.parametrize("plan", CASES[:2], ids=IDS[:2])
def test_easylm(plan):
    text = emit(plan, "easylm")
    flags = dict(re.findall(r"^  --([\w.]+)='(\S*?)'", text, re.M))
    dims = dict(part.split(":") for part in flags["mesh_dim"].split(","))
    assert {name: int(size) for name, size in dims.items()} == {
        "dp": plan.layout.data, "fsdp": plan.layout.fsdp, "mp": plan.layout.tensor,
    }  # fmt: skip
    batch = int(flags["train_dataset.json_dataset.batch_size"]) * int(flags["optimizer.accumulate_gradient_steps"])
    assert batch == plan.sequences


@pytest.mark.parametrize("plan", CASES, ids=IDS)
def test_axlearn(plan, monkeypatch):
    names = ("pipeline", "data", "expert", "fsdp", "seq", "model")

    def mesh_shape_from_axes(*, pipeline=1, data=1, expert=1, fsdp=1, seq=1, model=1):
        return (pipeline, data, expert, fsdp, seq, model)

    class Anything:
        def __getattr__(self, name):
            return lambda *given, **named: Anything()

    modules = {
        "axlearn": {},
        "axlearn.common": {},
        "axlearn.common.utils": {"HybridMeshShape": types.SimpleNamespace},
        "axlearn.common.metrics": {"MetricAccumulator": Anything()},
        "axlearn.common.config": {"config_for_function": lambda one: Anything()},
        "axlearn.common.gradient_accumulation": {"with_minibatch_steps": None},
        "axlearn.experiments": {},
        "axlearn.experiments.text": {},
        "axlearn.experiments.text.gpt": {},
        "axlearn.experiments.text.gpt.common": {
            "MESH_AXIS_NAMES": names, "mesh_shape_from_axes": mesh_shape_from_axes,
        },
    }  # fmt: skip
    for name, values in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(__import__("sys").modules, name, module)
    cfg = types.SimpleNamespace(learner=types.SimpleNamespace())
    exec(emit(plan, "axlearn"), {"cfg": cfg})
    ours = dict(zip(names, ("stage", "data", "expert", "fsdp", "context", "tensor"), strict=True))
    shape = cfg.mesh_shape
    inside, between = (shape.ici_mesh_shape, shape.dcn_mesh_shape) if plan.layout.dcn else (shape, (1,) * 6)
    for found, expected in zip((inside, between), split(plan), strict=True):
        assert {ours[name]: size for name, size in zip(cfg.mesh_axis_names, found, strict=True)} == sizes(expected)


def test_flax_code_runs_and_gives_the_same_mesh_and_shardings():
    import flax.linen as nn

    scope: dict = {}
    exec(emit(PLAN, "flax"), scope)
    assert scope["mesh"].devices.flatten().tolist() == PLAN.mesh().devices.flatten().tolist()
    assert dict(scope["mesh"].shape) == {"fsdp": 2, "tensor": 4}
    for names in (("embed", "mlp"), ("batch", "length", "embed"), ("vocab", "embed")):
        ours = nn.logical_to_mesh_axes(names, [(one, axes) for one, axes in PLAN.partition.rules])
        theirs = nn.logical_to_mesh_axes(names, scope["LOGICAL_AXIS_RULES"])
        shape = (16,) * len(names)
        one = jax.sharding.NamedSharding(PLAN.mesh(), ours)
        other = jax.sharding.NamedSharding(scope["mesh"], theirs)
        assert one.shard_shape(shape) == other.shard_shape(shape)


def test_what_a_codebase_cannot_do_is_refused_or_said():
    with pytest.raises(ValueError, match="emit: Levanter has no stage axis; this plan has stage=4"):
        emit(CASES[-1], "levanter")
    with pytest.raises(ValueError, match="emit: EasyLM has no context axis; this plan has context=2"):
        emit(CASES[3], "easylm")
    with pytest.raises(ValueError, match="emit: 'megatron' is not known; known: maxtext, levanter"):
        emit(PLAN, "megatron")
    zero = plan_for("data=8,zero=1", "cpu:8")
    assert "# not expressed: zero=1" in emit(zero, "maxtext")
