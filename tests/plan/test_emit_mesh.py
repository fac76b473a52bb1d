"""Meshes that MaxText and EasyLM build from an emitted text, by the functions that they call, on devices of a real
(deviceless) topology: they can be built, and lie as the plan's or the text says what is lost."""

import functools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from jax.experimental import mesh_utils
from test_plan import plan_for

from autotune.meshes.placement import place, torus
from autotune.meshes.route import Factor, merge, ring_links
from autotune.meshes.target import parse_target
from autotune.meshes.topology import devices_of
from autotune.plan.emit import emit
from autotune.plan.their_mesh import devices_by_id

TWO_AXES = [(f"fsdp={256 // size},tensor={size}", "v5e:16x16") for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
OTHERS = [
    ("data=8,fsdp=32,zero=2,remat=dots", "v5e:16x16"),  # the README's chosen one
    ("data=4,fsdp=64", "v5e:16x16"),
    ("data=4,fsdp=16,tensor=4", "v6e:16x16"),
    ("fsdp=16,tensor=8", "v5e:8x16"),
    ("fsdp=8,tensor=8", "v5p:4x4x4"),
    ("data=4,fsdp=4,tensor=8", "v4:4x4x8"),
    ("data=2,fsdp=64,tensor=4,dcn.data=2", "v5e:16x16*2"),
    ("data=2,fsdp=8,tensor=2,dcn.data=2", "v5e:4x4*2"),
    ("fsdp=4,tensor=4", "tpu7x:2x2x2"),
]
MAXTEXT_AXES = ("data", "stage", "fsdp", "context", "tensor", "expert")


@functools.cache
def real_devices(target: str) -> list:
    """As `jax.devices()` gives them: by id."""
    return sorted(devices_of(parse_target(target)), key=lambda device: device.id)


@functools.cache
def index_of(target: str) -> dict:
    """Id of a device -> its place in the order in which plans count devices."""
    return {device.id: index for index, device in enumerate(devices_of(parse_target(target)))}


def rings(mesh, block):
    """max_utils.py, reshape_mesh_to_rings: blocks of a 16x16 mesh, each walked along a row and back along the other."""
    rows, columns = block
    found = []
    for i in range(0, 16, rows):
        for j in range(0, 16, columns):
            found.append(
                [mesh[i, j + k] for k in range(columns)] + [mesh[i + 1, j + k] for k in reversed(range(columns))]
            )
    walked = np.empty((len(found), rows * columns), dtype=object)
    walked[:] = found
    return walked


def maxtext_mesh(text: str, target: str):
    """maxtext_utils.py, create_device_mesh: (axes of ours, mesh of real devices)."""
    flags = dict(re.findall(r"^  (\w+)=(\S+?)(?: \\)?$", text, re.M))
    names = {"stage": ("pipeline",), "tensor": ("tensor", "tensor_sequence")}

    def sizes(tier):
        given = [
            [flags.get(f"{tier}_{name}_parallelism", "1") for name in names.get(axis, (axis,))] for axis in MAXTEXT_AXES
        ]
        return [math.prod(map(int, each)) for each in given]

    inner, outer = sizes("ici"), sizes("dcn")
    split = flags.get("allow_split_physical_axes") == "True"
    custom = {"hybrid_ring_64x4": (2, 2), "hybrid_ring_32x8": (2, 4)}.get(flags.get("custom_mesh", ""))
    devices = real_devices(target)
    if custom:
        assert split and sorted(set(inner)) == sorted({1, math.prod(custom), 256 // math.prod(custom)})
    if math.prod(outer) == 1:
        if custom:
            mesh = rings(mesh_utils.create_device_mesh([16, 16], devices), custom).reshape(inner)
        elif split:
            mesh = mesh_utils.create_device_mesh(
                inner, devices, contiguous_submeshes=False, allow_split_physical_axes=True
            )
        else:
            mesh = mesh_utils.create_device_mesh(inner, devices)
        return MAXTEXT_AXES, mesh
    if not custom:
        return MAXTEXT_AXES, mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=split
        )
    slices = [[one for one in devices if one.slice_index == number] for number in range(math.prod(outer))]
    blocks = np.empty(outer, dtype=object)
    for at, some in zip(np.ndindex(*outer), slices, strict=True):
        blocks[at] = rings(mesh_utils.create_device_mesh([16, 16], some), custom).reshape(inner)
    return MAXTEXT_AXES, np.block(blocks.tolist())


def easylm_mesh(text: str, target: str):
    """jax_utils.py, get_jax_mesh."""
    (dims,) = re.findall(r"--mesh_dim='(\S+)'", text)
    named = [part.split(":") for part in dims.removeprefix("!").split(",")]
    assert {name for name, _ in named} == {"dp", "fsdp", "mp"}
    shape, devices = [int(size) for _, size in named], real_devices(target)
    ours = {"dp": "data", "fsdp": "fsdp", "mp": "tensor"}
    axes = tuple(ours[name] for name, _ in named)
    if dims.startswith("!"):
        mesh = np.empty(len(devices), dtype=object)
        mesh[:] = devices
        return axes, mesh.reshape(shape)
    return axes, mesh_utils.create_device_mesh(shape, devices)


def links_of(target, axes, order, axis) -> float:
    """Links one way that a gather along an axis keeps busy: where the devices of its first group lie."""
    machine = parse_target(target)
    group = order[tuple(slice(None) if name == axis else 0 for name in axes)]
    extents = (machine.groups, *machine.shape, machine.hardware.devices_per_chip)
    values = [sorted(set(place)) for place in zip(*(np.unravel_index(int(one), extents) for one in group), strict=True)]
    if math.prod(map(len, values)) != len(group):
        return 0.0  # no grid
    factors = tuple(
        Factor(dimension=number, size=len(found), stride=int(found[1] - found[0]), extent=extent, wraps=wraps)
        for number, (found, (extent, wraps)) in enumerate(zip(values[1:-1], torus(machine), strict=True))
        if len(found) > 1
    )
    return ring_links(merge(factors)) if factors else math.inf


BUILDERS = {"maxtext": maxtext_mesh, "easylm": easylm_mesh}


@pytest.mark.parametrize("codebase", BUILDERS)
@pytest.mark.parametrize(("layout", "target"), [*TWO_AXES, *OTHERS])
def test_what_is_emitted_can_be_built_and_lies_as_planned_or_says_what_is_lost(codebase, layout, target):
    plan = plan_for(layout, target)
    text = emit(plan, codebase)
    axes, mesh = BUILDERS[codebase](text, target)  # raises NotImplementedError where the codebase would
    order = np.vectorize(lambda device: index_of(target)[device.id], otypes=[np.int64])(mesh)
    assert sorted(order.ravel()) == list(range(plan.devices))
    planned = place(plan.layout, parse_target(target)).device_order()
    for axis, size in plan.layout.axes.items():
        if size == 1:
            continue
        theirs = links_of(target, axes, order, axis)
        ours = links_of(target, plan.layout.order, planned, axis)
        said = re.search(
            rf"^# another device order: {axis} has (\S+) links a device there, (\S+) in this plan", text, re.M
        )
        if theirs == 0.0:
            assert f"# another device order: {axis} lies over slices and chips otherwise" in text
        elif theirs < ours * (1 - 1e-6):
            assert said, (axis, theirs, ours, text)
            assert float(said[1]) == pytest.approx(theirs, rel=0.01) and float(said[2]) == pytest.approx(ours, rel=0.01)
        else:
            assert not said, (axis, theirs, ours, text)


def test_without_the_flags_six_of_nine_meshes_are_refused():
    refused = 0
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        try:
            mesh_utils.create_device_mesh([256 // size, size], real_devices("v5e:16x16"))
        except NotImplementedError:
            refused += 1
    assert refused == 6


def test_maxtext_loses_nothing_on_two_axes_of_a_v5e_pod():
    for layout, target in TWO_AXES:
        assert "another device order" not in emit(plan_for(layout, target), "maxtext")


def test_known_bytes_make_it_seconds():
    plan = plan_for("fsdp=64,tensor=4", "v5e:16x16")

    def text(fsdp: float, tensor: float) -> str:
        sent = {"fsdp@ici": fsdp, "tensor@ici": tensor}
        return emit(replace(plan, figures=replace(plan.figures, axis_bytes=sent)), "easylm")

    # over 45 GB/s a link: fsdp 4.5e9 / 4.5e10 = 0.1 s on one link, 0.2 s on half of one
    lost = "fsdp has 0.5 links a device there, 1 in this plan: its collectives take 0.2 s a step instead of 0.1 s"
    assert lost in text(4.5e9, 9e9)
    assert "fsdp has" not in text(9e12, 9e9), "the axis that sends most has its links"


@pytest.mark.parametrize("target", ["v5e:16x16", "v6e:4x8", "v5p:2x2x4", "v4:4x4x4", "tpu7x:2x2x2", "v5e:4x4*2"])
def test_the_stand_ins_are_the_real_devices(target):
    machine = parse_target(target)
    ours, real = devices_by_id(machine), real_devices(target)
    assert {device.device_kind for device in real} == {machine.hardware.device_kinds[0]}
    for one, other in zip(ours, real, strict=True):
        assert (list(one.coords), one.core_on_chip) == (list(other.coords), other.core_on_chip)
        assert one.slice_index == (getattr(other, "slice_index", None) or 0)
        assert one.index == index_of(target)[other.id]


def test_gpus_hang_on_a_switch_and_need_no_flag():
    text = emit(plan_for("fsdp=16,tensor=4", "h100:8x8"), "maxtext")
    assert "allow_split" not in text and "another device order" not in text
    assert "mesh_dim='dp:1,fsdp:16,mp:4'" in emit(plan_for("fsdp=16,tensor=4", "h100:8x8"), "easylm")
