"""Which cluster sizes are asked for, and the target that makes each: slices of a torus, NVLink domains. JAX-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from autotune.meshes.fields import short
from autotune.meshes.hardware import Hardware, load_hardware
from autotune.meshes.target import LARGEST_TARGET, Target, as_written_here, check_chip, parse_target, slice_shapes
from autotune.space import divisors


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of machine at any size. `block`: what larger ones are made of, as a user named it (None: the largest
    slice that fits, or the usual NVLink domain): a slice "8x8x8", or GPUs in one domain "8"."""

    name: str
    hardware: Hardware
    block: str | None

    def target(self, chips: int) -> Target | None:
        """The target of that many chips in the fewest slices or domains; None when there is none."""
        if self.hardware.platform == "tpu":
            return self._slices(chips)
        domain = int(self.block) if self.block else self.hardware.domain_devices or chips
        if chips % min(domain, chips):
            return None
        if self.hardware.platform == "cpu" and not self.block:
            return parse_target(f"{self.name}:{chips}", self.hardware)
        domain = min(domain, chips)
        return parse_target(f"{self.name}:{chips // domain}x{domain}", self.hardware)

    def _slices(self, chips: int) -> Target | None:
        shapes = {math.prod(map(int, shape.split("x"))): shape for shape in slice_shapes(self.hardware)}
        if self.block:
            size = math.prod(map(int, self.block.split("x")))
            shapes = {chips: shape for chips, shape in shapes.items() if chips < size} | {size: self.block}
        for slices in divisors(chips):
            if chips // slices in shapes and (slices == 1 or not self.block or chips // slices == size):
                times = f"*{slices}" if slices > 1 else ""
                return parse_target(f"{self.name}:{shapes[chips // slices]}{times}", self.hardware)
        return None


def parse_family(text: str, hardware: Hardware | None = None) -> Family:
    """`v5p`, or `v5p:8x8x8` and `h100:4` (or `h100:1x4`) to say what larger machines are made of; ValueError otherwise.

    >>> parse_family("v5p").target(8192).name, parse_family("h100").target(64).name
    ('v5p:16x16x16*2', 'h100:8x8')
    """
    name, colon, block = as_written_here(text).partition(":")
    if name.lower() == "local" and hardware is None:
        raise ValueError("target: 'local' has one size, and a sweep asks about many; name a chip, e.g. h100 or v5p")
    if hardware is None:
        check_chip(text, name, block)
    chip = hardware or load_hardware(name)
    if not colon:
        return Family(name=name, hardware=chip, block=None)
    if chip.platform == "tpu":
        parse_target(f"{name}:{block}", chip)
        if "*" in block:
            raise ValueError(f"target: {text!r}: --chips says how many slices; write {name}:{block.partition('*')[0]}")
        return Family(name=name, hardware=chip, block=block)
    unit = "GPUs of one NVLink domain" if chip.platform == "cuda" else "devices of one host"
    whole = re.fullmatch("(?:([0-9]{1,7})x)?([0-9]{1,7})", block)
    if not whole or not 1 <= int(whole[2]) <= LARGEST_TARGET:
        raise ValueError(f"target: {short(text)}: write {name}, or {name}:N with the N {unit}")
    if int(whole[1] or 1) != 1:
        many = "NVLink domains" if chip.platform == "cuda" else "hosts"
        raise ValueError(f"target: {short(text)}: --chips says how many {many}; write {name}:{int(whole[2])}")
    block = str(int(whole[2]))
    return Family(name=name, hardware=chip, block=block)


def parse_sizes(text: str) -> tuple[int, ...]:
    """Chip counts: `64..8192` is every power of two from 64 to 8192, `64,96,6144` just these; rising.

    >>> parse_sizes("64..512")
    (64, 128, 256, 512)
    """
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([0-9]{1,18})(?:\.\.([0-9]{1,18}))?", part)
        if not match:
            raise ValueError(f"chips: {short(part)} must be a number or a range like 64..8192")
        low, high = int(match[1]), int(match[2] or match[1])
        if low < 1 or high > LARGEST_TARGET:
            raise ValueError(f"chips: {part!r} must lie from 1 to {LARGEST_TARGET:,}")
        if low > high:
            raise ValueError(f"chips: {part!r} is empty: {low} is more than {high}")
        sizes = {2**power for power in range(21) if low <= 2**power <= high} if match[2] else {low}
        if not sizes:
            single = f"{low}" if low == high else f"{low},{high}"
            raise ValueError(f"chips: {part!r} holds no power of two; name single sizes as {single}")
        found |= sizes
    if not found:
        raise ValueError("chips: names no size; write e.g. 64..8192")
    return tuple(sorted(found))


_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def parse_tokens(text: str, option: str) -> float:
    """A number of tokens: 4M, 4Mi, 15T, 4194304; ValueError names the option.

    >>> parse_tokens("15T", "tokens")
    15000000000000.0
    """
    match = re.fullmatch(r"([-+]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:e[0-9]{1,2})?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2] not in _SUFFIXES:
        raise ValueError(f"{option}={short(text)} must be a number, with K, M, B, T, Ki or Mi behind it")
    value = float(match[1]) * _SUFFIXES[match[2]]
    if not 0 < value < 1e30:
        raise ValueError(f"{option}={text!r} must be above 0")
    return value
