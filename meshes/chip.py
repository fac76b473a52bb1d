"""What one accelerator can do: rates, capacities and links, each figure with its source.

The figures live in TOML files, one a chip (`meshes.hardware` reads them). All rates are per JAX device (a TPU7x
chip is two devices), bytes and seconds are SI. JAX-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.meshes.option_sets import OptionSet

NEEDED_TO_COMPILE = {
    "tpu": ("torus_dimensions",),
    "cuda": ("cuda_compute_capability", "core_count", "clock_rate_ghz"),
    "cpu": (),
}
"""Platform -> the `compile_fields` without which nothing can be priced."""

PARTS = {"attention_shares": ("forward", "backward"), "attention_tile_cycles": ("fwd", "dq", "dkv"),
         "power_watts": ("cap", "attention", "passes", "waits")}  # fmt: skip
"""Figures that come together -> their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One kind of link between devices: a torus of point-to-point links, or a switch every device hangs on."""

    name: str
    kind: str
    """"torus" or "switch"."""
    bytes_per_second: float
    """One way, as achieved on large messages (the data sheet's figure is in the file): of one link of a torus, of one
    device's port on a switch."""
    latency_seconds: float
    """One hop of a torus, or one message through a switch."""
    launch_seconds: float
    """What every collective pays once, however small."""
    bytes_factor: Mapping[str, float] = field(default_factory=dict)
    """Kind of collective -> what it achieves of `bytes_per_second`, where kinds were seen to differ; 1 where not
    named."""
    launch_factor: Mapping[str, float] = field(default_factory=dict)
    """Kind of collective -> what it pays of `launch_seconds`; 1 where not named."""
    least_seconds: Mapping[str, float] = field(default_factory=dict)
    """Kind of collective -> the least that one takes, bytes and all, where a calibration saw that (threads that sleep
    between messages)."""
    ramp_bytes: float = 0.0
    """What a device could send while NCCL's pipeline of chunks fills: by so much longer a gather or a reduction takes,
    at most by half; both in one, an all_reduce, by twice that."""
    wait_per_doubling: float = 0.0
    """How much longer a step takes, as a fraction of it, each time the domains that the tier joins are doubled, beyond
    what its links take: all of them wait for the slowest."""

    def __post_init__(self) -> None:
        if self.kind not in ("torus", "switch"):
            raise ValueError(f"Tier {self.name}: kind={self.kind!r} must be 'torus' or 'switch'")
        if not self.bytes_per_second > 0:
            raise ValueError(f"Tier {self.name}: bytes_per_second={self.bytes_per_second} must be above 0")
        if self.latency_seconds < 0 or self.launch_seconds < 0:
            raise ValueError(f"Tier {self.name}: latency_seconds and launch_seconds must not be negative")
        if not self.ramp_bytes >= 0:
            raise ValueError(f"Tier {self.name}: ramp_bytes={self.ramp_bytes} must not be negative")
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
class Slices:
    """The slices that a TPU comes in."""

    shapes: tuple[str, ...]
    """Chips along each dimension, smallest slice first ("2x4"): those that are offered most."""
    most_chips: int
    """Of the largest slice."""
    longest_side: int | None = None
    """The most chips along one dimension; None: no limit but `most_chips`."""
    ring_side: int | None = None
    """A dimension of just this many chips closes to a ring; None: see `ring_cube`."""
    ring_cube: int | None = None
    """Where every dimension is a multiple of this many chips, all close to rings; None: see `ring_side`. Without
    either every dimension is a line."""
    cloud_names: tuple[str, ...] = ()
    """What stands before the dash where the cloud that offers it names a slice: "v5p" of "v5p-128"."""
    cloud_counts: int = 1
    """What the number after that dash counts of each chip: 1 where it counts chips, 2 where it counts TensorCores."""

    def __post_init__(self) -> None:
        if not self.shapes or not all(isinstance(shape, str) for shape in self.shapes):
            raise ValueError(f"slices.shapes={self.shapes!r} must be a list of texts such as '2x4'")
        for name in ("most_chips", "longest_side", "ring_side", "ring_cube"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ValueError(f"slices.{name}={value!r} must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleResidual:
    """What one class of work takes on the device, over what the compiler's `estimated_cycles` come to."""

    expected: float
    low: float
    """The least that is credible."""
    high: float
    """The most that is credible."""

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.expected <= self.high:
            raise ValueError(f"cycle residual: {self.low} <= {self.expected} <= {self.high} must hold, all above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One JAX device and its links, inner tier first."""

    name: str
    platform: str
    """"tpu", "cuda" or "cpu"."""
    devices_per_chip: int
    flops_per_second: Mapping[str, float]
    """Dense peak by dtype name ("bfloat16", "float16", "float32", "float8", "int8")."""
    matmul_efficiency: float
    """Share of the peak that the largest matmuls reach."""
    clock_hz: float | None
    """What the TPU compiler's `estimated_cycles` are divided by; None off TPU."""
    hbm_bytes: float
    capacity_bytes: float
    """What one program may use: the compiler's or allocator's limit, not the data sheet's."""
    hbm_bytes_per_second: float
    hbm_efficiency: float
    """Share of `hbm_bytes_per_second` that a pass over memory reaches."""
    launch_seconds: float
    """Of one kernel, where they are launched one by one."""
    tiers: tuple[Tier, ...]
    """Links, inner first."""
    compile_fields: Mapping[str, object]
    """What a compiler without the device must be told. GPU: the numbers of XLA's target description; TPU: `chip`
    (libtpu's name of it), `torus_dimensions`, and `chip_config_name` where the default is not used."""
    sources: Mapping[str, str]
    """Dotted name of a figure -> where it is from, and what other sources say."""
    host_bytes_per_second: float
    """Between a device and its host's memory, one way."""
    hidden_share: Mapping[str, float]
    """Mesh axis -> share of the compute beside which the compiler can hide the axis's collectives; 0 where not named.
    Of `data`: share of all that the layers take, forward and backward."""
    hidden_most: Mapping[str, float] = field(default_factory=dict)
    """Mesh axis -> the most of a collective that is hidden, however much compute there is; 1 where not named. Of
    `data`: of the gradients of layers, less routed experts that are divided (`price.transformer.per_step`)."""
    hidden_outer: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mesh axis -> (share, most) of what it sends over the outermost tier; as inside where not named."""
    scatter_hides: str = "never"
    """When reducing gradients onto their fsdp shards hides beside compute: "never", or "alone": where they are summed
    over fsdp only."""
    sums_over_slice: bool = False
    """Whether weights whose fsdp shards are all of a three-dimensional slice are gathered by all-reduces, which send
    twice as much."""
    device_kinds: tuple[str, ...] = ()
    """Parts of what JAX calls the device (`jax.Device.device_kind`)."""
    slices: Slices | None = None
    """TPU: the slices it comes in; None: not known, see `meshes.target.slice_shapes`."""
    domain_devices: int | None = None
    """Devices that are used of one NVLink domain or host; None: not known, or a TPU."""
    cores_per_device: int = 1
    """TPU: cores that one JAX device joins."""
    attention_shares: Mapping[str, float] = field(default_factory=dict)
    """"forward" and "backward" -> share of the peak that a fused attention kernel reaches. TPU: where
    `attention_tile_cycles` is not known."""
    attention_shares_by_keys: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """GPU: "keys" -> lengths of a causal sequence; "forward_64", "backward_64" and so on by width of a head -> share of
    the peak that a fused kernel reaches there, in place of `attention_shares`. Empty: not measured."""
    power_watts: Mapping[str, float] = field(default_factory=dict)
    """GPU: "cap": what the card may draw on average; "attention", "passes", "waits": what it draws in fused attention,
    in passes over memory, and while it waits. Empty: not measured, and the clock is taken not to fall."""
    matmul_share_at_watts: tuple[tuple[float, float], ...] = ()
    """GPU: (watts, share of the peak) pairs, rising: what large matmuls sustain where so much is left for them."""
    matmul_ceiling: float | None = None
    """GPU: share of the peak that the largest matmuls would reach at the highest clock, were there power for it."""
    sustained_share: Any = None
    """GPU: share of the peak that power leaves to matmuls in the step at hand, or an array of them; None: of a typical
    step. No file says it: `autotune.efficiency.at_sustained_share` sets it, for all that is priced or replayed with
    this value of the hardware."""
    attention_tile_cycles: Mapping[str, float] = field(default_factory=dict)
    """TPU: kernel of splash attention ("fwd", "dq", "dkv") -> cycles of 1024 x 1024 scores, heads of 128, on one core;
    empty: not known."""
    cycle_residuals: Mapping[str, CycleResidual] = field(default_factory=dict)
    """TPU: class of work -> see `CycleResidual`. "matmul": matmuls with what is fused to them, where this chip's own
    were measured; "matmul_alone": without, where they were not; "pass": over memory."""
    matmul_start_cycles: float = 0.0
    """TPU: what the smallest matmul takes beyond its bytes and FLOPs."""
    matmul_exposed_bytes: float = 0.0
    """TPU: the most bytes of one matmul that its own compute cannot hide."""
    l2_bytes_per_cycle: float | None = None
    """GPU: what the L2 cache gives each multiprocessor in a clock cycle."""
    compiler_options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """What XLA is told on this chip beside its defaults; a layout's own `xla.` options win."""
    option_holds_for: Mapping[str, str] = field(default_factory=dict)
    """Compiler option -> the requirement ("libtpu<0.0.48") without which it is left out."""
    option_sets: Mapping[str, OptionSet] = field(default_factory=dict)
    """Name -> options that a layout takes in place of `compiler_options` with the word `options`; "none" and "default"
    are every chip's and not here."""
    recommended_sets: tuple[str, ...] = ()
    """Names of the sets under which a search compiles the best layout again."""
    op_seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU: class of work -> seconds of one unit of it (`autotune.hlo.cpu_work.CLASSES`)."""
    faster: Mapping[str, float] = field(default_factory=dict)
    """Resource ("matmul", "hbm", "core") -> how many times as fast as the compiler's cycles it is taken to be; 1 where
    not named. Only `scale` sets it: a file describes the chip as the compiler knows it."""

    def __post_init__(self) -> None:
        if self.platform not in ("tpu", "cuda", "cpu"):
            raise ValueError(f"Hardware {self.name}: platform={self.platform!r} must be tpu, cuda or cpu")
        for name in ("hbm_bytes", "capacity_bytes", "hbm_bytes_per_second", "matmul_efficiency", "hbm_efficiency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Hardware {self.name}: {name}={getattr(self, name)} must be above 0")
        if not self.flops_per_second or min(self.flops_per_second.values()) <= 0:
            raise ValueError(f"Hardware {self.name}: flops_per_second must name a dtype, each above 0")
        if not self.host_bytes_per_second > 0:
            raise ValueError(
                f"Hardware {self.name}: host_bytes_per_second={self.host_bytes_per_second} must be above 0"
            )
        for name in NEEDED_TO_COMPILE[self.platform]:
            if not self.compile_fields.get(name):
                raise ValueError(f"Hardware {self.name}: compile_fields.{name} is missing")
        if self.platform == "cuda" and not self.l2_bytes_per_cycle:
            raise ValueError(f"Hardware {self.name}: l2_bytes_per_cycle={self.l2_bytes_per_cycle} must be above 0")
        if self.scatter_hides not in ("never", "alone"):
            raise ValueError(f"Hardware {self.name}: scatter_hides={self.scatter_hides!r} must be 'never' or 'alone'")
        if isinstance(self.device_kinds, str) or not all(isinstance(kind, str) for kind in self.device_kinds):
            raise ValueError(f"Hardware {self.name}: device_kinds={self.device_kinds!r} must be a list of texts")
        for name in ("hidden_share", "hidden_most", "attention_shares"):
            for key, share in getattr(self, name).items():
                if not 0 <= share <= 1:
                    raise ValueError(f"Hardware {self.name}: {name}.{key}={share} must lie from 0 to 1")
        for axis, pair in self.hidden_outer.items():
            if len(pair) != 2 or not all(0 <= share <= 1 for share in pair):
                raise ValueError(f"Hardware {self.name}: hidden_outer.{axis}={pair} must be two shares from 0 to 1")
        for name, wanted in PARTS.items():
            known = getattr(self, name)
            if known and set(known) != set(wanted):
                raise ValueError(
                    f"Hardware {self.name}: {name} must have {', '.join(wanted)}; it has {', '.join(known)}"
                )

    @property
    def torus_dimensions(self) -> int:
        """Dimensions of the torus of one slice; 0 where devices hang on a switch."""
        return int(str(self.compile_fields.get("torus_dimensions", 0)))

    @property
    def outer_tier(self) -> str | None:
        """The tier between slices, domains or hosts; None where the machine has one tier."""
        return self.tiers[-1].name if len(self.tiers) > 1 else None

    def peak(self, dtype: str) -> float:
        """Dense peak FLOP/s of one device in that dtype; ValueError naming chip and dtype where it has none."""
        if dtype not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            raise ValueError(f"hardware: {self.name} has no peak for dtype {dtype!r}; it has: {known}")
        return self.flops_per_second[dtype]

    def straggler_share(self, domains: int) -> float:
        """What `domains` slices or nodes that go in step add to a step by waiting for the slowest, as a fraction of it.

        >>> from autotune.meshes.hardware import load_hardware
        >>> round(load_hardware("v5e").straggler_share(32), 3)
        0.117
        """
        return (1.0 + self.tiers[-1].wait_per_doubling) ** math.log2(domains) - 1.0

    def tier(self, name: str) -> Tier:
        """The tier of that name; KeyError when this hardware has none."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise KeyError(name)
