"""Every border takes what it should and answers the rest in one line: options of all commands, plans, flags beside."""

import dataclasses
import json
import sys

import click
import pytest
from every_command import commands
from test_plan import PLAN, plan_for

from autotune.cli import run
from autotune.commands.options import asked_of
from autotune.commands.values import FilePath, Number, OneOf, Whole, Word
from autotune.meshes.dtypes import ALIASES, dtype_of
from autotune.meshes.fields import Fields, json_object, one_line
from autotune.meshes.layout import parse_layout
from autotune.meshes.xla_options import FILE_OPTIONS, why_not_of_a_file
from autotune.plan.emit import CODEBASES, emit
from autotune.plan.read import load_plan, plan_from_json

MODEL = ("--model", "tiny", "--batch", "16", "--seq", "64", "--target", "cpu:2")
BASE = {
    "tune": (*MODEL, "--compile", "0", "--measure", "0"),
    "explain": ("--layout", "data=2", *MODEL),
    "compare": ("data=2", "fsdp=2", *MODEL),
    "sweep": ("--model", "tiny", "--target", "cpu", "--chips", "2", "--batch-tokens", "1024", "--seq", "64"),
    "frontier": (),
    "calibrate": ("--target", "cpu:2"),
    "check": ("PLAN",),
    "emit": ("PLAN", "--for", "flax"),
    "store list": (),
    "store export": ("TMP/all.tar.gz",),
    "store prune": ("--keep-mib", "1"),
    "targets": ("v5e",),
    "models": ("tiny",),
    "words": ("mfu",),
    "selftest": (),
}
"""Arguments of each command that are right, so that one bad value is all that is wrong."""

ANYWHERE = ("", "  ", "\n", "x\0y", "x" * 5000, "/dev/null/no/where\x1b[2J")
"""Bad as a number, as a word and as a path."""

NO_NUMBER = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0x10",
    "1_000",
    "1,5",
    "\u0663",
    "eight",
    "9" * 400,
    "1 2",
    "--",
    "{}",
)
"""Bad as any number that an option takes."""


