"""A program that cannot be read costs its own layout and nothing else; text that was cut is no smaller program."""

import random
import re
import shutil
import time
from pathlib import Path

import pytest
from hlo_fixtures import NAMES, NO_MEMORY, saved

from autotune.compile.compilation import Candidate
from autotune.compile.compile import store_key
from autotune.hlo.flops import _valid_pairs
from autotune.hlo.read import read_program
from autotune.hlo.text import read_module
from autotune.hlo.unreadable import UnreadableProgram
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.plan.check import CheckFailed, check_plan
from autotune.search import tune
from autotune.store import Key, Store
from autotune.workload.from_name import load_workload

LAYOUTS = tuple(parse_layout(text) for text in ("data=2", "fsdp=2"))
HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=2\n\n"
SMALL = min(NAMES, key=lambda name: len(saved(name)["compilation"]["text"]))


def read(text: str, platform: str = "cpu"):
    return read_program(text, platform=platform, mesh_shape={"data": 2}, devices_per_group=2, memory=NO_MEMORY)


# -- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.1, 0.38, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("at_a_line", [False, True])
def test_a_cut_text_is_refused_wherever_it_is_cut(part, at_a_line):
    text = saved(SMALL)["compilation"]["text"].rstrip()
    cut = text[: int(len(text) * part)]
    if at_a_line:
        cut = cut[: cut.rindex("\n") + 1]
    with pytest.raises(UnreadableProgram):
        read_module(cut)
    read_module(text)


def test_a_text_that_lost_lines_is_refused():
    """Any line of a computation that another one names; what is left would be read as a smaller program."""
    lines = saved(SMALL)["compilation"]["text"].rstrip().split("\n")
    whole, randomness = len(lines), random.Random(0)
    for _ in range(40):
        place = randomness.randrange(whole)
        text = "\n".join(lines[:place] + lines[place + 1 :])
        try:
            module = read_module(text)
        except UnreadableProgram:
            continue
        # What nobody names may go: a line of a table, an empty one, a value that is never used.
        assert lines[place].strip() == "" or " = " not in lines[place] or _unused(module, lines[place])


def _unused(module, line: str) -> bool:
    name = line.split(" = ")[0].split()[-1].lstrip("%")
    return not any(name in op.operands for computation in module.computations.values() for op in computation.ops)


ENTRY = HEADER + "ENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[8]{0} parameter(0)\n"
CALLS = "\n".join(
    f"%f{number} (p: f32[]) -> f32[] {{\n  %p = f32[] parameter(0)\n"
    + (
        "  ROOT %r = f32[] negate(%p)\n"
        if number == 0
        else f"  %l = f32[] call(%p), to_apply=%f{number - 1}\n  ROOT %r = f32[] call(%l), to_apply=%f{number - 1}\n"
    )
    + "}\n"
    for number in range(40)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENTRY + "  ROOT %s = q7[8]{0} add(%a, %a)\n}\n", "dtype 'q7' is not known"),
        (ENTRY + "  ROOT %s = f32[8]{0} fusion(%a), kind=kLoop, calls=%gone\n}\n", "no such computation before it"),
        (ENTRY + "  ROOT %s = f32[8]{0} fusion(%a), kind=kLoop\n}\n", "no such computation"),
        (ENTRY + "  ROOT %s = f32[8]{0} add(%a, %b)\n}\n", "takes 'b'"),
        (ENTRY + "  ROOT %s = f32[8]{0} add(%s, %a)\n}\n", "takes 's'"),
        (ENTRY + "  %s = f32[8]{0} add(%a, %a)\n}\n", "has no root"),
        (ENTRY + "  ROOT %a = f32[8]{0} add(%a, %a)\n}\n", "two instructions 'a'"),
        (ENTRY + "  ROOT %s = f32[8]{0} add(%a, %a\n}\n", "no compiled module"),
        (ENTRY + "  ROOT %s = f32[8]{0} add %a\n}\n", "cannot read the instruction"),
        (ENTRY + "  ROOT %s = f32[8]{0} add(%a, %a), metadata={\n}\n", "in the middle of the computation main"),
        (ENTRY + '  ROOT %s = f32[8]{0} add(%a, %a), metadata={op_name="x}\n}\n', "in the middle of"),
        (ENTRY + "  ROOT %s = f32[8]{0} add(%a, %a)\n", "in the middle of the computation main"),
        (ENTRY.replace("=2", "=3") + "  ROOT %s = f32[8]{0} add(%a, %a)\n}\n", "the program has 3 partitions"),
        (HEADER + "  %a = f32[8]{0} parameter(0)\n}\n", "outside of a computation"),
        (ENTRY + "  ROOT %s = f32[999999999999,999999999999]{1,0} add(%a, %a)\n}\n", "larger than any memory"),
        (ENTRY + "  ROOT %s = f32[8]{0} all-reduce(%a), replica_groups=a_new_spelling, to_apply=%add\n}\n", "replica"),
        (ENTRY + "  ROOT %s = f32[8]{0} all-reduce(%a), replica_groups=[1,2]<=[2]T(5)\n}\n", "cannot be read"),
        (ENTRY + "  ROOT %s = f32[8]{0} all-gather(%a), replica_groups=[1,99999999999]<=[99999999999]\n}\n", "devices"),
        (ENTRY + "  ROOT %s = f32[8]{0} collective-permute(%a), source_target_pairs={{0,7}}\n}\n", "cannot be read"),
        (ENTRY + "  ROOT %s = f32[8]{0} dot(%a), lhs_contracting_dims={0}, rhs_contracting_dims={0}\n}\n", "read"),
        (ENTRY + "  ROOT %s = f32[8]{0} convolution(%a, %a), window={size=3}\n}\n", "has no dim_labels"),
        (ENTRY + "  ROOT %s = f32[8]{0} get-tuple-element(%a), index=two\n}\n", None),
        ("", "must begin with HloModule"),
        ("\0" * 100, "must begin with HloModule"),
        (HEADER, "no ENTRY"),
        (HEADER + CALLS + ENTRY.removeprefix(HEADER) + "  ROOT %s = f32[8]{0} call(%a), to_apply=%f39\n}\n", "runs"),
    ],
)
def test_every_kind_of_damage_is_the_one_error_in_one_line(text, said):
    began = time.process_time()
    if said is None:  # nothing here needs what is damaged
        read(text)
    else:
        with pytest.raises(UnreadableProgram, match=said) as caught:
            read(text)
        assert "\n" not in str(caught.value)
    assert time.process_time() - began < 2


