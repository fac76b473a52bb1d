"""Array shapes as HLO writes them: `bf16[4,1024]{1,0:T(8,128)(2,1)S(1)}`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from autotune.hlo.unreadable import UnreadableProgram

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=?]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")

_BITS = {
    "pred": 8, "token": 0, "opaque": 0,
    "s1": 1, "u1": 1, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4,
    "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_NAMES = {"pred": "bool", "bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}

MOST_BYTES = 2**60
"""No array is larger: figures made of larger ones would overflow."""

HBM = 0
MEMORIES = {HBM: "hbm", 1: "vmem", 5: "host"}
"""Memory spaces `S(n)`: device memory is the unmarked one, on TPU 1 is the core's vector memory, 5 is the host's.
Others (2, 4, 6) hold flags and scalars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One array on one device. `bytes` without the padding that TPU tiles add. `space`: the memory it lies in.

    `minor_to_major`: its dimensions, the one that varies fastest in memory first.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    bytes: int
    space: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)


@lru_cache(maxsize=65536)
def read_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, a tuple's leaves in order.

    >>> first, second = read_shapes("(bf16[2,8]{1,0:T(8,128)S(1)}, u32[])")
    >>> first.dtype, first.dims, first.bytes, first.space, second.bytes
    ('bf16', (2, 8), 32, 1, 4)
    """
    return tuple(_shape(*match) for match in _SHAPE.findall(text))


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    space = _SPACE.search(layout)
    size = (math.prod(sizes) * bits(dtype) + 7) // 8
    if size > MOST_BYTES:
        raise UnreadableProgram(f"hlo: an array {dtype}[{dims}] is larger than any memory")
    order = tuple(int(dim) for dim in layout[1:].partition(":")[0].rstrip("}").split(",") if dim)
    return Shape(
        dtype=dtype,
        dims=sizes,
        minor_to_major=order or tuple(reversed(range(len(sizes)))),
        bytes=size,
        space=int(space[1]) if space else HBM,
    )


def bits(dtype: str) -> int:
    """Bits of one element; every f8 kind is 8 wide."""
    if dtype in _BITS:
        return _BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    raise UnreadableProgram(f"hlo: the dtype {dtype!r} is not known")


def dtype_name(dtype: str) -> str:
    """NumPy's name of an HLO dtype; all kinds of f8 are "float8".

    >>> dtype_name("bf16"), dtype_name("s32"), dtype_name("f8e4m3fn")
    ('bfloat16', 'int32', 'float8')
    """
    if dtype in _NAMES:
        return _NAMES[dtype]
    if dtype.startswith(("f8", "f4")):
        return "float" + dtype[1]
    kinds = {"s": "int", "u": "uint", "c": "complex"}
    return kinds[dtype[0]] + dtype[1:] if dtype[1:].isdigit() else dtype
