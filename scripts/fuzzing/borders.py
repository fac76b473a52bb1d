"""The borders of the tool, each with inputs for it and what must hold: a checked value, or one line that says what is
wrong; nothing else is raised, and what is accepted can be used."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import lzma
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from fuzzing.mutate import PIECES, documents, texts
from hypothesis import strategies as st

from autotune.calibrate.hardware_file import hardware_toml
from autotune.cli import COMMANDS, autotune, run
from autotune.commands.values import FilePath, Number, Whole
from autotune.compile.compilation import CompileFailure, compilation_from_json
from autotune.hlo.memory_by_category import read_memory
from autotune.hlo.read import read_program
from autotune.meshes.fields import json_object
from autotune.meshes.hardware import FILES, hardware_names, load_hardware, read_hardware
from autotune.meshes.layout import Layout, layout_to_json, parse_layout
from autotune.meshes.placement import place
from autotune.meshes.target import LARGEST_TARGET, parse_target, part_of
from autotune.meshes.transformer import read_transformer
from autotune.models.presets import PRESETS
from autotune.plan.emit import CODEBASES, emit
from autotune.plan.fields import PACKAGES
from autotune.plan.figures import FIGURES, Figures
from autotune.plan.plan import Plan
from autotune.plan.read import plan_from_json
from autotune.price.changes_that_fit import price_one
from autotune.reference_workload import reference_workload, transformer_workload
from autotune.space import parse_fix
from autotune.sweep.sizes import parse_family, parse_sizes, parse_tokens
from autotune.system.versions import installed_versions
from autotune.table import LayoutTable
from autotune.workload.workload import Workload

HLO = Path(__file__).resolve().parents[2] / "tests" / "data" / "hlo"

LAYOUTS = (
    "fsdp=8",
    "data=2,fsdp=16,tensor=4,stage=2,dcn.data=2,zero=1,remat=full,accumulate=2,microbatches=8,schedule=circular",
    "stage=4,microbatches=8,schedule=circular,virtual_stages=2",
    "data=2,context=4,context_attention=ring,sequence_parallel=0",
    "expert=8,offload=optimizer,order=tensor>stage>data>fsdp>context>expert",
    "fsdp=4,tensor=2,rule.mlp=fsdp+tensor,rule.embed=none",
    "data=8,xla.xla_gpu_enable_latency_hiding_scheduler=true,xla.exec_time_optimization_effort=-0.5",
)
TARGETS = ("v5e:16x16", "v5p:4x4x4*2", "h100:8x8", "cpu:8", "tpu7x:2x2x1", "v5e-256", "v5p-128", "a100:1x8", "H100:1x8",
           "gb200:4x72", "64..8192", "64,96,6144", "4M", "15T", "cpu:1048576")  # fmt: skip


@dataclass(frozen=True)
class Border:
    """`inputs`: a strategy. `check`: takes one of its inputs; raises where a promise does not hold."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


def one_line(error: ValueError) -> None:
    """The promise about every refusal."""
    assert str(error).isprintable(), f"a refusal of several lines or with control characters: {str(error)!r}"


def layout(text: str) -> None:
    """What is parsed prints as a text that gives it back, and has a place in a table."""
    try:
        parse_fix((text,))
    except ValueError as error:
        one_line(error)
    try:
        found = parse_layout(text)
    except ValueError as error:
        return one_line(error)
    assert parse_layout(str(found)) == found
    assert found.devices <= LARGEST_TARGET
    json.dumps(layout_to_json(found))
    row = LayoutTable.from_layouts([found]).layout(0)
    assert dataclasses.replace(row, compiler_options=found.compiler_options, rules=found.rules) == found


def target(text: str) -> None:
    """What is parsed has a name that gives it back, and at most the devices that are looked at."""
    for read in (parse_family, parse_sizes, functools.partial(parse_tokens, option="tokens")):
        try:
            read(text)
        except ValueError as error:
            one_line(error)
    try:
        found = parse_target(text)
    except ValueError as error:
        return one_line(error)
    assert 1 <= found.devices <= LARGEST_TARGET and parse_target(found.name) == found
    assert part_of(found, 2).devices >= 1