def test_random_damage_ends_in_a_program_or_in_the_one_error():
    text, randomness = saved(SMALL)["compilation"]["text"], random.Random(3)
    lines = text.split("\n")
    for _ in range(60):
        damaged = list(lines)
        for _ in range(randomness.choice((1, 1, 4))):
            place = randomness.randrange(len(damaged))
            line = damaged[place]
            at = randomness.randrange(len(line) + 1)
            change = randomness.choice(('"', "{", "}", "(", ")", "9" * 12, "-", "%", ",", "=", "\n", ""))
            damaged[place] = line[:at] + change + line[at + randomness.choice((0, 1, 5)) :]
        try:
            read_module("\n".join(damaged))
        except UnreadableProgram as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("opened", ["{", '"', "(", 'metadata={op_name="'])
def test_reading_unbalanced_text_takes_time_in_proportion(opened):
    """The first line of a computation never closes, and all that follows is looked at as its continuation."""
    filler = '  %s{0} = f32[8]{{0}} add(%a, %a), metadata={{op_name="jit(step)/layer" stack_frame_id=3}}\n'

    def seconds(lines: int) -> float:
        text = ENTRY + f"  %b = f32[8]{{0}} add(%a, %a), x={opened}\n" + "".join(map(filler.format, range(lines)))
        begin = time.process_time()
        with pytest.raises(UnreadableProgram):
            read_module(text)
        return time.process_time() - begin

    short, long = seconds(10_000), seconds(80_000)
    assert long < 3 * 8 * max(short, 0.01) and long < 10


