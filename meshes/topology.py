"""JAX devices of a target, and the `jax.sharding.Mesh` of a layout on them. The one JAX module that knows topologies.

A target of another machine gives compile-only devices (deviceless TPU and GPU topologies); `cpu:N` gives devices
simulated here; an attached target the devices this process or job has.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from autotune.meshes.hardware import Hardware, hardware_of_kind, load_hardware
from autotune.meshes.installed import DEVICELESS_ENVIRONMENT
from autotune.meshes.layout import Layout
from autotune.meshes.placement import place
from autotune.meshes.target import Target, with_memory_fraction


def devices_of(target: Target) -> list:
    """The JAX devices of a target, in the order `Placement.device_order` counts them."""
    import jax

    if target.attached:
        devices = jax.devices()
    elif target.platform == "cpu" and jax.distributed.is_initialized():
        devices = jax.devices("cpu")
    elif target.platform == "cpu":
        devices = _simulated(target)
    elif target.platform == "tpu":
        devices = _tpu_topology(target)
    else:
        devices = _gpu_topology(target)
    if len(devices) != target.devices:
        raise ValueError(f"target: {target.name} has {target.devices} devices, JAX gives {len(devices)}")
    return sorted(devices, key=position)


def mesh_of(layout: Layout, target: Target, devices: Sequence | None = None, explicit: bool = False):
    """The mesh of a layout: all six axes in `layout.order`, devices placed as `meshes.placement` says.

    `devices`: those of `devices_of(target)`, in that order. `explicit`: axes of `AxisType.Explicit` (else Auto).
    """
    from jax.sharding import AxisType, Mesh

    order = place(layout, target).device_order()
    found = np.array(devices_of(target) if devices is None else list(devices), dtype=object)
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return Mesh(found[order], tuple(layout.mesh_shape), axis_types=(kind,) * order.ndim)


MEMORY_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""Environment variables that tell JAX which share of a GPU's memory to take, the first that is set."""


def local_memory_fraction() -> tuple[str, float] | None:
    """The variable that says which share of a GPU's memory this process takes, and the share; None where none does.

    ValueError where the value is no number.
    """
    for name in MEMORY_FRACTION:
        if text := os.environ.get(name):
            try:
                return name, float(text)
            except ValueError:
                raise ValueError(f"{name}={text!r} must be a number") from None
    return None


def local_target(hardware: Hardware | None = None) -> Target:
    """The target that the devices of this process, or of this job of several, make up.

    TPU: slices and their torus from the devices' coordinates; GPU: one domain per NVLink partition; CPU: one group per
    process. `hardware` replaces the chip's file. GPUs have the share of their memory that `MEMORY_FRACTION` says.
    ValueError when the chip is unknown or the devices fill no box.
    """
    import jax

    devices = sorted(jax.devices(), key=position)
    kind = devices[0].device_kind
    if hardware is None:
        name = hardware_of_kind(kind)
        if name is None:
            raise ValueError(f"target: no hardware file for device kind {kind!r}; give one with --hardware")
        hardware = load_hardware(name)
    groups: dict[int, list] = {}
    for device in devices:
        groups.setdefault(position(device)[0], []).append(device)
    if len({len(group) for group in groups.values()}) > 1:
        raise ValueError(f"target: local groups differ in size: {sorted(len(group) for group in groups.values())}")
    first = groups[min(groups)]
    shape: tuple[int, ...] = (len(first),)
    if hardware.platform == "tpu":
        corners = np.array([device.coords for device in first])
        shape = tuple(int(extent) for extent in corners.max(0) - corners.min(0) + 1)[: hardware.torus_dimensions]
    target = Target(name="local", hardware=hardware, shape=shape, groups=len(groups), attached=True)
    if target.devices != len(devices):
        raise ValueError(f"target: {len(devices)} local devices do not fill {len(groups)} x {shape}")
    told = local_memory_fraction() if target.platform == "cuda" else None
    return with_memory_fraction(target, told[1], told[0]) if told else target


def position(device) -> tuple[int, ...]:
    """Slice, NVLink partition or host; coordinates (first dimension slowest); core; id."""
    if device.platform == "tpu":
        return (getattr(device, "slice_index", None) or 0, *device.coords, device.core_on_chip, device.id)
    group = device.process_index if device.platform == "cpu" else _partition(device)
    return (group, device.id)


def _partition(device) -> int:
    for name in ("partition_index", "slice_index"):
        found = getattr(device, name, None)
        if found is not None:
            return found
    return device.process_index


def _simulated(target: Target) -> list:
    import jax

    try:
        asked_for: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", max(asked_for, target.devices))
    except RuntimeError:  # the backend is already up; what it has must do
        pass
    devices = jax.devices("cpu")
    if len(devices) < target.devices:
        raise ValueError(
            f"target: {target.name} needs {target.devices} simulated devices, JAX was already started "
            f"with {len(devices)}; set jax_num_cpu_devices before its first use"
        )
    return devices[: target.devices]


def _tpu_topology(target: Target) -> list:
    from jax.experimental import topologies

    for name, value in DEVICELESS_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    chip = target.hardware.compile_fields.get("chip")
    if not chip:
        raise ValueError(f"hardware: {target.hardware.name} cannot be compiled for: compile_fields.chip is missing")
    options: dict[str, object] = {}
    if target.groups > 1:
        options["num_slices"] = target.groups
    if "chip_config_name" in target.hardware.compile_fields:
        options["chip_config_name"] = target.hardware.compile_fields["chip_config_name"]
    if set(target.shape) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    text = f"{chip}:{'x'.join(str(extent) for extent in target.shape)}"
    return list(topologies.get_topology_desc(platform="tpu", topology_name=text, **options).devices)


def _gpu_topology(target: Target) -> list:
    from jax.experimental import topologies

    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=target.hardware.name,
        target_config=gpu_target_config(target.hardware),
        topology=f"1x{target.groups}x{target.devices_per_group}",
    )
    return list(topology.devices)


def gpu_target_config(hardware: Hardware) -> str:
    """XLA's description of one GPU (a `GpuTargetConfigProto` in text form), from the hardware file's compile_fields.

    Absence of compute capability, threads per warp or block limits kills the compiler process; the other numbers steer
    its fusion and schedule. Limits that every CUDA GPU shares are written here.
    """
    fields = dict(hardware.compile_fields)
    major, minor = str(fields.pop("cuda_compute_capability")).split(".")
    name = fields.pop("name")
    common = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "device_memory_size": int(hardware.hbm_bytes),
    }
    lines = [f"  {key}: {value}" for key, value in (common | fields).items()]
    return "\n".join(
        (
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ major: {major} minor: {minor} }}",
            '  device_vendor: "NVIDIA Corporation"',
            f'  name: "{name}"',
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "{name}"',
        )
    )
