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
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from autotune.meshes.chip import NEEDED_TO_COMPILE, PARTS, CycleResidual, Hardware, Slices, Tier
from autotune.meshes.dtypes import ALIASES
from autotune.meshes.fields import Fields, did_you_mean, one_line, read_text, short, toml_table
from autotune.meshes.layout import AXES
from autotune.meshes.option_sets import OptionSet, read_sets
from autotune.meshes.xla_options import why_not_of_a_file

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
    if not 0 < factor <= 1e12:
        raise ValueError(f"scale: factor={factor} must be above 0 and at most 1e12")
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
        close = did_you_mean(resource, known.split(", "))
        raise ValueError(f"scale: {resource!r} is not a resource; known: {known}{close}")
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
        close = did_you_mean(name, files)
        raise ValueError(f"hardware: {name!r} is not known; known: {', '.join(sorted(files))}{close}")
    path = files[name]
    hardware = _read_as_it_is(path, os.stat(path).st_mtime_ns)
    if hardware.name != name:
        raise ValueError(
            f"hardware file {one_line(path)}: name={short(hardware.name)} must be the file's own, {name!r}"
        )
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
            raise ValueError(f"{FOLDERS}={one_line(folder)}: must be a folder of hardware files")
        for path in sorted(Path(folder).glob("*.toml")):
            if path.stem in found:
                raise ValueError(
                    f"hardware file {one_line(path)}: {one_line(found[path.stem])} has that name; give it another"
                )
            found[path.stem] = path
    return found


@cache
def _read_as_it_is(path: Path, modified: int) -> Hardware:
    """The file as of the time it was modified, so that one that has changed is read again."""
    return read_hardware(path)