def model(document: dict[str, Any]) -> None:
    """A shape that is read can be priced: a finite time above 0."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        path.write_text(json.dumps(document))
        try:
            shape = read_transformer(path)
            workload = transformer_workload(shape, batch=8, seq=64, dtype="bfloat16")
        except ValueError as error:
            return one_line(error)
    usable(workload, parse_target("h100:1x8"))


def usable(workload: Workload, machine: Any) -> None:
    """The price of one layout is a finite number above 0."""
    priced = price_one(workload, machine, Layout(fsdp=machine.devices))
    assert 0 < priced.step_seconds < math.inf and 0 < priced.peak_bytes < math.inf, priced


def hardware(text: str) -> None:
    """A chip that is read can be written, read again and priced on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            chip = read_hardware(path)
        except ValueError as error:
            return one_line(error)
        path.write_text(hardware_toml(chip, "again"))
        assert read_hardware(path) == chip
    shape = {"tpu": "mine:2x2" if chip.torus_dimensions == 2 else "mine:2x2x1", "cuda": "mine:1x8", "cpu": "mine:8"}
    try:
        machine = parse_target(shape[chip.platform], chip)
        chip.peak("float32")
    except ValueError as error:
        return one_line(error)
    usable(reference_workload("tiny", batch=64, seq=64, dtype="float32"), machine)


def plan(document: dict[str, Any] | str) -> None:
    """A plan that is read is written as it was, and no line that is emitted of it is its own."""
    try:
        found = plan_from_json(document if isinstance(document, str) else json.dumps(document))
    except ValueError as error:
        return one_line(error)
    assert plan_from_json(found.to_json()) == found
    for codebase in CODEBASES:
        try:
            text = emit(found, codebase)
        except ValueError as error:
            one_line(error)
            continue
        assert all(line.isprintable() for line in text.split("\n")), text
        if codebase in ("flax", "axlearn"):
            compile(text, codebase, "exec")


def hlo(case: tuple[str, str]) -> None:
    """A program is read, or refused in one line."""
    name, text = case
    compilation = saved_programs()[name]
    layout_of = parse_layout(compilation.layout)
    machine = parse_target(compilation.target)
    try:
        memory = read_memory(dataclasses.replace(compilation, text=text))
        program = read_program(
            text, platform=compilation.platform, mesh_shape=layout_of.mesh_shape, memory=memory,
            devices_per_group=machine.devices_per_group, dcn=dict(layout_of.dcn),
        )  # fmt: skip
        assert math.isfinite(program.flops())
    except ValueError as error:
        one_line(error)


@functools.cache
def saved_programs() -> dict[str, Any]:
    """The shortest compiled program of the tests of each platform."""
    read: dict[str, list[Any]] = {}
    for path in sorted(HLO.glob("*.json.xz")):
        values = json.loads(lzma.decompress(path.read_bytes()))
        compilation = compilation_from_json(values["compilation"] if "compilation" in values else values)
        read.setdefault(compilation.platform, []).append((len(compilation.text), path.name, compilation))
    return {
        name: compilation
        for of_one in read.values()
        for _, name, compilation in sorted(of_one, key=lambda one: one[:2])[:1]
    }


@st.composite
def programs(draw: st.DrawFn) -> tuple[str, str]:
    """A saved program with a few changes."""
    name = draw(st.sampled_from(sorted(saved_programs())))
    return name, draw(texts([saved_programs()[name].text], 3))


