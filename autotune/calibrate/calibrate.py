"""What the devices of this process or job really do: rates, bandwidths, launches and collectives, as a Hardware.

Chips with a data sheet keep its peaks, and get the efficiencies seen; a CPU gets its peaks from here too. Every
collective is timed along every size of group the layouts of this machine can have, on each tier, at several payloads;
one latency for the tier, and per kind one rate and one launch, are fitted to all of them by least relative
deviations, none below zero.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.calibrate.cpu_ops import Timing, fit_ops, op_sources, read_timings, time_ops
from autotune.calibrate.fit import least_deviations
from autotune.meshes.collectives import link_bytes, messages, tier_seconds
from autotune.meshes.hardware import Hardware, Tier
from autotune.meshes.layout import Layout
from autotune.meshes.placement import Route, place
from autotune.meshes.target import Target
from autotune.program import COLLECTIVES
from autotune.system.host_memory import keep_freed_memory

MATMULS = {
    "cpu": ((1, 128, 128, 128), (1, 512, 512, 512), (1, 128, 1024, 1024), (8, 128, 128, 64)),
    "accelerator": (
        *((1, 2048, 2048, 2048), (1, 4096, 4096, 4096), (1, 8192, 8192, 8192)),
        *((1, 4096, 14336, 4096), (1, 8192, 2048, 8192), (16, 2048, 2048, 128)),
    ),
}
"""(batch, m, n, k) per device: square ones, a feed-forward layer's, and one head-sized batch."""
DTYPES = {"cpu": ("float32", "bfloat16"), "accelerator": ("bfloat16", "float32")}
ELEMENTS = {"cpu": 1 << 18, "accelerator": 1 << 26}
"""Per device: on a CPU an activation's size (it stays in cache there), on an accelerator beyond every cache."""
PAYLOADS = (1 << 12, 1 << 14, *(1 << power for power in range(15, 21)), 1 << 22, 1 << 24)
"""Bytes. Closest together where a step's collectives lie and start and bytes count alike."""
CLEARLY = 1.3
"""Times the least time of its kind: a collective that takes longer is one whose bytes count."""
WORTH = 0.95
"""A least time is taken up where it leaves at most this share of the deviations."""
SLOW_SECONDS = 0.25
"""A collective that takes longer is not tried with larger payloads: it is all bytes by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timed collective along `route` alone, all groups of the machine at once; payload as in `autotune.program`."""

    kind: str
    route: Route
    payload_bytes: int
    seconds: float


def calibrate(
    target: Target,
    *,
    devices: Sequence[object] | None = None,
    tiers_only: bool = False,
    agree: Callable[[float], float] = lambda value: value,
    on_progress: Callable[[str], None] = lambda line: None,
    on_timings: Callable[[Sequence[Timing]], None] = lambda timings: None,
    on_samples: Callable[[str, Sequence[Sample]], None] = lambda tier, samples: None,
) -> Hardware:
    """Measure the devices of `target`, which this process (or job) holds. Figures that cannot be seen stay the file's.

    `tiers_only` keeps the hardware's rates of a single device and measures the links. `agree` gives every process of a
    job process 0's number. `on_timings` hears the timed programs that a CPU's classes of work are fitted to,
    `on_samples` the timed collectives of each tier. The sources of the result tell date, versions, residuals.
    """
    import jax

    from autotune.calibrate.microbench import Bench
    from autotune.meshes.topology import devices_of

    found = list(devices_of(target) if devices is None else devices)
    bench = Bench(found, agree)
    base, family = target.hardware, "cpu" if target.platform == "cpu" else "accelerator"
    when = f"{datetime.date.today().isoformat()}, jax {jax.__version__}, {len(found)} x {found[0].device_kind}"
    sources = dict(base.sources)
    changes: dict[str, object] = {}
    if family == "cpu":
        keep_freed_memory()

    if not tiers_only:
        changes = _device_figures(base, bench, family, when, sources, on_progress)
        if family == "cpu":
            timings = time_ops(bench, on_progress)
            on_timings(timings)
            changes["op_seconds"] = op_figures(timings, when, sources)
    tiers = []
    for tier in base.tiers:
        samples = _collectives(bench, target, tier, found, on_progress)
        if samples:
            on_samples(tier.name, samples)
        tiers.append(fit_tier(tier, samples, when, sources) if samples else tier)
    return dataclasses.replace(base, tiers=tuple(tiers), sources=sources, **changes)  # type: ignore[arg-type]


