"""The machine a layout is for: which devices, how many, how they hang together. Parses `v5e:16x16`; JAX-free."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from autotune.meshes.fields import did_you_mean, short
from autotune.meshes.hardware import Hardware, hardware_names, load_hardware
from autotune.meshes.layout_words import LARGEST_COUNT

LARGEST_TARGET = LARGEST_COUNT
"""JAX devices of the largest target that is looked at, in `sweep` too; beyond it a search takes minutes a size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`groups` inner domains joined by the outer tier; each domain is a torus (TPU) or one switch (GPU).

    `shape`: chips along each torus dimension of one slice (TPU), or (devices,) of one NVLink domain or host.
    `attached`: True for `local`, the devices this process has; layouts are then measured as well as compiled.
    `memory_fraction`: share of a GPU's memory that programs may use, where it is not the hardware's own
    (`with_memory_fraction`).
    """

    name: str
    hardware: Hardware
    shape: tuple[int, ...]
    groups: int
    attached: bool
    memory_fraction: float | None = None

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
        _check_slice(text, chip, shape)
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


def with_share(hardware: Hardware, fraction: float | None, said: str) -> Hardware:
    """The GPU whose programs may use that share of its memory; None: as it is.

    ValueError, naming what the user `said`, for a share that is not above 0 and at most 1, and for another device than
    a GPU: the memory of a TPU is what its compiler allows.
    """
    if fraction is None:
        return hardware
    if not 0 < fraction <= 1:
        raise ValueError(f"{said}={fraction:g} must be above 0 and at most 1")
    if hardware.platform != "cuda":
        raise ValueError(f"{said}={fraction:g} is for GPUs; the usable memory of {hardware.name} is not set by a share")
    return dataclasses.replace(hardware, capacity_bytes=fraction * hardware.hbm_bytes)


def with_memory_fraction(target: Target, fraction: float | None, said: str = "memory_fraction") -> Target:
    """The target whose programs may use that share of each GPU's memory (`XLA_PYTHON_CLIENT_MEM_FRACTION`).

    None: the target as it is. ValueError as of `with_share`.

    >>> round(with_memory_fraction(parse_target("h100:1x8"), 0.9).hardware.capacity_bytes / 2**30, 1)
    71.2
    """
    if fraction is None:
        return target
    hardware = with_share(target.hardware, fraction, said)
    return dataclasses.replace(target, hardware=hardware, memory_fraction=fraction)


def as_written_here(text: str) -> str:
    """The text in our own words: small letters, and `v5e-256` or `v5p-128*2` as a shape. ValueError where that slice is
    not offered or the text holds a control character; what is no name of Google Cloud's comes back as it is."""
    text = text.strip()
    if not text.isprintable():
        raise ValueError(f"target: {short(text)} holds a control character")
    name = text.lower().partition(":")[0]
    text = text.lower() if name in hardware_names() or of_one_name(name) else text
    match = re.fullmatch(r"([a-z0-9]+)-([0-9]{1,9})(\*[0-9]{1,9})?", text.lower())
    chip = slice_names().get(match[1]) if match else None
    if not match or chip is None or chip.slices is None:
        return text
    each = chip.slices.cloud_counts
    offered = {math.prod(map(int, shape.split("x"))) * each: shape for shape in chip.slices.shapes}
    if int(match[2]) not in offered:
        counted = "chips" if each == 1 else f"TensorCores, {each} a chip"
        sizes = ", ".join(f"{match[1]}-{size}" for size in offered)
        example = chip.slices.shapes[min(3, len(chip.slices.shapes) - 1)]
        raise ValueError(
            f"target: {short(text)}: the number counts {counted}; offered: {sizes}; write other slices as a shape, "
            f"e.g. {chip.name}:{example}"
        )
    return f"{chip.name}:{offered[int(match[2])]}{match[3] or ''}"


def of_one_name(name: str) -> tuple[str, ...]:
    """The chips that come with different amounts of memory under one name: our names of them; () for another name.

    >>> of_one_name("a100")
    ('a100-40', 'a100-80')
    """
    return tuple(one for one in hardware_names() if name and re.fullmatch(rf"{re.escape(name)}-[0-9]+", one))


