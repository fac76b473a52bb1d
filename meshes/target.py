"""The machine a layout is for: which devices, how many, how they hang together. Parses `v5e:16x16`; JAX-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from autotune.meshes.fields import did_you_mean, short
from autotune.meshes.hardware import Hardware, hardware_names, load_hardware

TPU_SHAPES = {
    "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
    "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24",
    "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
    "tpu7x": "1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16",
}
"""Shapes in chips that are offered most (docs.cloud.google.com/tpu/docs/<chip>); the compiler takes others too."""

TPU_POD_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216}
"""The largest torus of each (docs.cloud.google.com/tpu/docs/<chip>)."""

LARGEST_TARGET = 2**20
"""JAX devices of the largest target that is looked at, in `sweep` too; beyond it a search takes minutes a size."""

CLOUD_NAMES = {"v4": ("v4", 2), "v5p": ("v5p", 2), "v5litepod": ("v5e", 1), "v5lite": ("v5e", 1), "v5e": ("v5e", 1),
               "v6e": ("v6e", 1)}  # fmt: skip
"""What Google Cloud calls a slice, before the dash -> (our name of the chip, how many TensorCores of a chip the number
after the dash counts, 1 where it counts chips): v5p-128 has 64 chips (docs.cloud.google.com/tpu/docs/<chip>)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`groups` inner domains joined by the outer tier; each domain is a torus (TPU) or one switch (GPU).

    `shape`: chips along each torus dimension of one slice (TPU), or (devices,) of one NVLink domain or host.
    `attached`: True for `local`, the devices this process has; layouts are then measured as well as compiled.
    """

    name: str
    hardware: Hardware
    shape: tuple[int, ...]
    groups: int
    attached: bool

    @property
    def devices_per_group(self) -> int:
        """JAX devices in one slice, NVLink domain or host."""
        return math.prod(self.shape) * self.hardware.devices_per_chip

    @property
    def devices(self) -> int:
        """JAX devices in all."""
        return self.devices_per_group * self.groups

    @property
    def platform(self) -> str:
        return self.hardware.platform

    @property
    def measurable(self) -> bool:
        """Whether this process can run programs on it: attached devices, or CPU devices simulated here."""
        return self.attached or self.platform == "cpu"


def parse_target(text: str, hardware: Hardware | None = None) -> Target:
    """The target that a text describes; `hardware` replaces the chip's own file. JAX-free, so not for `local`.

    TPU `v5e:16x16`, several slices `v5p:4x4x4*2`; GPU `h100:8x8` = NVLink domains x GPUs in each; `cpu:8`. Capitals and
    Google Cloud's names of slices are understood. At most `LARGEST_TARGET` devices. ValueError names the target and the
    rule.

    >>> parse_target("v5p:4x4x4*2").devices
    128
    >>> parse_target("v5litepod-16").name, parse_target("v5p-128").name
    ('v5e:4x4', 'v5p:4x4x4')
    """
    text = as_written_here(text)
    name, _, shape_text = text.partition(":")
    if hardware is None:
        check_chip(text, name, shape_text)
    chip = hardware or load_hardware(name)
    match = re.fullmatch(r"([0-9]{1,9}(?:x[0-9]{1,9})*)(?:\*([0-9]{1,9}))?", shape_text)
    tpu = f"{name}:4x4" if chip.torus_dimensions == 2 else f"{name}:4x4x4"
    example = {"tpu": tpu, "cuda": f"{name}:2x8", "cpu": f"{name}:8"}[chip.platform]
    if not match:
        raise ValueError(f"target: {short(text)} has no shape; write e.g. {example}")
    shape = tuple(int(size) for size in match[1].split("x"))
    slices = int(match[2] or 1)
    if min(*shape, slices, 1) < 1:
        raise ValueError(f"target: {short(text)} has a size of 0; each must be 1 or more")
    devices = math.prod(shape) * slices * chip.devices_per_chip
    if devices > LARGEST_TARGET:
        raise ValueError(f"target: {short(text)} has {devices:,} devices; at most {LARGEST_TARGET:,} are looked at")
    if chip.platform == "tpu":
        dimensions = chip.torus_dimensions
        if len(shape) != dimensions:
            raise ValueError(
                f"target: {text!r}: a {chip.name} slice has {dimensions} dimensions, got {len(shape)}; "
                f"write e.g. {example}"
            )
        _check_slice(text, str(chip.compile_fields["chip"]), shape)
        return Target(name=text, hardware=chip, shape=shape, groups=slices, attached=False)
    if slices > 1:
        raise ValueError(f"target: {text!r}: *N counts TPU slices; write {name}:DOMAINSxGPUS")
    if chip.platform == "cpu":
        if len(shape) > 2:
            raise ValueError(f"target: {text!r}: write {example} or cpu:HOSTSxDEVICES")
    elif len(shape) != 2:
        usual = min(shape[0], 8)
        same = f"{name}:{shape[0] // usual}x{usual}" if len(shape) == 1 and shape[0] % usual == 0 else example
        raise ValueError(f"target: {text!r}: write {name}:DOMAINSxGPUS, e.g. {same}: NVLink domains x GPUs in each")
    groups = shape[0] if len(shape) == 2 else 1
    return Target(name=text, hardware=chip, shape=shape[-1:], groups=groups, attached=False)


def as_written_here(text: str) -> str:
    """The text in our own words: small letters, and `v5e-256` or `v5p-128*2` as a shape. ValueError where that slice is
    not offered or the text holds a control character; what is no name of Google Cloud's comes back as it is."""
    text = text.strip()
    if not text.isprintable():
        raise ValueError(f"target: {short(text)} holds a control character")
    text = text.lower() if text.lower().partition(":")[0] in (*hardware_names(), *GENERATIONS) else text
    match = re.fullmatch(r"([a-z0-9]+)-([0-9]{1,9})(\*[0-9]{1,9})?", text.lower())
    if not match or match[1] not in CLOUD_NAMES:
        return text
    chip, cores = CLOUD_NAMES[match[1]]
    offered = {math.prod(map(int, shape.split("x"))) * cores: shape for shape in TPU_SHAPES[chip].split()}
    counted = "TensorCores, two a chip" if cores == 2 else "chips"
    if int(match[2]) not in offered:
        sizes = ", ".join(f"{match[1]}-{size}" for size in offered)
        raise ValueError(
            f"target: {short(text)}: the number counts {counted}; offered: {sizes}; write other slices as a shape, "
            f"e.g. {chip}:{TPU_SHAPES[chip].split()[3]}"
        )
    return f"{chip}:{offered[int(match[2])]}{match[3] or ''}"