def _device_figures(base: Hardware, bench, family: str, when: str, sources, on_progress) -> dict[str, object]:
    """What one device does by itself, all of them at once."""
    changes: dict[str, object] = {}
    rates: dict[str, dict[tuple[int, ...], float]] = {}
    for dtype in DTYPES[family]:
        if family == "accelerator" and dtype not in base.flops_per_second:
            continue
        rates[dtype] = {}
        for shape in MATMULS[family]:
            rates[dtype][shape] = 2 * math.prod(shape) / bench.matmul_seconds(*shape, dtype)
        on_progress(f"calibrate: {dtype} matmuls {_range(rates[dtype].values())} FLOP/s a device")
    changes |= _matmul_figures(base, rates, family, when, sources)

    memory = _memory_figures(base, bench, family, when, sources)
    changes |= memory
    on_progress(f"calibrate: memory {memory['hbm_efficiency'] * memory['hbm_bytes_per_second']:.3g} B/s a device")
    changes["launch_seconds"] = bench.launch_seconds("float32")
    sources["launch_seconds"] = f"autotune calibrate, {when}: one small instruction in a loop"
    on_progress(f"calibrate: launch {changes['launch_seconds']:.2g} s an instruction")
    return changes


def op_figures(timings: Sequence[Timing], when: str, sources: dict[str, str]) -> dict[str, float]:
    """Seconds of each class of CPU work; what they are fitted to, and how well, into `sources`."""
    samples = read_timings(timings)
    rates = fit_ops(samples)
    for name in [name for name in sources if name.startswith("op_seconds.")]:
        del sources[name]
    sources |= op_sources(rates, samples, f"autotune calibrate, {when}")
    return rates


def _matmul_figures(base: Hardware, rates, family: str, when: str, sources: dict[str, str]) -> dict[str, object]:
    """A CPU's peak is the best rate seen; efficiency is the median over shapes of rate / peak, in the first dtype."""
    peaks = dict(base.flops_per_second)
    for dtype, by_shape in rates.items():
        listed = ", ".join(f"{'x'.join(map(str, shape))} {rate:.4g}" for shape, rate in by_shape.items())
        if family == "cpu":
            peaks[dtype] = max(by_shape.values())
            sources[f"flops_per_second.{dtype}"] = f"autotune calibrate, {when}: best of {listed} FLOP/s"
        else:
            before = sources.get(f"flops_per_second.{dtype}", "")
            sources[f"flops_per_second.{dtype}"] = f"{before}; autotune calibrate, {when}: achieved {listed} FLOP/s"
    first = DTYPES[family][0]
    efficiency = statistics.median(rate / peaks[first] for rate in rates[first].values())
    sources["matmul_efficiency"] = f"autotune calibrate, {when}: median over shapes in {first}"
    return {"flops_per_second": peaks, "matmul_efficiency": efficiency}


def _memory_figures(base: Hardware, bench, family: str, when: str, sources: dict[str, str]) -> dict[str, float]:
    """A CPU's peak is its best pass over memory; efficiency is that of all FUSIONS in turn: bytes / seconds / peak."""
    from autotune.calibrate.microbench import FUSIONS

    dtype = DTYPES[family][0]
    passes, total_bytes, total_seconds = {}, 0, 0.0
    for name in FUSIONS:
        seconds, moved = bench.fusion_seconds(name, ELEMENTS[family], dtype)
        passes[name] = moved / seconds
        total_bytes, total_seconds = total_bytes + moved, total_seconds + seconds
    listed = ", ".join(f"{name} {rate:.4g}" for name, rate in passes.items())
    peak = max(passes.values()) if family == "cpu" else base.hbm_bytes_per_second
    if family == "cpu":
        sources["hbm_bytes_per_second"] = f"autotune calibrate, {when}: best of {listed} B/s"
    sources["hbm_efficiency"] = f"autotune calibrate, {when}: all of {listed} B/s in turn, {dtype}"
    return {"hbm_bytes_per_second": peak, "hbm_efficiency": total_bytes / total_seconds / peak}


def _collectives(bench, target: Target, tier: Tier, devices, on_progress) -> list[Sample]:
    """Every kind of collective along every group size that lies on `tier` alone."""
    from autotune.meshes.topology import mesh_of

    samples = []
    for layout in _layouts(target):
        routes = place(layout, target).routes["fsdp"]
        if [route.tier for route in routes] != [tier.name]:
            continue
        mesh = mesh_of(layout, target, devices=devices)
        for kind in COLLECTIVES:
            for payload in PAYLOADS if target.platform == "cpu" else (*PAYLOADS, 1 << 25, 1 << 28):
                seconds = bench.collective_seconds(kind, payload, mesh, ("fsdp",))
                samples.append(Sample(kind=kind, route=routes[0], payload_bytes=payload, seconds=seconds))
                if seconds > SLOW_SECONDS:
                    break
        on_progress(f"calibrate: {tier.name}, groups of {routes[0].size}")
    return samples


