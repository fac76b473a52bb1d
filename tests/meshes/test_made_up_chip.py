"""A chip that nobody has heard of: one file in a folder is all that the tool needs to search, sweep and tell of it."""

import ast
import contextlib
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune import cli
from autotune.meshes.hardware import FILES, hardware_names, hardware_of_kind, load_hardware, read_hardware
from autotune.meshes.target import parse_target, slice_shapes
from autotune.price.transformer.training_stack import stack_of

ROOT = Path(__file__).parents[2]

TIER = """
[[tiers]]
name = "{name}"
kind = "{kind}"
bytes_per_second = {{ value = {rate}, source = "made up" }}
latency_seconds = {{ value = 1e-6, source = "made up" }}
launch_seconds = {{ value = 1e-5, source = "made up" }}
"""

COMMON = """name = "{name}"
platform = "{platform}"
devices_per_chip = 1
launch_seconds = {{ value = 0.0, source = "made up" }}
matmul_efficiency = {{ value = 0.8, source = "made up" }}
hbm_bytes = {{ value = 64e9, source = "made up" }}
capacity_bytes = {{ value = 60e9, source = "made up" }}
hbm_bytes_per_second = {{ value = 2e12, source = "made up" }}
hbm_efficiency = {{ value = 0.85, source = "made up" }}
flops_per_second.bfloat16 = {{ value = 3e14, source = "made up" }}
flops_per_second.float32 = {{ value = 1e14, source = "made up" }}
"""

