"""The order in which another codebase lays out the devices of a TPU, and what its links are worth beside a plan's.

MaxText and EasyLM leave that to `jax.experimental.mesh_utils`, which is asked here with stand-ins for the devices: it
looks at their kind and coordinates only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.meshes.placement import torus
from autotune.meshes.route import Factor, merge, ring_links
from autotune.meshes.target import Target
from autotune.plan.plan import Plan

RINGS = {"hybrid_ring_64x4": (2, 2), "hybrid_ring_32x8": (2, 4)}
"""MaxText's `custom_mesh` of a 16x16 slice -> the block of chips of one inner ring (maxtext_utils.py,
reshape_mesh_to_rings)."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a target as `mesh_utils` sees it. `index`: its place among the target's devices."""

    index: int
    id: int
    coords: tuple[int, int, int]
    core_on_chip: int
    slice_index: int
    device_kind: str
    platform: str = "tpu"
    process_index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A mesh as a codebase builds it. `words`: what it must be told. `order`: indices into the target's devices, one
    dimension for each of `axes`."""

    words: Mapping[str, str]
    axes: tuple[str, ...]
    order: np.ndarray


def devices_by_id(target: Target) -> list[Device]:
    """The devices of a TPU target in the order of `jax.devices()`: first coordinate fastest, slice by slice."""
    shape = (*target.shape, *(1,) * (3 - len(target.shape)))
    # The first name of the hardware file is what the compiler's own topology of the chip calls its devices.
    cores, kind = target.hardware.devices_per_chip, target.hardware.device_kinds[0]
    places = itertools.product(range(target.groups), *(range(extent) for extent in shape), range(cores))
    found = []
    for index, (group, x, y, z, core) in enumerate(places):
        number = ((z * shape[1] + y) * shape[0] + x) * cores + core
        found.append(Device(index, group * 100_000 + number, (x, y, z), core, group, kind))
    return sorted(found, key=lambda device: device.id)


def maxtext_meshes(plan: Plan, axes: tuple[str, ...], inner: Mapping[str, int]) -> list[Built]:
    """Every mesh that MaxText can build of a plan's sizes on a TPU, the plainest first (maxtext_utils.py,
    create_device_mesh). `axes`: in MaxText's order; `inner`: their sizes inside a slice."""
    from jax.experimental import mesh_utils

    target = plan.machine()
    devices, shape = devices_by_id(target), [inner[axis] for axis in axes]
    slices = [[one for one in devices if one.slice_index == group] for group in range(target.groups)]

    def whole(words: dict[str, str], parts: list[np.ndarray]) -> Built:
        """The slices' meshes put together: along each axis its factor between slices is the outer one."""
        outer = [plan.layout.dcn_axes[axis] for axis in axes]
        blocks = np.empty(outer, dtype=object)
        for place, part in zip(np.ndindex(*outer), parts, strict=True):
            blocks[place] = part
        return Built(words=words, axes=axes, order=np.block(blocks.tolist()))

    found = []
    for words in ({}, {"allow_split_physical_axes": "True"}):
        try:
            parts = [
                _indices(mesh_utils.create_device_mesh(shape, some, allow_split_physical_axes=bool(words)))
                for some in slices
            ]
        except NotImplementedError:
            continue
        found.append(whole(words, parts))
    sizes = tuple(size for size in shape if size > 1)
    for name, block in RINGS.items():
        ring = math.prod(block)
        if target.shape == (16, 16) and sorted(sizes) == sorted((256 // ring, ring)):
            squares = [_indices(mesh_utils.create_device_mesh([16, 16], some)) for some in slices]
            words = {"allow_split_physical_axes": "True", "custom_mesh": name}
            found.append(whole(words, [_rings(square, block).reshape(shape) for square in squares]))
    return found


def easylm_meshes(plan: Plan, names: Mapping[str, str]) -> list[Built]:
    """Every mesh that EasyLM can build of a plan's sizes on a TPU, the plainest first (jax_utils.py, get_jax_mesh: any
    order of the axes, by `mesh_utils`, or with "!" simply in the order of `jax.devices()`). `names`: ours -> its."""
    from jax.experimental import mesh_utils

    target = plan.machine()
    devices, found = devices_by_id(target), []
    for split in (False, True):
        for axes in itertools.permutations(names):
            shape = [plan.layout.axes[axis] for axis in axes]
            words = {"mesh_dim": "!" * split + ",".join(f"{names[axis]}:{plan.layout.axes[axis]}" for axis in axes)}
            try:
                mesh = _plain(devices, shape) if split else mesh_utils.create_device_mesh(shape, devices)
            except (NotImplementedError, AssertionError):  # axes that no dimensions make; several slices
                continue
            found.append(Built(words=words, axes=axes, order=_indices(mesh)))
    return found


def best_of(plan: Plan, meshes: Sequence[Built]) -> tuple[Built, list[str]]:
    """The mesh in which the plan's collectives take least, of equals the first, and what is lost beside the plan's own:
    a line for each group of axes with fewer links."""
    ours = _links(plan, Built(words={}, axes=plan.layout.order, order=_planned(plan)))
    known = [(one, _links(plan, one)) for one in meshes]
    rated = [(_cost(plan, links), number) for number, (_, links) in enumerate(known)]
    chosen, links = known[min(rated, key=lambda one: (round(one[0], 9), one[1]))[1]]
    tier = plan.machine().hardware.tiers[1 if plan.machine().hardware.devices_per_chip > 1 else 0]
    lost = []
    for axes, theirs in links.items():
        if theirs >= ours[axes] * (1 - 1e-9):
            continue
        name = "+".join(axes)
        if not theirs:
            lost.append(f"{name} lies over slices and chips otherwise than in this plan, no grid of neighbours")
            continue
        sent = (plan.figures.axis_bytes or {}).get(f"{name}@{tier.name}")
        line = f"{name} has {theirs:.3g} links a device there, {ours[axes]:.3g} in this plan: its collectives take "
        if sent:
            slow, fast = (sent / (count * tier.bytes_per_second) for count in (theirs, ours[axes]))
            lost.append(f"{line}{slow:.3g} s a step instead of {fast:.3g} s where nothing hides them")
        else:
            lost.append(f"{line}{ours[axes] / theirs:.3g} times as long")
    return chosen, lost


def _planned(plan: Plan) -> np.ndarray:
    return np.array(plan.device_order).reshape([plan.layout.axes[axis] for axis in plan.layout.order])


def _plain(devices: list[Device], shape: list[int]) -> np.ndarray:
    mesh = np.empty(len(devices), dtype=object)
    mesh[:] = devices
    return mesh.reshape(shape)


def _indices(mesh: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda device: device.index, otypes=[np.int64])(mesh)


def _rings(square: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """(rings, chips of a ring) of a 16x16 slice cut into blocks: along the first row and back along the second."""
    rows, columns = block
    cut = square.reshape(16 // rows, rows, 16 // columns, columns).transpose(0, 2, 1, 3)
    there, back = cut[:, :, 0], cut[:, :, 1, ::-1]
    return np.concatenate([there, back], axis=-1).reshape(-1, rows * columns)


def _links(plan: Plan, built: Built) -> dict[tuple[str, ...], float]:
    """Axes that collectives run along, alone or together -> links of the torus that each device has for them, one way.

    0 where the slices are cut otherwise than the plan says, or where the devices of a group form no grid.
    """
    together: set[tuple[str, ...]] = {(axis,) for axis in plan.layout.order if plan.layout.axes[axis] > 1}
    for key in plan.figures.axis_bytes or {}:
        axes = tuple(key.partition("@")[0].split("+"))
        if all(plan.layout.axes.get(axis, 1) > 1 for axis in axes):
            together.add(axes)
    target = plan.machine()
    extents = (target.groups, *target.shape, target.hardware.devices_per_chip)
    found = {}
    for axes in sorted(together):
        first = built.order[tuple(slice(None) if axis in axes else 0 for axis in built.axes)]
        places = np.unravel_index(first.ravel(), extents)
        outer = math.prod(plan.layout.dcn_axes[axis] for axis in axes)
        found[axes] = _grid_links(target, places, outer)
    return found


def _grid_links(target: Target, places: tuple[np.ndarray, ...], outer: int) -> float:
    """Links one way of one group of devices, at these (slice, coordinates, core); infinite where it leaves no chip."""
    values = [np.unique(place) for place in places]
    steps = [set(np.diff(one).tolist()) for one in values]
    whole = math.prod(len(one) for one in values) == len(places[0])
    if not whole or any(len(step) > 1 for step in steps) or len(values[0]) != outer:
        return 0.0
    factors = tuple(
        Factor(dimension=dimension, size=len(one), stride=step.pop(), extent=extent, wraps=wraps)
        for dimension, (one, step, (extent, wraps)) in enumerate(
            zip(values[1:-1], steps[1:-1], torus(target), strict=True)
        )
        if len(one) > 1
    )
    return ring_links(merge(factors)) if factors else math.inf


def _cost(plan: Plan, links: Mapping[tuple[str, ...], float]) -> float:
    """What the collectives inside a slice take, in bytes over links: those that the compiled program sends; where it is
    not known, a gather along each axis, inner axes counting twice what the next outer one does."""
    sent = {tuple(key.partition("@")[0].split("+")): 0.0 for key in plan.figures.axis_bytes or {}}
    inner = plan.machine().hardware.tiers[1 if plan.machine().hardware.devices_per_chip > 1 else 0].name
    for key, amount in (plan.figures.axis_bytes or {}).items():
        name, _, tier = key.partition("@")
        sent[tuple(name.split("+"))] += amount if tier == inner else 0.0
    if not any(sent.get(axes) for axes in links):
        used = [axis for axis in plan.layout.order if plan.layout.axes[axis] > 1]
        sent = {(axis,): 2.0**place for place, axis in enumerate(used)}
    return sum(sent.get(axes, 0.0) / (count or 1e-9) for axes, count in links.items())