def _layouts(target: Target) -> list[Layout]:
    """`fsdp` of every size that fits inside one group or exactly spans the groups; `data` takes the rest."""
    inside = target.devices_per_group
    layouts = [
        Layout(data=target.devices // size, fsdp=size, dcn=(("data", target.groups),))
        for size in range(2, inside + 1)
        if inside % size == 0
    ]
    if target.groups > 1:
        layouts.append(Layout(data=inside, fsdp=target.groups, dcn=(("fsdp", target.groups),)))
    return layouts


def fit_tier(tier: Tier, samples: Sequence[Sample], when: str, sources: dict[str, str]) -> Tier:
    """The tier with its latency, and per kind its rate and launch, fitted to the samples; residuals into `sources`.

    seconds = messages x latency + launch[kind] + link bytes / rate[kind], least deviations (`autotune.calibrate.fit`).
    Or, of each kind for which that comes closer to its samples, at least so many seconds whatever its bytes, and only
    what takes clearly longer is fitted: on CPUs a thread sleeps while small messages come, and large ones hide that.
    Kinds differ there: between two hosts an all-reduce of 4 KiB takes as long as one of 64, an all-to-all does not.
    """
    kinds = [kind for kind in COLLECTIVES if any(sample.kind == kind for sample in samples)]
    fitted, least = _affine(tier, samples), dict[str, float]()
    for kind in kinds:
        of_kind = [one for one in samples if one.kind == kind]
        for payload in sorted({one.payload_bytes for one in of_kind})[:-2]:
            floor = statistics.median(one.seconds for one in of_kind if one.payload_bytes == payload)
            floors = least | {kind: floor}
            longer = [one for one in samples if one.seconds > CLEARLY * floors.get(one.kind, 0.0)]
            if len({one.payload_bytes for one in longer if one.kind == kind}) > 1:
                other = dataclasses.replace(_affine(tier, longer), least_seconds=floors)
                if 1e-6 + _deviations(other, samples) < WORTH * _deviations(fitted, samples):
                    fitted = other
        least = dict(fitted.least_seconds)
    errors = {kind: [abs(residual(fitted, one)) for one in samples if one.kind == kind] for kind in kinds}
    listed = ", ".join(f"{kind} {statistics.median(e):.0%} (worst {max(e):.0%})" for kind, e in errors.items())
    sizes = sorted({sample.route.size for sample in samples})
    source = f"autotune calibrate, {when}: fitted to groups of {sizes}; median error {listed}"
    for name in ("bytes_per_second", "latency_seconds", "launch_seconds"):
        sources[f"tiers.{tier.name}.{name}"] = source
    return fitted


def _deviations(tier: Tier, samples: Sequence[Sample]) -> float:
    return sum(abs(residual(tier, sample)) for sample in samples)


def _affine(tier: Tier, samples: Sequence[Sample]) -> Tier:
    kinds = [kind for kind in COLLECTIVES if any(sample.kind == kind for sample in samples)]
    # A group of one size cannot tell latency from launch: then all of it is launch.
    one_size = len({sample.route.size for sample in samples}) == 1
    rows = []
    for sample in samples:
        row = np.zeros(1 + 2 * len(kinds))
        place_in = 1 + 2 * kinds.index(sample.kind)
        route = sample.route
        row[0] = 0.0 if one_size else messages(sample.kind, route.hops, route.far_hops, route.near_hops)
        row[place_in] = 1.0
        row[place_in + 1] = _link_bytes(sample)
        rows.append(row / sample.seconds)
    solution = least_deviations(np.array(rows))
    launches = {kind: float(solution[1 + 2 * index]) for index, kind in enumerate(kinds)}
    per_byte = {kind: float(solution[2 + 2 * index]) for index, kind in enumerate(kinds)}
    seen = {kind: seconds for kind, seconds in per_byte.items() if seconds > 0}
    if not seen:
        raise ValueError(f"calibrate: tier {tier.name}: no collective took longer with more bytes")
    best = min(seen.values())
    launch = max(launches.values())
    return Tier(
        name=tier.name,
        kind=tier.kind,
        bytes_per_second=1 / best,
        latency_seconds=float(solution[0]),
        launch_seconds=launch,
        bytes_factor={kind: best / seconds for kind, seconds in seen.items()},
        launch_factor={kind: seconds / launch for kind, seconds in launches.items()} if launch else {},
    )


def residual(tier: Tier, sample: Sample) -> float:
    """Modelled seconds over measured seconds, less one."""
    route = sample.route
    seconds, latency = tier_seconds(
        sample.kind, sample.payload_bytes, tier, size=route.size, links=route.links, hops=route.hops,
        spread=route.spread, far_hops=route.far_hops, share=route.share, near_hops=route.near_hops,
    )  # fmt: skip
    longest = max(seconds + latency + tier.launch(sample.kind), tier.least_seconds.get(sample.kind, 0.0))
    return float(longest) / sample.seconds - 1


def _link_bytes(sample: Sample) -> float:
    route = sample.route
    return float(link_bytes(sample.kind, sample.payload_bytes, route.size, route.links, route.spread, route.share))


def _range(values) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"