def test_pairs_of_a_convolution_are_counted_as_one_by_one():
    def one_by_one(have, give, size, stride, low, dilation, window_dilation):
        at = [place * stride - low + tap * window_dilation for place in range(give) for tap in range(size)]
        return sum(place >= 0 and place % dilation == 0 and place // dilation < have for place in at)

    randomness = random.Random(0)
    for _ in range(3000):
        case = [
            randomness.randint(low, high) for low, high in ((1, 12), (1, 14), (2, 9), (1, 4), (-6, 9), (1, 6), (1, 5))
        ]
        assert _valid_pairs(*case) == one_by_one(*case), case
    assert _valid_pairs(10**12, 10**12, 3, 1, 1, 1, 1) == 3 * 10**12 - 2
    with pytest.raises(UnreadableProgram):
        _valid_pairs(10**12, 10**12, 10**12, 1, 1, 1, 1)


# -- the search -------------------------------------------------------------------------------------------------------


def search(store: Store):
    return tune(load_workload("toy_steps:own_step"), "cpu:2", layouts=LAYOUTS, compile=2, measure=0, store=store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(a store that holds a search over two layouts, its report)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(Store(folder))


def damaged(whole, tmp_path: Path, change, kind: str = "compile"):
    """The report of a repeat whose kept entry of fsdp=2 was changed, and what the store said."""
    folder = Path(shutil.copytree(whole[0], tmp_path / "store"))
    said: list[str] = []
    store = Store(folder, warn=said.append)
    for entry in store.entries():
        if kind == "compile" and entry.kind == "blob":
            entry.path.unlink()  # what was read of the whole program before
        if kind == "compile" and entry.kind == "compile" and "fsdp=2" in entry.key["layout"]:
            value = store._read(entry.path)
            store.put(Key(**entry.key), "compile", change(value))
        if kind == "evidence" and entry.kind == "blob":
            value = store._read(entry.path)
            store.put_blob(entry.key["name"], change(value))
    return search(store), said


def text_with(change):
    return lambda value: {**value, "text": change(value["text"])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (text_with(lambda text: text.replace("f32[", "q7[")), "the dtype 'q7' is not known"),
        (text_with(lambda text: text.replace("%fused", "%lost", 1)), "no such computation"),
        (text_with(lambda text: text[: len(text) // 2]), "ends in the middle|no ENTRY"),
        (text_with(lambda text: text.replace("num_partitions=2", "num_partitions=5")), "5 partitions"),
        (text_with(lambda text: re.sub(r"replica_groups=[^ ]*,", "replica_groups=a_new_spelling,", text)), "replica"),
        (text_with(lambda text: text.replace(" {\n", "\n")), "outside of a computation"),
        (text_with(lambda text: "not a program"), "must begin with HloModule"),
        (lambda value: {**value, "arguments": value["arguments"][:-1]}, "parameters, the step"),
        (lambda value: {**value, "memory": {}}, "its memory cannot be read"),
    ],
)
def test_a_program_that_cannot_be_read_is_a_failed_row_with_its_log(whole, tmp_path, change, said):
    report, _ = damaged(whole, tmp_path, change)
    rows = {str(row.layout): row for row in report.rows}
    good, bad = rows["data=2"], rows["fsdp=2"]
    assert good.status == "compiled" and report.plan_or_none is not None
    assert bad.status == "failed" and bad.log
    assert "its program cannot be read" in bad.reason and re.search(said, bad.reason), bad.reason
    again, _ = damaged(whole, tmp_path / "again", change)
    assert [row.status for row in again.rows] == [row.status for row in report.rows]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: {**value, "field_of_a_newer_version": 1},
        lambda value: {name: one for name, one in value.items() if name != "text"},
        lambda value: {**value, "text": 5},
        lambda value: {**value, "memory": {"peak_memory_in_bytes": "much"}},
        lambda value: {**value, "arguments": [{**value["arguments"][0], "newer": 1}]},
    ],
)
def test_a_compile_that_does_not_rebuild_counts_as_absent(whole, tmp_path, change, monkeypatch):
    """It is compiled again: here by a stand-in that gives what was kept at first."""
    from autotune.compile import compile as compiling
    from autotune.compile.compilation import compilation_from_json

    first = Store(whole[0])
    kept = [
        compilation_from_json(first._read(entry.path))
        for entry in first.entries()
        if entry.kind == "compile" and "fsdp=2" in entry.key["layout"]
    ]

    def in_processes(tasks, workers, timeout_seconds):
        yield [(index, None, 0.0) for index in tasks]
        yield [(index, kept[0], 1.0) for index in tasks]

    monkeypatch.setattr(compiling, "_in_processes", in_processes)
    report, said = damaged(whole, tmp_path, change)
    assert [(row.layout, row.status) for row in report.rows] == [(row.layout, row.status) for row in whole[1].rows]
    assert len(said) == 1 and "does not rebuild" in said[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: {**value, "newer": 1},
        lambda value: {name: one for name, one in value.items() if name != "memory"},
        lambda value: {**value, "flops": "many"},
        lambda value: {**value, "prediction": {**value["prediction"], "step_seconds": None}},
    ],
)
def test_evidence_that_does_not_rebuild_is_read_anew(whole, tmp_path, change):
    report, said = damaged(whole, tmp_path, change, kind="evidence")
    assert [(row.layout, row.step_seconds) for row in report.rows] == [
        (row.layout, row.step_seconds) for row in whole[1].rows
    ]
    assert said and all("does not rebuild" in line for line in said)


def test_a_plan_whose_program_cannot_be_read_does_not_hold(whole, tmp_path):
    folder = Path(shutil.copytree(whole[0], tmp_path / "store"))
    store, workload, target = Store(folder), load_workload("toy_steps:own_step"), parse_target("cpu:2")
    plan = whole[1].plan_or_none
    key = store_key(Candidate(workload=workload, layout=plan.layout, target=target))
    value = store.get(key, "compile")
    store.put(key, "compile", {**value, "text": value["text"][:5000]})
    with pytest.raises(CheckFailed, match="compiles, and its program cannot be read: hlo: "):
        check_plan(plan, workload, store=store)


def test_kept_crashes_are_counted_in_the_report(whole, tmp_path):
    folder = Path(shutil.copytree(whole[0], tmp_path / "store"))
    store = Store(folder)
    for entry in store.entries():
        if entry.kind == "compile" and "fsdp=2" in entry.key["layout"]:
            failure = {
                "layout": "fsdp=2", "target": "cpu:2", "kind": "crash", "stage": "compile", "last_line": None,
                "reason": "the worker process was killed by SIGSEGV (Segmentation fault)", "traceback": None,
                "source": None, "log_path": "log", "seconds": 1.0, "needed_bytes": None, "available_bytes": None,
                "arguments": [],
            }  # fmt: skip
            store.put(Key(**entry.key), "failure", failure)
    report = search(store)
    assert "1 answer is a crash or timeout kept from an earlier run; --retry tries it again" in report.notes
    assert not any("--retry" in note for note in whole[1].notes)
