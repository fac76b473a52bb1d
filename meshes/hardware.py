"""The hardware that is known: reads its files, and says what one resource made better would be. JAX-free.

One file a chip in `hardware_files/`, and in every folder that the environment variable AUTOTUNE_HARDWARE names. A
figure is either a bare value or a table `{value, source, others = [{value, source}], why}`: where sources disagree all
are kept and `why` says why this one. What a file leaves out comes from the file of its platform in
`hardware_files/platforms/`, and its source then says "inherited"; what that does not know either is missing
(`left_out`).
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from autotune.meshes.chip import CycleResidual, Hardware, Slices, Tier

__all__ = [
    "CycleResidual",
    "Hardware",
    "Slices",
    "Tier",
    "figures",
    "hardware_names",
    "hardware_of_kind",
    "left_out",
    "load_hardware",
    "read_hardware",
    "scale",
]

FILES = Path(__file__).parent / "hardware_files"

PLATFORMS = FILES / "platforms"

FOLDERS = "AUTOTUNE_HARDWARE"
"""The environment variable that names folders of hardware files of one's own, with the system's separator between."""


def scale(hardware: Hardware, resource: str, factor: float) -> Hardware:
    """The same hardware with one resource `factor` times as good: a rate times it, a latency divided by it.

    `resource`: "matmul", "hbm", "core" (the rest of the compiler's cycles), "host" (the link to its host's memory),
    "latency" (of every tier and launch),
    "capacity", "network:<tier>" or "network:<axis>@<tier>" (links have no axis of their own: all of the tier), or
    "everything": all rates, the clock and all latencies, so that every time is divided by `factor`.

    >>> scale(load_hardware("v5e"), "network:fsdp@ici", 2).tier("ici").bytes_per_second
    90000000000.0
    """
    if not factor > 0:
        raise ValueError(f"scale: factor={factor} must be above 0")
    peaks = {dtype: rate * factor for dtype, rate in hardware.flops_per_second.items()}
    quicker = tuple(
        dataclasses.replace(
            tier,
            latency_seconds=tier.latency_seconds / factor,
            launch_seconds=tier.launch_seconds / factor,
            least_seconds={kind: seconds / factor for kind, seconds in tier.least_seconds.items()},
        )
        for tier in hardware.tiers
    )
    to_host = hardware.host_bytes_per_second * factor
    faster = {**hardware.faster, resource: hardware.faster.get(resource, 1.0) * factor}
    if resource == "everything":
        return dataclasses.replace(
            hardware,
            op_seconds={name: seconds / factor for name, seconds in hardware.op_seconds.items()},
            flops_per_second=peaks,
            clock_hz=hardware.clock_hz and hardware.clock_hz * factor,
            hbm_bytes_per_second=hardware.hbm_bytes_per_second * factor,
            launch_seconds=hardware.launch_seconds / factor,
            host_bytes_per_second=to_host,
            tiers=tuple(dataclasses.replace(tier, bytes_per_second=tier.bytes_per_second * factor) for tier in quicker),
        )
    if resource == "matmul":
        return dataclasses.replace(hardware, flops_per_second=peaks, faster=faster)
    if resource == "hbm":
        rate = hardware.hbm_bytes_per_second * factor
        return dataclasses.replace(hardware, hbm_bytes_per_second=rate, faster=faster)
    if resource == "core":
        return dataclasses.replace(hardware, faster=faster)
    if resource == "host":
        return dataclasses.replace(hardware, host_bytes_per_second=to_host)
    if resource == "latency":
        return dataclasses.replace(
            hardware, tiers=quicker, launch_seconds=hardware.launch_seconds / factor, faster=faster
        )
    if resource == "capacity":
        return dataclasses.replace(hardware, capacity_bytes=hardware.capacity_bytes * factor)
    prefix, _, where = resource.partition(":")
    name = where.rpartition("@")[2]
    if prefix != "network" or name not in [tier.name for tier in hardware.tiers]:
        known = ", ".join(f"network:{tier.name}" for tier in hardware.tiers)
        known = f"matmul, hbm, core, host, latency, capacity, {known}"
        raise ValueError(f"scale: {resource!r} is not a resource; known: {known}")
    tiers = tuple(
        dataclasses.replace(tier, bytes_per_second=tier.bytes_per_second * factor) if tier.name == name else tier
        for tier in hardware.tiers
    )
    return dataclasses.replace(hardware, tiers=tiers)


def hardware_names() -> tuple[str, ...]:
    """Every chip with a file, sorted; ValueError when two files have one name."""
    return tuple(sorted(_files()))


def load_hardware(name: str) -> Hardware:
    """The hardware of that name ("v5e", "h100"); ValueError naming what is known otherwise."""
    files = _files()
    if name not in files:
        raise ValueError(f"hardware: {name!r} is not known; known: {', '.join(sorted(files))}")
    path = files[name]
    hardware = _read_as_it_is(path, os.stat(path).st_mtime_ns)
    if hardware.name != name:
        raise ValueError(f"hardware file {path}: name={hardware.name!r} must be the file's own, {name!r}")
    return hardware


def hardware_of_kind(device_kind: str) -> str | None:
    """The chip whose file names the longest part of what JAX calls a device; None when no file does.

    ValueError when two files name the same.

    >>> hardware_of_kind("TPU v5 lite"), hardware_of_kind("TPU v5"), hardware_of_kind("NVIDIA GB200")
    ('v5e', 'v5p', 'gb200')
    """
    found: dict[int, list[str]] = {}
    for name in hardware_names():
        fits = [len(kind) for kind in load_hardware(name).device_kinds if kind.lower() in device_kind.lower()]
        if fits:
            found.setdefault(max(fits), []).append(name)
    if not found:
        return None
    longest = found[max(found)]
    if len(longest) > 1:
        raise ValueError(
            f"hardware: the files of {' and '.join(longest)} name device kind {device_kind!r}; "
            f"give one with --hardware, or take it from the device_kinds of the other"
        )
    return longest[0]


def _files() -> dict[str, Path]:
    """Chip -> its file: ours and those in the folders that the environment names."""
    found = {path.stem: path for path in FILES.glob("*.toml")}
    for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        if not Path(folder).is_dir():
            raise ValueError(f"{FOLDERS}={folder}: must be a folder of hardware files")
        for path in sorted(Path(folder).glob("*.toml")):
            if path.stem in found:
                raise ValueError(f"hardware file {path}: {found[path.stem]} has that name; give it another")
            found[path.stem] = path
    return found


@cache
def _read_as_it_is(path: Path, modified: int) -> Hardware:
    """The file as of the time it was modified, so that one that has changed is read again."""
    return read_hardware(path)


def read_hardware(path: Path) -> Hardware:
    """Read one hardware file; ValueError naming file, field and rule when it is not a whole description."""
    table = _table(path)
    sources: dict[str, str] = {}
    try:
        options = table.get("compiler_options", {})
        holds_for = {name: one["holds_for"] for name, one in options.items()
                     if isinstance(one, dict) and "holds_for" in one}  # fmt: skip
        plain = {"option_holds_for": holds_for} | _values(table, "", sources)
        _inherit(plain, sources)
        tiers = tuple(Tier(**tier) for tier in plain.pop("tiers"))
        if "device_kinds" in plain:
            plain["device_kinds"] = _tuple(plain["device_kinds"])
        if "slices" in plain:
            slices = plain["slices"]
            plain["slices"] = Slices(**{**slices, "shapes": _tuple(slices.get("shapes", ()))})
        for name, make in (("hidden_outer", _tuple), ("cycle_residuals", lambda parts: CycleResidual(**parts))):
            if name in plain:
                plain[name] = {key: make(value) for key, value in plain[name].items()}
        return Hardware(**{"clock_hz": None, "compile_fields": {}, **plain}, tiers=tiers, sources=sources)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"hardware file {path}: {error}") from None


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"hardware file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"hardware file {path}: not TOML: {error}") from None


def _tuple(value: object) -> Any:
    """A TOML list as a tuple; anything else as it is, for the type's own check to refuse."""
    return tuple(value) if isinstance(value, list) else value


