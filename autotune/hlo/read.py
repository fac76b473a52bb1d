"""Reads the text of a compiled module, of any of the three backends, into a Program. Pure; no jax."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.hlo.groups import device_grid
from autotune.hlo.reader import Reader
from autotune.hlo.text import read_module
from autotune.hlo.unreadable import reading
from autotune.program import Memory, Program


def read_program(
    text: str,
    *,
    platform: str,
    mesh_shape: Mapping[str, int],
    devices_per_group: int,
    memory: Memory,
    dcn: Mapping[str, int] | None = None,
) -> Program:
    """The program that `text` (compiled.as_text()) describes.

    UnreadableProgram where it is no whole scheduled module of that mesh.

    `platform`: "tpu", "cuda" or "cpu". `mesh_shape`: axis sizes, outermost first; partition i is
    `mesh.devices.flat[i]`. `devices_per_group`: devices of one slice, NVLink domain or host. `dcn`: the factor of each
    axis that crosses these (`layout.dcn`); without it devices fill the domains in order.
    """
    module = read_module(text)
    with reading("the program cannot be read"):
        outer = _outer(mesh_shape, dcn, devices_per_group)
        grid = device_grid(mesh_shape, outer, devices_per_group, module.partitions)
        reader = Reader(module, grid, platform)
        instructions = reader.computation(module.computations[module.entry], lambda index: None)
    return Program(
        platform=platform,
        mesh_shape=dict(mesh_shape),
        instructions=instructions,
        memory=memory,
        warnings=reader.all_warnings(),
    )


def _outer(mesh_shape: Mapping[str, int], dcn: Mapping[str, int] | None, per_group: int) -> Mapping[str, int]:
    """The factor of each axis that crosses domains; unless said, the outermost axes do."""
    if dcn is not None:
        return dcn
    devices = 1
    for size in mesh_shape.values():
        devices *= size
    left = max(devices // per_group, 1)
    outer = {}
    for axis, size in mesh_shape.items():
        outer[axis] = size if left % size == 0 else (left if size % left == 0 else 1)
        left //= outer[axis]
    return outer if left == 1 else {}
