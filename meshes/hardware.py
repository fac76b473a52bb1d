"""What one accelerator can do: rates, capacities and links, each figure with its source.

The figures live in `hardware_files/*.toml`, one file a chip. A figure is either a bare value or a table
`{value, source, others = [{value, source}], why}`: where sources disagree all are kept and `why` says why this one.
All rates are per JAX device (a TPU7x chip is two devices), bytes and seconds are SI.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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
    `host_bytes_per_second`: between the device's memory and its host's, one way, both ways at once; where a file says
    none, the figure that jax-ml/scaling-book (tpus.md, question 3) reckons with.
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
    host_bytes_per_second: float = 1.5e10
    compile_fields: Mapping[str, object]
    sources: Mapping[str, str]
    compiler_options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    option_holds_for: Mapping[str, str] = field(default_factory=dict)
    op_seconds: Mapping[str, float] = field(default_factory=dict)
    faster: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.platform not in ("tpu", "cuda", "cpu"):
            raise ValueError(f"Hardware {self.name}: platform={self.platform!r} must be tpu, cuda or cpu")
        for name in ("hbm_bytes", "capacity_bytes", "hbm_bytes_per_second", "matmul_efficiency", "hbm_efficiency",
                     "host_bytes_per_second"):  # fmt: skip
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
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"hardware file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"hardware file {path}: not TOML: {error}") from None
    sources: dict[str, str] = {}
    try:
        options = table.get("compiler_options", {})
        holds_for = {name: one["holds_for"] for name, one in options.items()
                     if isinstance(one, dict) and "holds_for" in one}  # fmt: skip
        plain = {"option_holds_for": holds_for} | _values(table, "", sources)
        tiers = tuple(Tier(**tier) for tier in plain.pop("tiers"))
        return Hardware(**{"clock_hz": None, "compile_fields": {}, **plain}, tiers=tiers, sources=sources)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"hardware file {path}: {error}") from None


def _values(node: object, path: str, sources: dict[str, str]):
    """Strip `{value, source}` tables down to their values, keeping each source under its dotted path."""
    if isinstance(node, list):
        return [_values(item, f"{path}{item.get('name', index)}." if isinstance(item, dict) else path, sources)
                for index, item in enumerate(node)]  # fmt: skip
    if not isinstance(node, dict):
        return node
    if "value" in node:
        others = "".join(f"; {other['source']} says {other['value']:g}" for other in node.get("others", ()))
        why = f" (chosen: {node['why']})" if "why" in node else ""
        sources[path.rstrip(".")] = f"{node['source']}{others}{why}"
        return node["value"]
    return {key: _values(value, f"{path}{key}.", sources) for key, value in node.items()}
