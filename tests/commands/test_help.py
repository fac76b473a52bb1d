"""The options of every command: under headings, one name for one thing, old spellings accepted and hidden."""

import json

import click
import pytest
from every_command import commands

from autotune.cli import autotune, run
from autotune.commands import options
from autotune.commands.command import HEADINGS, OTHERS, Command, Group, Option, sections
from autotune.commands.emit import CODEBASES as CODEBASE_NAMES
from autotune.commands.values import chip_names, preset_names
from autotune.plan.emit import CODEBASES
from autotune.sweep.batch import BATCH_RULES

WIDTHS = (60, 80, 100, 120, 200)


ALL = dict(commands())


def context_of(name):
    return click.Context(ALL[name], info_name=name)


def said(capsys, *words):
    assert run(list(words)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("name", ALL)
def test_every_option_stands_under_a_heading(name):
    assert isinstance(ALL[name], Command)
    found = sections(ALL[name], context_of(name))
    assert ["--help" in one.opts for one in found.pop(OTHERS)] == [True], "name the option in HEADINGS"
    assert list(found) == [heading for heading in HEADINGS if heading in found]


def test_every_group_suggests():
    assert isinstance(autotune, Group)
    assert isinstance(autotune.get_command(click.Context(autotune), "store"), Group)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ALL)
def test_a_help_text_shows_each_option_once_and_no_old_spelling(name, width):
    context = click.Context(ALL[name], info_name=name, terminal_width=width, max_content_width=width)
    lines = ALL[name].get_help(context).splitlines()
    lines = lines[next(place for place, line in enumerate(lines) if line.rstrip(":") in (*HEADINGS, OTHERS)) :]
    for option in ALL[name].params:
        if isinstance(option, click.Option):
            assert sum(line.startswith(f"  {option.opts[0]} ") or line == f"  {option.opts[0]}" for line in lines) == 1
            for old in getattr(option, "old", ()):
                assert not any(line.split()[:1] == [old] for line in lines)


def test_a_help_text_lists_what_a_value_is_chosen_from():
    text = " ".join(ALL["tune"].get_help(context_of("tune")).split())
    assert all(name in text for name in (*preset_names(), *chip_names()))
    assert "[adamw|" in text
    text = " ".join(ALL["emit"].get_help(context_of("emit")).split())
    assert all(name in text for name in CODEBASES)
    assert tuple(CODEBASES) == CODEBASE_NAMES
    rules = next(one for one in ALL["sweep"].params if one.name == "batch_rule").type.choices
    assert rules == BATCH_RULES


def test_an_option_of_one_name_takes_one_kind_of_value_in_every_command():
    kinds = {}
    for name, command in ALL.items():
        for option in command.params:
            if isinstance(option, click.Option):
                choices = frozenset(getattr(option.type, "choices", ()))
                kinds.setdefault(option.opts[0], []).append((name, type(option.type), option.is_flag, choices))
    for spelling, found in kinds.items():
        one_of = [choices for _, _, _, choices in found if choices]
        if spelling == "--target":  # of frontier one of the paper's own machines
            found = [one for one in found if one[0] != "frontier"]
        if spelling == "--batch-rule":
            assert set.intersection(*map(set, one_of)) >= {"paper", "fixed", "deepseek"}
            continue
        assert len({kind[1:] for kind in found}) == 1, (spelling, found)


@pytest.mark.parametrize(
    ("command", "old", "today"),
    [
        ("explain", ["--no-measure"], {"measure_count": 0}),
        ("explain", ["--measure"], {"measure_count": 1}),
        ("explain", ["--measure", "plan.json"], {"measure_count": 1, "plan": "plan.json"}),
        ("explain", ["--measure", "0"], {"measure_count": 0}),
        ("explain", ["--measure", "--quiet"], {"measure_count": 1, "quiet": True}),
        ("sweep", ["--confirm", "3"], {"compile_count": 3}),
        ("sweep", ["--confirm=4"], {"compile_count": 4}),
        ("sweep", ["--batch-rule", "default"], {"batch_rule": "paper"}),
        ("frontier", ["--hardware", "a100"], {"target": "a100"}),
        ("frontier", ["--hardware=v100"], {"target": "v100"}),
        ("frontier", ["--batch-rule", "default"], {"batch_rule": "paper"}),
    ],
)
def test_an_old_spelling_means_what_it_meant(command, old, today):
    given = ALL[command].make_context(command, list(old)).params
    assert {name: str(given[name]) if name == "plan" else given[name] for name in today} == today


def test_a_value_that_looks_like_an_old_spelling_stays_a_value():
    given = ALL["sweep"].make_context("sweep", ["--model", "--confirm", "--compile", "2"]).params
    assert (given["model"], given["compile_count"]) == ("--confirm", 2)


@pytest.mark.slow
def test_scales_say_the_same_in_sweep_and_frontier(capsys):
    slow, quick = (frontier_rows(capsys, *words) for words in ((), ("--scale", "latency=4")))
    assert quick[0]["utilization"] >= slow[0]["utilization"]
    both = frontier_rows(capsys, "--scale", "network_latency=0.25", "--scale", "matmul_latency=0.25")
    names = set(quick[0]) - {"device", "setting"}
    assert [[row[name] for name in names] for row in quick] == [[row[name] for name in names] for row in both]
    sweep = ["sweep", "--model", "tiny", "--target", "cpu", "--chips", "8", "--batch-tokens", "1024", "--seq", "64"]
    steps = []
    for words in ([], ["--scale", "network=1000,hbm=2"], ["--scale", "network:memory=1000", "--scale", "hbm=2"]):
        assert run([*sweep, *words, "--json"]) == 0
        steps.append(json.loads(capsys.readouterr().out)["targets"][0]["points"][0]["step_seconds"])
    assert steps[1] == steps[2] < steps[0]
    assert set(options.RESOURCES) <= {"matmul", "hbm", "capacity", "latency", "network"}


def frontier_rows(capsys, *words):
    assert run(["frontier", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_what_has_an_old_spelling_is_a_known_option():
    known = {spelling for command in ALL.values() for one in command.params for spelling in one.opts}
    old = {
        spelling
        for command in ALL.values()
        for one in command.params
        if isinstance(one, Option)
        for spelling in one.old
    }
    assert {"--confirm", "--no-measure"} <= old and "--confirm" not in known


def test_every_command_that_compiles_takes_a_store():
    for name, command in ALL.items():
        names = {one.name for one in command.params}
        if "compile_count" in names or name == "check":
            assert {"store", "timeout"} <= names, name