def _inherit(plain: dict[str, Any], sources: dict[str, str]) -> None:
    """Fill in what the file leaves out and its platform's file knows, figure by figure; their sources say so."""
    file = PLATFORMS / f"{plain.get('platform')}.toml"
    if not file.exists():
        return
    theirs: dict[str, str] = {}
    for name, figure in _values(_table(file), "", theirs).items():
        if not isinstance(figure, dict):
            left = name not in plain
            plain.setdefault(name, figure)
            taken = [name] if left else []
        else:
            mine = plain.setdefault(name, {})
            taken = [f"{name}.{key}" for key in figure if key not in mine]
            mine |= {key: value for key, value in figure.items() if key not in mine}
        for path, source in theirs.items():
            if any(path == one or path.startswith(f"{one}.") for one in taken):
                sources[path] = f"inherited from platforms/{file.name}: {source}"


def left_out(hardware: Hardware) -> dict[str, str]:
    """Figure that neither the hardware's file nor its platform's has -> what the tool does without it.

    >>> left_out(load_hardware("v6e"))
    {}
    """
    tpu, gpu = hardware.platform == "tpu", hardware.platform == "cuda"
    slices = hardware.slices
    missing = {
        "device_kinds": (not hardware.device_kinds, "`--target local` does not know the chip"),
        "clock_hz": (tpu and hardware.clock_hz is None, "the compiler's cycles are left aside for FLOPs and bytes"),
        "compile_fields.chip": (
            tpu and "chip" not in hardware.compile_fields,
            "nothing is compiled for it: libtpu is not told which chip it is",
        ),
        "slices": (
            tpu and slices is None,
            "any number of whole hosts is taken for a slice, and no dimension for a ring",
        ),
        "slices.ring_side": (
            slices is not None and slices.ring_side is None and slices.ring_cube is None,
            "no dimension is taken for a ring",
        ),
        "attention_tile_cycles": (tpu and not hardware.attention_tile_cycles, "attention_shares are taken instead"),
        "cycle_residuals.matmul": (
            tpu and "matmul" not in hardware.cycle_residuals,
            "cycle_residuals.matmul_alone is taken instead",
        ),
    }
    for tier in hardware.tiers:
        missing[f"tiers.{tier.name}.ramp_bytes"] = (
            gpu and not tier.ramp_bytes,
            "no pipeline of NCCL takes time to fill",
        )
    outermost = hardware.tiers[-1]
    missing[f"tiers.{outermost.name}.wait_per_doubling"] = (
        tpu and f"tiers.{outermost.name}.wait_per_doubling" not in hardware.sources,
        "no slice is taken to wait for another",
    )
    return {name: f"missing: {instead}" for name, (is_missing, instead) in missing.items() if is_missing}


