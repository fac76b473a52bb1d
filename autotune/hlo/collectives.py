"""One collective instruction as a Collective: kind, mesh axes, bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from autotune.hlo.groups import (
    MOST_DEVICES,
    DeviceGrid,
    axes_of_groups,
    axes_of_pairs,
    domains_spanned,
    read_groups,
    read_pairs,
    shift_of_pairs,
)
from autotune.hlo.shape import Shape, dtype_name
from autotune.hlo.text import Computation, Module, Op
from autotune.hlo.unreadable import UnreadableProgram
from autotune.meshes.collectives import wire_bytes
from autotune.program import Collective

KIND_OF_OPCODE = {
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-reduce": "all_reduce",
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "all_to_all",
    "collective-permute": "permute",
    "collective-broadcast": "all_gather",
}
"""HLO's names, less `-start` and `-done`. A broadcast costs what gathering its array from shards would.

The TPU compiler writes a gather of small shards (seen with 16 rows of a bf16 matrix a device, not with 64) as an
all-reduce of arrays that are zero but for their own shard: that is what runs, and it is read as it stands.
"""

_MEGASCALE = {
    "ALL_REDUCE": "all_reduce",
    "ALL_GATHER": "all_gather",
    "REDUCE_SCATTER": "reduce_scatter",
    "ALL_TO_ALL": "all_to_all",
    "ONE_TO_ONE": "permute",
}
_TARGET = re.compile(r'_xla_megascale_target=(?:"\{([^}]*)\}|\{\{([\d,]*)\})')
_SLICE_IDS = 100_000
"""Device ids of slice n (counted from one) begin at n times this."""


def base_opcode(op: Op) -> str:
    """The opcode without `-start`, `-update` or `-done`."""
    return re.sub(r"-(start|update|done)$", "", op.opcode)


def read_collective(
    module: Module, computation: Computation, op: Op, grid: DeviceGrid, warnings: list[str]
) -> Collective | None:
    """The collective that `op` carries out; None where every group is a single device."""
    base = base_opcode(op)
    kind = KIND_OF_OPCODE[base]
    # A ragged all-to-all has its data first; then where it goes, and offsets and sizes.
    operands = op.operands[:1] if base == "ragged-all-to-all" else op.operands
    sent = [shape for name in operands for shape in computation.by_name[name].shapes]
    shift = None
    if kind == "permute":
        pairs = read_pairs(op.attributes)
        if not len(pairs):
            raise UnreadableProgram(
                f"hlo: the source_target_pairs of {op.name} are in no known spelling: {op.attributes[:200]}"
            )
        axes = axes_of_pairs(pairs, grid)
        if not axes:
            return None
        shift = shift_of_pairs(pairs, axes, grid)
        size = math.prod(grid.shape[axis] for axis in axes)
        crosses = 2 if (grid.domain[pairs[:, 0]] != grid.domain[pairs[:, 1]]).any() else 1
    else:
        groups = read_groups(op.attributes, module.partitions)
        if groups is None:
            raise UnreadableProgram(
                f"hlo: the replica groups of {op.name} are in no known spelling: {op.attributes[:200]}"
            )
        size = int(groups.shape[1])
        if size == 1:
            return None
        axes = axes_of_groups(groups, grid)
        crosses = domains_spanned(groups, grid)
        if not axes:
            warnings.append(f"{op.name}: its groups of {size} run along no whole mesh axes")
    payload = float(sum(shape.bytes for shape in sent))
    if base == "all-gather":
        payload *= size
    return Collective(
        name=op.name,
        kind=kind,
        axes=axes,
        group_size=size,
        crosses_groups=crosses,
        payload_bytes=payload,
        wire_bytes=float(wire_bytes(kind, payload, size)),
        dtype=dtype_name(widest(sent)),
        source=module.source(op),
        scope=module.scope(op),
        shift=shift,
    )


def widest(shapes: Iterable[Shape]) -> str:
    """The dtype that most of the bytes have."""
    return max(shapes, key=lambda shape: shape.bytes).dtype


def read_megascale(
    module: Module, send: Op, receive: Op | None, grid: DeviceGrid, warnings: list[str]
) -> Collective | None:
    """A transfer between TPU slices: a send and receive through the host, without replica groups.

    Its bytes are one device's: what the slice's own collectives left to it. The target `"{1,2}x{0:15}"` lists slices,
    `{{100000,200000},...}` the devices of each group.
    """
    kind = _MEGASCALE.get(send.word("_xla_megascale_transfer_type") or "")
    target = _TARGET.search(send.attributes)
    if kind is None or not target:
        return None
    if target[1] is not None:
        slices = [number for part in target[1].split(",") for number in _numbers(part)]
        size = len(slices)
    else:
        devices = [int(device) for device in target[2].split(",")]
        slices, size = sorted({device // _SLICE_IDS for device in devices}), len(devices)
    axes = _axes_across(slices, size // len(slices), grid)
    if not axes:
        warnings.append(f"{send.name}: its slices {slices}, {size} devices, run along no whole mesh axes")
    sent = send.shapes[0]
    payload = float(sent.bytes)
    if kind == "all_gather":
        payload = float(receive.shapes[0].bytes) if receive else payload * size
    return Collective(
        name=send.name,
        kind=kind,
        axes=axes,
        group_size=size,
        crosses_groups=len(slices),
        payload_bytes=payload,
        wire_bytes=float(wire_bytes(kind, payload, size)),
        dtype=dtype_name(sent.dtype),
        source=module.source(send),
        scope=module.scope(send),
    )


def _numbers(part: str) -> range:
    low, _, high = part.partition(":")
    found = range(int(low), int(high or low) + 1)
    if len(found) > MOST_DEVICES:
        raise UnreadableProgram(f"hlo: a group of {len(found)} slices is more than there are")
    return found


def _axes_across(slices: list[int], inside: int, grid: DeviceGrid) -> tuple[str, ...]:
    """The mesh axes of a group in these slices (counted from one, in the mesh's order) with `inside` devices in each.

    Device ids inside a slice are physical ones, so what the group does there is known by its size alone: the inner part
    of the same axes, or everyone. () where neither fits.
    """
    outer = tuple(grid.outer.values())
    coordinates = np.array(np.unravel_index(np.array(slices) - 1, outer))
    across = [axis for axis, place in zip(grid.outer, coordinates, strict=True) if np.ptp(place)]
    if math.prod(grid.outer[axis] for axis in across) != len(slices):
        return ()
    if inside == 1 or inside == math.prod(grid.shape[axis] for axis in across):
        return tuple(across)
    everyone = [axis for axis in grid.shape if grid.shape[axis] > 1 or axis in across]
    return tuple(everyone) if inside == grid.devices else ()
