"""Calibration: the fit finds what made the samples; the file reads back; the real thing runs on simulated devices."""

from __future__ import annotations

import dataclasses
import itertools
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from autotune.calibrate import calibrate as module
from autotune.calibrate import cpu_ops
from autotune.calibrate.calibrate import Sample, calibrate, fit_tier, residual
from autotune.calibrate.hardware_file import hardware_toml
from autotune.calibrate.microbench import Bench
from autotune.meshes.collectives import tier_seconds
from autotune.meshes.hardware import Tier, hardware_names, load_hardware, read_hardware
from autotune.meshes.placement import switch_route
from autotune.meshes.target import parse_target
from autotune.program import COLLECTIVES

TRUE = Tier(
    name="memory",
    kind="switch",
    bytes_per_second=4e9,
    latency_seconds=20e-6,
    launch_seconds=100e-6,
    bytes_factor={"all_gather": 1.0, "reduce_scatter": 0.9, "all_reduce": 0.8, "all_to_all": 0.5, "permute": 0.7},
    launch_factor={"all_gather": 1.0, "reduce_scatter": 0.5, "all_reduce": 0.2, "all_to_all": 0.3, "permute": 0.4},
)


def made_up(tier: Tier, sizes=(2, 4, 8), noise: float = 0.0) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for kind in COLLECTIVES:
        for size in sizes:
            route = switch_route(tier.name, size)
            for payload in (1 << 12, 1 << 16, 1 << 20, 1 << 22):
                seconds, latency = tier_seconds(
                    kind, payload, tier, size=size, links=1.0, hops=route.hops, spread=route.spread,
                    far_hops=route.far_hops, share=route.share, near_hops=route.near_hops,
                )  # fmt: skip
                exact = float(seconds + latency + tier.launch(kind))
                wrong = 1 + noise * rng.uniform(-1, 1)
                samples.append(Sample(kind=kind, route=route, payload_bytes=payload, seconds=exact * wrong))
    return samples


def test_the_fit_finds_what_made_exact_samples():
    # Groups of two: on larger ones a tree may beat the ring, which the fit does not know.
    sources: dict[str, str] = {}
    samples = made_up(TRUE, sizes=(2,))
    found = fit_tier(dataclasses.replace(TRUE, bytes_factor={}, launch_factor={}), samples, "today", sources)
    assert max(abs(residual(found, one)) for one in samples) < 1e-6
    for kind in COLLECTIVES:
        assert found.rate(kind) == pytest.approx(TRUE.rate(kind), rel=1e-6)
    assert found.latency_seconds == 0, "one size of group cannot tell latency from launch"
    assert (
        "today" in sources["tiers.memory.bytes_per_second"] and "worst 0%" in sources["tiers.memory.bytes_per_second"]
    )


def test_a_timing_smaller_than_its_noise_is_taken_again_of_more_trips():
    bench = Bench(jax.devices()[:1])
    noise = itertools.cycle((2e-4, -1e-4, 0.0, -2e-4, 1e-4))
    trip_seconds = 1e-5
    bench._compiled = lambda operation, trips, *rest: trips
    bench._once = lambda trips, arguments: 0.03 + trips * trip_seconds + next(noise)
    mesh = Mesh(bench.devices, ("device",))
    assert bench._seconds(None, mesh, ((1,),), "float32") == pytest.approx(trip_seconds, rel=0.5)
    trip_seconds = 0.0
    with pytest.raises(ValueError, match="4096 trips"):
        bench._seconds(None, mesh, ((1,),), "float32")


def test_one_kind_has_a_least_time_and_another_none():
    samples = made_up(TRUE, sizes=(2,))
    floor = 1.5e-4
    raised = [
        dataclasses.replace(one, seconds=max(one.seconds, floor)) if one.kind == "all_reduce" else one
        for one in samples
    ]
    found = fit_tier(TRUE, raised, "today", {})
    assert found.least_seconds == {"all_reduce": pytest.approx(floor)}
    assert max(abs(residual(found, one)) for one in raised) < 1e-6