def plan_documents() -> list[dict[str, Any]]:
    """Plans as `tune` saves them: of a reference model and of a step of one's own, on three machines."""
    found = []
    figures = dict.fromkeys(FIGURES) | {"priced_seconds": 0.5, "mfu": 0.4, "axis_bytes": {"fsdp@ici": 1e6}}
    figures["collectives"] = {"all_gather fsdp@ici": 4}
    for text, name in (
        ("data=2,fsdp=2,tensor=2,zero=1", "cpu:8"),
        ("fsdp=16,tensor=2,remat=full,dcn.fsdp=4", "h100:4x8"),
        ("fsdp=16,order=tensor>stage>data>fsdp>context>expert", "v5e:4x4"),
    ):
        machine, chosen = parse_target(name), parse_layout(text)
        made = Plan(
            layout=chosen, target=name, hardware=machine.hardware.name, shape=machine.shape, groups=machine.groups,
            devices=machine.devices, versions=installed_versions(PACKAGES),
            workload="tiny, batch 64 x 64 tokens, float32",
            device_order=tuple(int(index) for index in place(chosen, machine).device_order().flat), sequences=64,
            fingerprint="0" * 32, recipe={"model": "tiny", "batch": 64, "seq": 64, "dtype": "float32"}, seq=64,
            partition=None, figures=Figures(**figures),
            binding={"resource": "hbm", "elasticity": 0.6, "runner_up": None, "margin": None}, kept_out_by=None,
            runners_up=({"layout": "data=8", "status": "priced", "step_seconds": 0.7, "reason": "slower"},), guesses=(),
        )  # fmt: skip
        found.append(json.loads(made.to_json()))
    leaf = {"names": ["embed", ["fsdp", "tensor"], None], "shape": [64, 64, 4], "role": "parameters", "guessed": False}
    own = {"rules": [["embed", ["fsdp"]]], "mesh_names": {"tensor": "tp"}, "explicit": False, "state": {"w": leaf},
           "batch": {"x": {**leaf, "role": "batch"}}}  # fmt: skip
    return [*found, {**found[0], "recipe": {"workload": "steps:mine"}, "partition": own}]


GOOD = {
    "model": ["tiny", "small", "llama3-8b", "llama3-70b"],
    "target": ["h100:8x8", "cpu:8", "cpu:2", "v5e:2x2", "h100:1x8", "v5p"],
    "batch": ["16", "64", "9007199254740992"],
    "seq": ["64", "4096"],
    "dtype": ["bf16", "float32", "int8"],
    "axes": ["data,fsdp", "tensor"],
    "fix": ["tensor=2", "remat=full,zero=1", "stage=2"],
    "layouts": ["fsdp=8;data=8"],
    "layout": ["fsdp=8", "data=2"],
    "first": ["fsdp=2", "plan.json"],
    "second": ["data=2", "plan.json"],
    "plan": ["plan.json"],
    "chips": ["2..8", "8"],
    "batch_tokens": ["4096", "1M"],
    "codebase": ["flax", "maxtext"],
    "hardware": ["h100", "mine.toml"],
    "scale": ["matmul=2", "latency=0.5"],
    "price": ["cpu=1", "h100=3"],
    "beside": ["none"],
    "workload": ["nowhere:function", "json:nothing", "os"],
    "name": ["v5e", "H100"],
    "compile_count": ["0", "1"],
    "measure_count": ["0", "1"],
    "out": ["out.json"],
    "html": ["out.html"],
    "store": ["store"],
    "plot": ["out.png"],
    "destination": ["all.tar.gz"],
    "picture": ["mix"],
    "tokens": ["1T"],
    "critical_batch_norms": ["0.5M=2.9,4M=1.2"],
    "critical_batch_tokens": ["4M"],
    "overlap": ["none", "data"],
    "batch_rule": ["fixed", "deepseek"],
    "processes": ["2"],
}
"""Values of options that are right, or right somewhere."""

HELD_BACK = ("coordinator", "process_id")
"""Given all together these make the process wait for others."""


