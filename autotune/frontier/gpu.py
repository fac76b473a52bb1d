"""The accelerators of the limits model: what one GPU computes and moves, and the network between GPUs.

Source of every figure: Erdil and Schneider-Joseph, "Data movement limits to frontier model training", arXiv
2411.01137 (November 2024), the constants of its simulation. They describe that paper's model, not a machine we
measured; `autotune.meshes.hardware` holds the figures the tuner itself uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

THREADS_PER_SM = 128
PROCESSING_BLOCKS_PER_SM = 4
USEFUL_CAPACITY = 0.75
"""Share of registers and L2 that a tile can occupy; the rest holds what the kernel needs beside it."""
SHARED_BYTES_PER_CLOCK_PER_SM = 32 * 4
"""32 shared-memory banks of 4 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLevel:
    """One level of the network, inner level first.

    `size`: members of the level below joined by this one; None = as many as the cluster needs (the outermost level).
    `bidirectional_bytes_per_second`: of one GPU, both directions added as data sheets do; half of it each way.
    `latency_seconds`: one step of a collective, or one message, across this level.
    """

    size: int | None
    bidirectional_bytes_per_second: float
    latency_seconds: float

    def __post_init__(self) -> None:
        if self.size is not None and (self.size < 2 or self.size.bit_count() != 1):
            raise ValueError(f"NetworkLevel: size={self.size} must be a power of two from 2, or None")
        if not self.bidirectional_bytes_per_second > 0:
            raise ValueError(
                f"NetworkLevel: bidirectional_bytes_per_second={self.bidirectional_bytes_per_second} must be above 0"
            )
        if self.latency_seconds < 0:
            raise ValueError(f"NetworkLevel: latency_seconds={self.latency_seconds} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the limits model and the network its cluster is built with. All rates are per GPU, SI units.

    `large_matmul_efficiency`: observed rate of large matmuls over the peak at `clock_hz` (the highest clock). Times
    use the derated rate, utilisation the peak. `matmul_latency_seconds`: what each matmul takes beside its data.
    `distributed_shared_memory`: whether SMs exchange tiles among themselves instead of through L2.
    """

    name: str
    label: str
    flop_per_clock_per_thread: float
    sms: int
    clock_hz: float
    large_matmul_efficiency: float
    hbm_bytes_per_second: float
    l2_bytes_per_second: float
    l2_bytes: float
    register_bytes_per_block: float
    distributed_shared_memory: bool
    memory_bytes: float
    matmul_latency_seconds: float
    levels: tuple[NetworkLevel, ...]

    def __post_init__(self) -> None:
        if not 0 < self.large_matmul_efficiency <= 1:
            raise ValueError(
                f"Gpu {self.name}: large_matmul_efficiency={self.large_matmul_efficiency} must be in (0, 1]"
            )
        if not self.levels or self.levels[-1].size is not None:
            raise ValueError(f"Gpu {self.name}: levels must end with one of size None")
        if any(level.size is None for level in self.levels[:-1]):
            raise ValueError(f"Gpu {self.name}: only the last of levels may have size None")

    @property
    def peak_flop_per_second(self) -> float:
        """F_max = FLOP per clock and thread * 128 threads * SMs * highest clock. What utilisation is measured against.

        >>> round(GPUS["v100"].peak_flop_per_second / 1e12, 2)
        125.58
        """
        return self.flop_per_clock_per_thread * THREADS_PER_SM * self.sms * self.clock_hz

    @property
    def sustained_flop_per_second(self) -> float:
        """F = F_max * observed efficiency of large matmuls. What times are computed with."""
        return self.peak_flop_per_second * self.large_matmul_efficiency

    @property
    def shared_bytes_per_second(self) -> float:
        """Shared-memory bandwidth of all SMs at the derated clock."""
        return SHARED_BYTES_PER_CLOCK_PER_SM * self.sms * self.clock_hz * self.large_matmul_efficiency

    @property
    def register_tile_bytes(self) -> float:
        """S_r: what one processing block can keep of one operand."""
        return USEFUL_CAPACITY * self.register_bytes_per_block

    @property
    def sm_tile_bytes(self) -> float:
        """S_SM: what the processing blocks of one SM can keep together."""
        return PROCESSING_BLOCKS_PER_SM * self.register_tile_bytes

    @property
    def l2_tile_bytes(self) -> float:
        """S_L2: what L2 can keep, never less than one SM holds."""
        return max(USEFUL_CAPACITY * self.l2_bytes, self.sm_tile_bytes)

    def pooled_network(self) -> Gpu:
        """The same GPU on one level with all levels' bandwidth and the least latency: no real mix can be faster."""
        level = NetworkLevel(
            size=None,
            bidirectional_bytes_per_second=sum(level.bidirectional_bytes_per_second for level in self.levels),
            latency_seconds=min(level.latency_seconds for level in self.levels),
        )
        return replace(self, levels=(level,))

    def scaled(
        self,
        *,
        network_bandwidth: float = 1,
        network_latency: float = 1,
        matmul_latency: float = 1,
        hbm_bandwidth: float = 1,
        l2_bandwidth: float = 1,
        arithmetic: float = 1,
        memory: float = 1,
    ) -> Gpu:
        """The same GPU with figures multiplied. `arithmetic` is FLOP per clock; `l2_bandwidth` is that of L2.

        Shared memory is part of the SM and keeps its rate, as the paper's own scaled GPU does.
        """
        return replace(
            self,
            flop_per_clock_per_thread=self.flop_per_clock_per_thread * arithmetic,
            hbm_bytes_per_second=self.hbm_bytes_per_second * hbm_bandwidth,
            l2_bytes_per_second=self.l2_bytes_per_second * l2_bandwidth,
            memory_bytes=self.memory_bytes * memory,
            matmul_latency_seconds=self.matmul_latency_seconds * matmul_latency,
            levels=tuple(
                replace(
                    level,
                    bidirectional_bytes_per_second=level.bidirectional_bytes_per_second * network_bandwidth,
                    latency_seconds=level.latency_seconds * network_latency,
                )
                for level in self.levels
            ),
        )


GPUS_PER_NODE = 8
LEVEL_LATENCY_SECONDS = 1.125e-6
MATMUL_LATENCY_SECONDS = 4.5e-6
KIB, MIB = 2**10, 2**20


def _node_and_beyond(node_bytes_per_second: float, beyond_bytes_per_second: float) -> tuple[NetworkLevel, ...]:
    return (
        NetworkLevel(
            size=GPUS_PER_NODE,
            bidirectional_bytes_per_second=node_bytes_per_second,
            latency_seconds=LEVEL_LATENCY_SECONDS,
        ),
        NetworkLevel(
            size=None,
            bidirectional_bytes_per_second=beyond_bytes_per_second,
            latency_seconds=LEVEL_LATENCY_SECONDS,
        ),
    )


V100 = Gpu(
    name="v100",
    label="V100 SXM",
    flop_per_clock_per_thread=8,
    sms=80,
    clock_hz=1533e6,
    large_matmul_efficiency=0.90,
    hbm_bytes_per_second=900e9,
    l2_bytes_per_second=2155e9,
    l2_bytes=6 * MIB,
    register_bytes_per_block=64 * KIB,
    distributed_shared_memory=False,
    memory_bytes=3.2e10,
    matmul_latency_seconds=MATMUL_LATENCY_SECONDS,
    levels=_node_and_beyond(3e11, 1.25e10),
)
A100 = Gpu(
    name="a100",
    label="A100 SXM",
    flop_per_clock_per_thread=16,
    sms=108,
    clock_hz=1410e6,
    large_matmul_efficiency=0.85,
    hbm_bytes_per_second=1555e9,
    l2_bytes_per_second=5603e9,
    l2_bytes=40 * MIB,
    register_bytes_per_block=64 * KIB,
    distributed_shared_memory=False,
    memory_bytes=4e10,
    matmul_latency_seconds=MATMUL_LATENCY_SECONDS,
    levels=_node_and_beyond(6e11, 5e10),
)
H100 = Gpu(
    name="h100",
    label="H100 SXM",
    flop_per_clock_per_thread=32,
    sms=132,
    clock_hz=1830e6,
    large_matmul_efficiency=0.70,
    hbm_bytes_per_second=3352e9,
    l2_bytes_per_second=6441e9,
    l2_bytes=50 * MIB,
    register_bytes_per_block=64 * KIB,
    distributed_shared_memory=True,
    memory_bytes=8e10,
    matmul_latency_seconds=MATMUL_LATENCY_SECONDS,
    levels=_node_and_beyond(9e11, 1e11),
)
H100_PCIE = replace(
    H100,
    name="h100-pcie",
    label="H100 PCIe",
    sms=114,
    clock_hz=1620e6,
    large_matmul_efficiency=0.55,
    hbm_bytes_per_second=2039e9,
    l2_bytes_per_second=5563e9,
)
H100_GLOBAL_NVLINK = replace(
    H100,
    name="h100-global-nvlink",
    label="H100 SXM Global NVLink",
    levels=(NetworkLevel(size=None, bidirectional_bytes_per_second=9e11, latency_seconds=LEVEL_LATENCY_SECONDS),),
)
H100_SUPERPOD = replace(
    H100,
    name="h100-superpod",
    label="H100 SXM Superpod",
    levels=(
        NetworkLevel(size=8, bidirectional_bytes_per_second=9e11, latency_seconds=LEVEL_LATENCY_SECONDS),
        NetworkLevel(size=32, bidirectional_bytes_per_second=4.5e11, latency_seconds=LEVEL_LATENCY_SECONDS),
        NetworkLevel(size=None, bidirectional_bytes_per_second=1e11, latency_seconds=LEVEL_LATENCY_SECONDS),
    ),
)
H100_SCALED = replace(
    H100.scaled(network_bandwidth=10, hbm_bandwidth=10, l2_bandwidth=10, matmul_latency=0.1),
    name="h100-scaled",
    label="H100 SXM Scaled",
    # Not a tenth of 1.125 us: the paper's simulation sets it twice, and the later value is the one it runs with.
    levels=tuple(replace(level, latency_seconds=5e-7) for level in H100.scaled(network_bandwidth=10).levels),
)


def _low_latency(gpu: Gpu, name: str, label: str) -> Gpu:
    return replace(gpu.scaled(matmul_latency=0.1, network_latency=0.1), name=name, label=label)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        V100,
        A100,
        H100,
        _low_latency(H100, "h100-low-latency", "H100 SXM Low Latency"),
        H100_GLOBAL_NVLINK,
        _low_latency(H100_GLOBAL_NVLINK, "h100-global-nvlink-low-latency", "H100 SXM Global NVLink and Low Latency"),
        # One level: where bandwidth has no end, no level is nearer than another, and the authors' own simulation makes
        # this one of Global NVLink. On the two levels of H100 every message between nodes would pay both latencies.
        _low_latency(
            H100_GLOBAL_NVLINK.scaled(network_bandwidth=math.inf),
            "h100-infinite-network-low-latency",
            "H100 SXM Infinite Network and Low Latency",
        ),
        H100_SUPERPOD,
        H100_SCALED,
        H100_PCIE,
    )
}