def test_the_fit_tells_latency_from_launch_where_groups_differ_and_bears_noise():
    gathers = [one for one in made_up(TRUE, noise=0.05) if one.kind in ("all_gather", "reduce_scatter")]
    found = fit_tier(TRUE, gathers, "today", {})
    assert found.latency_seconds == pytest.approx(TRUE.latency_seconds, rel=0.25)
    assert found.rate("all_gather") == pytest.approx(TRUE.rate("all_gather"), rel=0.1)
    assert max(abs(residual(found, one)) for one in gathers) < 0.12


def test_every_hardware_file_survives_writing_and_reading(tmp_path):
    for name in hardware_names():
        hardware = load_hardware(name)
        path = tmp_path / f"{name}.toml"
        path.write_text(hardware_toml(hardware, "a copy\nof two lines"))
        assert read_hardware(path) == hardware
    known = load_hardware("cpu")
    cpu = dataclasses.replace(known, tiers=(TRUE, *known.tiers[1:]))
    (tmp_path / "mine.toml").write_text(hardware_toml(cpu, "mine"))
    assert read_hardware(tmp_path / "mine.toml").tiers == cpu.tiers


def test_a_collective_does_what_its_name_says_so_often():
    """The timed program: a loop of so many collectives, none removed, none merged, with the payload's bytes."""
    bench = Bench(jax.devices()[:4])
    mesh = Mesh(bench.devices.reshape(2, 2), ("a", "b"))
    texts = {}

    def spy(operation, trips, *rest, compiled=bench._compiled):
        program = compiled(operation, trips, *rest)
        texts[trips] = program.as_text()
        return program

    bench._compiled = spy
    assert bench.collective_seconds("all_gather", 1 << 16, mesh, ("b",)) > 0
    few, *_, many = (texts[trips] for trips in sorted(texts))
    for text in (few, many):
        assert text.count(" all-gather(") == 1 and " while(" in text
        assert "f32[16384]" in text, "the gathered size"
    assert f'"known_trip_count":{{"n":"{max(texts)}"}}' in many


def test_devices_of_one_host_wait_for_each_other_in_every_trip_of_a_timed_program():
    for devices, waits in ((1, 0.0), (4, 1.0)):
        _, text = Bench(jax.devices()[:devices]).program_seconds(jnp.exp, ((64, 1024),), "float32")
        assert cpu_ops.body_amounts(text).get("rendezvous", 0.0) == waits


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept():
    """Pages that the system has to give: many for a block of 96 MiB each time, none once what is freed is kept."""
    code = """
import ctypes, resource, sys
from autotune.system.host_memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(96 << 20)
    libc.memset(block, 1, 96 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100 and kept < given_back / 100


@pytest.mark.slow
def test_calibrating_simulated_devices_gives_a_file_that_predictions_can_use(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MATMULS", {"cpu": ((1, 128, 128, 128),), "accelerator": ()})
    monkeypatch.setattr(module, "DTYPES", {"cpu": ("float32",), "accelerator": ()})
    monkeypatch.setattr(module, "PAYLOADS", (1 << 12, 1 << 20))
    monkeypatch.setattr(cpu_ops, "PROGRAMS", cpu_ops.PROGRAMS[:3])
    target = parse_target("cpu:2")
    said: list[str] = []
    hardware = calibrate(target, on_progress=said.append)
    assert 1e8 < hardware.peak("float32") < 1e13
    assert 1e7 < hardware.hbm_bytes_per_second < 1e12 and 0 < hardware.hbm_efficiency <= 1
    assert 1e-9 <= hardware.launch_seconds < 1e-3
    assert "fitted to 3 programs" in hardware.sources["op_seconds.bytes"]
    memory = hardware.tier("memory")
    assert set(memory.bytes_factor) == set(COLLECTIVES)
    assert hardware.tier("network") == target.hardware.tier("network"), "one host cannot see the network"
    assert (
        "jax" in hardware.sources["launch_seconds"]
        and "median error" in hardware.sources["tiers.memory.latency_seconds"]
    )
    assert any("groups of 2" in line for line in said)
    path = tmp_path / "here.toml"
    path.write_text(hardware_toml(hardware, "here"))
    assert parse_target("cpu:2", read_hardware(path)).hardware == hardware