def slice_names() -> dict[str, Hardware]:
    """What the cloud writes before the dash of a slice's name -> the chip, by the hardware files."""
    chips = [load_hardware(name) for name in hardware_names()]
    return {name: chip for chip in chips if chip.slices for name in chip.slices.cloud_names}


def check_chip(text: str, name: str, shape: str = "") -> None:
    """ValueError unless the name is that of a chip we have a file of; it says how to write what may have been meant."""
    if name in hardware_names():
        return
    if name.lower() == "local":
        known = ", ".join(hardware_names())
        raise ValueError(
            f"target: {short(text)}: local stands alone and means the devices of this machine; here a chip is wanted: "
            f"{known}"
        )
    if of_one_name(name):
        both = " or ".join(f"{one}:{shape}" if shape else one for one in of_one_name(name))
        raise ValueError(f"target: {short(text)}: {name} comes with two sizes of memory; write {both}")
    close = did_you_mean(name, (*hardware_names(), "local"))
    known = ", ".join(hardware_names())
    raise ValueError(f"target: {short(text)}: {short(name)} is not known{close}; known: {known}, local")


def part_of(target: Target, devices: int) -> Target:
    """The smallest target of the same hardware with at least so many devices, inside one domain where one has as many.

    >>> [part_of(parse_target(text), 2).name for text in ("h100:8x8", "v5e:16x16", "tpu7x:4x4x4", "cpu:8")]
    ['h100:1x2', 'v5e:2x2', 'tpu7x:1x1x1', 'cpu:1x2']
    """
    hardware = target.hardware
    if target.platform == "tpu":
        shapes = slice_shapes(hardware)
        chips = [math.prod(map(int, shape.split("x"))) for shape in shapes]
        large = [
            shape for shape, count in zip(shapes, chips, strict=True) if count * hardware.devices_per_chip >= devices
        ]
        shape = large[0] if large else shapes[-1]
    else:
        inside = min(devices, target.devices_per_group)
        shape = f"{-(-devices // inside)}x{inside}"
    return dataclasses.replace(
        parse_target(f"{hardware.name}:{shape}", hardware), memory_fraction=target.memory_fraction
    )


def slice_shapes(hardware: Hardware) -> tuple[str, ...]:
    """The slices that a TPU is offered in, smallest first, as texts: those of its file.

    Where the file names none, assumed: the most cubic shapes of every power of two up to 4096 chips.

    >>> slice_shapes(load_hardware("v5e"))[:4]
    ('1x1', '2x2', '2x4', '4x4')
    """
    if hardware.slices is not None:
        return hardware.slices.shapes
    shapes = []
    for power in range(13):
        sides = sorted(2 ** (power // hardware.torus_dimensions + (place < power % hardware.torus_dimensions))
                       for place in range(hardware.torus_dimensions))  # fmt: skip
        if sides[-1] == 1 or len(sides) == 1 or sides[-2] > 1:  # hosts are 2x2 chips
            shapes.append("x".join(str(side) for side in (sides if sides[0] > 1 else sides[::-1])))
    return tuple(shapes)


def _check_slice(text: str, hardware: Hardware, shape: tuple[int, ...]) -> None:
    """ValueError unless the TPU compiler takes a slice of this shape and a pod holds it.

    Hosts are 2x2 chips, so the first two sizes are even; a single chip is taken too.
    """
    slices = hardware.slices
    side = slices.longest_side if slices else None
    whole_hosts = all(size % 2 == 0 for size in shape[:2]) or set(shape) == {1}
    fits = slices is None or math.prod(shape) <= slices.most_chips
    if whole_hosts and fits and (side is None or max(shape) <= side):
        return
    limit = f" and sizes up to {side}" if side else f" and at most {slices.most_chips} chips" if slices else ""
    raise ValueError(
        f"target: {text!r}: a {hardware.name} slice has even first two sizes (or is one chip){limit}; "
        f"offered: {', '.join(slice_shapes(hardware))}"
    )