LINKS = TIER.format(name="ici", kind="torus", rate="5e10") + TIER.format(name="dcn", kind="switch", rate="5e9")
FLAT, SOLID, FLATTER = (
    COMMON.format(name="quill", platform="tpu") + f"[compile_fields]\ntorus_dimensions = {dimensions}\n" + LINKS
    for dimensions in (2, 3, 0)
)
GPU = (
    COMMON.format(name="quill", platform="cuda")
    + '[compile_fields]\ncuda_compute_capability = "9.0"\ncore_count = 100\nclock_rate_ghz = 1.5\n'
    + TIER.format(name="nvlink", kind="switch", rate="3e11")
    + TIER.format(name="network", kind="switch", rate="4e10")
)
FILES_OF = {
    "a flat TPU": (FLAT, "quill:4x4"),
    "a solid TPU": (SOLID, "quill:2x2x4"),
    "a GPU": (GPU, "quill:2x8"),
    "a copy of one of ours": ((FILES / "v6e.toml").read_text().replace('"v6e"', '"quill"'), "quill:4x4"),
}


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one command printed, and its exit code."""

    exit_code: int
    stdout: str
    stderr: str


def run(*words: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(list(words))
    return Said(exit_code=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(params=FILES_OF, name="target")
def one_file(request, tmp_path, monkeypatch):
    text, target = FILES_OF[request.param]
    (tmp_path / "quill.toml").write_text(text)
    monkeypatch.setenv("AUTOTUNE_HARDWARE", str(tmp_path))
    return target


def test_it_is_tuned_swept_and_told_of(target):
    assert "quill" in hardware_names()
    tuned = run(
        "tune", "--model", "tiny", "--target", target, "--batch", "64", "--seq", "256", "--compile", "0", "--json"
    )
    assert tuned.exit_code == 0, tuned.stderr
    document = json.loads(tuned.stdout)
    assert document["target"] == target and document["best"]["step_seconds"]["priced"] > 0
    swept = run(
        "sweep",
        "--model",
        "llama3-1b",
        "--target",
        "quill",
        "--chips",
        "8,16",
        "--batch-tokens",
        "1M",
        "--seq",
        "2048",
    )
    assert swept.exit_code == 0 and "16" in swept.stdout, swept.stderr
    told = run("targets", "quill")
    assert told.exit_code == 0 and "inherited from" in re.sub(r"[│\s]+", " ", told.stdout)
    assert "quill" in run("targets").stdout


def test_nothing_is_inherited_or_missing_in_silence(target):
    """Every number that the tool takes has a source, and what it inherits says from where."""
    hardware = load_hardware("quill")
    (found,) = json.loads(run("targets", "quill", "--json").stdout)
    assert found["sources"]["hidden_share.fsdp"].startswith(f"inherited from platforms/{hardware.platform}.toml: ")
    assert found["sources"]["host_bytes_per_second"]
    stack = stack_of(hardware, "bfloat16")
    assert stack.hidden_share == dict(hardware.hidden_share) and stack.hidden_share["fsdp"] > 0
    if hardware.platform == "tpu" and hardware.slices is None:
        assert {"slices", "device_kinds", "attention_tile_cycles", "cycle_residuals.matmul"} <= set(found["missing"])
        printed = re.sub(r"[│\s]+", " ", run("targets", "quill").stdout)
        assert "missing: " in printed and "no dimension" in printed
        for shape in slice_shapes(hardware):
            assert parse_target(f"quill:{shape}").devices == math.prod(map(int, shape.split("x")))


def test_its_devices_are_known_by_what_jax_calls_them(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_HARDWARE", str(tmp_path))
    assert hardware_of_kind("Quill 2") is None
    (tmp_path / "quill.toml").write_text('device_kinds = ["Quill"]\n' + GPU)
    assert hardware_of_kind("NVIDIA quill 2") == "quill"
    (tmp_path / "feather.toml").write_text('device_kinds = ["Quill 2"]\n' + GPU.replace('"quill"', '"feather"'))
    assert (hardware_of_kind("Quill 2"), hardware_of_kind("Quill 3")) == ("feather", "quill")
    (tmp_path / "third.toml").write_text('device_kinds = ["QUILL"]\n' + GPU.replace('"quill"', '"third"'))
    with pytest.raises(ValueError, match="files of quill and third name device kind 'Quill 3'"):
        hardware_of_kind("Quill 3")


def test_a_file_that_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_HARDWARE", str(tmp_path))
    path = tmp_path / "quill.toml"
    path.write_text(GPU)
    before = load_hardware("quill").capacity_bytes
    path.write_text(GPU.replace("60e9", "50e9") + "# longer\n")
    assert (before, load_hardware("quill").capacity_bytes) == (60e9, 50e9)
    path.unlink()
    with pytest.raises(ValueError, match="'quill' is not known"):
        load_hardware("quill")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("v5e", GPU, "hardware file .*v5e.toml: .*v5e.toml has that name; give it another"),
        ("quill", GPU.replace('"quill"', '"feather"'), "name='feather' must be the file's own, 'quill'"),
        ("quill", GPU.replace("core_count = 100\n", ""), "compile_fields.core_count is missing"),
        ("quill", FLATTER, "compile_fields.torus_dimensions=0 must be a whole number from 2 to 3"),
        ("quill", 'device_kinds = "Quill"\n' + GPU, "device_kinds='Quill' must be a list"),
        ("quill", GPU + "[hidden_share]\nfsdp = 1.5\n", "hidden_share.fsdp=1.5 must be at most 1"),
        ("quill", GPU + "[hidden_outer]\ndata = [0.5]\n", r"hidden_outer.data=\[0.5\] must be two shares"),
        (
            "quill",
            FLAT + "[slices]\nshapes = []\nmost_chips = 4\n",
            "slices.shapes.* must be a list",
        ),
        (
            "quill",
            FLAT + "[attention_tile_cycles]\nfwd = 1\n",
            "must have fwd, dq, dkv; it has fwd",
        ),
        (
            "quill",
            FLAT + "[cycle_residuals.pass]\nexpected = 0.1\nlow = 0.4\nhigh = 1.0\n",
            "cycle_residuals.pass.expected=0.1 must lie from low=0.4 to high=1",
        ),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, monkeypatch, name, text, message):
    monkeypatch.setenv("AUTOTUNE_HARDWARE", str(tmp_path))
    (tmp_path / f"{name}.toml").write_text(text)
    said = run("targets", name)
    assert said.exit_code == 2 and re.search(message, said.stderr), said.stderr
    assert len([line for line in said.stderr.splitlines() if "hardware file" in line]) == 1


def test_a_folder_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOTUNE_HARDWARE", str(tmp_path / "none"))
    said = run("targets")
    assert said.exit_code == 2 and "none: must be a folder of hardware files" in said.stderr


def test_a_file_given_by_path_needs_no_folder(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GPU)
    assert read_hardware(path).domain_devices == 8
    assert "quill: figures" in run("targets", "--hardware", str(path)).stdout
    assert run("targets", "h100", "--hardware", str(path)).exit_code == 2


def strings_that_decide(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every string of a source file that is no docstring and no f-string's part."""
    tree = ast.parse(path.read_text())
    prose = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose and node not in inside
    ]


def test_no_code_knows_a_chip_by_its_name():
    """A chip is its file: no string in `meshes` and `autotune` is a chip's name, the beginning of one, or the name that
    JAX gives its devices. `autotune frontier` is about the GPUs of a paper, which have figures of their own."""
    names = {name for name in hardware_names() if name != "cpu"}
    kinds = {kind for name in names for kind in load_hardware(name).device_kinds}
    words = names | {name.partition("-")[0] for name in names} | kinds
    pattern = re.compile("|".join(rf"(?:tpu )?{re.escape(word)}\W*" for word in words), re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for folder in ("autotune", "meshes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "frontier" not in str(path.relative_to(ROOT))
        for line, text in strings_that_decide(path)
        if pattern.fullmatch(text)
    ]
    assert not found, found
    assert pattern.fullmatch("v100") and pattern.fullmatch("TPU v5 lite") and not pattern.fullmatch("e.g. v5p")