def commands() -> list[tuple[list[str], click.Command]]:
    """Every command with the words that name it."""
    found = []
    for name in COMMANDS:
        command = autotune.get_command(click.Context(autotune), name)
        inner = command.commands.items() if isinstance(command, click.Group) else ()
        found += [([name, word], one) for word, one in inner] or [([name], command)]
    return found


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with what it needs, some options that are right, and some that are not."""
    words, command = draw(st.sampled_from(commands()))
    line = list(words)
    wanted = {"model", "target", "batch", "seq", "chips", "batch_tokens", "layout", "codebase", "compile_count"}
    for parameter in command.params:
        name = parameter.name or ""
        if name in HELD_BACK:
            continue
        usual = isinstance(parameter, click.Argument) or name in wanted
        if draw(st.integers(0, 9)) >= (9 if usual else 2):
            continue
        if getattr(parameter, "is_flag", False):
            line.append(draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts])))
            continue
        if name in GOOD and draw(st.integers(0, 5)):
            value = draw(st.sampled_from(GOOD[name]))
        elif isinstance(parameter.type, Number | Whole):
            value = draw(st.one_of(PIECES, st.integers(-3, 5).map(str), st.floats().map(str)))
        elif isinstance(parameter.type, FilePath):
            value = draw(
                st.sampled_from(("", "/dev/null/x", "/proc/nowhere/x", ".", "/", "plan.json", "x" * 5000, "a\0b"))
            )
        else:
            value = draw(st.one_of(PIECES, texts(GOOD.get(name, ["x"]), 2)))
        line += [value] if isinstance(parameter, click.Argument) else [f"{parameter.opts[0]}={value}"]
    if words == ["frontier"] and not any(word.startswith("--hardware=") for word in line):
        line.append(f"--months={draw(st.sampled_from(('nan', '0', '-1', 'x')))}")  # a curve takes seconds
    if words in (["tune"], ["sweep"]):
        line += ["--compile=0"] if words == ["tune"] else []
    return line


def command_line(line: list[str]) -> None:
    """Exit code 0, 1 or 2; 2 says why in its last line; nowhere a traceback."""
    with tempfile.TemporaryDirectory() as folder, quiet(Path(folder)) as (out, err):
        code = run(list(line))
    said = err.getvalue()
    assert code in (0, 1, 2), f"exit code {code}: {said[-3000:]}"
    assert "Traceback" not in said + out.getvalue(), said[-3000:]
    if code == 2:
        lines = said.rstrip("\n").split("\n")
        assert lines[-1].startswith("autotune: ") and lines[-1].isprintable(), said[-500:]
        assert out.getvalue() == "", out.getvalue()[:500]


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """A folder of its own with a plan and a hardware file, both streams caught; nothing is compiled or measured."""
    before, store = os.getcwd(), os.environ.get("AUTOTUNE_STORE")
    out, err = io.StringIO(), io.StringIO()
    (folder / "plan.json").write_text(json.dumps(saved_plan()))
    (folder / "mine.toml").write_text(hardware_toml(load_hardware("h100"), "mine"))
    import autotune.calibrate.calibrate as calibrate
    import autotune.plan.check as check
    import autotune.search as search

    kept = search.compile_all, check.compile_all, calibrate.calibrate
    try:
        os.chdir(folder)
        os.environ["AUTOTUNE_STORE"] = str(folder / "kept")
        search.compile_all = check.compile_all = not_compiled
        calibrate.calibrate = not_measured
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield out, err
    finally:
        search.compile_all, check.compile_all, calibrate.calibrate = kept
        os.chdir(before)
        os.environ.pop("AUTOTUNE_STORE")
        if store is not None:
            os.environ["AUTOTUNE_STORE"] = store


@functools.cache
def saved_plan() -> dict[str, Any]:
    return plan_documents()[0]


def not_compiled(jobs: Any, **options: Any) -> Iterator[tuple[Any, CompileFailure]]:
    """In place of the compiler: every compile fails."""
    for job in jobs:
        yield job, CompileFailure(
            layout=str(job.layout), target=job.target.name, kind="failed", stage="compile", reason="not compiled here",
            last_line=None, traceback=None, source=None, log_path="", seconds=0.0, needed_bytes=None,
            available_bytes=None, arguments=(),
        )  # fmt: skip


def not_measured(machine: Any, **options: Any) -> Any:
    """In place of the measurement: refused."""
    raise ValueError(f"{machine.name}: not measured here")


def borders() -> dict[str, Border]:
    """Every border by name."""
    shapes = [dataclasses.asdict(shape) for shape in PRESETS.values()]
    chips = [(FILES / f"{name}.toml").read_text() for name in hardware_names()]
    plans = plan_documents()
    plan_texts = [json.dumps(document, indent=1) for document in plans]
    assert all(json_object(text, "plan") for text in plan_texts)
    listed = (
        Border("layout", texts(LAYOUTS), layout),
        Border("target", texts(TARGETS), target),
        Border("model", documents(shapes), model),
        Border("hardware", texts(chips), hardware),
        Border("plan", st.one_of(documents(plans), texts(plan_texts)), plan),
        Border("hlo", programs(), hlo),
        Border("command", command_lines(), command_line),
    )
    return {border.name: border for border in listed}
