"""`--memory-fraction`: the share of a GPU's memory that programs may use, in prices, plans and keys of the store."""

import dataclasses
import json

import pytest

from autotune.cli import run
from autotune.compile.compilation import Candidate
from autotune.compile.compile import store_key
from autotune.meshes import topology
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target, part_of, with_memory_fraction
from autotune.plan.emit import emit
from autotune.plan.read import load_plan
from autotune.reference_workload import reference_workload

JOB = "--model llama3-8b --batch 64 --seq 4096 --compile 0 --axes fsdp,tensor".split()


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    for name in topology.MEMORY_FRACTION:
        monkeypatch.delenv(name, raising=False)


def tune(capsys, *options, target="h100:1x8", code=0):
    assert run(["tune", *JOB, "--target", target, *options]) == code
    return capsys.readouterr()


@pytest.mark.parametrize(("target", "fraction"), [("h100:1x8", 0.9), ("a100-40:2x8", 0.5), ("b200:1x8", 1.0)])
def test_it_sets_what_is_usable_and_is_kept_in_the_plan(target, fraction, capsys, tmp_path):
    plain = json.loads(tune(capsys, "--json", target=target).out)
    path = tmp_path / "plan.json"
    options = ("--memory-fraction", str(fraction), "--out", str(path))
    changed = json.loads(tune(capsys, *options, "--json", target=target).out)
    card = parse_target(target).hardware.hbm_bytes
    assert plain["best"]["capacity_bytes"] == pytest.approx(0.75 * card) and plain["memory_fraction"] is None
    assert changed["best"]["capacity_bytes"] == pytest.approx(fraction * card)
    assert changed["memory_fraction"] == fraction
    assert (changed["counts"]["oom"] - plain["counts"]["oom"]) * (fraction - 0.75) <= 0
    plan = load_plan(path)
    assert plan.memory_fraction == fraction and plan.machine().hardware.capacity_bytes == pytest.approx(fraction * card)
    assert f"XLA_PYTHON_CLIENT_MEM_FRACTION={fraction:g}" in emit(plan, "flax")
    screen = tune(capsys, *options, target=target).out
    assert f"{100 * fraction:g} % of its memory" in screen.splitlines()[0]
    assert f"a run needs: XLA_PYTHON_CLIENT_MEM_FRACTION={fraction:g}" in screen


def test_a_plan_brings_its_share_along_and_a_flag_wins(capsys, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    tune(capsys, "--memory-fraction", "0.9", "--out", str(path))
    seen = []

    def search(workload, target, **options):
        seen.append(target)
        raise ValueError("seen")

    monkeypatch.setattr("autotune.search.search", search)
    monkeypatch.setattr("autotune.commands.run.require_compiler", lambda target: None)
    for flags in ((), ("--memory-fraction", "0.6"), ("--target", "h200:1x8")):
        assert run(["explain", str(path), *flags]) == 2
    assert [target.memory_fraction for target in seen] == [0.9, 0.6, None]
    assert run(["compare", str(path), str(path)]) == 2
    assert seen[-1].memory_fraction == 0.9


def test_it_is_part_of_the_key_of_the_store():
    workload = reference_workload("tiny", batch=16, seq=64, dtype="bfloat16")
    target = parse_target("h100:1x8")
    targets = [target, *(with_memory_fraction(target, share) for share in (0.6, 0.9))]
    keys = [store_key(Candidate(workload=workload, layout=parse_layout("fsdp=8"), target=one)) for one in targets]
    assert len({key.digest for key in keys}) == 3
    assert part_of(targets[2], 2).memory_fraction == 0.9


@pytest.mark.parametrize(
    ("target", "fraction", "said"),
    [
        ("h100:1x8", "0", "--memory-fraction=0 must be above 0 and at most 1"),
        ("h100:1x8", "1.5", "--memory-fraction=1.5 must be"),
        ("h100:1x8", "nan", "--memory-fraction=nan must be"),
        ("h100:1x8", "-0.5", "--memory-fraction=-0.5 must be"),
        ("v5e:4x4", "0.9", "--memory-fraction=0.9 is for GPUs; the usable memory of v5e"),
        ("cpu:8", "0.9", "is for GPUs"),
        ("h100:1x8", "most", "--memory-fraction"),
    ],
)
def test_a_bad_share_is_one_line(target, fraction, said, capsys):
    for command in (["tune", *JOB], ["sweep", *JOB[:2], "--batch-tokens", "1M", "--seq", "4096", "--chips", "8"]):
        name = target if command[0] == "tune" else target.partition(":")[0]
        assert run([*command, "--target", name, "--memory-fraction", fraction]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_a_plan_with_a_bad_share_is_refused(capsys, tmp_path):
    path = tmp_path / "plan.json"
    tune(capsys, "--memory-fraction", "0.9", "--out", str(path))
    values = json.loads(path.read_text())
    for bad, said in ((2, "memory_fraction=2 must be above 0"), ("much", "memory_fraction='much' must be a whole")):
        path.write_text(json.dumps(values | {"memory_fraction": bad}))
        with pytest.raises(ValueError, match=said):
            load_plan(path)
    del values["memory_fraction"]  # a plan that says nothing of it
    path.write_text(json.dumps(values))
    assert load_plan(path).memory_fraction is None


def test_sweep_takes_it_too(capsys):
    command = "sweep --model llama3-70b --target h100 --chips 32 --batch-tokens 512Ki --seq 4096 --json".split()
    peaks = []
    for fraction in ("0.75", "0.95"):
        assert run([*command, "--memory-fraction", fraction]) == 0
        (point,) = json.loads(capsys.readouterr().out)["targets"][0]["points"]
        peaks.append((point["peak_bytes"], point["step_seconds"]))
    card = parse_target("h100:4x8").hardware.hbm_bytes
    assert peaks[0][0] <= 0.75 * card and peaks[1][1] <= peaks[0][1]


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    process_index: int = 0


@pytest.mark.parametrize("variable", topology.MEMORY_FRACTION)
def test_of_local_the_default_is_what_jax_is_told(variable, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: [Device(id=number) for number in range(8)])
    assert topology.local_target().memory_fraction is None
    monkeypatch.setenv(variable, ".92")
    target = topology.local_target()
    assert target.memory_fraction == 0.92
    assert target.hardware.capacity_bytes == pytest.approx(0.92 * target.hardware.hbm_bytes)
    monkeypatch.setenv(variable, "most of it")
    with pytest.raises(ValueError, match=f"{variable}='most of it' must be a number"):
        topology.local_target()


def test_a_flag_of_local_is_told_to_jax(monkeypatch):
    from autotune.commands.options import target_of

    monkeypatch.setattr("jax.devices", lambda: [Device(id=number) for number in range(8)])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert target_of("local", None).memory_fraction == 0.5
    assert target_of("local", None, 0.8).memory_fraction == 0.8
    import os

    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.8"


def test_devices_that_are_no_gpus_do_not_hear_of_it(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert topology.local_target().memory_fraction is None
