"""The compiled programs under tests/data/hlo, as scripts/make_fixtures.py wrote them."""

from __future__ import annotations

import functools
import json
import lzma
import math
from dataclasses import dataclass
from pathlib import Path

from autotune.compile.compilation import Compilation, compilation_from_json
from autotune.hlo.read import read_program
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import Target, parse_target
from autotune.meshes.transformer import TransformerShape
from autotune.program import Memory, Program

FOLDER = Path(__file__).parent / "data" / "hlo"
NAMES = tuple(sorted(path.name.removesuffix(".json.xz") for path in FOLDER.glob("*.json.xz")))
NO_MEMORY = Memory(
    peak_bytes=0,
    argument_bytes=0,
    output_bytes=0,
    temporary_bytes=0,
    alias_bytes=0,
    host_bytes=0,
    by_category={},
    largest=(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """One compiled step and what it is of: `batch` sequences of `seq` tokens in all."""

    name: str
    model: TransformerShape
    batch: int
    seq: int
    dtype: str
    layout: Layout
    target: Target
    compilation: Compilation
    program: Program

    @property
    def devices(self) -> int:
        return math.prod(self.layout.mesh_shape.values())


def saved(name: str) -> dict:
    """What the file of that name holds, its program not read."""
    return json.loads(lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes()))


@functools.cache
def fixture(name: str) -> Fixture:
    """The fixture of that name with its program read."""
    value = saved(name)
    compilation = compilation_from_json(value["compilation"])
    layout, target = parse_layout(value["layout"]), parse_target(compilation.target)
    program = read_program(
        compilation.text,
        platform=target.platform,
        mesh_shape=layout.mesh_shape,
        devices_per_group=target.devices_per_group,
        dcn=layout.dcn_axes,
        memory=NO_MEMORY,
    )
    return Fixture(
        name=name,
        model=TransformerShape(**value["model"]),
        batch=value["batch"],
        seq=value["seq"],
        dtype=value["dtype"],
        layout=layout,
        target=target,
        compilation=compilation,
        program=program,
    )
