"""Screens of every command at five widths and piped: names, targets and layouts stand whole and can be copied."""

import dataclasses
import importlib
import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from autotune.cli import COMMANDS, run
from autotune.commands import run as run_module
from autotune.meshes.hardware import hardware_names
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target
from autotune.models.presets import PRESETS
from autotune.reference_workload import reference_workload
from autotune.search import compare, tune

WIDTHS = (60, 80, 100, 120, 200, None)
LONG = "fsdp=4,remat=save:layer_input+query+attention/offload:key+value+mlp_up,accumulate=2"
STAGES = "data=2,stage=2,remat=minimal,microbatches=4,schedule=circular"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(monkeypatch, width, *words):
    """What a command prints on a terminal of that width; None: into a pipe."""
    text = io.StringIO() if width is None else Terminal()
    monkeypatch.setattr(sys, "stdout", text)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
    code = run(list(words))
    monkeypatch.undo()
    return code, re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


def joined(text):
    """The screen without the line breaks that stand after a comma."""
    return re.sub(r",\s*\n\s*", ",", text)


def fits(text, width, whole=()):
    """Only a line that holds nothing but one piece of a name or layout may be wider than the terminal."""
    for line in text.splitlines():
        assert (
            width is None
            or len(line) <= width
            or (" " not in line.strip() and any(line.strip() in one for one in whole))
        ), line


def stands_alone(name, text):
    return re.search(rf"(?<![\w.:=*-]){re.escape(name)}(?![\w.:=*-])", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_model_and_every_target_stands_whole(width, monkeypatch):
    code, text = screen(monkeypatch, width, "models")
    assert code == 0 and all(stands_alone(name, text) for name in PRESETS)
    fits(text, width)
    code, text = screen(monkeypatch, width, "targets")
    assert code == 0 and "…" not in text
    fits(text, width)
    examples = re.findall(r"(?<=\s)[\w-]+:[\dx*]+(?=\s)", text)
    assert {parse_target(one).hardware.name for one in examples} == set(hardware_names())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["v5e", "h100", "gb200"])
def test_every_figure_of_a_chip_stands_whole(width, name, monkeypatch):
    from autotune.meshes.hardware import figures, load_hardware

    code, text = screen(monkeypatch, width, "targets", name)
    fits(text, width, figures(load_hardware(name)))
    assert code == 0 and all(stands_alone(figure, text) for figure in figures(load_hardware(name)))


SCREENS = {
    "words": (),
    "models": ("deepseek-moe-16b",),
    "frontier": ("--what-helps", "--shapes", "--months", "0.2", "--batch-rule", "fixed"),
    "sweep": (
        *("--model", "tiny", "--target", "cpu", "--chips", "4,8", "--batch-tokens", "1024", "--seq", "64"),
        *("--what-helps", "--shapes", "--price", "cpu=4.2", "--tokens", "1T"),
    ),
}


@pytest.fixture(scope="module")
def shown():
    """Command -> the screen that it shows, as rich has it."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, words in SCREENS.items():
            module = importlib.import_module(COMMANDS[name][0])
            for place in (module, run_module):
                patch.setattr(place, "show", lambda screen, piped=140, name=name: found.setdefault(name, screen), False)
            assert run([name, *words]) == 0
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_other_screens_fit(name, width, shown):
    text = wide(shown[name], width)
    assert "…" not in text
    fits(text, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_layouts_of_a_sweep_can_be_copied(width, shown, monkeypatch):
    texts = re.findall(r"(?<=\s)(?:data|fsdp|tensor)=[^\s]+", wide(shown["sweep"], 200))
    assert len(texts) > 2 and all(str(parse_layout(text)) == text for text in texts)
    assert all(stands_alone(text, joined(wide(shown["sweep"], width))) for text in texts)


@pytest.fixture(scope="module")
def report():
    workload = reference_workload("tiny", batch=16, seq=128, dtype="bfloat16")
    layouts = [parse_layout(text) for text in (LONG, STAGES, "fsdp=4", "data=2,tensor=2,remat=full,zero=1")]
    return tune(workload, "v5e:2x2", layouts=layouts, compile=0)


def wide(renderable, width):
    text = io.StringIO()
    Console(file=text, width=width or 140, no_color=True, highlight=False).print(renderable, crop=False)
    return text.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_layout_of_a_report_can_be_copied(report, width):
    text = joined(wide(report.screen(), width))
    for row in report.rows:
        assert stands_alone(str(row.layout), text), row.layout
        assert parse_layout(str(row.layout)) == row.layout
    assert LONG in map(str, (row.layout for row in report.rows))


@pytest.mark.parametrize("width", WIDTHS)
def test_both_layouts_of_a_comparison_can_be_copied(width):
    workload = reference_workload("tiny", batch=16, seq=128, dtype="bfloat16")
    found = compare(workload, "v5e:2x2", LONG, STAGES, compile=0)
    text = wide(found.screen(), width)
    fits(text, width, (LONG, STAGES))
    assert "(priced)" in text
    assert all(stands_alone(layout, joined(text)) for layout in (LONG, STAGES))


@pytest.mark.parametrize("width", WIDTHS)
def test_layouts_of_the_store_can_be_copied(width, monkeypatch):
    entry = SimpleNamespace(kind="compile", created=1e9, bytes=2048, key={"target": "v5e:2x2", "layout": LONG})
    other = SimpleNamespace(
        kind="blob", created=1e9, bytes=10, key={"name": "evidence-20c50b0469fb1a6bdeeac59063c20aeea0da3187"}
    )
    from autotune.commands import store as store_module

    monkeypatch.setattr(store_module, "open_store", lambda path: SimpleNamespace(entries=lambda: [entry, other]))
    _, text = screen(monkeypatch, width, "store", "list")
    assert stands_alone(LONG, joined(text)) and stands_alone("v5e:2x2", text) and "2 entries" in text
    fits(text, width, (LONG,))


def test_the_terminal_of_these_tests_is_the_one_that_commands_ask(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    assert Console().width == 60 and run_module.sys is sys and dataclasses.is_dataclass(parse_layout("data=2"))
