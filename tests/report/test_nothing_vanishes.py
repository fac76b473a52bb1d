"""On every screen, layouts that are listed and layouts that are counted add up to the heading, status by status."""

import json
import random
import re
from collections import Counter

import pytest
from effort import slow

from autotune.cli import run as command_line
from autotune.meshes.target import parse_target
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.report.html import render_html
from autotune.report.text import render
from autotune.row_status import RowStatus
from autotune.search import search
from autotune.space import enumerate_layouts
from autotune.tables import lines

STATUS = [status.value for status in RowStatus]


def heading(screen: str) -> tuple[int, Counter]:
    """The sum that the heading says, and its parts by status."""
    total, parts = re.search(r"^(\d+) layouts: ([^\[\n]+?) *(?:\[.*)?$", screen, re.M).groups()
    return int(total), Counter({word: int(count) for count, word in (part.split() for part in parts.split(", "))})


def shown(screen: str) -> tuple[int, Counter]:
    """(rows of the ranking, what the other table lists and counts, by status)."""
    ranking, _, others = screen.partition("what is not in the ranking")
    found: Counter = Counter()
    for first, status in re.findall(rf"^(\S+=\S+|\d+ more) +({'|'.join(STATUS)})\b", others, re.M):
        more = re.fullmatch(r"(\d+) more", first)
        found[status] += int(more[1]) if more else 1
    return len(re.findall(r"^ *\d+=? +\S+=\S+ ", ranking, re.M)), found


def agrees(screen: str) -> None:
    total, counts = heading(screen)
    ranked, others = shown(screen)
    assert total == counts.total() == ranked + others.total(), screen
    for status in STATUS:
        if not RowStatus(status).can_run:
            assert counts[status] == others[status], (status, screen)


def page_counts(page: str) -> Counter:
    """What the table of layouts of an HTML page lists and counts, by status."""
    found: Counter = Counter()
    for first, status in re.findall(r"<tr[^>]*><td>(.*?)</td>\s*<td>(\w+)</td>", page):
        if status not in STATUS:  # collectives of the chosen layout
            continue
        more = re.fullmatch(r"(\d+) more", first)
        found[status] += int(more[1]) if more else 1
    return found


def document_counts(document: dict) -> Counter:
    found = Counter(row["status"] for row in document["rows"])
    for item in document["omitted"]:
        found[item["status"]] += item["count"]
    return found


@pytest.fixture
def run(capsys):
    """What a command prints."""

    def output(*arguments: str) -> str:
        assert command_line(list(arguments)) in (0, 1)
        return capsys.readouterr().out

    return output


COMMANDS = {
    "a compile that is never tried": "--model mixtral-8x7b --target v6e:16x16 --batch 2048 --seq 4096 --layouts "
    "fsdp=256,remat=full;fsdp=256,remat=attention;fsdp=32,expert=8,remat=full",
    "a search": "--model llama3-8b --target v5e:16x16 --batch 256 --seq 4096 --axes data,fsdp,tensor",
    "nothing fits": "--model llama3-8b --target a100-40:1x4 --batch 64 --seq 4096",
    "few fit": "--model llama3-8b --target a100-80:1x8 --batch 128 --seq 4096 --axes fsdp,tensor --fix remat=none",
    "none of the named fits": "--model llama3-8b --target h100:1x8 --batch 512 --seq 8192 --layouts "
    "data=8;data=4,tensor=2;fsdp=8;tensor=8;tensor=3,fsdp=1",
    "an illegal one": "--model tiny --target cpu:8 --batch 16 --seq 64 --layouts tensor=8;fsdp=8;data=8",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_tune(name, run, tmp_path):
    command = ["tune", *COMMANDS[name].split(), "--compile", "0", "--measure", "0", "--store", str(tmp_path / "store")]
    if name == "none of the named fits":
        command[command.index("--layouts") + 1] = "data=8;data=4,tensor=2;fsdp=8;fsdp=4,tensor=2,remat=dots"
    screen = run(*command, "--html", str(tmp_path / "page.html"))
    agrees(screen)
    total, counts = heading(screen)
    assert page_counts((tmp_path / "page.html").read_text()) == counts
    document = json.loads(run(*command, "--json"))
    assert document_counts(document) == counts == Counter(document["counts"])


def test_every_layout_that_was_named_has_a_row(run, tmp_path):
    screen = run("tune", *COMMANDS["a compile that is never tried"].split(), "--compile", "0", "--store", str(tmp_path))
    assert not re.search(r"^\d+ more", screen, re.M)
    assert re.search(r"^fsdp=256,remat=attention +oom ", screen, re.M)


@pytest.mark.parametrize(
    ("options", "layouts"),
    [
        ("--workload toy_steps:own_step --target cpu:2", ("data=2", "fsdp=2", "tensor=2")),
        *slow([("--model tiny --target cpu:8 --batch 16 --seq 64", ("data=8", "fsdp=8", "data=4,fsdp=2", "tensor=8"))]),
    ],
    ids=["a step", "a model"],
)
def test_compiled_and_measured_layouts_count_too(run, tmp_path, little_effort, options, layouts):
    options, first = options.split(), layouts[0]
    named = ["--layouts", ";".join(layouts), *"--compile 2 --measure 1".split()]
    store = ["--store", str(tmp_path / "store")]
    screen = run("tune", *options, *named, *store, "--html", str(tmp_path / "page.html"))
    agrees(screen)
    assert page_counts((tmp_path / "page.html").read_text()) == heading(screen)[1]
    step = tmp_path / "step.json"
    explained = run("explain", "--layout", first, *options, *store, "--no-measure", "--timeline", str(step))
    agrees(explained)
    assert json.loads(step.read_text())["otherData"]["layout"].startswith(first)
    assert heading(explained)[0] == 1


def test_compare_shows_both_where_one_fails(run, tmp_path, little_effort):
    options = "--model tiny --target cpu:8 --batch 16 --seq 64".split()
    screen = run("compare", "data=8", "tensor=8", *options, "--store", str(tmp_path))
    assert "data=8: compiled" in screen and "tensor=8: illegal: " in screen


def test_any_handful_of_named_layouts_is_listed_whole():
    workload = reference_workload("llama3-8b", batch=128, seq=4096, dtype="bfloat16")
    target = parse_target("h100:2x8")
    table = enumerate_layouts(target, workload.axes, workload.sequences, workload.transformer.layers, {})
    randomness = random.Random(4)
    for count in (1, 2, 13, 40):
        rows = randomness.sample(range(len(table)), count)
        layouts = tuple(table.layout(row) for row in rows)
        try:
            report = search(
                workload, target, axes=None, layouts=layouts, fix=(), compile_count=0, measure_count=0, jobs=1
            )
        except ValueError:  # none of them is legal
            assert count < 13
            continue
        screen = "\n".join(lines(render(report)))
        agrees(screen)
        assert not re.search(r"\d+ more", screen)
        assert page_counts(render_html(report)) == Counter(report.counts)
        assert document_counts(report_to_json(report)) == Counter(report.counts)