def read_hardware(path: Path) -> Hardware:
    """Read one hardware file; ValueError naming file, field and rule when it is not a whole description."""
    where = f"hardware file {one_line(path)}"
    sources: dict[str, str] = {}
    holds_for: dict[str, str] = {}
    plain = Fields(where, _plain(where, _table(path), Hardware, "", sources, holds_for))
    platform = plain.text("platform", ("tpu", "cuda", "cpu"))
    own_sets = set(plain.inside("option_sets").values) if "option_sets" in plain.values else set()
    _inherit(plain.values, platform, sources, holds_for)
    values = plain.values
    parts: dict[str, Any] = {}
    if "option_sets" in values:
        table = plain.inside("option_sets")
        sets, recommended = read_sets(
            table, sources, set(table.values) - own_sets, f"inherited from platforms/{platform}.toml: "
        )
        parts |= {"option_sets": sets, "recommended_sets": recommended}
    _check_numbers(plain, NUMBERS)
    for name in FILE_TABLES:
        if name in values:
            _check_table(plain.inside(name), name)
    plain.text("name")
    for name, most in WHOLE.items():
        if name in values:
            plain.whole(name, 1, most)
    if not plain("flops_per_second", dict):
        raise ValueError(f"{where}: flops_per_second names no dtype; write e.g. bfloat16 = 1.97e14")
    _check_compile_fields(Fields(where, values.get("compile_fields", {}), "compile_fields."), platform)
    _check_options(where, values.get("compiler_options", {}), holds_for)
    tiers = [_tier(where, number, tier, sources) for number, tier in enumerate(plain.listed("tiers", dict))]
    names = [tier.name for tier in tiers]
    least = 3 if plain.whole("devices_per_chip", 1, 64) > 1 else 2
    if len(tiers) < least:
        raise ValueError(
            f"{where}: tiers names {len(tiers)}; write {least}, the innermost first and the outermost last"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: tiers names {short(max(names, key=names.count))} twice")
    whole = {"clock_hz": None, "compile_fields": {}, "option_holds_for": holds_for, **values, **_parts(plain), **parts}
    try:
        return Hardware(**{**whole, "tiers": tuple(tiers), "sources": sources})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {one_line(error)}") from None


def _table(path: Path) -> dict[str, Any]:
    return toml_table(read_text(path, "hardware file"), f"hardware file {one_line(path)}")


def _inherit(plain: Any, platform: str, sources: dict[str, str], holds_for: dict[str, str]) -> None:
    """Fill in what the file leaves out and its platform's file knows, figure by figure; their sources say so."""
    file = PLATFORMS / f"{platform}.toml"
    if not file.exists():
        return
    theirs: dict[str, str] = {}
    limits: dict[str, str] = {}
    for name, figure in _plain(f"hardware file {file}", _table(file), Hardware, "", theirs, limits).items():
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
        for option, requirement in limits.items():
            if f"{name}.{option}" in taken:
                holds_for[option] = requirement


def _parts(plain: Fields) -> dict[str, Any]:
    """The fields that are no plain number or table of numbers, each checked and as its type."""
    values = plain.values
    found: dict[str, Any] = {}
    if "scatter_hides" in values:
        plain.text("scatter_hides", ("never", "alone"))
    if "sums_over_slice" in values:
        plain("sums_over_slice", bool)
    if "device_kinds" in values:
        kinds = plain.listed("device_kinds", str)
        if not all(kind and kind.isprintable() for kind in kinds):
            raise plain.error("device_kinds", "must be texts of printable characters")
        found["device_kinds"] = tuple(kinds)
    if "hidden_outer" in values:
        outer = plain.inside("hidden_outer")
        outer.only(AXES)
        for axis in outer.values:
            pair = outer.listed(axis, (int, float))
            if len(pair) != 2 or not all(0 <= share <= 1 for share in pair):
                raise outer.error(axis, "must be two shares from 0 to 1")
        found["hidden_outer"] = {axis: tuple(pair) for axis, pair in outer.values.items()}
    if "attention_shares_by_keys" in values:
        found["attention_shares_by_keys"] = _curves(plain.inside("attention_shares_by_keys"))
    if "matmul_share_at_watts" in values:
        pairs = plain.listed("matmul_share_at_watts", list)
        numbers = [number for pair in pairs for number in pair]
        rising = sorted(pairs) == pairs and len({pair[0] for pair in pairs if pair}) == len(pairs) > 1
        if not all(_is_number(number) for number in numbers) or not all(len(pair) == 2 for pair in pairs) or not rising:
            raise plain.error("matmul_share_at_watts", "must be two or more [watts, share] pairs, the watts rising")
        found["matmul_share_at_watts"] = tuple((float(watts), float(share)) for watts, share in pairs)
    if ("power_watts" in values) != ("matmul_share_at_watts" in values):
        raise plain.error("matmul_share_at_watts", "and power_watts must both be given, or neither")
    if "slices" in values:
        slices = plain.inside("slices")
        shapes = slices.listed("shapes", str)
        if not shapes or not all(re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){0,2}", shape) for shape in shapes):
            raise slices.error("shapes", 'must be a list of chips along each dimension, e.g. ["2x2", "2x4"]')
        for name in ("most_chips", "longest_side", "ring_side", "ring_cube"):
            if name in slices.values or name == "most_chips":
                slices.whole(name, 1, LARGEST_SLICE)
        names = slices.listed("cloud_names", str) if "cloud_names" in slices.values else []
        if not all(re.fullmatch("[a-z0-9]{1,20}", name) for name in names):
            raise slices.error("cloud_names", 'must be a list of small letters and digits, e.g. ["v5p"]')
        if "cloud_counts" in slices.values:
            slices.whole("cloud_counts", 1, 64)
        found["slices"] = Slices(**{**slices.values, "shapes": tuple(shapes), "cloud_names": tuple(names)})
    if "cycle_residuals" in values:
        classes = plain.inside("cycle_residuals")
        classes.only(("matmul", "matmul_alone", "pass"))
        residuals = {name: classes.inside(name) for name in classes.values}
        for residual in residuals.values():
            low, expected, high = (
                residual.number(name, *FACTOR[:2], above=True) for name in ("low", "expected", "high")
            )
            if not low <= expected <= high:
                raise residual.error("expected", f"must lie from low={low:g} to high={high:g}")
        found["cycle_residuals"] = {name: CycleResidual(**one.values) for name, one in residuals.items()}
    return found


def _curves(curves: Fields) -> dict[str, tuple[float, ...]]:
    """`attention_shares_by_keys`: as many shares for each width of heads and each pass as there are lengths."""
    keys = curves.listed("keys", int)
    if len(keys) < 2 or any(one < 1 for one in keys) or sorted(set(keys)) != keys:
        raise curves.error("keys", "must be two or more lengths above 0, rising")
    widths: dict[str, list[str]] = {}
    for name in curves.values:
        if name == "keys":
            continue
        part = re.fullmatch(r"(forward|backward)_([1-9][0-9]{0,3})", name)
        if part is None:
            raise curves.error(name, "must be written forward_WIDTH or backward_WIDTH, e.g. forward_128")
        shares = curves.listed(name, (int, float))
        if len(shares) != len(keys) or not all(0 < share <= 1 for share in shares):
            raise curves.error(name, f"must be {len(keys)} shares above 0 and up to 1, one for each of keys")
        widths.setdefault(part[2], []).append(part[1])
    for width, parts in widths.items():
        if len(parts) < 2:
            raise curves.error(f"{parts[0]}_{width}", "must have its other pass beside it, forward and backward")
    if not widths:
        raise curves.error("keys", "must have shares beside it, e.g. forward_128 and backward_128")
    return {name: tuple(value) for name, value in curves.values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


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
        "attention_shares_by_keys": (
            gpu and not hardware.attention_shares_by_keys,
            "attention_shares are taken instead, for all lengths and widths of heads",
        ),
        "power_watts": (gpu and not hardware.power_watts, "the clock is taken not to fall under load"),
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
        if isinstance(value, Hardware | Tier | Slices | CycleResidual | OptionSet):
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


NO_FIGURES = ("sources", "faster", "option_holds_for", "holds_for", "sustained_share")
"""Fields of `Hardware` that hold none."""

NOT_OF_A_FILE = ("sources", "recommended_sets")
"""Fields of `Hardware` that are read from another place of a file than a key of their own."""

WITHOUT_SOURCE = ("name", "platform", "devices_per_chip", "kind", "meaning", "base", "requires", "recommended_sets")
"""Figures that need none: what the chip is called, and how it is made."""


RATE, SECONDS, FACTOR = (0.0, 1e30, True), (0.0, 3600.0, False), (0.0, 1e6, True)
AMOUNT, SHARE = (0.0, 1e30, False), (0.0, 1.0, False)
"""(least, largest, whether the number must be above the least) of figures of one kind."""

NUMBERS = {
    "matmul_efficiency": (0.0, 1.0, True),
    "hbm_efficiency": (0.0, 1.0, True),
    "clock_hz": RATE,
    "hbm_bytes": RATE,
    "capacity_bytes": RATE,
    "hbm_bytes_per_second": RATE,
    "launch_seconds": SECONDS,
    "host_bytes_per_second": RATE,
    "matmul_start_cycles": AMOUNT,
    "matmul_ceiling": (0.0, 2.0, True),
    "matmul_exposed_bytes": AMOUNT,
    "l2_bytes_per_cycle": RATE,
}
TIER_NUMBERS = {
    "bytes_per_second": RATE,
    "latency_seconds": SECONDS,
    "launch_seconds": SECONDS,
    "wait_per_doubling": (0.0, 100.0, False),
    "ramp_bytes": AMOUNT,
}
LARGEST_SLICE = 2**20
"""Chips of one slice, and along one side of it."""
WHOLE = {"domain_devices": LARGEST_SLICE, "cores_per_device": 64}
"""Fields that hold whole numbers from 1, and the most of each."""
FILE_TABLES = {
    "flops_per_second": RATE,
    "op_seconds": SECONDS,
    "faster": FACTOR,
    "hidden_share": SHARE,
    "hidden_most": SHARE,
    "attention_shares": (0.0, 1.0, True),
    "attention_tile_cycles": RATE,
    "power_watts": (0.0, 1e5, True),
}
TIER_TABLES = {"bytes_factor": FACTOR, "launch_factor": (0.0, 1e6, False), "least_seconds": SECONDS}
OPTIONAL = ("clock_hz", "wait_per_doubling", "matmul_start_cycles", "matmul_exposed_bytes", "l2_bytes_per_cycle",
            "ramp_bytes", "matmul_ceiling")  # fmt: skip
KEYS = {"flops_per_second": tuple(ALIASES), "hidden_share": AXES, "hidden_most": AXES, **PARTS}
"""Table -> the only keys that it may have."""

FIGURE = ("value", "source", "others", "why", "holds_for")
"""What the table of one figure may say."""

TPU_FIELDS = ("chip", "torus_dimensions", "chip_config_name")
GPU_NUMBERS = ("core_count", "fpus_per_core", "clock_rate_ghz", "memory_bandwidth", "l2_cache_size",
               "shared_memory_per_block", "shared_memory_per_block_optin", "shared_memory_per_core",
               "threads_per_core_limit")  # fmt: skip


def _check_numbers(plain: Fields, numbers: Mapping[str, tuple[float, float, bool]]) -> None:
    for name, (low, high, above) in numbers.items():
        if name in plain.values or name not in OPTIONAL:
            plain.number(name, low, high, above=above)


def _check_table(table: Fields, name: str) -> None:
    low, high, above = (FILE_TABLES | TIER_TABLES)[name]
    if name in KEYS:
        table.only(KEYS[name])
    for key in table.values:
        table.number(key, low, high, above=above)


def _tier(where: str, number: int, values: Mapping[str, Any], sources: dict[str, str]) -> Tier:
    """One `[[tiers]]` table; its figures' sources are kept under its name."""
    label = values.get("name")
    path = f"tiers.{label if isinstance(label, str) and label.isprintable() else number}."
    plain = Fields(where, _plain(where, values, Tier, path, sources, {}), path)
    plain.text("name")
    plain.text("kind")
    _check_numbers(plain, TIER_NUMBERS)
    for name in TIER_TABLES:
        if name in plain.values:
            _check_table(plain.inside(name), name)
    try:
        return Tier(**plain.values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {one_line(error)}") from None


def _check_compile_fields(fields: Fields, platform: str) -> None:
    """What the compiler is told of a chip that is not here: numbers, and names that end no line and close no quote."""
    for name, value in fields.values.items():
        if isinstance(value, str) and ('"' in value or "\\" in value or not value.isprintable()):
            raise fields.error(name, "must be a text of printable characters without quotes")
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            raise fields.error(name, "must be a number or a text")
    if platform == "tpu":
        fields.only(TPU_FIELDS)
        if "chip" in fields.values:
            fields.text("chip")
        fields.whole("torus_dimensions", 2, 3)
    elif platform == "cuda":
        fields.only(("name", "cuda_compute_capability", *GPU_NUMBERS))
        if "name" in fields.values:
            fields.text("name")
        if not re.fullmatch(r"\d{1,3}\.\d{1,3}", fields.text("cuda_compute_capability")):
            raise fields.error("cuda_compute_capability", "must be written MAJOR.MINOR, e.g. 9.0")
        for name in GPU_NUMBERS:
            if name in fields.values or name in NEEDED_TO_COMPILE["cuda"]:
                fields.number(name, 0.0, 1e18, above=True)


def _check_options(where: str, options: Mapping[str, Any], holds_for: Mapping[str, str]) -> None:
    for name, value in options.items():
        problem = why_not_of_a_file(name, value)
        if problem:
            raise ValueError(f"{where}: compiler_options.{one_line(name)}={short(value)}: {problem}")
    for name, requirement in holds_for.items():
        try:
            Requirement(requirement)
        except InvalidRequirement:
            rule = 'must be written as a requirement, e.g. "libtpu<0.0.48"'
            raise ValueError(f"{where}: compiler_options.{name}: holds_for={short(requirement)} {rule}") from None


def _plain(
    where: str, table: Mapping[str, Any], kind: type, path: str, sources: dict[str, str], holds_for: dict[str, str]
) -> dict[str, Any]:
    """The fields of a table with every figure's `{value, source}` stripped down to its value; each source is kept under
    its dotted path, and what an option holds for under the option's name."""
    specs = {spec.name: str(spec.type) for spec in dataclasses.fields(kind) if spec.name not in NOT_OF_A_FILE}
    Fields(where, table, path).only(tuple(specs))
    found: dict[str, Any] = {}
    for name, node in table.items():
        if name in ("tiers", "option_sets"):
            found[name] = node
        elif specs[name].startswith("Mapping[str, CycleResidual]"):
            classes = Fields(where, table, path).inside(name)
            found[name] = {
                one: _plain(where, classes.inside(one).values, CycleResidual, f"{path}{name}.{one}.", sources, {})
                for one in classes.values
            }
        elif specs[name].startswith("Slices"):
            found[name] = _plain(
                where, Fields(where, table, path).inside(name).values, Slices, f"{path}{name}.", sources, {}
            )
        elif specs[name].startswith("Mapping"):
            inside = Fields(where, table, path).inside(name)
            found[name] = {
                key: _figure(
                    where, f"{inside.path}{key}", one, sources, holds_for if name == "compiler_options" else {}
                )
                for key, one in inside.values.items()
            }
        else:
            found[name] = _figure(where, f"{path}{name}", node, sources, {})
    return found


def _figure(where: str, path: str, node: Any, sources: dict[str, str], holds_for: dict[str, str]) -> Any:
    """The value of a figure that is given bare or as a table with its source."""
    if not isinstance(node, dict):
        return node
    inside = Fields(where, node, f"{path}.")
    inside.only(FIGURE)
    if "value" not in node:
        raise ValueError(f"{where}: {path} has no value; write value = NUMBER beside its source")
    others = [Fields(where, other, f"{path}.others.") for other in node.get("others", ()) if isinstance(other, dict)]
    if len(others) < len(inside.listed("others", dict) if "others" in node else ()):
        raise inside.error("others", "must be a list of tables with value and source")
    told = "".join(f"; {one.text('source')} says {one.number('value', -1e30, 1e30):g}" for one in others)
    why = f" (chosen: {inside.text('why')})" if "why" in node else ""
    sources[path] = f"{inside.text('source')}{told}{why}"
    if "holds_for" in node:
        holds_for[path.rpartition(".")[2]] = inside.text("holds_for")
    return node["value"]
