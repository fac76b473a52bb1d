"""The hardware files: whole, sourced, consistent with themselves, and better in one resource when asked."""

import dataclasses
import tomllib

import numpy as np
import pytest

from autotune.meshes.collectives import seconds
from autotune.meshes.hardware import FILES, Hardware, hardware_names, load_hardware, read_hardware, scale
from autotune.meshes.layout import Layout
from autotune.meshes.placement import place
from autotune.meshes.target import parse_target

TPU_UNITS = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2, "tpu7x": 4 * 256**2}
PLAIN = {"name", "platform", "devices_per_chip", "kind"}


def test_every_chip_has_a_file():
    wanted = "v4 v5e v5p v6e tpu7x v100-16 v100-32 a100-40 a100-80 h100 h200 b200 gb200 cpu".split()
    assert sorted(wanted) == list(hardware_names())


@pytest.mark.parametrize("name", hardware_names())
def test_every_figure_has_a_source_and_every_disagreement_a_reason(name):
    table = tomllib.loads((FILES / f"{name}.toml").read_text())
    table.pop("option_sets", None)  # a set has one source for all its options (test_option_sets)

    def check(path, node):
        if isinstance(node, list):
            for item in node:
                check(path, item)
        elif isinstance(node, dict) and "value" in node:
            assert node["source"], path
            assert not node.get("others") or node["why"], f"{path}: sources disagree and no reason is given"
        elif isinstance(node, dict):
            for key, value in node.items():
                check(f"{path}.{key}", value)
        else:
            assert path.split(".")[-1] in PLAIN, f"{path} has no source"

    check(name, table)
    hardware = load_hardware(name)
    assert hardware.name == name
    assert hardware.sources["hbm_bytes_per_second"].startswith(table["hbm_bytes_per_second"]["source"])


@pytest.mark.parametrize("name", hardware_names())
def test_figures_agree_with_each_other(name):
    hardware = load_hardware(name)
    assert hardware.capacity_bytes <= hardware.hbm_bytes
    assert hardware.peak("float32") <= max(hardware.flops_per_second.values())
    assert 0.5 < hardware.matmul_efficiency <= 1 and 0.5 < hardware.hbm_efficiency <= 1
    tiers = {"tpu": ["ici", "dcn"], "cuda": ["nvlink", "network"], "cpu": ["memory", "network"]}[hardware.platform]
    assert [tier.name for tier in hardware.tiers] == (["d2d"] if hardware.devices_per_chip > 1 else []) + tiers
    assert (hardware.clock_hz is None) == (hardware.platform != "tpu")


@pytest.mark.parametrize("name", TPU_UNITS)
def test_tpu_peak_is_clock_times_matrix_units(name):
    hardware = load_hardware(name)
    assert hardware.clock_hz * TPU_UNITS[name] * 2 == pytest.approx(hardware.peak("bfloat16"), rel=3e-3)


def test_a_dtype_without_a_peak_is_named():
    with pytest.raises(ValueError, match="v100-16 has no peak for dtype 'bfloat16'; it has: float16, float32"):
        load_hardware("v100-16").peak("bfloat16")


def test_unknown_chip_is_named():
    with pytest.raises(ValueError, match="'v9' is not known; known: a100-40"):
        load_hardware("v9")


