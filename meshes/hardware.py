"""What one accelerator can do: rates, capacities and links, each figure with its source.

The figures live in `hardware_files/*.toml`, one file a chip. A figure is either a bare value or a table
`{value, source, others = [{value, source}], why}`: where sources disagree all are kept and `why` says why this one.
All rates are per JAX device (a TPU7x chip is two devices), bytes and seconds are SI.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from autotune.meshes.dtypes import ALIASES
from autotune.meshes.fields import Fields, one_line, read_text, short
from autotune.meshes.xla_options import why_not_of_a_file

FILES = Path(__file__).parent / "hardware_files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One kind of link between devices: a torus of point-to-point links, or a switch every device hangs on.

    `bytes_per_second` is one way, as achieved on large messages (the data sheet's figure is in the file):
    of one link of a torus, of one device's port on a switch. `latency_seconds` is one hop of a torus or one message
    through a switch; `launch_seconds` is what every collective pays once, however small.
    `bytes_factor` and `launch_factor`: kind of collective -> what it achieves of `bytes_per_second` and pays of
    `launch_seconds`, where a calibration saw kinds differ; 1 for kinds not named. `least_seconds`: kind -> the least
    that one takes, bytes and all, where a calibration saw that (threads that sleep between messages).
    `wait_per_doubling`: how much longer a step takes, as a fraction of it, each time the domains that the tier joins
    are doubled, beyond what its links
    take: all of them wait for the slowest.
    """

    name: str
    kind: str
    bytes_per_second: float
    latency_seconds: float
    launch_seconds: float
    bytes_factor: Mapping[str, float] = field(default_factory=dict)
    launch_factor: Mapping[str, float] = field(default_factory=dict)
    least_seconds: Mapping[str, float] = field(default_factory=dict)
    wait_per_doubling: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("torus", "switch"):
            raise ValueError(f"Tier {self.name}: kind={self.kind!r} must be 'torus' or 'switch'")
        if not self.bytes_per_second > 0:
            raise ValueError(f"Tier {self.name}: bytes_per_second={self.bytes_per_second} must be above 0")
        if self.latency_seconds < 0 or self.launch_seconds < 0:
            raise ValueError(f"Tier {self.name}: latency_seconds and launch_seconds must not be negative")
        if self.wait_per_doubling < 0:
            raise ValueError(f"Tier {self.name}: wait_per_doubling={self.wait_per_doubling} must not be negative")
        if not all(factor > 0 for factor in self.bytes_factor.values()):
            raise ValueError(f"Tier {self.name}: bytes_factor={dict(self.bytes_factor)} must be above 0")
        if min(self.launch_factor.values(), default=0) < 0:
            raise ValueError(f"Tier {self.name}: launch_factor={dict(self.launch_factor)} must not be negative")

    def rate(self, kind: str) -> float:
        """Bytes per second that a collective of that kind achieves."""
        return self.bytes_per_second * self.bytes_factor.get(kind, 1.0)

    def launch(self, kind: str) -> float:
        """Seconds that a collective of that kind pays once."""
        return self.launch_seconds * self.launch_factor.get(kind, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One JAX device and its links, inner tier first.

    `flops_per_second`: dense peak by dtype name ("bfloat16", "float16", "float32", "float8", "int8").
    `clock_hz`: what the TPU compiler's `estimated_cycles` are divided by; None off TPU.
    `capacity_bytes`: what one program may use (the compiler's or allocator's limit, not the data sheet's).
    `compile_fields`: what a compiler without the device must be told. GPU: the numbers of XLA's target description;
    TPU: `chip` (libtpu's name of it), `torus_dimensions`, and `chip_config_name` where the default is not used.
    `compiler_options`: what XLA is told on this chip beside its defaults; a layout's own `xla.` options win.
    `option_holds_for`: compiler option -> the requirement ("libtpu<0.0.48") without which it is left out.
    `sources`: figure name -> where it is from, and what other sources say.
    `op_seconds`: on a CPU, class of work -> seconds of one unit of it (`autotune.hlo.cpu_work.CLASSES`).
    `faster`: resource ("matmul", "hbm", "core", "host") -> how many times as fast as the compiler's cycles and the
    host link are taken to be; 1 where not named. Only `scale` sets it: a file describes the chip as the compiler knows
    it.
    """

    name: str
    platform: str
    devices_per_chip: int
    flops_per_second: Mapping[str, float]
    matmul_efficiency: float
    clock_hz: float | None
    hbm_bytes: float
    capacity_bytes: float
    hbm_bytes_per_second: float
    hbm_efficiency: float
    launch_seconds: float
    tiers: tuple[Tier, ...]
    compile_fields: Mapping[str, object]
    sources: Mapping[str, str]
    compiler_options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    option_holds_for: Mapping[str, str] = field(default_factory=dict)
    op_seconds: Mapping[str, float] = field(default_factory=dict)
    faster: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.platform not in ("tpu", "cuda", "cpu"):
            raise ValueError(f"Hardware {self.name}: platform={self.platform!r} must be tpu, cuda or cpu")
        for name in ("hbm_bytes", "capacity_bytes", "hbm_bytes_per_second", "matmul_efficiency", "hbm_efficiency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Hardware {self.name}: {name}={getattr(self, name)} must be above 0")
        if not self.flops_per_second or min(self.flops_per_second.values()) <= 0:
            raise ValueError(f"Hardware {self.name}: flops_per_second must name a dtype, each above 0")

    @property
    def torus_dimensions(self) -> int:
        """Dimensions of the torus of one slice; 0 where devices hang on a switch."""
        return int(str(self.compile_fields.get("torus_dimensions", 0)))

    def peak(self, dtype: str) -> float:
        """Dense peak FLOP/s of one device in that dtype; ValueError naming chip and dtype where it has none."""
        if dtype not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            raise ValueError(f"hardware: {self.name} has no peak for dtype {dtype!r}; it has: {known}")
        return self.flops_per_second[dtype]

    def waiting(self, domains: int) -> float:
        """What `domains` slices or nodes that go in step add to a step by waiting for the slowest, as a fraction of it.

        >>> round(load_hardware("v5e").waiting(32), 3)
        0.117
        """
        return (1.0 + self.tiers[-1].wait_per_doubling) ** math.log2(domains) - 1.0

    def tier(self, name: str) -> Tier:
        """The tier of that name; KeyError when this hardware has none."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise KeyError(name)


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
    faster = {**hardware.faster, resource: hardware.faster.get(resource, 1.0) * factor}
    if resource == "everything":
        return dataclasses.replace(
            hardware,
            op_seconds={name: seconds / factor for name, seconds in hardware.op_seconds.items()},
            flops_per_second=peaks,
            clock_hz=hardware.clock_hz and hardware.clock_hz * factor,
            hbm_bytes_per_second=hardware.hbm_bytes_per_second * factor,
            launch_seconds=hardware.launch_seconds / factor,
            faster={**hardware.faster, "host": hardware.faster.get("host", 1.0) * factor},
            tiers=tuple(dataclasses.replace(tier, bytes_per_second=tier.bytes_per_second * factor) for tier in quicker),
        )
    if resource == "matmul":
        return dataclasses.replace(hardware, flops_per_second=peaks, faster=faster)
    if resource == "hbm":
        rate = hardware.hbm_bytes_per_second * factor
        return dataclasses.replace(hardware, hbm_bytes_per_second=rate, faster=faster)
    if resource in ("core", "host"):
        return dataclasses.replace(hardware, faster=faster)
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


@cache
def hardware_names() -> tuple[str, ...]:
    """Every chip with a file, sorted."""
    return tuple(sorted(path.stem for path in FILES.glob("*.toml")))


@cache
def load_hardware(name: str) -> Hardware:
    """The hardware of that name ("v5e", "h100"); ValueError naming what is known otherwise."""
    if name not in hardware_names():
        raise ValueError(f"hardware: {name!r} is not known; known: {', '.join(hardware_names())}")
    return read_hardware(FILES / f"{name}.toml")


def read_hardware(path: Path) -> Hardware:
    """Read one hardware file; ValueError naming file, field and rule when it is not a whole description."""
    where = f"hardware file {one_line(path)}"
    try:
        table = tomllib.loads(read_text(path, "hardware file"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: not TOML: {one_line(error)}") from None
    except RecursionError:
        raise ValueError(f"{where}: not TOML of ours: nested too deeply") from None
    sources: dict[str, str] = {}
    holds_for: dict[str, str] = {}
    plain = Fields(where, _plain(where, table, Hardware, "", sources, holds_for))
    values = plain.values
    _check_numbers(plain, NUMBERS)
    for name in FILE_TABLES:
        if name in values:
            _check_table(plain.inside(name), name)
    platform = plain.text("platform", ("tpu", "cuda", "cpu"))
    plain.text("name")
    plain.whole("devices_per_chip", 1, 64)
    if not plain("flops_per_second", dict):
        raise ValueError(f"{where}: flops_per_second names no dtype; write e.g. bfloat16 = 1.97e14")
    if platform == "tpu" and values.get("clock_hz") is None:
        raise ValueError(f"{where}: clock_hz is missing; the cycles of the TPU compiler are divided by it")
    _check_compile_fields(Fields(where, values.get("compile_fields", {}), "compile_fields."), platform)
    _check_options(where, values.get("compiler_options", {}), holds_for)
    tiers = [_tier(where, number, tier, sources) for number, tier in enumerate(plain.listed("tiers", dict))]
    names = [tier.name for tier in tiers]
    least = 3 if values["devices_per_chip"] > 1 else 2
    if len(tiers) < least:
        raise ValueError(
            f"{where}: tiers names {len(tiers)}; write {least}, the innermost first and the outermost last"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: tiers names {short(max(names, key=names.count))} twice")
    whole = {"clock_hz": None, "compile_fields": {}, "option_holds_for": holds_for, **values}
    try:
        return Hardware(**{**whole, "tiers": tuple(tiers), "sources": sources})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {one_line(error)}") from None


RATE, SECONDS, FACTOR = (0.0, 1e30, True), (0.0, 3600.0, False), (0.0, 1e6, True)
"""(least, largest, whether the number must be above the least) of figures of one kind."""

NUMBERS = {
    "matmul_efficiency": (0.0, 1.0, True),
    "hbm_efficiency": (0.0, 1.0, True),
    "clock_hz": RATE,
    "hbm_bytes": RATE,
    "capacity_bytes": RATE,
    "hbm_bytes_per_second": RATE,
    "launch_seconds": SECONDS,
}
TIER_NUMBERS = {
    "bytes_per_second": RATE,
    "latency_seconds": SECONDS,
    "launch_seconds": SECONDS,
    "wait_per_doubling": (0.0, 100.0, False),
}
FILE_TABLES = {"flops_per_second": RATE, "op_seconds": SECONDS, "faster": FACTOR}
TIER_TABLES = {"bytes_factor": FACTOR, "launch_factor": (0.0, 1e6, False), "least_seconds": SECONDS}
OPTIONAL = ("clock_hz", "wait_per_doubling")

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
    if name == "flops_per_second":
        table.only(tuple(ALIASES))
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
        fields.text("chip")
        fields.whole("torus_dimensions", 2, 3)
    elif platform == "cuda":
        fields.only(("name", "cuda_compute_capability", *GPU_NUMBERS))
        fields.text("name")
        if not re.fullmatch(r"\d{1,3}\.\d{1,3}", fields.text("cuda_compute_capability")):
            raise fields.error("cuda_compute_capability", "must be written MAJOR.MINOR, e.g. 9.0")
        for name in GPU_NUMBERS:
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
    specs = {spec.name: str(spec.type) for spec in dataclasses.fields(kind) if spec.name != "sources"}
    Fields(where, table, path).only(tuple(specs))
    found: dict[str, Any] = {}
    for name, node in table.items():
        if name == "tiers":
            found[name] = node
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
