"""The shell completes commands, options and the words of their values, by click's own protocol."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import click
import pytest

from autotune.cli import COMMANDS, autotune
from autotune.commands.completion import register
from autotune.commands.values import axis_names, chip_names, layout_texts, preset_names, target_texts
from autotune.meshes.layout import parse_layout
from autotune.meshes.target import parse_target


def completed(line, monkeypatch, capsys, shell="bash"):
    """What the shell is told at the end of a line."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words) - 1))
    monkeypatch.setenv("_AUTOTUNE_COMPLETE", f"{shell}_complete")
    from autotune.cli import run

    with pytest.raises(SystemExit):
        run([])
    told = capsys.readouterr().out.splitlines()
    if shell == "zsh":
        return [value.replace("\\:", ":") for value in told[1::3]]
    return [line.split("\t")[0].partition(",")[2] for line in told]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_models_and_targets(shell, monkeypatch, capsys):
    def ask(line):
        return completed(line, monkeypatch, capsys, shell)

    assert ask("autotune ") == list(COMMANDS)
    assert ask("autotune tune --memory") == ["--memory-fraction"]
    assert set(ask("autotune tune --model ")) == set(preset_names())
    assert ask("autotune tune --model llama3-8") == ["llama3-8b"]
    assert {"v5e:4x4", "v5e:16x16"} <= set(ask("autotune tune --target v5e"))
    assert set(ask("autotune targets ")) == set(chip_names())
    assert ask("autotune store ") == ["export", "list", "prune"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("autotune sweep --target v5p,h100:1", {"v5p,h100:1x8"}),
        ("autotune tune --optimizer a", {"adamw", "adafactor"}),
        ("autotune tune --axes data,ten", {"data,tensor"}),
        ("autotune tune --fix remat=no", {"remat=none"}),
        ("autotune explain --layout fsdp=4,ten", {"fsdp=4,tensor="}),
        ("autotune tune --layouts fsdp=4;da", {"fsdp=4;data="}),
        ("autotune compare data=2,schedule=z", {"data=2,schedule=zero-bubble"}),
        ("autotune emit plan.json --for max", {"maxtext"}),
        ("autotune frontier --target h100-lo", {"h100-low-latency"}),
        ("autotune frontier --batch-rule ", {"paper", "fixed", "deepseek"}),
        ("autotune frontier --overlap tensor,p", {"tensor,pipeline"}),
        ("autotune sweep --scale hb", {"hbm="}),
        ("autotune words rem", {"remat"}),
        ("autotune models tiny-e", {"tiny-encoder"}),
    ],
)  # fmt: skip
def test_values_go_on_from_what_is_written(line, found, monkeypatch, capsys):
    assert set(completed(line, monkeypatch, capsys)) == found


@pytest.mark.parametrize("line", ["autotune tune --out pl", "autotune tune --model ./conf", "autotune explain pl"])
def test_files_are_left_to_the_shell(line, monkeypatch, capsys):
    assert completed(line, monkeypatch, capsys) == [shlex.split(line)[-1]]


def test_old_spellings_are_not_offered(monkeypatch, capsys):
    assert "--confirm" not in completed("autotune sweep --", monkeypatch, capsys)
    assert "--no-measure" not in completed("autotune explain --", monkeypatch, capsys)


def test_every_target_and_layout_word_that_is_offered_is_one():
    for text in target_texts():
        assert text == "local" or parse_target(text).name == text
    for text in layout_texts():
        name, _, value = text.partition("=")
        if name in ("schedule", "microbatches", "virtual_stages"):
            parse_layout("stage=2,schedule=circular,microbatches=2".replace("schedule=circular", text)
                         if name == "schedule" else f"stage=2,schedule=circular,{name}=2")  # fmt: skip
        elif value:
            parse_layout(text)
    assert {f"{name}=" for name in axis_names()} <= set(layout_texts())


def bash(line, cursor_words):
    """A bash program that completes a line, cut into words as readline cuts it; compopt needs a terminal."""
    script = subprocess.run(
        [sys.executable, "-m", "autotune"], env={**os.environ, "_AUTOTUNE_COMPLETE": "bash_source"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    function = re.search(r"^(\w+)\(\)", script)[1]
    words = " ".join(map(shlex.quote, cursor_words))
    program = f"""{script.replace("complete -o nosort", "true -o nosort")}
compopt() {{ :; }}
COMP_WORDS=({words}); COMP_CWORD={len(cursor_words) - 1}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}
{function} autotune_here
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return program


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "words", "replies"),
    [
        ("autotune tune --target v5e:4", ["autotune", "tune", "--target", "v5e", ":", "4"], {"4x4", "4x8"}),
        ("autotune tune --target=v5e:4", ["autotune", "tune", "--target", "=", "v5e", ":", "4"], {"4x4", "4x8"}),
        ("autotune tune --target v5e:", ["autotune", "tune", "--target", "v5e", ":"], {"4x4", "16x16"}),
        ("autotune tune --fix remat=f", ["autotune", "tune", "--fix", "remat", "=", "f"], {"full"}),
        ("autotune tune --target v5", ["autotune", "tune", "--target", "v5"], {"v5e:4x4", "v5p:2x2x2"}),
    ],
)
def test_bash_replaces_only_what_follows_a_colon_or_an_equals_sign(line, words, replies, tmp_path):
    here = tmp_path / "autotune_here"
    here.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m autotune "$@"\n')
    here.chmod(0o755)
    program = bash(line, words)
    found = subprocess.run(
        ["bash", "-c", program], env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert replies <= set(found.stdout.split()), (found.stdout, found.stderr)
    if ":" in words or "=" in words:
        assert not any(reply.startswith(("v5e", "remat")) for reply in found.stdout.split())


def test_registering_keeps_clicks_other_shells():
    from click.shell_completion import get_completion_class

    assert register().name == "bash" and get_completion_class("zsh") is not None
    assert isinstance(autotune, click.Group)