def without(text: str, first: str, then: str) -> str:
    """A file's text without what stands between two headings, the second of which stays."""
    return text.partition(f"[{first}]")[0] + f"[{then}]" + text.partition(f"[{then}]")[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "]", "not TOML"),
        (lambda text: "platform = 'cpu'\n" + text, "'platform' is given twice, the second time in line"),
        (lambda text: text + "\n[made]\n[ made ] # again\n", "'made' is given twice, the second time in line"),
        (lambda text: text + "\n[made]\na.b = 1\na.b = 2\n", "'a.b' is given twice, the second time"),
        (lambda text: text.replace('name = "v5e"\n', "", 1), "name is missing"),
        (lambda text: text.replace("value = 8.19e11", "value = -1"), "hbm_bytes_per_second=-1 must be above 0"),
        (lambda text: text.replace('"torus"', '"web"'), "kind='web' must be 'torus' or 'switch'"),
        (lambda text: text + "[more]\nvalue = 1\nsource = 'x'\n", "more is not known; known: name"),
        (lambda text: text.replace("value = 0.901", "value = 9"), "matmul_efficiency=9 must be at most 1"),
        (
            lambda text: text.replace("value = 0.83", "value = nan"),
            "hbm_efficiency=nan must be at least 0|must be above 0",
        ),
        (lambda text: text.replace("value = 0.83", "value = inf"), "hbm_efficiency=inf must be at most 1"),
        (
            lambda text: text.replace("value = 0.83", 'value = "0.83"'),
            "hbm_efficiency='0.83' must be a whole number or",
        ),
        (
            lambda text: text.replace("[hbm_efficiency]\nvalue = 0.83\n", "[hbm_efficiency]\n"),
            "hbm_efficiency has no value",
        ),
        (lambda text: text.replace("[hbm_bytes]", "[hbm_byte]"), "hbm_byte is not known; did you mean 'hbm_bytes'"),
        (
            lambda text: text.replace("[tiers.latency_seconds]", "[tiers.latency_second]", 1),
            "tiers.ici.latency_second is",
        ),
        (
            lambda text: text.replace("value = 1e-6\nsource", "valeu = 1e-6\nsource", 1),
            "valeu is not known; did you mean",
        ),
        (lambda text: without(text, "flops_per_second", "matmul_efficiency"), "flops_per_second is missing"),
        (
            lambda text: text.replace("bfloat16 = {", "bfloat61 = {"),
            "flops_per_second.bfloat61 is not known; did you mean",
        ),
        (
            lambda text: text.partition("[[tiers]]")[0] + "[compile_fields]\nchip = 'v5e'\ntorus_dimensions = 2\n",
            "tiers is missing",
        ),
        (lambda text: text.partition("[compile_fields]")[0], "compile_fields.torus_dimensions is missing"),
        (lambda text: text.replace("torus_dimensions = { value = 2", "torus_dimensions = { value = 4"), "from 2 to 3"),
        (lambda text: text.replace('name = "dcn"', 'name = "ici"'), "tiers names 'ici' twice"),
        (
            lambda text: text.replace("devices_per_chip = 1", "devices_per_chip = true"),
            "devices_per_chip=True must be a whole",
        ),
        (
            lambda text: text.replace('name = "v5e"', 'name = "v5e\\u001b[2J"'),
            "name='v5e.x1b.2J' must be a text of printable",
        ),
        (
            lambda text: text + "[compiler_options]\nxla_dump_to = '/evil'\n",
            "compiler_options.xla_dump_to='/evil': is no option",
        ),
        (lambda text: text + "[compiler_options]\nxla_gpu_autotune_level = '/x'\n", "must be true, false, a number"),
        (lambda text: text + "x = " + "[" * 5000, "nested too deeply|not TOML"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    path.write_text(change((FILES / "v5e.toml").read_text()))
    with pytest.raises(ValueError, match=rf"(?s)mine.toml: .*{message}"):
        read_hardware(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.toml: No such file"):
        read_hardware(tmp_path / "none.toml")


def figures(hardware: Hardware) -> dict[str, float]:
    """Every number that scaling may touch, by name."""
    numbers = {f"peak.{dtype}": rate for dtype, rate in hardware.flops_per_second.items()}
    for field in ("hbm_bytes_per_second", "capacity_bytes", "launch_seconds", "clock_hz"):
        numbers[field] = getattr(hardware, field) or 0.0
    for tier in hardware.tiers:
        for field in ("bytes_per_second", "latency_seconds", "launch_seconds"):
            numbers[f"{tier.name}.{field}"] = getattr(tier, field)
    return numbers


@pytest.mark.parametrize(
    ("resource", "touched"),
    [
        ("matmul", ["peak.bfloat16", "peak.float32"]),
        ("hbm", ["hbm_bytes_per_second"]),
        ("capacity", ["capacity_bytes"]),
        ("network:nvlink", ["nvlink.bytes_per_second"]),
        ("network:data+fsdp@network", ["network.bytes_per_second"]),
        ("latency", ["launch_seconds", "nvlink.latency_seconds", "network.launch_seconds"]),
    ],
)
def test_scale_touches_its_resource_only(resource, touched):
    hardware = load_hardware("h100")
    before, after = figures(hardware), figures(scale(hardware, resource, 2.0))
    changed = {name: after[name] / before[name] for name in before if before[name] != after[name]}
    assert set(touched) <= set(changed)
    assert set(changed.values()) == {0.5 if resource == "latency" else 2.0}
    kinds = {name.rpartition(".")[2] if resource == "latency" else name.split(".")[0] for name in changed}
    assert kinds <= {"launch_seconds", "latency_seconds"} or len(kinds) == 1


def test_scale_refuses_what_is_no_resource():
    with pytest.raises(ValueError, match="'network:ici' is not a resource; known: matmul.*network:nvlink"):
        scale(load_hardware("h100"), "network:ici", 2.0)


@pytest.mark.parametrize("text", ["v5e:16x16", "v5p:4x4x4*2", "h100:8x8", "tpu7x:4x4x4", "cpu:8"])
@pytest.mark.parametrize("kind", ["all_gather", "all_reduce", "reduce_scatter", "all_to_all", "permute"])
def test_everything_twice_as_good_halves_every_collective(text, kind):
    target = parse_target(text)
    placement = place(Layout(fsdp=target.devices), target)
    better = scale(target.hardware, "everything", 2.0)
    for payload in (0.0, 1e4, 1e9):
        now = seconds(kind, payload, ("fsdp",), placement, target.hardware)
        assert seconds(kind, payload, ("fsdp",), placement, better) == pytest.approx(now / 2, rel=1e-12)


def test_tpu7x_all_gather_rows_are_launch_plus_bytes_over_two_links():
    """AI-Hypercomputer/tpu-recipes, ironwood all_gather, one device of each of 4 chips: (GB received, GB/s)."""
    rows = [(1.572864e-3, 71.77), (6.291456e-3, 129.19), (2.5165824e-2, 161.9), (0.100663296, 174.77)]
    rows.append((0.402653184, 178.77))
    ici = load_hardware("tpu7x").tier("ici")
    whole_links = 2 * (2 * ici.bytes_per_second)  # both devices of a chip share its links; here one has them alone
    for gigabytes, rate in rows:
        measured = gigabytes / rate
        modelled = ici.launch_seconds + 2 * ici.latency_seconds + gigabytes * 1e9 / whole_links
        assert modelled == pytest.approx(measured, rel=0.02)


def test_small_all_reduce_over_four_nodes_is_near_the_measured_one():
    """stas00/ml-engineering, network/benchmarks: 32 KiB over 4 nodes of 8, busbw 0.92 GB/s, so 69 us. Not fitted."""
    measured = 32 * 1024 * 2 * 31 / 32 / 0.92e9
    target = parse_target("a100-80:4x8")
    placement = place(Layout(data=32), target)
    assert seconds("all_reduce", 32 * 1024, ("data",), placement, target.hardware) == pytest.approx(measured, rel=0.15)


def test_no_link_beats_its_data_sheet():
    """An achieved rate above the data sheet's, which stands first among the others, would be a slip."""
    for name in hardware_names():
        table = tomllib.loads((FILES / f"{name}.toml").read_text())
        for tier in table["tiers"]:
            rate = tier["bytes_per_second"]
            sheets = [other["value"] for other in rate.get("others", ()) if "data sheet" in other["source"]]
            assert all(rate["value"] <= sheet for sheet in sheets), (name, tier["name"])


def test_hardware_is_a_value():
    hardware = load_hardware("v5p")
    assert dataclasses.replace(hardware) == hardware
    assert np.isclose(scale(scale(hardware, "matmul", 2.0), "matmul", 0.5).peak("bfloat16"), hardware.peak("bfloat16"))
