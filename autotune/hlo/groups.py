"""Which devices talk to each other in one collective, and the mesh axes that makes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.hlo.unreadable import UnreadableProgram

MOST_DEVICES = 2**24
"""No program runs on more; a damaged number of devices must not take the memory of this process."""

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_ORDER = re.compile(r"(?:\[[\d,]+\]<=)?()\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"(?:@?\w*)mesh\[([^\]]*)\]")
_MESH_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_PAIR = re.compile(r"\{(\d+),(\d+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGrid:
    """The devices one program's partition ids count, as a grid of mesh axes, outermost first.

    `shape`: size of each axis among those devices. On several TPU slices ids count inside one slice, so an axis has
    only its inner factor here and `outer` the factor across slices. `domain`: the outer domain of each id.
    """

    shape: Mapping[str, int]
    outer: Mapping[str, int]
    domain: np.ndarray

    @property
    def devices(self) -> int:
        return int(np.prod(list(self.shape.values()), dtype=np.int64))


def device_grid(mesh_shape: Mapping[str, int], dcn: Mapping[str, int], per_domain: int, partitions: int) -> DeviceGrid:
    """The grid of a program over `mesh_shape`; ValueError where the program has other partitions.

    `dcn`: the factor of each axis that crosses the outer tier, the slow-varying part of the axis.
    """
    devices = int(np.prod(list(mesh_shape.values()), dtype=np.int64))
    outer = {axis: dcn.get(axis, 1) for axis in mesh_shape}
    if any(size % outer[axis] for axis, size in mesh_shape.items()):
        raise ValueError(f"mesh_shape: {dict(mesh_shape)} is not divisible by the outer factors {dict(dcn)}")
    inner = {axis: size // outer[axis] for axis, size in mesh_shape.items()}
    domains = int(np.prod(list(outer.values()), dtype=np.int64))
    if partitions == devices:
        coordinates = np.unravel_index(np.arange(devices), tuple(mesh_shape.values()))
        domain = np.zeros(devices, np.int64)
        for axis, coordinate in zip(mesh_shape, coordinates, strict=True):
            domain = domain * outer[axis] + coordinate // inner[axis]
        if domains == 1:
            domain = np.arange(devices) // per_domain
        return DeviceGrid(shape=dict(mesh_shape), outer=outer, domain=domain)
    if partitions * domains == devices:
        return DeviceGrid(shape=inner, outer=outer, domain=np.zeros(partitions, np.int64))
    raise ValueError(f"mesh_shape: {dict(mesh_shape)} is {devices} devices, the program has {partitions} partitions")


def read_groups(attributes: str, devices: int) -> np.ndarray | None:
    """The replica groups, one row each; None where rows differ in length or the spelling is not known.

    Spellings: `{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)` (an iota reshaped, transposed, reshaped);
    `mesh['a'=2,'b'=2] {'b'}` (all devices along b), its devices reordered by `device_ids=([2,2]T(1,0))`,
    an axis split as `'b':(1)2` (outer factor, size); `{}` is everyone.
    """
    _, found, text = attributes.partition("replica_groups=")
    if not found:
        return np.arange(devices).reshape(1, -1)
    if text.startswith("{}"):
        return np.arange(devices).reshape(1, -1)
    if text.startswith("{{"):
        rows = [[int(i) for i in row.split(",")] for row in text[2 : text.index("}}")].split("},{")]
        return np.array(rows) if len({len(row) for row in rows}) == 1 else None
    if match := _IOTA.match(text):
        return _iota(match, tuple(int(size) for size in match[1].split(",")))
    if match := _MESH.match(text):
        return _mesh_groups(match[1], text[match.end() :])
    return None


def _iota(match: re.Match[str], shape: Sequence[int]) -> np.ndarray:
    dims = [int(size) for size in match[2].split(",")]
    ids = _ids(dims).reshape(dims)
    if match[3]:
        ids = ids.transpose([int(axis) for axis in match[3].split(",")])
    return ids.reshape(shape)


def _ids(dims: Sequence[int]) -> np.ndarray:
    """0, 1, 2, ...: one for each device of a grid."""
    devices = math.prod(dims)
    if devices > MOST_DEVICES:
        raise UnreadableProgram(f"hlo: replica groups of {devices} devices are more than there are")
    return np.arange(devices)


def _mesh_groups(declared: str, rest: str) -> np.ndarray | None:
    axes = {name: int(size) for name, size, _, _ in _MESH_AXIS.findall(declared)}
    devices = re.match(r",? ?device_ids=\(?", rest)
    ids = _ids(list(axes.values()))
    if devices:
        order = _ORDER.match(rest, devices.end())
        if not order:
            return None
        ids, rest = _iota(order, (-1,)), rest[order.end() :]
    chosen = re.search(r"\{([^}]*)\}", rest)
    if not chosen:
        return None
    # Split every axis that is named in parts into (outer, part, inner) so that each part is a dimension of its own.
    dims: list[int] = []
    position: dict[tuple[str, int], int] = {}
    parts = [
        (name, int(outer) if outer else 1, int(size) if size else axes[name])
        for name, _, outer, size in _MESH_AXIS.findall(chosen[1])
    ]
    for name, total in axes.items():
        cuts = sorted({1, total} | {cut for n, o, s in parts if n == name for cut in (o, o * s)})
        for low, high in zip(cuts, cuts[1:], strict=False):
            position[(name, low)] = len(dims)
            dims.append(high // low)
        position.setdefault((name, 1), -1)
    group = []
    for name, outer, size in parts:
        cut = outer
        while cut < outer * size:
            group.append(position[(name, cut)])
            cut *= dims[position[(name, cut)]]
    kept = [axis for axis in range(len(dims)) if axis not in group]
    width = int(np.prod([dims[axis] for axis in group], dtype=np.int64))
    return ids.reshape(dims).transpose(kept + group).reshape(-1, width)


def axes_of_groups(groups: np.ndarray, grid: DeviceGrid) -> tuple[str, ...]:
    """The mesh axes that the groups run along, outermost first; () where no whole axes make these groups.

    Groups along a part of one axis (its size is more than theirs) are that axis.
    """
    shape = tuple(grid.shape.values())
    if groups.size != grid.devices:
        return ()
    coordinates = np.array(np.unravel_index(groups, shape))
    along = [axis for axis in range(len(shape)) if (coordinates[axis] != coordinates[axis][:, :1]).any()]
    axes = tuple(list(grid.shape)[axis] for axis in along)
    if len(along) == 1:
        return axes
    kept = [axis for axis in range(len(shape)) if axis not in along]
    expected = np.arange(grid.devices).reshape(shape).transpose(kept + along)
    width = int(np.prod([shape[axis] for axis in along], dtype=np.int64))
    if width != groups.shape[1]:
        return ()
    return axes if np.array_equal(_in_order(groups), _in_order(expected.reshape(-1, width))) else ()


def _in_order(groups: np.ndarray) -> np.ndarray:
    """The same groups with members, then groups, ascending."""
    members = np.sort(groups, axis=1)
    return members[np.argsort(members[:, 0])]


def read_pairs(attributes: str) -> np.ndarray:
    """(source, target) rows of a permute."""
    match = _PAIRS.search(attributes)
    return np.array([[int(a), int(b)] for a, b in _PAIR.findall(match[1])] if match else []).reshape(-1, 2)


def axes_of_pairs(pairs: np.ndarray, grid: DeviceGrid) -> tuple[str, ...]:
    """The mesh axes along which any source and its target differ, outermost first."""
    shape = tuple(grid.shape.values())
    source = np.array(np.unravel_index(pairs[:, 0], shape))
    target = np.array(np.unravel_index(pairs[:, 1], shape))
    return tuple(axis for axis, moved in zip(grid.shape, (source != target).any(axis=1), strict=True) if moved)


def shift_of_pairs(pairs: np.ndarray, axes: tuple[str, ...], grid: DeviceGrid) -> int | None:
    """Places that every device sends further along its one axis, the shorter way around; None when they differ."""
    if len(axes) != 1:
        return None
    shape = tuple(grid.shape.values())
    index = tuple(grid.shape).index(axes[0])
    size = shape[index]
    moved = (np.unravel_index(pairs[:, 1], shape)[index] - np.unravel_index(pairs[:, 0], shape)[index]) % size
    if (moved != moved[0]).any():
        return None
    step = int(moved[0])
    return step if 2 * step <= size else step - size


def domains_spanned(groups: np.ndarray, grid: DeviceGrid) -> int:
    """Outer domains that the widest group reaches into."""
    domains = grid.domain[groups]
    return int(max(len(set(row)) for row in domains.tolist()))