GENERATIONS = {"a100": ("a100-40", "a100-80"), "v100": ("v100-16", "v100-32")}
"""Chips that come with different memory: what both are called -> our names of them."""


def check_chip(text: str, name: str, shape: str = "") -> None:
    """ValueError unless the name is that of a chip we have a file of; it says how to write what may have been meant."""
    if name in hardware_names():
        return
    if name in GENERATIONS:
        both = " or ".join(f"{one}:{shape}" if shape else one for one in GENERATIONS[name])
        raise ValueError(f"target: {short(text)}: {name} comes with two sizes of memory; write {both}")
    close = did_you_mean(name.lower(), hardware_names())
    known = ", ".join(hardware_names())
    raise ValueError(f"target: {short(text)}: {short(name)} is not known{close}; known: {known}, local")


def part_of(target: Target, devices: int) -> Target:
    """The smallest target of the same hardware with at least so many devices, inside one domain where one has as many.

    >>> [part_of(parse_target(text), 2).name for text in ("h100:8x8", "v5e:16x16", "tpu7x:4x4x4", "cpu:8")]
    ['h100:1x2', 'v5e:2x2', 'tpu7x:1x1x1', 'cpu:1x2']
    """
    hardware = target.hardware
    if target.platform == "tpu":
        shapes = TPU_SHAPES[str(hardware.compile_fields["chip"])].split()
        chips = [math.prod(map(int, shape.split("x"))) for shape in shapes]
        large = [
            shape for shape, count in zip(shapes, chips, strict=True) if count * hardware.devices_per_chip >= devices
        ]
        shape = large[0] if large else shapes[-1]
    else:
        inside = min(devices, target.devices_per_group)
        shape = f"{-(-devices // inside)}x{inside}"
    return parse_target(f"{hardware.name}:{shape}", hardware)


def _check_slice(text: str, chip: str, shape: tuple[int, ...]) -> None:
    """ValueError unless the TPU compiler takes a slice of this shape and a pod holds it.

    Hosts are 2x2 chips, so the first two sizes are even; a single chip is taken too.
    """
    if chip not in TPU_SHAPES:
        known = ", ".join(TPU_SHAPES)
        raise ValueError(f"target: {text!r}: compile_fields.chip={short(chip)} must be one of {known}")
    side = 16 if len(shape) == 2 else None
    whole_hosts = all(size % 2 == 0 for size in shape[:2]) or set(shape) == {1}
    if whole_hosts and math.prod(shape) <= TPU_POD_CHIPS[chip] and (side is None or max(shape) <= side):
        return
    limit = f"sizes up to {side}" if side else f"at most {TPU_POD_CHIPS[chip]} chips"
    raise ValueError(
        f"target: {text!r}: a {chip} slice has even first two sizes (or is one chip) and {limit}; "
        f"offered: {', '.join(TPU_SHAPES[chip].split())}"
    )