def figures(hardware: Hardware) -> dict[str, Any]:
    """Every figure under the dotted name that its source is kept under, less those that its file does not give.

    >>> figures(load_hardware("v5e"))["tiers.ici.bytes_per_second"]
    45000000000.0
    """

    def named(path: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Hardware | Tier | Slices | CycleResidual):
            fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
            given = [(field.name, part) for field, part in fields
                     if part != field.default or f"{path}{field.name}" in hardware.sources]  # fmt: skip
            value = dict(given)
        if isinstance(value, Mapping):
            parts = [named(f"{path}{key}.", part) for key, part in value.items() if key not in NO_FIGURES]
        elif isinstance(value, tuple) and value and isinstance(value[0], Tier):
            parts = [named(f"{path}{tier.name}.", tier) for tier in value]
        else:
            parts = [] if value is None or value == () else [{path.rstrip("."): value}]
        return {name: figure for part in parts for name, figure in part.items()}

    return named("", hardware)


NO_FIGURES = ("sources", "faster", "option_holds_for")
"""Fields of `Hardware` that hold none."""

WITHOUT_SOURCE = ("name", "platform", "devices_per_chip", "kind")
"""Figures that need none: what the chip is called, and how it is made."""


def _values(node: object, path: str, sources: dict[str, str]):
    """Strip `{value, source}` tables down to their values, keeping each source under its dotted path."""
    if isinstance(node, list) and node and isinstance(node[0], dict):
        return [_values(item, f"{path}{item.get('name', index)}.", sources) for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "value" in node:
        others = "".join(f"; {other['source']} says {other['value']:g}" for other in node.get("others", ()))
        why = f" (chosen: {node['why']})" if "why" in node else ""
        sources[path.rstrip(".")] = f"{node['source']}{others}{why}"
        return node["value"]
    return {key: _values(value, f"{path}{key}.", sources) for key, value in node.items()}
