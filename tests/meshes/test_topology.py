"""Devices of targets and the meshes on them: deviceless TPU and GPU topologies, and CPU devices simulated here.

Each case runs in a process of its own: compile-only plugins and the number of CPU devices are fixed at JAX's start.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from autotune.meshes.hardware import hardware_names, hardware_of_kind, load_hardware
from autotune.meshes.installed import DEVICELESS_ENVIRONMENT
from autotune.meshes.topology import gpu_target_config

HEAD = """
import json
import jax
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.meshes.topology import devices_of, local_target, mesh_of
"""
SMALL_STEP = """
def compiled(mesh):
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P
    w = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp", "tensor")))
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    step = jax.jit(jax.grad(lambda w, x: (x @ w).astype(jnp.float32).sum()))
    return step.lower(w, x).compile().as_text()
"""


def run(body):
    """What `body` leaves in `result`, from a fresh process."""
    code = HEAD + body + "\nprint('RESULT' + json.dumps(result))\n"
    environment = os.environ | DEVICELESS_ENVIRONMENT | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    found = re.search(r"RESULT(.*)", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found[1])


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="jax-cuda12-plugin is not installed"
)


@needs_libtpu
def test_tpu_meshes_lie_on_the_torus_as_placed():
    result = run(
        SMALL_STEP
        + """
def lines(text, words, axis):
    mesh = mesh_of(parse_layout(words), parse_target(text))
    assert mesh.axis_names == ("stage", "data", "fsdp", "context", "expert", "tensor")
    import numpy as np
    grid = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), -1)
    grid = grid.reshape(-1, grid.shape[-1])
    return [[(getattr(d, "slice_index", None) or 0, *d.coords, d.core_on_chip) for d in row] for row in grid]

result = {
    "row": lines("v5e:4x4", "fsdp=4,tensor=4", "tensor"),
    "slices": lines("v5e:4x4*2", "data=2,fsdp=16", "data"),
    "cores": lines("tpu7x:2x2x1", "fsdp=4,tensor=2", "tensor"),
    "whole": len(devices_of(parse_target("v4:2x2x1"))),
    "one": len(devices_of(parse_target("v6e:1x1"))),
    "megascale": "megascale" in compiled(mesh_of(parse_layout("data=2,fsdp=16"), parse_target("v5e:4x4*2"))),
}
"""
    )
    for line in result["row"]:
        steps = [[b - a for a, b in zip(p, q, strict=True)] for p, q in zip(line, line[1:], strict=False)]
        assert steps == [[0, 0, 1, 0, 0]] * 3, "tensor walks along the last dimension, neighbour to neighbour"
    for first, second in result["slices"]:
        assert (first[0], second[0]) == (0, 1) and first[1:] == second[1:], "data crosses from slice to slice only"
    for first, second in result["cores"]:
        assert first[:-1] == second[:-1] and (first[-1], second[-1]) == (0, 1), "tensor=2 stays on its chip"
    assert (result["whole"], result["one"]) == (4, 1)
    assert result["megascale"], "what crosses slices is a transfer between hosts"


@needs_cuda
def test_gpu_meshes_keep_inner_axes_in_the_nvlink_domain():
    result = run(
        SMALL_STEP
        + """
mesh = mesh_of(parse_layout("fsdp=2,tensor=8"), parse_target("h100:2x8"))
v100 = devices_of(parse_target("v100-16:1x4"))
result = {
    "ids": [[d.id for d in row] for row in mesh.devices.reshape(2, 8)],
    "kinds": [mesh.devices.flat[0].device_kind, v100[0].device_kind],
    "text": "replica_groups" in compiled(mesh),
    "rack": len(devices_of(parse_target("gb200:2x72"))),
}
"""
    )
    assert result["ids"] == [list(range(8)), list(range(8, 16))]
    assert result["kinds"] == ["NVIDIA H100 80GB HBM3", "Tesla V100-SXM2-16GB"]
    assert result["text"] and result["rack"] == 144


def test_simulated_devices_and_what_is_attached_here():
    result = run(
        """
auto = mesh_of(parse_layout("fsdp=4,tensor=2"), parse_target("cpu:8"))
explicit = mesh_of(parse_layout("fsdp=4,tensor=2"), parse_target("cpu:8"), explicit=True)
local = local_target()
try:
    devices_of(parse_target("cpu:16"))
    late = ""
except ValueError as error:
    late = str(error)
result = {
    "shape": dict(auto.shape),
    "types": [str(auto.axis_types[0]), str(explicit.axis_types[0])],
    "local": [local.name, local.hardware.name, local.shape, local.groups, local.measurable],
    "late": late,
}
"""
    )
    assert result["shape"] == {"stage": 1, "data": 1, "fsdp": 4, "context": 1, "expert": 1, "tensor": 2}
    assert result["types"] == ["AxisType.Auto", "AxisType.Explicit"]
    assert result["local"] == ["local", "cpu", [8], 1, True]
    assert re.search("cpu:16 needs 16 simulated devices, JAX was already started with 8", result["late"])


@pytest.mark.parametrize("name", [name for name in hardware_names() if load_hardware(name).platform == "cuda"])
def test_gpu_description_has_what_the_compiler_dies_without(name):
    """Without one of these the compiler process ends in SIGFPE, or calls every kernel too large."""
    text = gpu_target_config(load_hardware(name))
    for field in ("cuda_compute_capability", "threads_per_warp", "block_dim_limit_x", "shared_memory_per_block_optin"):
        assert field in text
    assert f"device_memory_size: {load_hardware(name).hbm_bytes}" in text
    assert text.count("{") == text.count("}")


def test_device_kinds_name_known_hardware():
    assert all(load_hardware(name).device_kinds for name in hardware_names())
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA GB200": "gb200",
        "NVIDIA H200": "h200",
    }
    for kind, name in kinds.items():
        assert hardware_of_kind(kind) == name
    assert hardware_of_kind("TPU v99") is None