CASES = [
    (name, parameter)
    for name, command in commands()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


def test_every_command_has_arguments_here():
    assert {name for name, _ in commands()} == BASE.keys()


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=[f"{name}-{one.name}" for name, one in CASES])
def test_a_bad_value_of_any_option_is_exit_2_and_one_line(name, parameter, tmp_path, monkeypatch, capsys):
    assert isinstance(parameter.type, Number | Whole | Word | FilePath | OneOf), (
        "an option that takes whatever it is given"
    )
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    plan_for("data=2", "cpu:2").save(tmp_path / "plan.json")
    base = [word.replace("PLAN", "plan.json").replace("TMP", str(tmp_path)) for word in BASE[name]]
    bad = (*ANYWHERE, *NO_NUMBER) if isinstance(parameter.type, Number | Whole) else ANYWHERE
    for value in bad:
        if isinstance(parameter, click.Argument):
            place = {"plan": 0, "first": 0, "second": 1, "name": 0, "model": 0, "word": 0, "destination": 0}[
                parameter.name
            ]
            if name == "explain":
                words = [*name.split(), value]
            else:
                words = [*name.split(), *base[:place], value, *base[place + 1 :]]
        else:
            words = [*name.split(), *base, f"{parameter.opts[0]}={value}"]
        code = run(words)
        said = capsys.readouterr()
        assert code == 2, (value[:40], code, said.err[-2000:])
        assert said.out == "" and said.err.count("\n") == 1 and said.err.rstrip("\n").isprintable(), (value[:40], said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dtype", "bf61"), "dtype: 'bf61' must be one of bfloat16 or bf16"),
        (("--dtype", "int8"), "dtype: 'int8' must be one of"),
        (("--matmul-dtype", "int4"), "--matmul-dtype='int4' must be one of float8, int8; did you mean 'int8'?"),
        (("--matmul-dtype", "fp8", "--target", "v4:2x2x2"), "--matmul-dtype=float8: v4 has no peak for it"),
        (("--matmul-dtype", "int8", "--target", "h100:1x8"), "--matmul-dtype=int8: XLA compiles no int8 matmul"),
        (("--batch", "9007199254740993"), "--batch=9007199254740993 must be at most"),
        (("--batch", "9007199254740992", "--seq", "2"), "must be at most 2^53 tokens"),
        (("--batch", "16.5"), "--batch=16.5 must be a whole number"),
        (("--axes", ","), "an empty name is not a mesh axis"),
        (("--axes", "data,fsdp,data"), "'data' is named twice"),
        (("--axes", "date"), "did you mean 'data'"),
        (("--fix", "tensor=2", "--fix", "tensor=1"), "tensor is given twice"),
        (("--fix", "tensr=2"), "did you mean 'tensor'"),
        (("--fix", "accumulate=99999999999999999999999"), "must be a whole number"),
        (("--fix", "accumulate=200000000"), "must be at most 67,108,864"),
        (("--layouts", "data=1000000000000"), "data=1000000000000 must be at most 1,048,576"),
        (("--layouts", "data=1048576,fsdp=2"), "multiply to 2,097,152 devices"),
        (("--layouts", ";"), "names none"),
        (("--fix", "xla.xla-dump-to=/x"), "options have names of small letters"),
        (("--target", "cpu:100000000"), "at most 1,048,576"),
        (("--timeout", "nan"), "--timeout=nan must be a finite number"),
        (("--timeout", "1e300"), "--timeout=1e300 must be at most 1e+07"),
        (("--jobs", "0"), "--jobs=0 must be 1 or more"),
    ],
)
def test_a_value_that_cannot_be_is_answered_with_the_rule(words, said, capsys):
    assert run(["tune", *BASE["tune"], *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("words", [("9007199254740992", "1"), ("8", "1125899906842624")])
def test_the_largest_step_is_priced(words, capsys):
    batch, seq = words
    line = [
        "tune",
        "--model",
        "tiny",
        "--target",
        "cpu:8",
        "--compile",
        "0",
        "--measure",
        "0",
        "--json",
        "--axes",
        "data",
    ]
    assert run([*line, "--batch", batch, "--seq", seq]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (
        found["best"] is None and found["counts"].keys() <= {"oom", "illegal"} and found["closest"]["peak_bytes"] > 1e12
    )


def test_dtypes_by_all_their_names():
    assert {
        name: {dtype_of(one.upper(), tuple(ALIASES)) for one in (name, *others)} for name, others in ALIASES.items()
    } == {name: {name} for name in ALIASES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload": "llama\nimport os"}, "workload='llama.nimport os' holds a control character"),
        ({"workload": "llama\u2028x"}, "holds a control character"),
        ({"guesses": ["\x1b[2J"]}, "guesses=.*holds a control character"),
        ({"runners_up": [{"rea\nson": "x"}]}, "a key of runners_up=.*holds a control character"),
        (
            {"text": "fsdp=2,tensor=4,xla.xla_gpu_cuda_data_dir=/evil"},
            "xla.xla_gpu_cuda_data_dir='/evil' is no option that",
        ),
        ({"text": "fsdp=2,tensor=4,xla.xla_dump_to=here"}, "xla.xla_dump_to='here' is no option that a file may set"),
        ({"text": "fsdp=2,tensor=4,xla.xla_gpu_ptx_file=1"}, "is no option that a file may set"),
        ({"text": "fsdp=2,tensor=4,xla.xla_gpu_autotune_level=/evil"}, "must be true, false, a number or one word"),
        ({"text": "data=1000000000000", "devices": 10**12}, "data=1000000000000 must be at most 1,048,576"),
        ({"devices": 10**12}, "devices=1000000000000 must be a whole number from 1 to"),
        ({"device_order": [0]}, "device_order must name each of the 8 devices once"),
        ({"figures": {**json.loads(PLAN.to_json())["figures"], "mfu": -1}}, "figures: mfu=-1 must be at least 0"),
        ({"sequences": 2**53, "recipe": {}}, "must be at most 2.53 tokens"),
        ({"sequences": 10**30}, "sequences=1000000000000000000000000000000 must be below 2.63"),
        ({"recipe": {"model": "tiny"}}, "recipe.batch is missing"),
        (
            {"recipe": {"model": "tiny", "batch": 7, "seq": 8, "dtype": "float32"}},
            "recipe.batch=7 must be the plan's 16",
        ),
        ({"recipe": {"model": "tiny", "batch": 16, "seq": 8, "dtype": "f99"}}, "recipe.dtype: 'f99' must be one of"),
        ({"shape": []}, "shape=.* must hold whole numbers"),
        ({"groups": 0}, "groups=0 must be a whole number from 1"),
    ],
)
def test_a_hostile_plan_is_refused_in_one_line(change, message):
    text = json.dumps(json.loads(PLAN.to_json()) | change)
    with pytest.raises(ValueError, match=message) as caught:
        plan_from_json(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply|must be one JSON object"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"schema": NaN}', "NaN is no number that JSON has"),
        ('{"schema": 1e999}', "schema=inf must be a finite number"),
        ('{"schema": 1, "schema": 1}', "'schema' is given twice"),
        ('{"schema": ' + "9" * 5000 + "}", "not JSON|below 2.63"),
        ('{"a": "\\ud800"}', "holds a control character"),
    ],
)
def test_json_that_no_file_of_ours_holds(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        json_object(text, "plan x")
    assert str(caught.value).startswith("plan x: ") and str(caught.value).isprintable()


def test_no_option_of_a_file_names_a_path_and_every_chips_own_are_among_them():
    told = {
        "dir",
        "path",
        "file",
        "dump",
        "filename",
        "from",
        "cache",
        "extra",
        "flags",
        "re",
        "load",
        "log",
        "logs",
    }
    assert not [name for name in FILE_OPTIONS if told & set(name.split("_")) or name.endswith("_to")]
    assert why_not_of_a_file("xla_gpu_enable_latency_hiding_schedulr", True).endswith(
        "did you mean 'xla_gpu_enable_latency_hiding_scheduler'?"
    )
    assert why_not_of_a_file("xla_tpu_scoped_vmem_limit_kib", 98304) is None


@pytest.mark.parametrize("codebase", CODEBASES)
def test_what_is_emitted_has_no_line_that_the_plan_wrote(codebase):
    evil = "name\nimport os; os.system('x')\r\u2028import os\x85--flag=$(rm)\x1b[2J"
    layout = dataclasses.replace(parse_layout("fsdp=2,tensor=4"), rules=(("a'b\"c", ("fsdp",)),))
    told = emit(dataclasses.replace(PLAN, workload=evil, target="cpu:8", layout=layout, partition=None), codebase)
    plain = emit(
        dataclasses.replace(PLAN, workload="name", layout=parse_layout("fsdp=2,tensor=4"), partition=None), codebase
    )
    assert len(told.splitlines()) - len(plain.splitlines()) in (0, 1)  # one more: the rule
    assert all(line.isprintable() for line in told.split("\n"))
    assert not [line for line in told.splitlines() if "os.system" in line and not line.startswith("#")]
    if codebase in ("flax", "axlearn"):
        compile(told, codebase, "exec")


def test_one_line_keeps_what_can_be_read():
    assert one_line("é 中 fsdp=8 'x'") == "é 中 fsdp=8 'x'"
    assert one_line("\udcff\n").isprintable()


def test_fields_say_file_field_value_and_rule():
    read = Fields("plan p", {"a": True, "b": 3, "c": "x", "d": {"e": float("nan")}})
    for attempt, said in (
        (lambda: read.whole("a", 0, 9), "plan p: a=True must be a whole number"),
        (lambda: read.whole("b", 4, 9), "plan p: b=3 must be a whole number from 4 to 9"),
        (lambda: read.text("c", ("xy", "z")), "plan p: c='x' must be one of xy, z"),
        (lambda: read.inside("d").number("e", 0, 1), "plan p: d.e=nan must be at least 0"),
        (lambda: read.only(("aa", "b", "c", "d")), "plan p: a is not known"),
    ):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert str(caught.value).startswith(said)


def saved(tmp_path, **changes):
    plan = dataclasses.replace(PLAN, **changes)
    plan.save(tmp_path / "plan.json")
    return load_plan(tmp_path / "plan.json"), tmp_path / "plan.json"


def test_a_flag_beside_a_plan_wins_and_is_said(tmp_path):
    plan, path = saved(tmp_path)
    same = asked_of(plan, path, batch=16, dtype="fp32", target="CPU:8")
    assert same.instead == () and same.words == asked_of(plan, path).words
    assert same.words == {"model": "tiny", "workload": None, "batch": 16, "seq": 8, "dtype": "float32", "training": {}}
    other = asked_of(plan, path, batch=7, dtype="bf16", target="cpu:2x4", model="small")
    assert other.words == {"model": "small", "workload": None, "batch": 7, "seq": 8, "dtype": "bfloat16"}
    assert other.target == "cpu:2x4"
    assert other.instead == (
        f"--model small ({path} says tiny)", f"--batch 7 ({path} says 16)",
        f"--dtype bfloat16 ({path} says float32)", f"--target cpu:2x4 ({path} says cpu:8)",
    )  # fmt: skip
    own = asked_of(plan, path, workload="steps:mine")
    assert own.words == dict.fromkeys(("model", "batch", "seq", "dtype")) | {"workload": "steps:mine"}
    assert own.instead == (f"--workload steps:mine ({path} names none)",)


def test_another_hardware_file_is_said_and_the_same_one_is_not(tmp_path):
    from autotune.calibrate.hardware_file import hardware_toml
    from autotune.meshes.hardware import load_hardware, scale

    plan, path = saved(tmp_path)
    chip = load_hardware("cpu")
    (tmp_path / "same.toml").write_text(hardware_toml(chip, "a copy"))
    (tmp_path / "mine.toml").write_text(hardware_toml(scale(chip, "matmul", 2.0), "mine"))
    assert asked_of(plan, path, hardware=tmp_path / "same.toml").instead == ()
    [phrase] = asked_of(plan, path, hardware=tmp_path / "mine.toml").instead
    assert phrase == f"--hardware {tmp_path / 'mine.toml'} ({path} says cpu)"


@pytest.mark.parametrize(
    "words", [("explain", "plan.json"), ("check", "plan.json"), ("compare", "plan.json", "fsdp=8")]
)
def test_the_function_a_plan_names_is_imported_only_where_it_is_said_again(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil_module.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\ndef workload(): return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    saved(tmp_path, recipe={"workload": "evil_module:workload"})
    assert run(list(words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--workload evil_module:workload" in said and "a plan is data" in said
    assert not (tmp_path / "ran").exists() and "evil_module" not in sys.modules
    assert run([*words, "--workload", "evil_module:workload"]) == 2
    assert "evil_module:workload gives int" in capsys.readouterr().err and (tmp_path / "ran").exists()
    sys.modules.pop("evil_module")


@pytest.mark.parametrize("name", ["fifo.json", "folder.json"])
def test_what_is_no_regular_file_is_not_read(name, tmp_path, capsys):
    import os

    path = tmp_path / name
    os.mkfifo(path) if name.startswith("fifo") else path.mkdir()
    for words in (["explain", str(path)], ["tune", *BASE["tune"], "--model", str(path)]):
        assert run(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert any(rule in said for rule in ("is a folder", "the folder holds no config.json", "is no regular file"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["targets", "local"], "local stands alone and means the devices of this machine; here a chip is wanted"),
        (["sweep", "--model", "tiny", "--target", "local", "--chips", "8", "--seq", "8"], "'local' has one size"),
        (["tune", "--model", "tiny", "--target", "local:4", "--batch", "8", "--seq", "8"], "local stands alone"),
        (["explain", "plan.json"], "plan plan.json: text is missing"),
        (["check", "plan.json"], "plan plan.json: text is missing"),
        (["store"], "store: a command is missing; one of export, list, prune"),
    ],
)
def test_a_message_says_each_thing_once(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text('{"schema": 1}')
    assert run(line) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told and "did you mean 'local'" not in told and told.count("plan.json") <= 1
